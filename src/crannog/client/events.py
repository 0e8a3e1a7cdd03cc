"""Streams of events (Admin API, section 9): what admin.Events and admin.vm.Stats send, as it comes.

A stream that ends is not opened again here: what was missed meanwhile is for the caller to find out.
"""

from __future__ import annotations

import time

from crannog.client.connection import Client
from crannog.errors import DaemonError, ProtocolError

# Importing typing and collections.abc would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

ESTABLISHED = "connection-established"
"""Name of the first event of every stream: from now on nothing is missed."""

MAX_EVENT = 2**20
"""Longest event in bytes: more than any value that the API takes."""

_CHUNK = 65536
_EVENT, _ERROR = b"1", b"2"


class Event:
    """One event. `subject` is the VM's name, empty when it is about the whole system."""

    def __init__(self, subject: str, name: str, details: dict[str, str]) -> None:
        self.subject = subject
        self.name = name
        self.details = details

    def __repr__(self) -> str:
        return f"Event({self.subject!r}, {self.name!r}, {self.details!r})"


class EventParser:
    """Turns the bytes of a stream into events, however they are cut into pieces."""

    def __init__(self) -> None:
        self._buffer = b""
        self._fields: list[bytes] = []
        self._size = 0

    @property
    def is_inside(self) -> bool:
        """Tell whether an event has begun and not ended."""
        return bool(self._buffer or self._fields)

    def feed(self, data: bytes) -> list[Event]:
        """Return the events that `data` completes; raises ProtocolError for what is no stream of events."""
        *fields, self._buffer = (self._buffer + data).split(b"\0")
        events = []
        for field in fields:
            self._fields.append(field)
            self._size += len(field) + 1
            if self._fields[0] != _EVENT:
                raise ProtocolError("crannogd sent something that is no event; are both of the same version?")
            # Keys are at odd places and never empty: an empty one is the end.
            if not field and len(self._fields) >= 4 and len(self._fields) % 2 == 0:
                events.append(self._take())
        if self._size + len(self._buffer) > MAX_EVENT:
            raise ProtocolError(f"crannogd sent an event of more than {MAX_EVENT} bytes")
        return events

    def _take(self) -> Event:
        texts = [field.decode("utf-8", "backslashreplace") for field in self._fields[1:-1]]
        self._fields, self._size = [], 0
        subject, name, *details = texts
        return Event(subject, name, dict(zip(details[::2], details[1::2], strict=True)))


class EventStream:
    """The events of one VM, or with `vm` dom0 those of the whole system, from now on."""

    def __init__(self, client: Client, vm: str = "dom0", method: str = "admin.Events", argument: str = "") -> None:
        self._client = client
        self._method = method
        self._parser = EventParser()
        self._events: list[Event] = []
        self._has_begun = False
        self._socket = client.open_stream(method, vm, argument)

    def close(self) -> None:
        """Tell the daemon that nobody listens any more."""
        self._socket.close()

    def __iter__(self) -> Iterator[Event]:
        """Give the events until the daemon ends the stream."""
        while (event := self.next_event()) is not None:
            yield event

    def next_event(self, deadline: float | None = None) -> Event | None:
        """Return the next event; None when the stream has ended.

        `deadline` is a time of time.monotonic(); TimeoutError is raised when it is over. Raises what the daemon
        answered instead of events, ProtocolError for nonsense, DaemonError for a stream that breaks off.
        """
        while not self._events:
            data = self._receive(deadline)
            if not self._has_begun:
                data = self._begin(data, deadline)
            if not data:
                self._check_end()
                return None
            self._events = self._parser.feed(data)
        return self._events.pop(0)

    def _begin(self, data: bytes, deadline: float | None) -> bytes:
        """Look at the first bytes, which say whether events follow or an error."""
        if not data:
            raise DaemonError(f"crannogd gave no answer to {self._method}; its log is {self._client.paths.daemon_log}")
        if data.startswith(_ERROR):
            while more := self._receive(deadline):
                data += more
            raise self._client.parse_error(data)
        self._has_begun = True
        return data

    def _check_end(self) -> None:
        if self._parser.is_inside:
            raise DaemonError("crannogd broke off in the middle of an event; try again")

    def _receive(self, deadline: float | None) -> bytes:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
        try:
            return self._socket.recv(_CHUNK)
        except TimeoutError:
            raise
        except OSError as error:
            raise DaemonError(f"crannogd broke off the stream of events: {error.strerror}; try again") from error
