"""The wire format between the RPC process of a VM, its guest agent, and local clients. Pure: no I/O.

The channel (both ways, all integers little-endian)
    frame = u32 stream, u32 type, u32 length, then a body of at most BODY_MAX bytes (but see "Bulk data"). The
    first six types have qrexec's numbers and meaning (qrexec protocol, "Message types"); DATA_* with an empty body
    is the end of that stream of data. A call is one stream: the host picks its number and sends EXEC_CMDLINE
    `USER:COMMAND` NUL (USER may be DEFAULT); the guest ends it with DATA_EXIT_CODE; CLOSE from the host means that the
    caller is gone. Frames for a stream that has ended are late, and ignored. Stream 0 carries HELLO (u32
    version, the guest's first frame), GUESTDB_WRITE (`path` NUL `value`), GUESTDB_REMOVE (`path`; with a slash
    at its end all below), both ways, GUESTDB_READY (empty, from the host: all entries were told), TRIGGER (a
    service's name; qubes.NotifyTools says that the announcement is complete), and POWEROFF from the host.

Calls from the guest (version 2 of HELLO and later)
    The guest asks on stream 0 with TRIGGER_SERVICE4: char source[64], target[64], ident[32], then the service's
    name with `+` and its argument, NUL (qrexec protocol, "Messages"). Source is empty but for a relay. The host
    answers with SERVICE_REFUSED and the ident on stream 0, or with SERVICE_CONNECT and the ident on a stream whose
    number it picks. On that stream the guest is the caller: it sends DATA_STDIN, and CLOSE when its caller is gone;
    it gets DATA_STDOUT, DATA_STDERR and, last, DATA_EXIT_CODE. Windows and CREDIT are the same both ways.

Flow control
    Each stream and direction has a window of WINDOW bytes. Every data frame with a body takes HEADER.size +
    its length from it; the receiver gives back with CREDIT (u32) what it has passed on. So one stuck stream
    never stops the others, and what a peer can make this side hold is bounded, with tiny frames too.

Bulk data (version 4 of HELLO)
    The host answers such a HELLO with its own, once for each synchronisation. From then on data of the guest may
    come in frames of up to BULK_MAX bytes. A receiver that has passed on WIDE_AFTER bytes of a stream may give more
    credit than it has taken, once, so that the window is WIDE_WINDOW: at most WIDE_STREAMS streams of a VM each way
    at a time. A frame of one stream waits for what others have sent before it, which is at most their windows.

Synchronisation
    Either end may be killed in the middle of a frame, while the port's queues hold old bytes. So no end
    believes what it reads until markers have been exchanged. A marker is MAGIC, a letter, and two nonces of 8
    bytes: R (request; from the guest, with its nonce), S (sync; from the host, which repeats it and adds its
    own), A (acknowledge; from the guest, with both). While an end hunts for a marker it drops everything
    else. An end that loses step or starts sends PADDING: that completes any frame it may have sent half of,
    and then is a header with type 0, which no frame has, so that the peer starts to hunt too. The guest
    always follows with R, and repeats it until it is answered. Fresh nonces keep old or planted bytes from
    being taken for an answer. On a slow channel (Xen's consoles) both send a short padding first, and PADDING only when
    there is no answer within a second; the guest's data comes in frames of a page there. A terminal echoes what comes
    before the agent has set it raw: an echo has no byte 0, which every header has, so that it is never a frame.

Local clients (a stream socket)
    message = u32 type, u32 length, body. The server sends HELLO(3), the client answers HELLO(3), then asks
    one of: EXEC_CMDLINE with 8 zero bytes and `USER:COMMAND` NUL, after which the connection carries that
    call's data; STATUS_FOLLOW, answered with one STATUS_FOLLOW message, a line of JSON, now and at each
    change; POWEROFF, answered with POWEROFF and a u32: 1 when it was passed on, 0 when there is no agent;
    DOMAIN_NUMBER (u32, from the daemon, no answer): the hypervisor's number of the VM's domain, by which other
    programs call it; GUESTDB_WRITE and GUESTDB_REMOVE, as on the channel (no answer): a change of the guest DB;
    GUESTDB_LIST with the beginning of paths: answered with a GUESTDB_WRITE for each entry, then GUESTDB_READY.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from crannog.errors import ProtocolError

DATA_STDIN = 0x190
DATA_STDOUT = 0x191
DATA_STDERR = 0x192
DATA_EXIT_CODE = 0x193
EXEC_CMDLINE = 0x200
SERVICE_CONNECT = 0x202
SERVICE_REFUSED = 0x203
TRIGGER_SERVICE4 = 0x213
HELLO = 0x300
CREDIT = 0x700
CLOSE = 0x701
GUESTDB_WRITE = 0x702
TRIGGER = 0x703
POWEROFF = 0x704
GUESTDB_REMOVE = 0x705
GUESTDB_READY = 0x706
GUESTDB_WATCH = 0x707
STATUS_FOLLOW = 0x710
DOMAIN_NUMBER = 0x711
GUESTDB_LIST = 0x712

CHANNEL_TYPES = frozenset(
    {DATA_STDIN, DATA_STDOUT, DATA_STDERR, DATA_EXIT_CODE, EXEC_CMDLINE, HELLO}
    | {CREDIT, CLOSE, GUESTDB_WRITE, TRIGGER, POWEROFF}
    | {SERVICE_CONNECT, SERVICE_REFUSED, TRIGGER_SERVICE4}
    | {GUESTDB_REMOVE, GUESTDB_READY}
)
DATA_TYPES = frozenset({DATA_STDIN, DATA_STDOUT, DATA_STDERR})
LOCAL_TYPES = frozenset(
    {DATA_STDIN, EXEC_CMDLINE, HELLO, STATUS_FOLLOW, POWEROFF, DOMAIN_NUMBER}
    | {GUESTDB_WRITE, GUESTDB_REMOVE, GUESTDB_LIST}
)
IDENT_SIZE = 32
FIXED_SIZES = {DATA_EXIT_CODE: 4, HELLO: 4, CREDIT: 4, CLOSE: 0, POWEROFF: 0, STATUS_FOLLOW: 0, DOMAIN_NUMBER: 4}
FIXED_SIZES |= {SERVICE_CONNECT: IDENT_SIZE, SERVICE_REFUSED: IDENT_SIZE, GUESTDB_READY: 0}

HEADER = struct.Struct("<III")
LOCAL_HEADER = struct.Struct("<II")
NUMBER = struct.Struct("<I")
TRIGGER_PARAMS = struct.Struct("<64s64s32s")
EXEC_PARAMS = bytes(8)
BODY_MAX = 65536
BULK_MAX = 262144
PROTOCOL_VERSION = 4
BULK_VERSION = 4
OLDEST_VERSION = 1
LOCAL_VERSION = 3

WINDOW = 262144
WIDE_WINDOW = 2097152
WIDE_GRANT = 524288
WIDE_AFTER = 524288
"""Bytes after which a stream may get the wide window."""
WIDE_STREAMS = 8
GRANT_MIN = 65536
"""Credit is given back in steps of at least this many bytes."""
CREDIT_MIN = 4096 + HEADER.size
"""A sender with less credit than this waits, rather than send tiny frames."""
STREAMS_MAX = 256

MAGIC = b"\xffcrannog-sync\xff\xfe"
NONCE_SIZE = 8
MARKER_SIZE = len(MAGIC) + 1 + 2 * NONCE_SIZE
PADDING = bytes(BODY_MAX + 2 * HEADER.size)
"""Longer than the rest of any frame of this side (at most HEADER.size - 1 + BODY_MAX) plus a whole header of zeros."""
GUEST_PADDING = bytes(BULK_MAX + 2 * HEADER.size)
SHORT_PADDING = bytes(4096 + 2 * HEADER.size)
"""For a channel that is slow (Xen's consoles), where PADDING follows only when there is no answer to this one."""
REQUEST, SYNC, ACKNOWLEDGE = b"R", b"S", b"A"


class Frame(NamedTuple):
    """One frame of the channel."""

    stream: int
    type: int
    body: bytes


class Marker(NamedTuple):
    """One synchronisation marker."""

    kind: bytes
    guest_nonce: bytes
    host_nonce: bytes


class Message(NamedTuple):
    """One message of a local client, or to it."""

    type: int
    body: bytes


def encode_frame(stream: int, kind: int, body: bytes = b"") -> bytes:
    """Return the bytes of one frame; `body` is at most BODY_MAX bytes."""
    return HEADER.pack(stream, kind, len(body)) + body


def encode_message(kind: int, body: bytes = b"") -> bytes:
    """Return the bytes of one local message; `body` is at most BODY_MAX bytes."""
    return LOCAL_HEADER.pack(kind, len(body)) + body


def encode_marker(marker: Marker) -> bytes:
    """Return the MARKER_SIZE bytes of `marker`."""
    return MAGIC + marker.kind + marker.guest_nonce + marker.host_nonce


def _check_header(kind: int, length: int, types: frozenset[int], data_max: int = BODY_MAX) -> None:
    if kind not in types:
        raise ProtocolError(f"the peer sent a frame of the unknown type {kind:#x}")
    most = data_max if kind in DATA_TYPES else BODY_MAX
    if length > most:
        raise ProtocolError(f"the peer sent a frame of {length} bytes; {most} are allowed")
    if FIXED_SIZES.get(kind, length) != length:
        raise ProtocolError(f"the peer sent a frame of type {kind:#x} with {length} bytes")


class FrameParser:
    """Cuts a channel's bytes into frames, or hunts for markers. It starts hunting.

    It holds at most one frame's bytes more than what was fed last.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.is_hunting = True
        self.data_max = BODY_MAX

    def feed(self, untrusted_data: bytes) -> None:
        """Add bytes from the channel; the caller then takes all items, before it feeds again."""
        self._buffer += untrusted_data

    def next_frame(self) -> Frame | None:
        """Return the next frame; None while there is none, or when hunting.

        Raises ProtocolError, and hunts from then on, when the bytes are no frame.
        """
        if self.is_hunting or len(self._buffer) < HEADER.size:
            return None
        stream, kind, length = HEADER.unpack_from(self._buffer)
        try:
            _check_header(kind, length, CHANNEL_TYPES, self.data_max)
        except ProtocolError:
            self.is_hunting = True
            raise
        end = HEADER.size + length
        if len(self._buffer) < end:
            return None
        body = bytes(memoryview(self._buffer)[HEADER.size : end])
        del self._buffer[:end]
        return Frame(stream, kind, body)

    def next_marker(self) -> Marker | None:
        """Return the next marker and drop what was before it; None while there is none.

        After a marker that is not wanted, hunting goes on inside it, as it may be half of one that was cut
        off.
        """
        at = self._buffer.find(MAGIC)
        if at < 0:
            del self._buffer[: -len(MAGIC)]
            return None
        del self._buffer[:at]
        if len(self._buffer) < MARKER_SIZE:
            return None
        rest = bytes(self._buffer[len(MAGIC) : MARKER_SIZE])
        del self._buffer[:1]
        return Marker(rest[:1], rest[1 : 1 + NONCE_SIZE], rest[1 + NONCE_SIZE :])

    def accept_marker(self) -> None:
        """Take the marker returned last as the wanted one: frames follow it."""
        del self._buffer[: MARKER_SIZE - 1]
        self.is_hunting = False


class MessageParser:
    """Cuts a local client's bytes into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Add bytes and return the messages that are complete.

        Raises ProtocolError when the bytes are no message; the connection is then of no use any more.
        """
        self._buffer += data
        while len(self._buffer) >= LOCAL_HEADER.size:
            kind, length = LOCAL_HEADER.unpack_from(self._buffer)
            _check_header(kind, length, LOCAL_TYPES)
            end = LOCAL_HEADER.size + length
            if len(self._buffer) < end:
                return
            body = bytes(memoryview(self._buffer)[LOCAL_HEADER.size : end])
            del self._buffer[:end]
            yield Message(kind, body)
