"""The connections of local clients to a VM's RPC process: handshake, calls, status followers, requests."""

import select
import socket
import time
from collections.abc import Callable

from crannog.core.announcement import AgentStatus
from crannog.errors import ProtocolError
from crannog.rpc import frames
from crannog.rpc.channel import GuestChannel
from crannog.rpc.frames import Message, MessageParser

READ_SIZE = 65536
AGENT_WAIT = 30.0
"""Seconds that a call waits for the agent to get ready."""
TROUBLE = 125


class LocalClient:
    """One connection. Broken or slow clients cost what one window holds, and nobody else anything."""

    data_kinds = frozenset({frames.DATA_STDOUT, frames.DATA_STDERR})

    def __init__(self, connection: socket.socket, channel: GuestChannel, default_user: str) -> None:
        self.connection = connection
        self.is_closed = False
        self.deadline: float | None = None
        self._channel = channel
        self._default_user = default_user
        self._parser = MessageParser()
        self._out = bytearray(frames.encode_message(frames.HELLO, frames.NUMBER.pack(frames.LOCAL_VERSION)))
        self._take: Callable[[Message], None] = self._take_hello
        self._is_ending = False
        self._is_follower = False
        self._command_line: bytes | None = None
        self._stream = 0
        self._stdin = bytearray()
        self._has_stdin_ended = self._is_end_due = False
        self._credit = frames.WINDOW
        self._ungranted = 0
        self._open_outputs = {frames.DATA_STDOUT, frames.DATA_STDERR}
        connection.setblocking(False)

    def events(self) -> int:
        """Return the poll events to wait for; hang-ups are always reported."""
        is_held = self._is_call and not (self._stream and not self._stdin and self._channel.has_room)
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

    def flush(self) -> None:
        """Send what the client takes now."""
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
            self._stream = 0
            self.deadline = None

    def advance(self, now: float) -> None:
        """Do what has become possible: start a waiting call, give up on it, pass on input."""
        if self.deadline is not None and self._channel.is_ready:
            self._start()
        elif self.deadline is not None and now >= self.deadline:
            self.fail(f"the VM '{self._channel.vm}' has no agent that answers (waited {AGENT_WAIT:.0f} s)")
        if self._stream:
            self._pass_stdin()

    def show_status(self, status: AgentStatus) -> None:
        """Tell a follower the new status; one that does not read is dropped."""
        if self._is_follower and len(self._out) < READ_SIZE:
            self._out += frames.encode_message(frames.STATUS_FOLLOW, status.encode())
        elif self._is_follower:
            self.close()

    @property
    def _is_call(self) -> bool:
        return self._command_line is not None

    def _send(self) -> None:
        with memoryview(self._out) as view, view[: 4 * READ_SIZE] as part:
            count = self.connection.send(part)
        del self._out[:count]
        if self._is_ending and not self._out:
            self.close()
        elif self._stream:
            self._give_credit()

    def _read(self) -> None:
        data = self.connection.recv(READ_SIZE)
        if not data:
            self.close()
            return
        for message in self._parser.feed(data):
            self._take(message)

    def _take_hello(self, message: Message) -> None:
        if message.type != frames.HELLO or frames.NUMBER.unpack(message.body)[0] < frames.LOCAL_VERSION:
            raise ProtocolError("a local client does not begin with HELLO(3)")
        self._take = self._take_request

    def _take_request(self, message: Message) -> None:
        if message.type == frames.EXEC_CMDLINE:
            self._take = self._take_stdin
            self._take_command(message.body)
        elif message.type == frames.STATUS_FOLLOW:
            self._is_follower = True
            self.show_status(self._channel.status)
        elif message.type == frames.POWEROFF:
            answer = frames.NUMBER.pack(self._channel.power_off())
            self._out += frames.encode_message(frames.POWEROFF, answer)
        else:
            raise ProtocolError("a local client asks for something unknown")

    def _take_command(self, body: bytes) -> None:
        command_line = body[len(frames.EXEC_PARAMS) :].partition(b"\0")[0]
        user, colon, command = command_line.partition(b":")
        if not colon:
            raise ProtocolError("a local client sent a command without a user")
        if user == b"DEFAULT":
            user = self._default_user.encode()
        self._command_line = user + b":" + command
        self.deadline = time.monotonic() + AGENT_WAIT

    def _take_stdin(self, message: Message) -> None:
        if message.type != frames.DATA_STDIN or self._has_stdin_ended:
            raise ProtocolError("a local client sent something else than input")
        self._stdin += message.body
        self._has_stdin_ended = self._is_end_due = not message.body

    def _start(self) -> None:
        self.deadline = None
        if len(self._channel.calls) >= frames.STREAMS_MAX:
            self.fail(f"the VM '{self._channel.vm}' runs {frames.STREAMS_MAX} commands already")
        elif self._command_line is not None:
            self._stream = self._channel.open_call(self, self._command_line)

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
        if grant >= frames.GRANT_MIN:
            self._ungranted -= grant
            self._channel.send(self._stream, frames.CREDIT, frames.NUMBER.pack(grant))

    def deliver(self, kind: int, untrusted_body: bytes) -> None:
        """Pass on the command's output. Raises ProtocolError when the guest sends more than it may."""
        if kind not in self._open_outputs:
            return
        if untrusted_body:
            self._ungranted += frames.HEADER.size + len(untrusted_body)
            if self._ungranted > frames.WINDOW:
                raise ProtocolError("it sent more than the window of the stream allows")
        else:
            self._open_outputs.discard(kind)
        self._out += frames.encode_message(kind, untrusted_body)

    def add_credit(self, untrusted_count: int) -> None:
        """Note that the guest takes more input; never more than one window."""
        self._credit = min(frames.WINDOW, self._credit + untrusted_count)

    def end(self, untrusted_exit_code: int) -> None:
        """Send the exit code, and close the connection once all has been sent."""
        for kind in sorted(self._open_outputs):
            self._out += frames.encode_message(kind)
        self._open_outputs.clear()
        self._out += frames.encode_message(frames.DATA_EXIT_CODE, frames.NUMBER.pack(untrusted_exit_code & 0xFF))
        self._stream = 0
        self._is_ending = True

    def fail(self, sentence: str) -> None:
        """End the call with `sentence` on its stderr, and exit code 125."""
        self.deadline = None
        if frames.DATA_STDERR in self._open_outputs:
            self._out += frames.encode_message(frames.DATA_STDERR, sentence.encode(errors="replace") + b"\n")
        self.end(TROUBLE)
