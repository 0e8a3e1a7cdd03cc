"""Much data through a VM's RPC process: long frames of agents that can send them, and wide windows for few streams."""

import socket
from collections.abc import Iterator

import pytest

from crannog.errors import ProtocolError
from crannog.rpc import frames
from crannog.rpc.call_end import CallEnd
from crannog.rpc.channel import GuestChannel
from crannog.rpc.frames import Frame, FrameParser, MessageParser, encode_frame
from tests.unit.test_rpc_channel import make_channel, synced

COST = frames.HEADER.size + frames.BODY_MAX
OPEN: list["End"] = []


class End(CallEnd):
    """A call that has begun, and the client's end of its connection."""

    def __init__(self, channel: GuestChannel) -> None:
        ours, self.client = socket.socketpair()
        super().__init__(ours, channel, MessageParser())
        self._command_line = b"root:true"
        self._is_due = True
        self.advance(0)
        self.client.setblocking(False)
        OPEN.append(self)

    def take(self, *, is_read: bool = True) -> None:
        """Take a frame of output, and have the client read it."""
        self._channel.receive(encode_frame(self._stream, frames.DATA_STDOUT, bytes(frames.BODY_MAX)))
        while is_read and self._out:
            self.flush()
            self.client.recv(1 << 20)


@pytest.fixture(autouse=True)
def closed_ends() -> Iterator[None]:
    yield
    while OPEN:
        end = OPEN.pop()
        end.close()
        end.client.close()


@pytest.fixture
def channel() -> GuestChannel:
    channel, _ = make_channel()
    channel.receive(frames.PADDING)
    return greet(synced(channel))


def greet(channel: GuestChannel) -> GuestChannel:
    """Be an agent of the version that has long frames."""
    channel.receive(encode_frame(0, frames.HELLO, frames.NUMBER.pack(4)))
    channel.out.clear()
    return channel


def sent(channel: GuestChannel, kind: int) -> list[Frame]:
    """Return the frames of a type that were queued for the guest, and take all."""
    parser = FrameParser()
    parser.is_hunting = False
    parser.feed(bytes(channel.out))
    channel.out.clear()
    found = []
    while frame := parser.next_frame():
        found.append(frame)
    return [frame for frame in found if frame.type == kind]


@pytest.mark.parametrize(("version", "count"), [(1, 0), (3, 0), (4, 1), (5, 1)])
def test_a_hello_is_answered_for_agents_that_know_what_it_means_and_once(version: int, count: int) -> None:
    channel, _ = make_channel()
    synced(channel)
    for _ in range(50):
        channel.receive(encode_frame(0, frames.HELLO, frames.NUMBER.pack(version)))
    assert sent(channel, frames.HELLO) == [(0, frames.HELLO, frames.NUMBER.pack(frames.PROTOCOL_VERSION))] * count


def test_long_frames_are_for_data_of_agents_that_have_said_hello(channel: GuestChannel) -> None:
    end = End(channel)
    channel.receive(encode_frame(end._stream, frames.DATA_STDOUT, bytes(frames.BULK_MAX - 4096)))
    assert channel.is_ready
    end.flush()
    end.client.setblocking(True)
    received = b""
    while len(received) < frames.LOCAL_HEADER.size * 4 + frames.BULK_MAX - 4096:
        received += end.client.recv(1 << 20)
        end.flush()
    assert frames.LOCAL_HEADER.unpack_from(received) == (frames.DATA_STDOUT, frames.BODY_MAX)
    channel.receive(encode_frame(0, frames.GUESTDB_WRITE, bytes(frames.BODY_MAX + 1)))
    assert not channel.is_ready, "it is no data"


def test_an_older_agent_loses_step_with_a_long_frame() -> None:
    channel, log = make_channel()
    synced(channel)
    channel.receive(frames.HEADER.pack(1, frames.DATA_STDOUT, frames.BODY_MAX + 1))
    assert not channel.is_ready
    assert "65536 are allowed" in log[-1]


def test_a_new_agent_is_not_believed_what_the_last_one_said(channel: GuestChannel) -> None:
    channel.receive(frames.PADDING)
    synced(channel, b"guest-02")
    channel.receive(frames.HEADER.pack(1, frames.DATA_STDOUT, frames.BODY_MAX + 1))
    assert not channel.is_ready


def credit_of(channel: GuestChannel) -> int:
    """Return the credit that was given since the last time."""
    return sum(frames.NUMBER.unpack(frame.body)[0] for frame in sent(channel, frames.CREDIT))


def take_much(end: End) -> int:
    """Have output passed on until the window is wide, or should be; return how much wider it got."""
    credit = count = 0
    while credit <= count < frames.WIDE_AFTER + COST:
        end.take()
        count += COST
        credit += credit_of(end._channel)
    return credit - count


def test_much_output_widens_the_window_once(channel: GuestChannel) -> None:
    end = End(channel)
    assert take_much(end) == frames.WIDE_WINDOW - frames.WINDOW
    for _ in range(frames.WIDE_WINDOW // COST):
        end.take(is_read=False)
    assert channel.calls, "a full wide window is what it may send"
    end.take(is_read=False)
    assert not channel.calls, "and not a byte more"


def test_few_streams_are_wide_and_their_ends_make_room(channel: GuestChannel) -> None:
    ends = [End(channel) for _ in range(frames.WIDE_STREAMS + 1)]
    wider = [take_much(end) for end in ends]
    assert [more > 0 for more in wider] == [True] * frames.WIDE_STREAMS + [False]
    channel.receive(encode_frame(ends[0]._stream, frames.DATA_EXIT_CODE, bytes(4)))
    ends[1].close()
    ends[1].close()
    assert channel.wide_count == frames.WIDE_STREAMS - 2
    channel.fail_calls("the agent was restarted")
    assert channel.wide_count == 0


def test_an_older_agent_keeps_the_window_that_it_knows() -> None:
    channel, _ = make_channel()
    synced(channel)
    channel.out.clear()
    assert take_much(End(channel)) <= 0
    assert channel.wide_count == 0


def test_a_guest_may_take_a_wide_window_of_input_and_no_more(channel: GuestChannel) -> None:
    end = End(channel)
    for _ in range(3):
        end.add_credit(2**32 - 1)
    assert end._credit == frames.WIDE_WINDOW


def test_a_stream_that_overruns_its_window_ends_alone(channel: GuestChannel) -> None:
    first, second = End(channel), End(channel)
    for _ in range(frames.WINDOW // COST + 1):
        first.take(is_read=False)
    assert list(channel.calls.values()) == [second]
    second.take(is_read=False)
    with pytest.raises(ProtocolError):
        second.deliver(frames.DATA_STDOUT, bytes(frames.WINDOW - COST))
