"""The host's end of a command in a guest: a connection whose messages are the data of one stream of the channel."""

import select
import socket
from collections.abc import Callable, Iterator
from typing import Protocol

from crannog.core.announcement import AgentStatus
from crannog.errors import ProtocolError
from crannog.rpc import frames
from crannog.rpc.channel import GuestChannel

READ_SIZE = 65536
BULK_SIZE = 262144
AGENT_WAIT = 30.0
"""Seconds that a call waits for the agent to get ready."""
TROUBLE = 125


class Item(Protocol):
    """One message of a connection."""

    @property
    def type(self) -> int:
        """What it is."""

    @property
    def body(self) -> bytes:
        """What it says."""


class Parser(Protocol):
    """Cuts the bytes of a connection into messages."""

    def feed(self, data: bytes, /) -> Iterator[Item]:
        """Add bytes and give the messages that are complete; raises ProtocolError."""


class CallEnd:
    """One connection. Broken or slow peers cost what one window holds, and nobody else anything."""

    data_kinds = frozenset({frames.DATA_STDOUT, frames.DATA_STDERR})
    exit_mask = 0xFF
    """What of an exit code is passed on."""
    chunk_max = frames.BODY_MAX
    """The longest message of data that the peer takes."""

    def __init__(self, connection: socket.socket, channel: GuestChannel, parser: Parser) -> None:
        self.connection = connection
        self.is_closed = False
        self.deadline: float | None = None
        self._channel = channel
        self._parser = parser
        self._out = bytearray()
        self._take: Callable[[Item], None] = self._take_stdin
        self._is_ending = False
        self._command_line: bytes | None = None
        self._is_due = False
        """Whether there is a command that is still to be started."""
        self._stream = 0
        self._stdin = bytearray()
        self._has_stdin_ended = self._is_end_due = False
        self._credit = self._window = frames.WINDOW
        self._ungranted = self._granted = 0
        self._open_outputs = set(self.data_kinds)
        connection.setblocking(False)

    # -- what the loop calls

    def events(self) -> int:
        """Return the poll events to wait for; hang-ups are always reported."""
        is_held = self._command_line is not None and not (self._stream and not self._stdin and self._channel.has_room)
        wants_input = not self._is_ending and not is_held
        return (select.POLLIN if wants_input else 0) | (select.POLLOUT if self._out else 0)

    def serve(self, events: int) -> None:
        """Read, or note the end of the connection, as poll reported `events`."""
        try:
            if events & select.POLLIN:
                self._read()
            elif events & (select.POLLHUP | select.POLLERR):
                self.close()
        except BlockingIOError:
            pass
        except (OSError, ProtocolError):
            self.close()

    @property
    def has_unsent(self) -> bool:
        """Whether the peer has not taken all that is for it."""
        return bool(self._out) and not self.is_closed

    def flush(self) -> None:
        """Send what the peer takes now."""
        try:
            if self._out and not self.is_closed:
                self._send()
        except BlockingIOError:
            pass
        except OSError:
            self.close()

    def close(self) -> None:
        """Close the connection; a command that runs for it is ended."""
        if not self.is_closed:
            self.is_closed = True
            self.connection.close()
            self._channel.close_call(self._stream)
            self._end_stream()
            self._is_due = False
            self.deadline = None

    def advance(self, now: float) -> None:
        """Do what has become possible: start a waiting command, give up on it, pass on input."""
        if self._is_due and self._channel.is_ready:
            self._start()
        elif self.deadline is not None and now >= self.deadline:
            self._give_up()
        if self._stream:
            self._pass_stdin()

    def show_status(self, status: AgentStatus) -> None:
        """Note what the agent is now."""

    # -- the connection

    def _send(self) -> None:
        with memoryview(self._out) as view, view[:BULK_SIZE] as part:
            count = self.connection.send(part)
        del self._out[:count]
        if self._is_ending and not self._out:
            self.close()
        elif self._stream:
            self._give_credit()

    def _read(self) -> None:
        data = self.connection.recv(BULK_SIZE)
        if not data:
            self.close()
            return
        for message in self._parser.feed(data):
            self._take(message)

    def _take_stdin(self, message: Item) -> None:
        if message.type != frames.DATA_STDIN or self._has_stdin_ended:
            raise ProtocolError("a client sent something else than input")
        self._stdin += message.body
        self._has_stdin_ended = self._is_end_due = not message.body

    # -- the stream

    def _start(self) -> None:
        self._is_due, self.deadline = False, None
        self._channel = self._channel.current
        if len(self._channel.calls) >= frames.STREAMS_MAX:
            self.fail(f"the VM '{self._channel.vm}' runs {frames.STREAMS_MAX} commands already")
        elif self._command_line is not None:
            self._stream = self._channel.open_call(self, self._command_line)

    def _give_up(self) -> None:
        self.fail(f"the VM '{self._channel.vm}' has no agent that answers (waited {AGENT_WAIT:.0f} s)")

    def _pass_stdin(self) -> None:
        while self._stdin and self._credit >= frames.CREDIT_MIN and self._channel.has_room:
            count = min(frames.BODY_MAX, self._credit - frames.HEADER.size, len(self._stdin))
            self._channel.send(self._stream, frames.DATA_STDIN, bytes(memoryview(self._stdin)[:count]))
            self._credit -= frames.HEADER.size + count
            del self._stdin[:count]
        if self._is_end_due and not self._stdin:
            self._channel.send(self._stream, frames.DATA_STDIN)
            self._is_end_due = False

    def _give_credit(self) -> None:
        grant = self._ungranted - len(self._out)
        if grant >= (frames.GRANT_MIN if self._window == frames.WINDOW else frames.WIDE_GRANT):
            self._ungranted -= grant
            self._granted += grant
            self._channel.send(self._stream, frames.CREDIT, frames.NUMBER.pack(grant + self._widen()))

    def _widen(self) -> int:
        """Return by how much the window gets wider: once, for much output, while few streams have that."""
        if self._window > frames.WINDOW or self._granted < frames.WIDE_AFTER or not self._channel.may_widen:
            return 0
        self._channel.wide_count += 1
        self._window = frames.WIDE_WINDOW
        return self._window - frames.WINDOW

    def _end_stream(self) -> None:
        self._stream = 0
        if self._window > frames.WINDOW:
            self._channel.wide_count -= 1
            self._window = frames.WINDOW

    def deliver(self, kind: int, untrusted_body: bytes) -> None:
        """Pass on the command's output. Raises ProtocolError when the guest sends more than it may."""
        if kind not in self._open_outputs:
            return
        if untrusted_body:
            self._ungranted += frames.HEADER.size + len(untrusted_body)
            if self._ungranted > self._window:
                raise ProtocolError("it sent more than the window of the stream allows")
        else:
            self._open_outputs.discard(kind)
        view = memoryview(untrusted_body)
        for at in range(0, len(view) or 1, self.chunk_max):
            part = view[at : at + self.chunk_max]
            self._out += frames.LOCAL_HEADER.pack(kind, len(part))
            self._out += part

    def add_credit(self, untrusted_count: int) -> None:
        """Note that the guest takes more input; never more than one window, which may be a wide one."""
        self._credit = min(frames.WIDE_WINDOW, self._credit + untrusted_count)

    def end(self, untrusted_exit_code: int) -> None:
        """Send the exit code, and close the connection once all has been sent."""
        for kind in sorted(self._open_outputs):
            self._out += frames.encode_message(kind)
        self._open_outputs.clear()
        code = untrusted_exit_code & self.exit_mask
        self._out += frames.encode_message(frames.DATA_EXIT_CODE, frames.NUMBER.pack(code))
        self._end_stream()
        self._is_ending = True

    def fail(self, sentence: str) -> None:
        """End the call with `sentence` on its stderr, and exit code 125."""
        self._is_due, self.deadline = False, None
        if frames.DATA_STDERR in self._open_outputs:
            self._out += frames.encode_message(frames.DATA_STDERR, sentence.encode(errors="replace") + b"\n")
        self.end(TROUBLE)
