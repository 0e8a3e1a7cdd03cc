"""Requests, responses and events as bytes (Admin API, sections 2, 3 and 9). No I/O."""

from dataclasses import dataclass

from crannog.core.events import Event
from crannog.errors import CrannogError, ProtocolError

MAX_REQUEST = 65536
"""Largest request in bytes, header and payload together."""

CONNECTED = Event("", "connection-established")
"""What every stream of events begins with."""


@dataclass(frozen=True)
class Request:
    """One call. `argument` is what follows the `+`; `destination` is a VM's name or `uuid:UUID`."""

    method: str
    argument: str
    source: str
    destination: str
    payload: bytes


def parse_request(untrusted_data: bytes) -> Request:
    """Return the call that the bytes up to EOF make; raise ProtocolError for anything else.

    The header is printable ASCII. Whether the names in it are those of anything is for others to find out.
    """
    if len(untrusted_data) > MAX_REQUEST:
        raise ProtocolError(f"the request is longer than {MAX_REQUEST} bytes")
    untrusted_header, separator, payload = untrusted_data.partition(b"\0")
    if not separator:
        raise ProtocolError("the request's header has no end")
    if not untrusted_header.isascii() or not (header := untrusted_header.decode("ascii")).isprintable():
        raise ProtocolError("the request's header is not printable ASCII")
    words = header.split(" ", 3)
    if len(words) != 4:
        raise ProtocolError("the request's header has fewer than four words")
    called, source, kind, destination = words
    if kind == "keyword" and destination == "adminvm":
        destination = "dom0"
    elif kind != "name":
        raise ProtocolError("the request's destination is neither a name nor the keyword adminvm")
    method, _, argument = called.partition("+")
    return Request(method, argument, source, destination, payload)


def encode_ok(data: bytes) -> bytes:
    """Return the response of a call that succeeded."""
    return b"0\0" + data


def encode_error(error: CrannogError) -> bytes:
    """Return the response of a call that failed.

    `%` is doubled because clients format the message with `%`. In the traceback's place, which clients only print when
    debugging, stands the error's own name, so that our tools end with its exact exit code.
    """
    message = str(error).replace("%", "%%").replace("\0", "")
    fields = (error.wire_name, type(error).__name__, message)
    return b"2\0" + b"".join(field.encode("utf-8", "replace") + b"\0" for field in fields)


def encode_event(event: Event) -> bytes:
    """Return an event as a stream of them has it. What is not ASCII, as readers expect, is written as an escape."""
    words = [event.subject, event.name]
    for key, value in event.arguments.items():
        words += (key, value)
    return b"1\0" + b"".join(_encode_word(word) + b"\0" for word in words) + b"\0"


def _encode_word(word: str) -> bytes:
    return word.replace("\0", "").encode("ascii", "backslashreplace")
