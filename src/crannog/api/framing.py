"""Requests and responses as bytes (Admin API, sections 2 and 3). No I/O."""

import re
from dataclasses import dataclass

from crannog.errors import CrannogError, ProtocolError

MAX_REQUEST = 65536
"""Largest request in bytes, header and payload together."""

_METHOD = re.compile(r"[A-Za-z0-9_.-]+(\+[A-Za-z0-9_.+:@~-]*)?")
_NAME = re.compile(r"[A-Za-z0-9_.:@-]+")


@dataclass(frozen=True)
class Request:
    """One call. `argument` is what follows the `+`; `destination` is a VM's name or `uuid:UUID`."""

    method: str
    argument: str
    source: str
    destination: str
    payload: bytes


def parse_request(untrusted_data: bytes) -> Request:
    """Return the call that the bytes up to EOF make; raise ProtocolError for anything else."""
    if len(untrusted_data) > MAX_REQUEST:
        raise ProtocolError(f"the request is longer than {MAX_REQUEST} bytes")
    untrusted_header, separator, payload = untrusted_data.partition(b"\0")
    try:
        untrusted_parts = untrusted_header.decode("ascii").split(" ", 3)
    except UnicodeDecodeError:
        raise ProtocolError("the request's header is not ASCII") from None
    if not separator or len(untrusted_parts) != 4:
        raise ProtocolError("the request has no complete header")
    untrusted_method, untrusted_source, untrusted_type, untrusted_destination = untrusted_parts
    if not _METHOD.fullmatch(untrusted_method) or not _NAME.fullmatch(untrusted_source):
        raise ProtocolError("the request's method or source is malformed")
    method, _, argument = untrusted_method.partition("+")
    destination = _parse_destination(untrusted_type, untrusted_destination)
    return Request(method, argument, untrusted_source, destination, payload)


def _parse_destination(untrusted_type: str, untrusted_destination: str) -> str:
    if untrusted_type == "keyword" and untrusted_destination == "adminvm":
        return "dom0"
    if untrusted_type != "name" or not _NAME.fullmatch(untrusted_destination):
        raise ProtocolError("the request's destination is malformed")
    return untrusted_destination


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
