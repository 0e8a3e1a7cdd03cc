"""Much data through the guest's agent: moved pages of pipes, frames in pieces, wide windows, pipes that rest."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crannog.errors import ProtocolError
from crannog.guest import agent as agent_module
from crannog.guest.agent import Agent, BadFrame, Call, Calls, Outbox, Parser, Port
from crannog.rpc import frames
from crannog.rpc.frames import FrameParser, Marker
from tests.unit.agent_world import AgentWorld

pytestmark = pytest.mark.timeout(60)
HEADER = frames.HEADER.size


@pytest.fixture
def world(tmp_path: Path) -> Iterator[AgentWorld]:
    world = AgentWorld(tmp_path)
    yield world
    world.close()


class Pipes:
    """A service's output, a port that takes 64 KiB at once, and the outbox between them."""

    def __init__(self) -> None:
        self.theirs, self.service = os.pipe()
        self.host, self.port = os.pipe()
        for fd in (self.theirs, self.host, self.port):
            os.set_blocking(fd, False)
        self.outbox = Outbox(self.flush)

    def flush(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self.outbox.write(self.port)

    def received(self) -> list[frames.Frame]:
        """Return all frames that come out, as the port is read."""
        parser = FrameParser()
        parser.is_hunting, parser.data_max = False, frames.BULK_MAX
        found: list[frames.Frame] = []
        while True:
            self.flush()
            try:
                parser.feed(os.read(self.host, 65536))
            except BlockingIOError:
                return found
            while frame := parser.next_frame():
                found.append(frame)

    def close(self) -> None:
        self.outbox.close()
        for fd in (self.theirs, self.service, self.host, self.port):
            os.close(fd)


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    pipes = Pipes()
    yield pipes
    pipes.close()


@given(
    st.lists(st.tuples(st.sampled_from([frames.DATA_STDIN, frames.CREDIT]), st.binary(max_size=90)), max_size=8),
    st.integers(1, 64),
)
def test_frames_in_pieces_are_the_same_data_and_cost_the_same(sent: list[tuple[int, bytes]], step: int) -> None:
    data = b"".join(frames.encode_frame(5, kind, body) for kind, body in sent)
    parser = Parser()
    others, stdin, cost, ends = [], b"", 0, 0
    for at in range(0, len(data), step):
        rest = memoryview(data)[at : at + step]
        while rest:
            frame, rest = parser.cut(rest)
            if frame and frame[1] == frames.DATA_STDIN:
                stdin += frame[2]
                cost += frame[3]
                ends += not frame[2]
            elif frame:
                others.append(bytes(frame[2]))
    bodies = [body for kind, body in sent if kind == frames.DATA_STDIN]
    assert others == [body for kind, body in sent if kind == frames.CREDIT]
    assert stdin == b"".join(bodies)
    assert ends == bodies.count(b"")
    assert cost == sum(HEADER + len(body) for body in bodies if body)


@pytest.mark.parametrize("header", [(1, frames.DATA_STDIN, frames.BODY_MAX + 1), (0, 0, 0), (1, 0x999, 1)])
def test_a_wrong_header_is_noticed_before_its_body(header: tuple[int, int, int]) -> None:
    with pytest.raises(BadFrame):
        Parser().cut(memoryview(frames.HEADER.pack(*header)))


def test_pages_of_a_pipe_stay_between_the_frames_around_them(pipes: Pipes) -> None:
    data = os.urandom(50000)
    os.write(pipes.service, data)
    pipes.outbox.put(frames.HEADER.pack(1, frames.DATA_STDOUT, 5), b"first")
    assert pipes.outbox.move(2, frames.DATA_STDOUT, pipes.theirs, frames.BULK_MAX) == len(data)
    pipes.outbox.put(frames.HEADER.pack(3, frames.DATA_STDERR, 4), b"last")
    assert len(pipes.outbox) == 3 * HEADER + 9 + len(data)
    assert pipes.received() == [
        (1, frames.DATA_STDOUT, b"first"),
        (2, frames.DATA_STDOUT, data),
        (3, frames.DATA_STDERR, b"last"),
    ]
    assert len(pipes.outbox) == 0


def test_a_port_that_is_full_in_the_midst_of_the_pages_loses_nothing(pipes: Pipes) -> None:
    pipes.outbox.put(frames.HEADER.pack(1, frames.DATA_STDOUT, 40000), bytes(40000))
    sent = []
    for _ in range(5):
        sent.append(os.urandom(60000))
        os.write(pipes.service, sent[-1])
        with contextlib.suppress(BlockingIOError):
            while pipes.outbox.move(2, frames.DATA_STDOUT, pipes.theirs, 30000):
                pass
        if len(sent) == 1:
            assert pipes.outbox.moved
            with pytest.raises(BlockingIOError):
                pipes.outbox.move(2, frames.DATA_STDOUT, pipes.theirs, 30000)
        found = pipes.received()[len(sent) == 1 :]
        while rest := _move(pipes):
            found += pipes.received()
            assert rest
        assert b"".join(frame.body for frame in found) == sent[-1]


def _move(pipes: Pipes) -> int:
    try:
        return pipes.outbox.move(2, frames.DATA_STDOUT, pipes.theirs, 30000)
    except BlockingIOError:
        return 0


def test_who_reads_its_own_output_does_not_make_a_frame_shorter_than_its_header_says(pipes: Pipes) -> None:
    os.write(pipes.service, b"a" * 20000)
    assert pipes.outbox.move(1, frames.DATA_STDOUT, pipes.theirs, 20000) == 20000
    with pytest.raises(BlockingIOError):
        os.read(pipes.theirs, 20000)  # it is in the outbox's own pipe now
    assert pipes.received() == [(1, frames.DATA_STDOUT, b"a" * 20000)]


def test_the_end_of_a_pipe_is_0_and_no_frame(pipes: Pipes) -> None:
    os.close(pipes.service)
    assert pipes.outbox.move(1, frames.DATA_STDOUT, pipes.theirs, 20000) == 0
    assert pipes.received() == []
    pipes.service = os.open(os.devnull, os.O_RDONLY)


def test_a_port_that_takes_no_pages_gets_copies(pipes: Pipes, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.splice

    def splice(source: int, target: int, count: int, **options: int) -> int:
        if target == pipes.port:
            raise OSError(errno.EINVAL, "this port has no splice")
        return real(source, target, count, **options)

    monkeypatch.setattr(os, "splice", splice)
    os.write(pipes.service, b"a" * 20000)
    assert pipes.outbox.move(1, frames.DATA_STDOUT, pipes.theirs, 20000) == 20000
    pipes.outbox.put(frames.HEADER.pack(1, frames.DATA_STDOUT, 1), b"b")
    assert pipes.received() == [(1, frames.DATA_STDOUT, b"a" * 20000), (1, frames.DATA_STDOUT, b"b")]
    assert pipes.outbox.move(1, frames.DATA_STDOUT, pipes.theirs, 20000) == -1


def test_a_new_beginning_drops_the_pages_too(pipes: Pipes) -> None:
    os.write(pipes.service, b"a" * 20000)
    pipes.outbox.move(1, frames.DATA_STDOUT, pipes.theirs, 20000)
    pipes.outbox.put(frames.HEADER.pack(1, frames.DATA_STDOUT, 1), b"b")
    pipes.outbox.start_with(frames.encode_frame(0, frames.HELLO, bytes(4)))
    assert pipes.received() == [(0, frames.HELLO, bytes(4))]


def _say_hello(world: AgentWorld, version: int) -> None:
    world.parser.data_max = frames.BULK_MAX
    world.send(0, frames.HELLO, frames.NUMBER.pack(version))


@pytest.mark.parametrize(("version", "most"), [(0, frames.BODY_MAX), (3, frames.BODY_MAX), (4, frames.BULK_MAX)])
def test_the_frames_are_as_long_as_the_host_says_that_it_takes(world: AgentWorld, version: int, most: int) -> None:
    data = os.urandom(1 << 20) * 8
    (world.folder / "data").write_bytes(data)
    world.parser.data_max = frames.BULK_MAX
    if version:
        _say_hello(world, version)
    stream = world.start(f"DEFAULT:exec cat {world.folder}/data")
    got, longest = bytearray(), 0
    while (frame := world.expect(stream, frames.DATA_STDOUT, frames.DATA_EXIT_CODE)).type == frames.DATA_STDOUT:
        got += frame.body
        longest = max(longest, len(frame.body))
        if frame.body:
            world.send(stream, frames.CREDIT, frames.NUMBER.pack(len(frame.body) + HEADER))
    assert got == data
    assert frames.BODY_MAX // 2 < longest <= most
    assert (longest > frames.BODY_MAX) == (version == 4)


def test_a_host_that_comes_anew_gets_short_frames_until_it_says_hello(world: AgentWorld) -> None:
    _say_hello(world, 4)
    world.port.sendall(frames.PADDING)
    world.synchronise()
    stream = world.start("DEFAULT:exec head -c 200000 /dev/zero")
    sizes = []
    while (frame := world.expect(stream, frames.DATA_STDOUT, frames.DATA_EXIT_CODE)).type == frames.DATA_STDOUT:
        sizes.append(len(frame.body))
    assert sum(sizes) == 200000
    assert max(sizes) <= frames.BODY_MAX


@pytest.mark.parametrize("version", [0, 3, 4])
def test_a_stream_with_much_input_gets_a_wide_window_of_a_host_that_takes_it(world: AgentWorld, version: int) -> None:
    if version:
        _say_hello(world, version)
    stream = world.start("DEFAULT:exec cat >/dev/null")
    credit, sent = frames.WINDOW, 0
    most = 0
    while sent < 4 << 20:
        while credit > frames.BODY_MAX + HEADER:
            world.send(stream, frames.DATA_STDIN, bytes(frames.BODY_MAX))
            credit -= frames.BODY_MAX + HEADER
            sent += frames.BODY_MAX + HEADER
        credit += frames.NUMBER.unpack(world.expect(stream, frames.CREDIT).body)[0]
        most = max(most, credit)
    assert most <= (frames.WIDE_WINDOW if version == 4 else frames.WINDOW)
    assert (most > frames.WINDOW) == (version == 4)
    world.send(stream, frames.DATA_STDIN)
    assert world.finish(stream)[0] == 0


class StandInCall(Call):
    """A call without a process."""

    def is_over(self) -> bool:
        return False


def test_few_streams_have_a_wide_window_at_a_time() -> None:
    sent: list[tuple[int, int, bytes]] = []
    calls = Calls(lambda *frame: sent.append(frame))
    calls.body_max = frames.BULK_MAX
    for stream in range(1, frames.WIDE_STREAMS + 3):
        call = calls.by_stream[stream] = StandInCall(stream)
        call.ungranted = frames.WIDE_AFTER
        calls.give_credit(call)
    grants = [frames.NUMBER.unpack(body)[0] for _, kind, body in sent if kind == frames.CREDIT]
    wide = frames.WIDE_AFTER + frames.WIDE_WINDOW - frames.WINDOW
    assert grants == [wide] * frames.WIDE_STREAMS + [frames.WIDE_AFTER] * 2
    calls.close_stream(1)
    last = calls.by_stream[frames.WIDE_STREAMS + 2]
    last.ungranted = frames.WIDE_AFTER
    calls.give_credit(last)
    assert frames.NUMBER.unpack(sent[-1][2])[0] == wide


def test_bulk_output_rests_and_little_output_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("crannog.guest.agent.time.monotonic", lambda: now[0])
    call = StandInCall(1)
    call.outputs = {frames.DATA_STDOUT: 7, frames.DATA_STDERR: 8}
    call.note_output(frames.DATA_STDERR, agent_module.PAGE - 1, is_empty=True)
    call.note_output(frames.DATA_STDOUT, agent_module.PAGE, is_empty=True)
    assert call.list_outputs() == {frames.DATA_STDERR: 8}
    for _ in range(9):
        call.note_output(frames.DATA_STDOUT, agent_module.PAGE, is_empty=True)
        assert call.rests[frames.DATA_STDOUT].end - now[0] <= agent_module.REST_MOST + 1e-9
    now[0] += agent_module.REST_MOST
    assert frames.DATA_STDOUT in call.list_outputs()
    for _ in range(9):  # one that fills its pipe meanwhile is kept waiting by it
        call.note_output(frames.DATA_STDOUT, agent_module.PIPE_MAX, is_empty=True)
    assert frames.DATA_STDOUT in call.list_outputs()


def test_a_pipe_that_is_not_empty_does_not_rest() -> None:
    call = StandInCall(1)
    call.outputs = {frames.DATA_STDOUT: 7}
    for _ in range(9):
        call.note_output(frames.DATA_STDOUT, agent_module.PAGE, is_empty=False)
        assert call.list_outputs() == call.outputs


def test_what_is_asked_for_may_be_answered_at_once() -> None:
    calls = Calls(lambda *_: None)
    call = calls.by_stream[1] = StandInCall(1)
    call.outputs = {frames.DATA_STDOUT: 7}
    call.note_output(frames.DATA_STDOUT, agent_module.PAGE, is_empty=True)
    assert call.list_outputs() == {}
    calls.dispatch(1, frames.DATA_STDIN, b"more")
    assert call.list_outputs() == {frames.DATA_STDOUT: 7}


def test_padding_ends_the_longest_frame_that_a_dead_agent_may_have_begun() -> None:
    parser = FrameParser()
    parser.is_hunting, parser.data_max = False, frames.BULK_MAX
    parser.feed(frames.HEADER.pack(7, frames.DATA_STDOUT, frames.BULK_MAX) + agent_module.GUEST_PADDING)
    parser.feed(frames.encode_marker(Marker(b"R", b"n" * 8, bytes(8))))
    with contextlib.suppress(ProtocolError):
        while parser.next_frame():
            pass
    assert parser.is_hunting
    assert parser.next_marker() == Marker(b"R", b"n" * 8, bytes(8))


def test_what_is_due_between_two_looks_at_the_clock_is_not_slept_over(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Agent(Port("", is_socket=False))
    try:
        agent.is_synced = True
        agent._look_at_clock()
        now = agent.looked_at
        call = agent.calls.by_stream[1] = StandInCall(1)
        call.outputs = {frames.DATA_STDOUT: 7}
        monkeypatch.setattr("crannog.guest.agent.time.monotonic", lambda: now)
        call.note_output(frames.DATA_STDOUT, agent_module.PAGE, is_empty=True)
        assert agent.calls.list_waits(may_read=True) == {}
        monkeypatch.setattr("crannog.guest.agent.time.monotonic", lambda: now + 1)
        assert agent._timeout() < 0.1
        agent._look_at_clock()
        assert agent._timeout() > 1000, "and it is due once"
        assert list(agent.calls.list_waits(may_read=True)) == [7]
        call.outputs = {}
    finally:
        agent.close()
