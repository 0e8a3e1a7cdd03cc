"""One connection of a client: it sends one request and gets one answer, or a stream of events (Admin API, section 2).

Nothing that a client does or leaves undone holds more than bounded memory for bounded time.

Sockets are used as they are, without asyncio's transports: those take a task and four turns of the event loop for each
connection, twice the time of a whole call. A request that is there when its connection is accepted, and that is
answered from memory, is answered in the same turn.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Protocol

from crannog.api.backend import Backend
from crannog.api.framing import (
    CONNECTED,
    MAX_REQUEST,
    Request,
    encode_error,
    encode_event,
    encode_ok,
    parse_request,
)
from crannog.api.hangups import HangupWatch
from crannog.api.table import Family, Follow, Outcome, Reply, begin, encode_reply, is_plain
from crannog.core.events import Event
from crannog.errors import CrannogError, ProtocolError

log = logging.getLogger(__name__)

REQUEST_TIMEOUT = 30
"""Seconds that a client has to send its whole request."""
REPLY_TIMEOUT = 30
"""Seconds that a client has to take its whole reply."""
MAX_QUEUED = 1 << 20
"""Bytes of events that are kept for a reader that does not read; then it is dropped."""


class Service(Protocol):
    """What a connection needs of the server that it came to."""

    backend: Backend
    family: Family
    hangups: HangupWatch
    connections: "set[Connection]"
    """Those that are waiting for something; whoever waits is held here."""


class Connection:
    """Reads the request up to EOF, answers, closes."""

    def __init__(self, service: Service, client: socket.socket) -> None:
        """`client` is a connected socket that does not block."""
        self._service = service
        self._socket = client
        self._loop = asyncio.get_running_loop()
        self._untrusted_data = b""
        self._queue = bytearray()
        self._is_reading = self._is_writing = self._is_following = False
        self._timer: asyncio.TimerHandle | None = None
        self._leave: Callable[[], None] | None = None
        self._task: asyncio.Future[None] | None = None

    @property
    def is_closed(self) -> bool:
        """Whether the connection has ended."""
        return self._socket.fileno() < 0

    def close(self) -> None:
        """End the connection and let go of everything. What the request asked for goes on: half of it would be worse.

        What was not sent yet is lost. Closing twice is no error.
        """
        if self.is_closed:
            return
        self._stop_waiting()
        self._unfollow()
        self._service.connections.discard(self)
        self._socket.close()

    def _wait(self, seconds: float, what: str) -> None:
        """Be held until the client did the next thing, for so many seconds from now."""
        self._service.connections.add(self)
        if self._timer:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self._give_up, what)

    def _give_up(self, what: str) -> None:
        log.info("a client did not finish %s in time", what)
        self.close()

    def _stop_waiting(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if self._is_reading:
            self._loop.remove_reader(self._socket)
        if self._is_writing:
            self._loop.remove_writer(self._socket)
        self._is_reading = self._is_writing = False

    # -- the request

    def receive(self) -> None:
        """Take what has come of the request; act when it is whole, else be called again when there is more."""
        while len(self._untrusted_data) <= MAX_REQUEST:
            try:
                untrusted_chunk = self._socket.recv(MAX_REQUEST + 1 - len(self._untrusted_data))
            except BlockingIOError:
                self._wait_for_more()
                return
            except OSError:
                self.close()
                return
            if not untrusted_chunk:
                self._act()
                return
            self._untrusted_data += untrusted_chunk
        log.warning("a request was refused: it is longer than %s bytes", MAX_REQUEST)
        self.close()

    def _wait_for_more(self) -> None:
        if not self._is_reading:
            self._is_reading = True
            self._loop.add_reader(self._socket, self.receive)
            self._wait(REQUEST_TIMEOUT, "its request")

    def _act(self) -> None:
        self._stop_waiting()
        untrusted_data, self._untrusted_data = self._untrusted_data, b""
        try:
            request = parse_request(untrusted_data)
        except ProtocolError as error:
            log.warning("a request was refused: %s", error)
            self.close()
            return
        try:
            outcome = begin(self._service.backend, request, self._service.family)
        except Exception as error:  # noqa: BLE001 - told and logged
            self._send(_explain(request, error))
            return
        self._take(request, outcome)

    def _take(self, request: Request, outcome: Outcome) -> None:
        if isinstance(outcome, Follow):
            self._follow(request, outcome)
        elif isinstance(outcome, Awaitable):
            self._service.connections.add(self)
            self._task = asyncio.ensure_future(self._await(request, outcome))
        else:
            self._send(_respond(request, outcome))

    async def _await(self, request: Request, reply: Awaitable[Reply]) -> None:
        try:
            response = _respond(request, await reply)
        except Exception as error:  # noqa: BLE001 - told and logged
            response = _explain(request, error)
        self._send(response)

    # -- the answer

    def _send(self, response: bytes) -> None:
        if not self.is_closed:
            self._queue += response
            self._flush()

    def _flush(self) -> None:
        """Send what the client takes now; be called again for the rest."""
        try:
            sent = self._socket.send(self._queue)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        del self._queue[:sent]
        if self._queue:
            self._wait_for_room()
        elif self._is_following:
            self._stop_waiting()
        else:
            self.close()

    def _wait_for_room(self) -> None:
        if not self._is_writing:
            self._is_writing = True
            self._loop.add_writer(self._socket, self._flush)
            if not self._is_following:
                self._wait(REPLY_TIMEOUT, "taking its reply")

    # -- a stream of events

    def _follow(self, request: Request, follow: Follow) -> None:
        try:
            self._leave = follow.start(self._tell)
        except Exception as error:  # noqa: BLE001 - told and logged
            self._send(_explain(request, error))
            return
        self._is_following = True
        self._service.connections.add(self)
        self._service.hangups.watch(self._socket.fileno(), self.close)
        self._tell(CONNECTED)

    def _tell(self, event: Event) -> None:
        if self.is_closed:
            return
        self._queue += encode_event(event)
        if len(self._queue) > MAX_QUEUED:
            log.warning("a reader of events was dropped: it left more than %s bytes unread", MAX_QUEUED)
            self.close()
        elif not self._is_writing:
            self._flush()

    def _unfollow(self) -> None:
        if self._leave:
            self._service.hangups.forget(self._socket.fileno())
            self._leave()
            self._leave = None


def _respond(request: Request, reply: Reply) -> bytes:
    """Return the response to a request that succeeded, if its reply can be written at all."""
    try:
        data = encode_reply(reply)
        return data if is_plain(request.method) else encode_ok(data)
    except UnicodeEncodeError as error:  # a file's name, for instance
        return _explain(request, error)


def _explain(request: Request, error: Exception) -> bytes:
    """Return the response to a request that failed; an error of our own is logged, and told as one."""
    if isinstance(error, CrannogError):
        log.info("%s of %s: %s", request.method, request.destination, error)
        return _refuse(request, error)
    log.error("%s of %s ended with an error of our own", request.method, request.destination, exc_info=error)
    sentence = f"crannogd failed inside {request.method}; its log says where: see 'crannog doctor'"
    return _refuse(request, CrannogError(sentence))


def _refuse(request: Request, error: CrannogError) -> bytes:
    return b"" if is_plain(request.method) else encode_error(error)
