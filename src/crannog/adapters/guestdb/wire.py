"""XenStore's messages (Xen, public/io/xs_wire.h; docs/misc/xenstore.txt). Pure: no I/O.

message = u32 type, u32 request, u32 transaction, u32 length, then a body of at most BODY_MAX bytes. An answer has its
question's type and request; that of an error is the name of an errno. Texts end with NUL, values do not.
"""

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from crannog.errors import ProtocolError

HEADER = struct.Struct("<IIII")
BODY_MAX = 4096
"""XENSTORE_PAYLOAD_MAX."""


class Kind(IntEnum):
    """Types of messages, as far as they are used here."""

    DIRECTORY = 1
    READ = 2
    GET_PERMS = 3
    WATCH = 4
    UNWATCH = 5
    TRANSACTION_START = 6
    TRANSACTION_END = 7
    WRITE = 11
    MKDIR = 12
    RM = 13
    SET_PERMS = 14
    WATCH_EVENT = 15
    ERROR = 16


class Message(NamedTuple):
    """One message, with the numbers as they came."""

    kind: int
    request: int
    transaction: int
    body: bytes


def encode(message: Message) -> bytes:
    """Return the bytes of a message. Raises ProtocolError for one that is too long."""
    if len(message.body) > BODY_MAX:
        raise ProtocolError(f"XenStore takes no message of {len(message.body)} bytes; {BODY_MAX} are allowed")
    return HEADER.pack(message.kind, message.request, message.transaction, len(message.body)) + message.body


class Parser:
    """Cuts what comes from XenStore into messages; holds one message's bytes more than what was fed last at most."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Add bytes, and give the messages that are complete. Raises ProtocolError for what is none."""
        self._buffer += data
        while len(self._buffer) >= HEADER.size:
            kind, request, transaction, length = HEADER.unpack_from(self._buffer)
            if length > BODY_MAX:
                raise ProtocolError(f"XenStore sent a message of {length} bytes; {BODY_MAX} are allowed")
            end = HEADER.size + length
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[HEADER.size : end])
            del self._buffer[:end]
            yield Message(kind, request, transaction, body)
