"""Calls from the guest: the trigger socket, qrexec-client-vm, windows, and every way to go away."""

import hashlib
import os
import select
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crannog.guest import agent as agent_module
from crannog.guest.agent import Callers
from crannog.rpc import frames
from tests.processes import memory_of
from tests.unit.agent_world import AgentWorld, spins
from tests.unit.rpc_world import wait_until

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[AgentWorld]:
    world = AgentWorld(tmp_path)
    yield world
    world.close()


def trigger(service: bytes = b"t.Service+", target: bytes = b"work", source: bytes = b"") -> bytes:
    body = frames.TRIGGER_PARAMS.pack(source, target, b"SOCKET") + service + b"\0"
    return frames.encode_message(frames.TRIGGER_SERVICE4, body)


def ask(world: AgentWorld, data: bytes = b"") -> socket.socket:
    client = world.connect()
    client.sendall(data or trigger())
    return client


def connect_call(world: AgentWorld, stream: int) -> socket.socket:
    """Return a client whose call is allowed."""
    client = ask(world)
    world.accept_call(stream)
    assert client.recv(8) == frames.encode_message(frames.SERVICE_CONNECT)
    return client


def is_closed(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def grant(world: AgentWorld, stream: int, frame: frames.Frame) -> None:
    world.send(stream, frames.CREDIT, frames.NUMBER.pack(len(frame.body) + frames.HEADER.size))


def take_input(world: AgentWorld, stream: int) -> bytes:
    """Return all that a client has sent, giving credit."""
    parts = []
    while (frame := world.expect(stream, frames.DATA_STDIN)).body:
        parts.append(frame.body)
        grant(world, stream, frame)
    return b"".join(parts)


def end(world: AgentWorld, stream: int, code: int = 0) -> None:
    for kind in (frames.DATA_STDOUT, frames.DATA_STDERR):
        world.send(stream, kind)
    world.send(stream, frames.DATA_EXIT_CODE, frames.NUMBER.pack(code))


def send_output(world: AgentWorld, stream: int, data: bytes) -> None:
    """Send data as the host does: no more than the window and what was granted."""
    credit = frames.WINDOW
    for at in range(0, len(data), 60000):
        part = data[at : at + 60000]
        while credit < len(part) + frames.HEADER.size:
            credit += frames.NUMBER.unpack(world.expect(stream, frames.CREDIT).body)[0]
        credit -= len(part) + frames.HEADER.size
        world.send(stream, frames.DATA_STDOUT, part)


def test_the_trigger_socket_is_for_all_users(world: AgentWorld) -> None:
    assert os.stat(world.trigger).st_mode & 0o777 == 0o666
    assert os.stat(os.path.dirname(world.trigger)).st_mode & 0o777 == 0o755
    assert os.listdir(os.path.dirname(world.trigger)) == ["trigger"]


def test_a_call_with_data_both_ways_and_an_exit_code(world: AgentWorld) -> None:
    child = world.call_out("work", "t.Service+arg")
    assert world.accept_call(1001) == (b"", b"work", b"t.Service+arg")
    assert child.stdin is not None
    child.stdin.write(b"question\0\xff")
    child.stdin.close()
    child.stdin = None
    assert take_input(world, 1001) == b"question\0\xff"
    world.send(1001, frames.DATA_STDERR, b"note\n")
    world.send(1001, frames.DATA_STDOUT, b"answer\0\xfe")
    end(world, 1001, 42)
    assert child.communicate(timeout=20) == (b"answer\0\xfe", b"note\n")
    assert child.returncode == 42


def test_a_refused_call_is_126(world: AgentWorld) -> None:
    child = world.call_out("$default", "t.Service", stdin=subprocess.DEVNULL)
    source, target, ident, name = world.take_request()
    assert (source, target, name) == (b"", b"@default", b"t.Service")
    world.send(0, frames.SERVICE_REFUSED, ident)
    assert child.communicate(timeout=20) == (b"", b"Request refused\n")
    assert child.returncode == 126


def test_the_agent_picks_the_identity_itself(world: AgentWorld) -> None:
    clients = [ask(world), ask(world)]
    idents = [world.take_request()[2] for _ in clients]
    assert idents == [b"SOCKET1".ljust(32, b"\0"), b"SOCKET2".ljust(32, b"\0")]
    world.send(0, frames.SERVICE_REFUSED, idents[1])
    assert is_closed(clients[1])
    world.send(9, frames.SERVICE_CONNECT, idents[0])
    assert clients[0].recv(8) == frames.encode_message(frames.SERVICE_CONNECT)


def test_older_requests_are_taken(world: AgentWorld) -> None:
    third = b"work".ljust(64, b"\0") + b"SOCKET".ljust(32, b"\0") + b"t.Third+x\0"
    second = b"t.Second".ljust(64, b"\0") + b"work".ljust(32, b"\0") + b"SOCKET".ljust(32, b"\0")
    clients = [ask(world, frames.encode_message(0x212, third)), ask(world, frames.encode_message(0x210, second))]
    requests = sorted((world.take_request()[::3], world.held) for _ in clients)
    assert [request[0] for request in requests] == [(b"", b"t.Second"), (b"", b"t.Third+x")]


def test_the_source_of_a_relay_is_passed_on(world: AgentWorld) -> None:
    world.call_out("-s", "remote-vm", "work", "t.Service+", stdin=subprocess.DEVNULL)
    assert world.accept_call(7)[0] == b"remote-vm"


def test_20_mb_each_way_arrive_unchanged(world: AgentWorld) -> None:
    data = os.urandom(1 << 20) * 20
    child = world.call_out("work", "t.Service+")
    world.accept_call(5)
    received: list[bytes] = []

    def feed() -> None:
        assert child.stdin is not None
        child.stdin.write(data)
        child.stdin.close()

    def drain() -> None:
        assert child.stdout is not None
        received.append(child.stdout.read())

    threads = [threading.Thread(target=feed), threading.Thread(target=drain)]
    for thread in threads:
        thread.start()
    assert hashlib.sha256(take_input(world, 5)).digest() == hashlib.sha256(data).digest()
    send_output(world, 5, data)
    end(world, 5)
    for thread in threads:
        thread.join()
    assert child.wait(60) == 0
    assert received[0] == data


def test_a_client_that_stops_reading_holds_one_window_and_stops_nobody(world: AgentWorld) -> None:
    client = connect_call(world, 3)
    before = memory_of(world.agent.pid)
    for _ in range(frames.WINDOW // (60000 + frames.HEADER.size)):
        world.send(3, frames.DATA_STDOUT, b"x" * 60000)
    assert world.run("DEFAULT:echo alive")[1] == b"alive\n"
    assert memory_of(world.agent.pid) - before < frames.WINDOW + (2 << 20)
    assert not spins(world.agent.pid)
    client.close()
    world.expect(3, frames.CLOSE)


def test_a_client_without_credit_is_not_read(world: AgentWorld) -> None:
    client = connect_call(world, 3)
    client.settimeout(0.5)
    with pytest.raises(TimeoutError):
        client.sendall(frames.encode_message(frames.DATA_STDIN, b"x" * 60000) * 80)
    received = []
    while not world.is_quiet(3):
        received.append(world.expect(3, frames.DATA_STDIN))
    assert sum(len(frame.body) + frames.HEADER.size for frame in received) <= frames.WINDOW
    assert not spins(world.agent.pid)
    grant(world, 3, received[0])
    assert not world.is_quiet(3)


def test_half_closing(world: AgentWorld) -> None:
    child = world.call_out("work", "t.Service+", stdin=subprocess.DEVNULL)
    world.accept_call(4)
    assert take_input(world, 4) == b""
    world.send(4, frames.DATA_STDOUT, b"after the end of input")
    end(world, 4, 1)
    assert child.communicate(timeout=20)[0] == b"after the end of input"
    assert child.returncode == 1


def test_output_that_ends_early_is_seen_while_input_goes_on(world: AgentWorld) -> None:
    child = world.call_out("work", "t.Service+")
    world.accept_call(4)
    world.send(4, frames.DATA_STDOUT)
    assert child.stdout is not None
    assert child.stdout.read() == b""
    assert child.stdin is not None
    child.stdin.write(b"still")
    child.stdin.close()
    child.stdin = None
    assert take_input(world, 4) == b"still"
    end(world, 4)
    assert child.wait(60) == 0


def test_100_calls_at_once(world: AgentWorld) -> None:
    children = [world.call_out("work", f"t.Service+{number}", stdin=subprocess.DEVNULL) for number in range(100)]
    names = {}
    for stream in range(1, 101):
        _, _, ident, names[stream] = world.take_request()
        world.send(stream, frames.SERVICE_CONNECT, ident)
    for stream, name in names.items():
        world.send(stream, frames.DATA_STDOUT, name)
        end(world, stream, stream % 7)
    by_name = {name: stream for stream, name in names.items()}
    for number, child in enumerate(children):
        out, err = child.communicate(timeout=30)
        assert (out, err) == (b"t.Service+%d" % number, b"")
        assert child.returncode == by_name[out] % 7


def test_64_requests_wait_at_the_host_and_the_others_for_their_turn(world: AgentWorld) -> None:
    clients = [ask(world, trigger(b"t.Number+%d" % number)) for number in range(80)]
    idents = [world.take_request()[2] for _ in range(agent_module.TRIGGERS_MAX)]
    assert world.is_quiet(0)
    assert not spins(world.agent.pid)
    for client in clients[:10]:
        client.close()
    assert world.is_quiet(0)
    world.send(0, frames.SERVICE_REFUSED, idents[0])
    world.take_request()
    assert world.is_quiet(0)


def test_clients_beyond_the_limit_wait_and_are_served_later(world: AgentWorld) -> None:
    idle = [world.connect() for _ in range(agent_module.CALLERS_MAX)]
    late = ask(world)
    assert world.is_quiet(0)
    assert not spins(world.agent.pid)
    idle[5].close()
    assert world.take_request()[3] == b"t.Service+"
    late.close()


def start_client(folder: Path, sent: list[frames.Frame]) -> tuple[Callers, socket.socket]:
    """Return the agent's part that serves clients, in this process, and one client that it has accepted."""
    callers = Callers(str(folder / "trigger"), lambda *frame: sent.append(frames.Frame(*frame)))
    callers.listen()
    client = socket.socket(socket.AF_UNIX)
    client.connect(callers.path)
    callers.accept()
    return callers, client


def test_a_client_that_never_finishes_its_request_is_dropped(tmp_path: Path) -> None:
    sent: list[frames.Frame] = []
    callers, client = start_client(tmp_path, sent)
    with client:
        (served,) = callers.clients.values()
        client.sendall(trigger()[:-3])
        callers.serve(served, select.POLLIN)
        callers.look_at_clock(served.deadline - 0.1)
        assert callers.list_deadlines() == [served.deadline]
        callers.look_at_clock(served.deadline)
        assert not callers.clients
        assert is_closed(client)
    assert not sent
    assert callers.listener is not None
    callers.listener.close()


@settings(max_examples=150)
@given(
    parts=st.lists(
        st.one_of(
            st.binary(max_size=300),
            st.builds(
                frames.encode_message, st.sampled_from([0x190, 0x210, 0x212, 0x213, 0x193]), st.binary(max_size=300)
            ),
            st.just(trigger()),
        ),
        max_size=6,
    )
)
def test_whatever_a_client_sends_the_host_gets_only_whole_requests_and_data(parts: list[bytes]) -> None:
    sent: list[frames.Frame] = []
    with tempfile.TemporaryDirectory() as folder:
        callers, client = start_client(Path(folder), sent)
        served = next(iter(callers.clients.values()))
        with client:
            for part in parts:
                if served.fd in callers.clients:
                    client.sendall(part)
                    callers.serve(served, served.list_events(may_read=True))
                    callers.look_at_clock(0)
                if served.number and not served.stream:
                    callers.answer(9, frames.SERVICE_CONNECT, b"SOCKET1".ljust(32, b"\0"))
            callers.drop_all()
        assert callers.listener is not None
        callers.listener.close()
    requests = [frame for frame in sent if frame.type == frames.TRIGGER_SERVICE4]
    data = [frame for frame in sent if frame.type == frames.DATA_STDIN]
    assert len(requests) <= 1
    assert all(frame.stream == 0 and frame.body[160:].find(b"\0") == len(frame.body) - 161 for frame in requests)
    assert all(frame.stream == 9 for frame in data)
    assert sum(not frame.body for frame in data) <= 1
    assert {frame.type for frame in sent} <= {frames.TRIGGER_SERVICE4, frames.DATA_STDIN, frames.CLOSE}


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff" * 8,
        b"\0" * 400,
        frames.encode_message(frames.DATA_STDIN, b"x"),
        frames.encode_message(frames.TRIGGER_SERVICE4),
        frames.encode_message(frames.TRIGGER_SERVICE4, bytes(160)),
        frames.encode_message(frames.TRIGGER_SERVICE4, bytes(160) + b"no end"),
        frames.encode_message(frames.TRIGGER_SERVICE4, bytes(160) + b"two\0ends\0"),
        frames.encode_message(frames.TRIGGER_SERVICE4, b"x" * 64 + bytes(96) + b"t.Service\0"),
        frames.encode_message(frames.TRIGGER_SERVICE4, bytes(64) + b"x" * 64 + bytes(32) + b"t.Service\0"),
        frames.encode_message(frames.TRIGGER_SERVICE4, bytes(160) + b"x" * 65000 + b"\0"),
        frames.LOCAL_HEADER.pack(frames.TRIGGER_SERVICE4, 65537) + bytes(100),
        frames.encode_message(0x212, bytes(96)),
        frames.encode_message(0x210, bytes(127)),
        frames.encode_message(0x210, b"x" * 64 + bytes(64)),
    ],
)
def test_garbage_ends_its_own_client_alone(world: AgentWorld, garbage: bytes) -> None:
    good = connect_call(world, 2)
    assert is_closed(ask(world, garbage))
    good.sendall(frames.encode_message(frames.DATA_STDIN, b"fine"))
    assert world.expect(2, frames.DATA_STDIN).body == b"fine"
    assert not world.held


@pytest.mark.parametrize(
    "garbage",
    [
        trigger(),
        frames.encode_message(frames.DATA_STDOUT, b"x"),
        frames.LOCAL_HEADER.pack(frames.DATA_STDIN, 65537),
        frames.encode_message(frames.DATA_STDIN) * 2,
    ],
)
def test_garbage_in_a_call_ends_that_call(world: AgentWorld, garbage: bytes) -> None:
    client = connect_call(world, 2)
    client.sendall(garbage)
    assert is_closed(client)
    world.expect(2, frames.CLOSE)
    connect_call(world, 3)


def test_a_request_may_come_byte_by_byte(world: AgentWorld) -> None:
    client = world.connect()
    for byte in trigger():
        client.sendall(bytes([byte]))
    assert world.take_request()[3] == b"t.Service+"


def test_a_client_that_is_gone_when_the_answer_comes_has_its_stream_closed(world: AgentWorld) -> None:
    client = ask(world)
    ident = world.take_request()[2]
    client.close()
    assert world.is_quiet(0)
    world.send(6, frames.SERVICE_CONNECT, ident)
    world.expect(6, frames.CLOSE)
    world.send(0, frames.SERVICE_REFUSED, ident)
    assert world.run("DEFAULT:echo alive")[1] == b"alive\n"


def test_kill_9_of_a_client_closes_its_stream(world: AgentWorld) -> None:
    child = world.call_out("work", "t.Service+")
    world.accept_call(8)
    child.kill()
    world.expect(8, frames.CLOSE)
    world.send(8, frames.DATA_STDOUT, b"late")
    end(world, 8)
    assert world.run("DEFAULT:echo alive")[1] == b"alive\n"


def test_kill_9_of_the_agent_ends_calls_and_the_next_agent_serves(world: AgentWorld) -> None:
    child = world.call_out("work", "t.Service+")
    world.accept_call(8)
    world.send(8, frames.DATA_STDOUT, b"begun")
    assert child.stdout is not None
    assert child.stdout.read(5) == b"begun"
    waiting = ask(world)
    world.take_request()
    world.agent.kill()
    assert child.wait(60) == 125
    assert child.stderr is not None
    assert child.stderr.read() == b"the connection to the service was lost\n"
    assert is_closed(waiting)
    world.port.close()
    world.start_agent()
    connect_call(world, 1)


def test_a_host_that_loses_step_ends_all_calls_of_the_guest(world: AgentWorld) -> None:
    connected = connect_call(world, 8)
    waiting = ask(world)
    world.take_request()
    world.port.sendall(frames.PADDING)
    assert is_closed(connected)
    assert is_closed(waiting)
    early = ask(world)  # asked while there is no host: it waits
    world.synchronise()
    assert world.take_request()[3] == b"t.Service+"
    early.close()
    connect_call(world, 8)


def test_a_host_that_closes_a_call_ends_its_client(world: AgentWorld) -> None:
    client = connect_call(world, 8)
    world.send(8, frames.CLOSE)
    assert is_closed(client)
    assert world.is_quiet(8)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_an_answer_of_the_wrong_kind_starts_a_new_synchronisation(world: AgentWorld, size: int) -> None:
    client = ask(world)
    world.take_request()
    world.send(0, frames.SERVICE_CONNECT, bytes(size))
    assert is_closed(client)
    world.synchronise()


def test_a_call_from_the_guest_cannot_take_the_stream_of_a_command(world: AgentWorld) -> None:
    stream = world.start("DEFAULT:sleep 20")
    client = ask(world)
    world.send(stream, frames.SERVICE_CONNECT, world.take_request()[2])
    assert is_closed(client)
    world.synchronise()


def test_an_agent_that_cannot_make_its_socket_still_serves_the_host(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    world = AgentWorld(tmp_path)
    try:
        assert world.run("DEFAULT:echo alive")[1] == b"alive\n"
        assert "cannot call services" in (tmp_path / "agent.log").read_text()
    finally:
        world.close()


def test_a_stale_socket_file_is_replaced(world: AgentWorld) -> None:
    world.agent.send_signal(signal.SIGKILL)
    world.agent.wait()
    world.port.close()
    wait_until(lambda: os.path.exists(world.trigger))
    world.start_agent()
    connect_call(world, 1)
