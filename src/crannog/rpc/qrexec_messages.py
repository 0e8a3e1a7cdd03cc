"""The messages of qrexec itself, versions 2 to 4, as other programs speak them. Pure: no I/O.

A message is `u32 type, u32 length, body`, all integers little-endian (qrexec protocol, "Messages"). Texts in fields of
a fixed size end with NUL and are filled up with NUL. Who speaks what is said in docs/qrexec.md.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from crannog.errors import ProtocolError

DATA_STDIN, DATA_STDOUT, DATA_STDERR, DATA_EXIT_CODE = 0x190, 0x191, 0x192, 0x193
EXEC_CMDLINE, JUST_EXEC, SERVICE_CONNECT, SERVICE_REFUSED = 0x200, 0x201, 0x202, 0x203
TRIGGER_SERVICE, CONNECTION_TERMINATED, TRIGGER_SERVICE3, TRIGGER_SERVICE4 = 0x210, 0x211, 0x212, 0x213
HELLO = 0x300

HEADER = struct.Struct("<II")
NUMBER = struct.Struct("<I")
PARAMS = struct.Struct("<II")
IDENT_SIZE = 32
TRIGGER2 = struct.Struct("<64s32s32s")
TRIGGER3 = struct.Struct("<64s32s")
TRIGGER4 = struct.Struct("<64s64s32s")

AGENT_VERSION = 4
"""The version between daemon and agent, and of data."""
CLIENT_VERSION = 3
"""The version between daemon and client; clients with an older one are refused."""
OLDEST_VERSION = 2
"""The oldest version of agents, and of data."""
COMMAND_MAX = 65535
"""Longest command line in bytes, with the NUL at its end."""
SERVICE_MAX = 65000
CHUNK_MAX = 65536
OLD_CHUNK_MAX = 4096
CONTROL_PORT, FIRST_PORT, PORTS = 512, 513, 256

FROM_AGENT = frozenset({HELLO, TRIGGER_SERVICE, TRIGGER_SERVICE3, TRIGGER_SERVICE4, CONNECTION_TERMINATED})
FROM_DAEMON = frozenset({HELLO, EXEC_CMDLINE, JUST_EXEC, SERVICE_CONNECT, SERVICE_REFUSED})
FROM_CLIENT = frozenset({HELLO, EXEC_CMDLINE, JUST_EXEC, SERVICE_CONNECT})
FROM_CALLER = frozenset({HELLO, DATA_STDIN})
FROM_SERVICE = frozenset({HELLO, DATA_STDOUT, DATA_STDERR, DATA_EXIT_CODE})

_DATA = frozenset({DATA_STDIN, DATA_STDOUT, DATA_STDERR})
_SIZES: dict[int, tuple[int, int]] = {
    DATA_EXIT_CODE: (4, 4),
    EXEC_CMDLINE: (PARAMS.size, PARAMS.size + COMMAND_MAX),
    JUST_EXEC: (PARAMS.size, PARAMS.size + COMMAND_MAX),
    SERVICE_CONNECT: (PARAMS.size, PARAMS.size + IDENT_SIZE),
    SERVICE_REFUSED: (IDENT_SIZE, IDENT_SIZE),
    TRIGGER_SERVICE: (TRIGGER2.size, TRIGGER2.size),
    CONNECTION_TERMINATED: (PARAMS.size, PARAMS.size),
    TRIGGER_SERVICE3: (TRIGGER3.size + 1, TRIGGER3.size + SERVICE_MAX),
    TRIGGER_SERVICE4: (TRIGGER4.size + 1, TRIGGER4.size + SERVICE_MAX),
    HELLO: (4, 4),
}
"""The least and the greatest length of each body that is no data."""


class Message(NamedTuple):
    """One message."""

    type: int
    body: bytes


class ExecParams(NamedTuple):
    """Whom to meet for the data of a call, and at which port."""

    domain: int
    port: int


def encode(kind: int, body: bytes = b"") -> bytes:
    """Return the bytes of one message."""
    return HEADER.pack(kind, len(body)) + body


def encode_hello(version: int) -> bytes:
    """Return a HELLO."""
    return encode(HELLO, NUMBER.pack(version))


def encode_data(kind: int, data: bytes, version: int = AGENT_VERSION) -> bytes:
    """Return `data` as messages that a peer of that version takes; the end of the data when it is empty."""
    size = chunk_max(version)
    return b"".join(encode(kind, data[at : at + size]) for at in range(0, len(data) or 1, size))


def encode_exit_code(code: int) -> bytes:
    """Return the end of a call."""
    return encode(DATA_EXIT_CODE, NUMBER.pack(code & 0xFFFFFFFF))


def encode_exec(kind: int, params: ExecParams, command_line: bytes) -> bytes:
    """Return EXEC_CMDLINE or JUST_EXEC for `USER:COMMAND`, without NUL; raises ProtocolError when that is too long."""
    if len(command_line) >= COMMAND_MAX:
        raise ProtocolError(f"the command has {len(command_line)} bytes; at most {COMMAND_MAX - 1} can be passed on")
    return encode(kind, PARAMS.pack(*params) + command_line + b"\0")


def encode_params(kind: int, params: ExecParams) -> bytes:
    """Return a message of nothing but parameters: an answer to a client, or CONNECTION_TERMINATED."""
    return encode(kind, PARAMS.pack(*params))


def encode_connect(params: ExecParams, ident: bytes) -> bytes:
    """Return SERVICE_CONNECT: the service that was asked for as `ident` is to be met there."""
    return encode(SERVICE_CONNECT, PARAMS.pack(*params) + _fill(ident, IDENT_SIZE))


def encode_refused(ident: bytes) -> bytes:
    """Return SERVICE_REFUSED; a field of the guest's is sent back whatever is in it."""
    return encode(SERVICE_REFUSED, ident if len(ident) == IDENT_SIZE else _fill(ident, IDENT_SIZE))


def encode_trigger(version: int, target: str, ident: bytes, service: str, source: str = "") -> bytes:
    """Return an agent's request for a service, as agents of that version send it."""
    name, to = service.encode("ascii"), _fill(target.encode("ascii"), 64)
    if version <= 2:
        return encode(TRIGGER_SERVICE, _fill(name, 64) + _fill(to[:32].rstrip(b"\0"), 32) + _fill(ident, IDENT_SIZE))
    if version == 3:
        return encode(TRIGGER_SERVICE3, to + _fill(ident, IDENT_SIZE) + name + b"\0")
    return encode(TRIGGER_SERVICE4, _fill(source.encode("ascii"), 64) + to + _fill(ident, IDENT_SIZE) + name + b"\0")


def _fill(text: bytes, size: int) -> bytes:
    """Return a text in a field of a fixed size; its NUL must fit too."""
    text = text.rstrip(b"\0")
    if len(text) >= size:
        raise ProtocolError(f"a text of {len(text)} bytes does not fit a field of {size}")
    return text.ljust(size, b"\0")


def chunk_max(version: int) -> int:
    """Return how many bytes one message of data may have."""
    return CHUNK_MAX if version > OLDEST_VERSION else OLD_CHUNK_MAX


def decode_number(body: bytes) -> int:
    """Return the number that HELLO or DATA_EXIT_CODE holds; the parser has seen to its length."""
    return int(NUMBER.unpack(body)[0])


def decode_params(body: bytes) -> ExecParams:
    """Return the parameters that a body begins with."""
    if len(body) < PARAMS.size:
        raise ProtocolError("the peer sent a message without parameters")
    return ExecParams(*PARAMS.unpack_from(body))


def decode_command(body: bytes) -> bytes:
    """Return the command line behind the parameters. Raises ProtocolError unless one NUL ends it."""
    line, end, rest = body[PARAMS.size :].partition(b"\0")
    if not end or rest or not line:
        raise ProtocolError("the peer sent a command line that is empty, or has no NUL at its end alone")
    return line


def decode_connect(body: bytes) -> tuple[ExecParams, bytes]:
    """Return parameters and ident of SERVICE_CONNECT; clients may send the ident without all of its filling."""
    ident = body[PARAMS.size :]
    if not ident.endswith(b"\0"):
        raise ProtocolError("it sent an ident without a NUL at its end")
    return decode_params(body), ident


def to_trigger4(kind: int, body: bytes) -> bytes:
    """Return the body of any TRIGGER_SERVICE as that of TRIGGER_SERVICE4; the caller has to check its fields.

    A name or target that fills its field loses its last character to the NUL, as qrexec does it.
    """
    source, name = b"", b""
    if kind == TRIGGER_SERVICE:
        name, target, ident = TRIGGER2.unpack(body)
        name, target = name[:63].partition(b"\0")[0] + b"\0", target[:31]
    elif kind == TRIGGER_SERVICE3:
        target, ident = TRIGGER3.unpack_from(body)
        name = body[TRIGGER3.size :]
    else:
        source, target, ident = TRIGGER4.unpack_from(body)
        name = body[TRIGGER4.size :]
    return TRIGGER4.pack(source[:63], target[:63], ident) + name


def ident_of(trigger4: bytes) -> bytes:
    """Return the ident field in the body of TRIGGER_SERVICE4."""
    return bytes(TRIGGER4.unpack_from(trigger4)[2])


class MessageParser:
    """Cuts a peer's bytes into messages. It holds at most one message more than what was fed last."""

    def __init__(self, types: Iterable[int], version: int = AGENT_VERSION) -> None:
        self.types = frozenset(types)
        self.version = version
        self._buffer = bytearray()

    @property
    def held(self) -> int:
        """How many bytes of a message are here that has not come as a whole."""
        return len(self._buffer)

    def feed(self, untrusted_data: bytes) -> Iterator[Message]:
        """Add bytes and give the messages that are complete.

        Raises ProtocolError when the bytes are no message of the types; the connection is then of no use any more.
        """
        self._buffer += untrusted_data
        while len(self._buffer) >= HEADER.size:
            kind, length = HEADER.unpack_from(self._buffer)
            self._check(kind, length)
            end = HEADER.size + length
            if len(self._buffer) < end:
                return
            body = bytes(memoryview(self._buffer)[HEADER.size : end])
            del self._buffer[:end]
            yield Message(kind, body)

    def _check(self, kind: int, length: int) -> None:
        if kind not in self.types:
            raise ProtocolError(f"the peer sent a message of type {kind:#x}, which it may not")
        least, most = (0, chunk_max(self.version)) if kind in _DATA else _SIZES[kind]
        if not least <= length <= most:
            raise ProtocolError(f"the peer sent a message of type {kind:#x} with {length} bytes")
