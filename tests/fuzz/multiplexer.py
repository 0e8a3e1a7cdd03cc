"""Targets: the host's end of a channel with its streams and clients, against a guest that sends anything."""

import select
import socket
from contextlib import suppress

from crannog.core.announcement import AgentState, AgentStatus, is_user_name
from crannog.core.guestdb import GUEST_ENTRIES_MAX, GUEST_FOLDERS, PATH_MAX, VALUE_MAX
from crannog.errors import ProtocolError
from crannog.rpc import frames
from crannog.rpc.channel import GuestChannel
from crannog.rpc.frames import Frame, FrameParser, Marker
from crannog.rpc.local import LocalClient
from crannog.rpc.triggers import Trigger
from tests.fuzz.guest_bytes import NONCES, guest_bytes
from tests.fuzz.taken import Taken

OUT_SLACK = 2 * len(frames.PADDING)
"""What the channel says by itself: the padding, and answers to markers."""
PER_BYTE = 8
"""Bytes that each byte of a guest may cost of what waits for it: answers are longer than the shortest questions."""
TOLD_MAX = GUEST_ENTRIES_MAX * (frames.HEADER.size + PATH_MAX + 1 + VALUE_MAX) + 4096
"""What the whole guest DB of such a channel is, told once."""
PIECES = 12


class FakeCall:
    """The host's side of a stream: it keeps to its window as the real ones do, and notes what it is told."""

    def __init__(self, kinds: frozenset[int]) -> None:
        self.data_kinds = kinds
        self.held = 0
        self.ends = 0
        self.most_credit = 0

    def deliver(self, kind: int, untrusted_body: bytes) -> None:
        assert not self.ends, "data came after the end"
        assert kind in self.data_kinds
        self.held += frames.HEADER.size + len(untrusted_body)
        if self.held > frames.WINDOW:
            raise ProtocolError("it sent more than the window of the stream allows")

    def add_credit(self, untrusted_count: int) -> None:
        assert not self.ends
        self.most_credit = max(self.most_credit, untrusted_count)

    def end(self, untrusted_exit_code: int) -> None:
        assert 0 <= untrusted_exit_code < 1 << 32
        self.ends += 1

    def fail(self, sentence: str) -> None:
        assert sentence.isprintable()
        self.ends += 1


class Bench:
    """A channel, what was opened on it, and what it said and logged."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.channel = GuestChannel("vm1", self.log.append)
        self.channel.on_trigger = self._note_trigger
        self.channel.on_status = self._check_status
        self.calls: list[FakeCall] = []
        self.closed: set[int] = set()

    def _note_trigger(self, trigger: Trigger) -> None:
        call = FakeCall(frozenset({frames.DATA_STDIN}))
        if len(self.channel.calls) < 8:
            self.calls.append(call)
            self.channel.connect(trigger.ident, call)
        else:
            self.channel.refuse(trigger.ident)

    @staticmethod
    def _check_status(status: AgentStatus) -> None:
        assert AgentStatus.parse(status.encode()) == status, "the daemon understands it"
        if status.announced:
            assert (status.announced.version + status.announced.os).isprintable()
            assert is_user_name(status.announced.default_user or "none")

    def synchronise(self, nonce: bytes, version: int) -> None:
        """Lead the channel through what an honest agent does at its start."""
        self.receive(frames.PADDING + frames.encode_marker(Marker(frames.REQUEST, nonce, bytes(8))))
        parser, sync = FrameParser(), None
        parser.feed(bytes(self.channel.out))
        while marker := parser.next_marker():
            sync = marker if marker.guest_nonce == nonce else sync
        if sync:  # else the nonce is an old one
            self.channel.out.clear()
            self.receive(frames.encode_marker(Marker(frames.ACKNOWLEDGE, nonce, sync.host_nonce)))
            self.receive(frames.encode_frame(0, frames.HELLO, frames.NUMBER.pack(version)))

    def receive(self, data: bytes) -> None:
        """Give the channel bytes of the guest: whatever they are, what waits for the guest grows little."""
        before = len(self.channel.out)
        self.channel.receive(data)
        grown = len(self.channel.out) - before
        assert grown <= OUT_SLACK + TOLD_MAX + PER_BYTE * len(data), f"{len(data)} bytes cost {grown}"

    def check(self) -> None:
        """Check what holds at any time."""
        tree = dict(self.channel.tree.db.list())
        assert sum(path.startswith(GUEST_FOLDERS) for path in tree) <= GUEST_ENTRIES_MAX
        assert [path for path in tree if not path.startswith(GUEST_FOLDERS)] == ["/name"], "that is the host's alone"
        assert all(len(path) <= PATH_MAX and len(value) <= VALUE_MAX for path, value in tree.items())
        assert all(line.isprintable() for line in self.log)
        assert len(self.channel._parser._buffer) <= frames.HEADER.size + frames.BULK_MAX
        alive = {id(call) for call in self.channel.calls.values()}
        for call in self.calls:
            assert call.ends <= 1
            assert (id(call) in alive) is (call.ends == 0), "each call ends once"


def fuzz_channel(data: bytes) -> None:
    """Check that no bytes make the channel raise or grow, reach the host's entries, or end a call but once."""
    take, bench = Taken(data), Bench()
    channel = bench.channel
    channel.tree.db.write("/name", b"work")
    bench.synchronise(NONCES[2], take.number(4))
    for _ in range(PIECES if take else 0):
        _act(take, bench)
        bench.check()
    channel.fail_calls("the VM 'vm1' has ended")
    bench.check()
    assert not channel.calls


def _act(take: Taken, bench: Bench) -> None:
    channel, act = bench.channel, take.number(16)
    if act == 0:
        bench.synchronise(take.one_of(NONCES), take.number(4))
    elif act == 1 and len(channel.calls) < 8:
        bench.calls.append(FakeCall(frozenset({frames.DATA_STDOUT, frames.DATA_STDERR})))
        channel.open_call(bench.calls[-1], take.block())
    elif act == 2 and channel.calls:
        stream = take.one_of(list(channel.calls))
        call = channel.calls[stream]
        (channel.close_call if take.number(2) else lambda at: channel.finish_call(at, take.number(1 << 32)))(stream)
        assert isinstance(call, FakeCall)
        call.ends += 1
    elif act == 3:
        _check_sent(bytes(channel.out))
        channel.out.clear()
    else:
        bench.receive(guest_bytes(take))


def _check_sent(sent: bytes) -> None:
    """Check that the guest gets whole frames."""
    parser = FrameParser()
    parser.feed(sent)
    while parser.next_marker():
        parser.accept_marker()
    parser.is_hunting = False
    with suppress(ProtocolError):  # padding of a step that was lost
        while frame := parser.next_frame():
            assert isinstance(frame, Frame)


# -- real clients

CLIENTS = 3
CLIENT_KINDS = sorted(frames.LOCAL_TYPES | {0, frames.DATA_STDOUT})


def fuzz_clients(data: bytes) -> None:
    """Check that clients that send anything, and read or do not, hold no more than a window each."""
    take = Taken(data)
    channel = GuestChannel("vm1", lambda _line: None)
    channel.status = AgentStatus(AgentState.READY)
    channel._parser.is_hunting = False
    pairs = [socket.socketpair() for _ in range(CLIENTS)]
    clients = [LocalClient(theirs, channel, "DEFAULT") for _, theirs in pairs]

    def show(status: AgentStatus) -> None:
        for client in clients:
            client.show_status(status)

    channel.on_status = show
    try:
        for number, (ours, _) in enumerate(pairs):
            ours.setblocking(False)
            _ask(take, ours, clients[number])
        for _ in range(PIECES if take else 0):
            _move(take, channel, pairs, clients)
    finally:
        for (ours, theirs), client in zip(pairs, clients, strict=True):
            client.close()
            ours.close()
            theirs.close()
    assert not channel.calls, "a client that is gone has no call"


def _ask(take: Taken, ours: socket.socket, client: LocalClient) -> None:
    """Begin as a client does, mostly."""
    hello = frames.encode_message(frames.HELLO, frames.NUMBER.pack(3 if take.number(8) else take.number()))
    wishes = (frames.EXEC_PARAMS + b"user:" + take.block() + b"\0", take.block())
    ours.send(hello + frames.encode_message(take.one_of((frames.EXEC_CMDLINE, *CLIENT_KINDS)), take.one_of(wishes)))
    client.serve(select.POLLIN)
    client.advance(0)


def _move(
    take: Taken, channel: GuestChannel, pairs: list[tuple[socket.socket, socket.socket]], clients: list[LocalClient]
) -> None:
    number = take.number(CLIENTS)
    ours, client = pairs[number][0], clients[number]
    act = take.number(8)
    with suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
        if act == 0:
            body = take.block() * take.one_of((1, 1, 250))
            ours.send(frames.encode_message(take.one_of((frames.DATA_STDIN, *CLIENT_KINDS)), body))
        elif act == 1:
            ours.recv(1 << 17)
        elif act == 2:
            ours.shutdown(socket.SHUT_WR)
        else:
            channel.receive(guest_bytes(take))
            channel._parser.is_hunting = False
    if not client.is_closed and client.events() & select.POLLIN:
        client.serve(select.POLLIN)
    client.advance(0)
    client.flush()
    for one in clients:
        assert len(one._out) <= frames.WIDE_WINDOW + frames.WINDOW + TOLD_MAX, (
            "the output that waits for a client is bounded"
        )
        assert len(one._stdin) <= 2 * frames.BODY_MAX, "and so is its input"
    if len(channel.out) > frames.WINDOW:
        channel.out.clear()
