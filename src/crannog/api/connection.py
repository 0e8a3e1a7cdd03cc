"""One connection of a client: it sends one request and gets one answer, or a stream of events (Admin API, section 2).

Nothing that a client does or leaves undone holds more than bounded memory for bounded time.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol, cast

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
from crannog.api.table import Family, Follow, Outcome, Reply, begin, encode_reply
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

    def admits(self, transport: asyncio.Transport) -> bool:
        """Tell whether the peer may call at all."""


class Connection(asyncio.Protocol):
    """Reads the request up to EOF, answers, closes."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._untrusted_data = b""
        self._timer: asyncio.TimerHandle | None = None
        self._leave: Callable[[], None] | None = None
        self._task: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Admit the peer, and give it its time."""
        self._transport = cast("asyncio.Transport", transport)
        self._service.connections.add(self)
        if not self._service.admits(self._transport):
            self._transport.abort()
            return
        self._limit(REQUEST_TIMEOUT, "its request")

    def _limit(self, seconds: float, what: str) -> None:
        """Give the client so many seconds from now for the next thing."""
        if self._timer:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._give_up, what)

    def _give_up(self, what: str) -> None:
        log.info("a client did not finish %s in time", what)
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Keep what came; more than a request can be is the end."""
        self._untrusted_data += data
        if len(self._untrusted_data) > MAX_REQUEST:
            log.warning("a request was refused: it is longer than %s bytes", MAX_REQUEST)
            self._transport.abort()

    def eof_received(self) -> bool:
        """Act on the request, which is whole now. Return True: the answer is still to be sent."""
        if self._timer:
            self._timer.cancel()
        untrusted_data, self._untrusted_data = self._untrusted_data, b""
        if self._transport.is_closing():
            return True
        try:
            request = parse_request(untrusted_data)
        except ProtocolError as error:
            log.warning("a request was refused: %s", error)
            self._transport.abort()
            return True
        self._begin(request)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of everything. What the request asked for goes on: half of it would be worse."""
        del exc
        self._service.connections.discard(self)
        if self._timer:
            self._timer.cancel()
        self._unfollow()

    def _begin(self, request: Request) -> None:
        log.debug("%s+%s of %s", request.method, request.argument, request.destination)
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
            self._task = asyncio.ensure_future(self._await(request, outcome))
        else:
            self._send(encode_ok(encode_reply(outcome)))

    async def _await(self, request: Request, reply: Awaitable[Reply]) -> None:
        try:
            response = encode_ok(encode_reply(await reply))
        except Exception as error:  # noqa: BLE001 - told and logged
            response = _explain(request, error)
        self._send(response)

    def _send(self, response: bytes) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(response)
        if self._transport.get_write_buffer_size():
            self._limit(REPLY_TIMEOUT, "taking its reply")
        self._transport.close()

    # -- a stream of events

    def _follow(self, request: Request, follow: Follow) -> None:
        self._descriptor = self._transport.get_extra_info("socket").fileno()
        self._service.hangups.watch(self._descriptor, self._transport.abort)
        try:
            self._leave = follow.start(self._tell)
        except Exception as error:  # noqa: BLE001 - told and logged
            self._service.hangups.forget(self._descriptor)
            self._send(_explain(request, error))
            return
        self._tell(CONNECTED)

    def _tell(self, event: Event) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(encode_event(event))
        if self._transport.get_write_buffer_size() > MAX_QUEUED:
            log.warning("a reader of events was dropped: it left more than %s bytes unread", MAX_QUEUED)
            self._unfollow()
            self._transport.abort()

    def _unfollow(self) -> None:
        if self._leave:
            self._service.hangups.forget(self._descriptor)
            self._leave()
            self._leave = None

    def abort(self) -> None:
        """End the connection at once: the server stops."""
        self._transport.abort()


def _explain(request: Request, error: Exception) -> bytes:
    """Return the response to a request that failed; an error of our own is logged, and told as one."""
    if isinstance(error, CrannogError):
        log.info("%s of %s: %s", request.method, request.destination, error)
        return encode_error(error)
    log.error("%s of %s ended with an error of our own", request.method, request.destination, exc_info=error)
    return encode_error(
        CrannogError(f"crannogd failed inside {request.method}; its log says where: see 'crannog doctor'")
    )
