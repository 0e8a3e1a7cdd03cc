"""The host's end of the channel against guests that lie, flood and break off."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crannog.core.announcement import AgentState, AgentStatus
from crannog.core.guestdb import GUEST_ENTRIES_MAX
from crannog.errors import ProtocolError
from crannog.rpc import frames
from crannog.rpc.channel import OUT_MAX, GuestChannel
from crannog.rpc.frames import FrameParser, Marker, encode_frame, encode_marker

GUEST_NONCE = b"guest-01"


class RecordedCall:
    """The caller's side of a stream, as a record."""

    data_kinds = frozenset({frames.DATA_STDOUT, frames.DATA_STDERR})

    def __init__(self) -> None:
        self.told: list[tuple[str, object]] = []
        self.is_strict = False

    def deliver(self, kind: int, untrusted_body: bytes) -> None:
        if self.is_strict:
            raise ProtocolError("too much")
        self.told.append(("data", (kind, untrusted_body)))

    def add_credit(self, untrusted_count: int) -> None:
        self.told.append(("credit", untrusted_count))

    def end(self, untrusted_exit_code: int) -> None:
        self.told.append(("end", untrusted_exit_code))

    def fail(self, sentence: str) -> None:
        self.told.append(("fail", sentence))


def synced(channel: GuestChannel, nonce: bytes = GUEST_NONCE) -> GuestChannel:
    """Lead `channel` through a synchronisation, and empty what it sent."""
    channel.receive(frames.PADDING + encode_marker(Marker(b"R", nonce, bytes(8))))
    parser = FrameParser()
    parser.feed(bytes(channel.out))
    sync = None
    while marker := parser.next_marker():
        sync = marker
    assert sync is not None
    assert sync.guest_nonce == nonce
    channel.out.clear()
    channel.receive(encode_marker(Marker(b"A", nonce, sync.host_nonce)))
    channel.receive(encode_frame(0, frames.HELLO, frames.NUMBER.pack(1)))
    return channel


def make_channel() -> tuple[GuestChannel, list[str]]:
    log: list[str] = []
    return GuestChannel("vm1", log.append), log


def announce(channel: GuestChannel, **facts: str) -> None:
    good = {"version": "1", "os": "Linux", "qrexec": "1", "gui": "0", "default-user": "user"}
    for key, value in (good | facts).items():
        channel.receive(encode_frame(0, frames.GUESTDB_WRITE, f"/qubes-tools/{key}\0{value}".encode()))
    channel.receive(encode_frame(0, frames.TRIGGER, b"qubes.NotifyTools"))


def test_the_agent_is_ready_after_sync_and_hello_only() -> None:
    channel, _ = make_channel()
    assert channel.out == frames.PADDING
    channel.receive(encode_frame(0, frames.HELLO, frames.NUMBER.pack(1)))
    assert not channel.is_ready
    assert synced(channel).is_ready


def test_an_acknowledgement_without_the_hosts_nonce_is_rubbish() -> None:
    channel, _ = make_channel()
    channel.receive(encode_marker(Marker(b"A", bytes(8), bytes(8))))
    channel.receive(encode_marker(Marker(b"R", GUEST_NONCE, bytes(8))))
    channel.receive(encode_marker(Marker(b"A", GUEST_NONCE, bytes(8))))
    channel.receive(encode_frame(0, frames.HELLO, frames.NUMBER.pack(1)))
    assert not channel.is_ready


def test_a_repeated_request_is_answered_once() -> None:
    channel, _ = make_channel()
    request = encode_marker(Marker(b"R", GUEST_NONCE, bytes(8)))
    channel.receive(request)
    size = len(channel.out)
    channel.receive(request * 100)
    assert len(channel.out) == size


def test_announcements_change_the_status_and_nonsense_does_not() -> None:
    channel, log = make_channel()
    synced(channel)
    seen: list[AgentStatus] = []
    channel.on_status = seen.append
    announce(channel)
    announce(channel)
    announce(channel, gui="maybe")
    assert len(seen) == 1
    assert channel.status.announced is not None
    assert channel.status.announced.default_user == "user"
    assert len([line for line in log if "refused the announcement" in line]) == 1


def test_an_announcement_cannot_grow_without_bound() -> None:
    channel, log = make_channel()
    synced(channel)
    for number in range(1000):
        channel.receive(encode_frame(0, frames.GUESTDB_WRITE, b"/qubes-tools/%d\0x" % number))
    channel.receive(encode_frame(0, frames.GUESTDB_WRITE, b"/qubes-tools/os\0" + b"x" * 60000))
    assert len(channel.tree.announced()) == GUEST_ENTRIES_MAX
    assert len(log) > 800


def test_the_guest_writes_below_its_folders_only() -> None:
    channel, log = make_channel()
    synced(channel)
    channel.tree.db.write("/name", b"work")
    for path in (b"/name", b"/qubes-tools", b"/qubes-tools/../name", b"/qubes-service/x", b"name", b""):
        channel.receive(encode_frame(0, frames.GUESTDB_WRITE, path + b"\0evil"))
        channel.receive(encode_frame(0, frames.GUESTDB_REMOVE, path))
    channel.receive(encode_frame(0, frames.GUESTDB_REMOVE, b"/"))
    assert dict(channel.tree.db.list()) == {"/name": b"work"}
    assert len(log) == 13


def take_frames(channel: GuestChannel) -> list[tuple[int, bytes]]:
    parser = FrameParser()
    parser.is_hunting = False
    parser.feed(bytes(channel.out))
    channel.out.clear()
    found = []
    while frame := parser.next_frame():
        found.append((frame.type, frame.body))
    return found


def test_an_agent_that_keeps_a_copy_is_told_everything_and_then_changes() -> None:
    channel, _ = make_channel()
    synced(channel)
    channel.tree.db.write("/name", b"work")
    channel.tree.db.write("/type", b"AppVM")
    channel.out.clear()
    channel.receive(encode_frame(0, frames.HELLO, frames.NUMBER.pack(3)))
    write, remove = frames.GUESTDB_WRITE, frames.GUESTDB_REMOVE
    assert take_frames(channel) == [(write, b"/name\0work"), (write, b"/type\0AppVM"), (frames.GUESTDB_READY, b"")]
    channel.tree.db.write("/name", b"play")
    channel.receive(encode_frame(0, write, b"/features-request/gui\0" + b"1"))
    channel.receive(encode_frame(0, write, b"/name\0evil"))
    channel.receive(encode_frame(0, remove, b"/features-request/"))
    assert take_frames(channel) == [
        (write, b"/name\0play"),
        (write, b"/features-request/gui\0" + b"1"),
        (remove, b"/features-request/"),
    ]


def test_an_older_agent_is_told_nothing() -> None:
    channel, _ = make_channel()
    synced(channel)
    channel.out.clear()
    channel.receive(encode_frame(0, frames.HELLO, frames.NUMBER.pack(2)))
    channel.tree.db.write("/name", b"work")
    assert take_frames(channel) == []


def test_a_call_gets_its_own_frames_and_late_ones_are_ignored() -> None:
    channel, _ = make_channel()
    synced(channel)
    one, two = RecordedCall(), RecordedCall()
    first, second = channel.open_call(one, b"user:a"), channel.open_call(two, b"user:b")
    channel.receive(encode_frame(first, frames.DATA_STDOUT, b"1") + encode_frame(second, frames.DATA_STDERR, b"2"))
    channel.receive(encode_frame(first, frames.DATA_EXIT_CODE, frames.NUMBER.pack(3)))
    channel.receive(encode_frame(first, frames.DATA_STDOUT, b"late"))
    assert one.told == [("data", (frames.DATA_STDOUT, b"1")), ("end", 3)]
    assert two.told == [("data", (frames.DATA_STDERR, b"2"))]


def test_a_stream_that_overruns_its_window_ends_alone() -> None:
    channel, _ = make_channel()
    synced(channel)
    greedy, other = RecordedCall(), RecordedCall()
    greedy.is_strict = True
    stream = channel.open_call(greedy, b"user:a")
    channel.open_call(other, b"user:b")
    channel.receive(encode_frame(stream, frames.DATA_STDOUT, b"more"))
    assert [what for what, _ in greedy.told] == ["fail"]
    assert other.told == []
    assert channel.out.endswith(encode_frame(stream, frames.CLOSE))
    assert channel.is_ready


@pytest.mark.parametrize("rubbish", [frames.PADDING, b"\xff" * 12, encode_frame(0, frames.HELLO, bytes(4))])
def test_losing_step_fails_the_calls_and_a_new_sync_heals(rubbish: bytes) -> None:
    channel, _ = make_channel()
    synced(channel)
    call = RecordedCall()
    channel.open_call(call, b"user:a")
    channel.receive(rubbish)
    assert [what for what, _ in call.told] == ["fail"]
    assert channel.status == AgentStatus(AgentState.WAITING, None)
    assert channel.out == frames.PADDING
    assert synced(channel, b"guest-02").is_ready


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=200),
            st.sampled_from([frames.PADDING, frames.MAGIC, encode_marker(Marker(b"R", b"x" * 8, bytes(8)))]),
        ),
        max_size=8,
    )
)
def test_no_bytes_make_the_host_raise_or_grow(chunks: list[bytes]) -> None:
    for start_synced in (False, True):
        channel, _ = make_channel()
        if start_synced:
            synced(channel)
            channel.open_call(RecordedCall(), b"user:a")
        for chunk in chunks:
            channel.receive(chunk)
        assert len(channel.out) < OUT_MAX
        assert len(channel._parser._buffer) <= frames.BODY_MAX + frames.HEADER.size


KINDS = st.sampled_from(sorted(frames.CHANNEL_TYPES))


@given(st.lists(st.tuples(st.integers(0, 3), KINDS, st.binary(max_size=40)), max_size=20))
def test_no_sequence_of_wellformed_frames_makes_the_host_raise(sent: list[tuple[int, int, bytes]]) -> None:
    channel, _ = make_channel()
    synced(channel)
    for _ in range(3):
        channel.open_call(RecordedCall(), b"user:a")
    for frame in sent:
        channel.receive(encode_frame(*frame))
