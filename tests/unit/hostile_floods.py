"""What a hostile guest sends without end: patterns by name, a piece at a time, and whether it reads answers."""

from collections.abc import Callable
from typing import NamedTuple

from crannog.rpc import frames
from crannog.rpc.frames import encode_frame as encode

HELLO = encode(0, frames.HELLO, frames.NUMBER.pack(3))
NOTIFY = encode(0, frames.TRIGGER, b"qubes.NotifyTools")


class Flood(NamedTuple):
    """One pattern; `piece(0)`, `piece(1)`, ... follow each other."""

    piece: Callable[[int], bytes]
    reads: bool = True


def trigger(service: bytes, ident: bytes = b"SOCKET7") -> bytes:
    """Return a wish for a service."""
    return encode(0, frames.TRIGGER_SERVICE4, frames.TRIGGER_PARAMS.pack(b"", b"dom0", ident) + service + b"\0")


def write(path: bytes, value: bytes) -> bytes:
    """Return a change of the guest DB."""
    return encode(0, frames.GUESTDB_WRITE, path + b"\0" + value)


FULL_TREE = b"".join(write(b"/features-request/%d" % number, bytes([65 + number % 26]) * 3072) for number in range(128))


def _lie(kind: int, length: int) -> bytes:
    return frames.HEADER.pack(1, kind, length) * 1000


def _open_streams(number: int) -> bytes:
    return b"".join(encode(number * 500 + at, frames.EXEC_CMDLINE, b"root:id\0") for at in range(500))


def _hello_after_hello(number: int) -> bytes:
    return HELLO * 10_000 if number else FULL_TREE


FLOODS: dict[str, Flood] = {
    "data that no stream is open for": Flood(lambda number: encode(number % 50, frames.DATA_STDOUT, bytes(65536))),
    "rubbish": Flood(lambda number: bytes([number % 256]) * 100_000),
    "lengths that are lies": Flood(lambda number: _lie(frames.DATA_STDOUT, 65537 + number)),
    "lengths that no type has": Flood(lambda number: _lie(frames.CREDIT, number % 9)),
    "frames without an end": Flood(lambda _: frames.HEADER.pack(1, frames.DATA_STDOUT, 65536) + bytes(30_000)),
    "10,000 streams": Flood(_open_streams),
    "connections that nobody asked for": Flood(lambda number: encode(number, frames.SERVICE_CONNECT, bytes(32)) * 1000),
    "triggers of one ident": Flood(lambda _: trigger(b"denied") * 200),
    "triggers whose answers are not read": Flood(lambda number: trigger(b"denied+%d" % number) * 200, reads=False),
    "services of 65,000 bytes": Flood(lambda _: trigger(b"denied+" + b"x" * 64_992)),
    "wishes that are none": Flood(lambda _: encode(0, frames.TRIGGER_SERVICE4, b"x" * 65_000)),
    "entries of the guest DB": Flood(lambda number: write(b"/qubes-tools/%d" % number, bytes(3072)) * 50),
    "entries that are not read back": Flood(
        lambda number: HELLO + FULL_TREE + write(b"/x", b"%d" % number), reads=False
    ),
    "entries of the host": Flood(lambda number: write(b"/name%d" % number, bytes(3072)) * 50),
    "watches": Flood(lambda _: encode(0, frames.GUESTDB_WATCH, b"/") * 500),
    "HELLO after HELLO": Flood(_hello_after_hello, reads=False),
    "credit without end": Flood(lambda number: encode(number % 300, frames.CREDIT, b"\xff" * 4) * 2000),
    "announcements": Flood(lambda number: write(b"/qubes-tools/os", b"%d" % number) + NOTIFY),
}
