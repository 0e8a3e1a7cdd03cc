"""The host's end of the port of QEMU's guest agent: one conversation, one request at a time. Never blocks.

QEMU tells nobody whether a guest has the port open, or an agent at it. So the first request is a synchronisation
(rpc/qga_messages.py), which is repeated once it was taken and nothing came back; an agent that then does not answer in
time is lost, and a new synchronisation begins.
"""

import array
import fcntl
import math
import os
import socket
import termios
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from crannog.errors import ProtocolError
from crannog.rpc.qga_messages import Reply, ReplyParser, encode_request, encode_sync

READ_SIZE = 262144
RECONNECT_PAUSE = 5.0
RESYNC_PAUSE = 2.0
"""Seconds after which a synchronisation that the guest has taken is repeated."""
SILENCE_MAX = 20.0
"""Seconds without a byte after which an agent that owes an answer is taken for dead."""
ANSWER_MAX = 120.0
"""Seconds that one answer may take, however it trickles."""


class Request(NamedTuple):
    """A request, and who gets the answer."""

    line: bytes
    on_reply: Callable[[Reply], None]
    has_output: bool


class QgaPort:
    """The conversation. `on_sync` is called when it has begun, `on_loss` with a reason when it is over."""

    def __init__(self, path: str, on_sync: Callable[[], None], on_loss: Callable[[str], None]) -> None:
        self._path = path
        self._on_sync, self._on_loss = on_sync, on_loss
        self._socket: socket.socket | None = None
        self._parser = ReplyParser()
        self._requests: deque[Request] = deque()
        self._out = bytearray()
        self._next_try = 0.0
        self._asked_at = self._heard_at = 0.0
        self._is_asked = False

    @property
    def is_synced(self) -> bool:
        """Whether an agent answers."""
        return self._socket is not None and not self._parser.is_hunting

    @property
    def is_idle(self) -> bool:
        """Whether an agent answers, and owes nothing."""
        return self.is_synced and not self._requests

    def ask(
        self,
        name: str,
        on_reply: Callable[[Reply], None],
        arguments: dict[str, object] | None = None,
        *,
        has_output: bool = False,
    ) -> None:
        """Queue a request. Its answer goes to `on_reply`, which may raise ProtocolError; a loss drops it."""
        self._requests.append(Request(encode_request(name, arguments), on_reply, has_output))

    def fd(self) -> int:
        """Return the file descriptor to wait for, -1 when there is none."""
        return self._socket.fileno() if self._socket else -1

    @property
    def wants_to_write(self) -> bool:
        """Whether there is something to send."""
        return bool(self._out)

    def due(self) -> float:
        """Return when `advance` has something to do, at the latest."""
        if not self.is_synced:
            return self._next_try
        if self._is_asked:
            return min(self._heard_at + SILENCE_MAX, self._asked_at + ANSWER_MAX)
        return 0.0 if self._requests else math.inf

    def advance(self, now: float) -> None:
        """Connect, synchronise, send the next request, give up: whatever is due."""
        if self._socket is None:
            if now >= self._next_try:
                self._connect(now)
        elif not self.is_synced:
            if now >= self._next_try:
                self._begin_again(now)
        elif self._is_asked:
            if now >= self.due():
                self._lose("it does not answer", now)
        elif self._requests:
            self._out += self._requests[0].line
            self._is_asked, self._asked_at, self._heard_at = True, now, now
        self._write(now)

    def _connect(self, now: float) -> None:
        self._next_try = now + RECONNECT_PAUSE
        port = socket.socket(socket.AF_UNIX)
        port.setblocking(False)
        try:
            port.connect(self._path)
        except OSError:
            port.close()
            return
        self._socket = port
        self._begin(now)

    def _begin(self, now: float) -> None:
        number = int.from_bytes(os.urandom(4), "little")
        self._parser.hunt(number)
        self._out += encode_sync(number)
        self._next_try = now + RESYNC_PAUSE

    def _begin_again(self, now: float) -> None:
        """Repeat what was not answered. What the guest has not even taken it will answer when it comes."""
        if self._out or self._is_unread():
            self._next_try = now + RECONNECT_PAUSE
        else:
            self._begin(now)

    def _is_unread(self) -> bool:
        """Tell whether QEMU holds the last request back, as the guest does not have the port open (tty_ioctl(4))."""
        count = array.array("i", [0])
        fcntl.ioctl(self.fd(), termios.TIOCOUTQ, count)
        return count[0] > 0

    def _write(self, now: float) -> None:
        try:
            while self._out and self._socket:
                del self._out[: self._socket.send(memoryview(self._out)[:READ_SIZE].tobytes())]
        except BlockingIOError:
            return
        except OSError:
            self.close(now)

    def read(self, now: float) -> None:
        """Take what the guest has sent."""
        if self._socket is None:
            return
        try:
            untrusted_data = self._socket.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            untrusted_data = b""
        if not untrusted_data:
            self.close(now)
            return
        self._heard_at = now
        self._parser.feed(untrusted_data)
        try:
            self._take(now)
        except ProtocolError as error:
            self._lose(str(error), now)

    def _take(self, now: float) -> None:
        if self._parser.is_hunting:
            if not self._parser.found():
                return
            self._on_sync()
        has_output = self._is_asked and self._requests[0].has_output
        while (reply := self._parser.next_reply(has_output=has_output)) is not None:
            if not self._is_asked:
                raise ProtocolError("it answered what nobody asked")
            self._is_asked = False
            self._requests.popleft().on_reply(reply)
            has_output = False

    def _lose(self, reason: str, now: float) -> None:
        """End the conversation, and begin another one."""
        self._requests.clear()
        self._is_asked = False
        self._out.clear()
        self._parser.hunt(-1)
        self._next_try = now + RESYNC_PAUSE
        self._on_loss(reason)

    def close(self, now: float) -> None:
        """Leave the port."""
        if self._socket:
            self._socket.close()
            self._socket = None
            self._lose("its port was closed", now)
        self._next_try = now + RECONNECT_PAUSE
