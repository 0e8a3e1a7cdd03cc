"""What devices of device-mapper are called, and their tables, as text. Nothing here touches a device.

The kernel's Documentation/admin-guide/device-mapper/snapshot.rst and linear.rst say what is in a table.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from enum import StrEnum

from crannog.adapters.storage.files import BLOCK

FOLDER = "/dev/mapper"
CHUNK = 32
"""Sectors that are copied at once: 16 KiB. The smaller a chunk is, the less a guest's small writes cost; the kernel
keeps some 32 bytes of memory for each chunk that was written, 20 MiB for 10 GiB that were written all over."""
_CHUNK_BYTES = CHUNK * BLOCK
_ENTRY = 16
"""Bytes that a lasting store has for each of its chunks, in chunks of its own (the kernel's dm-snap-persistent.c)."""
HEADER = 2 * _CHUNK_BYTES
"""Bytes that a lasting store has from the beginning: its header, and its first chunk of entries."""

_NAME = re.compile(r"crannog-([0-9a-f]{16})-([0-9a-f]{16})-([a-z0-9]+)")


class Role(StrEnum):
    """What a device is for."""

    DISK = "disk"
    """A VM uses it."""
    FORMER = "former"
    """It keeps what a session overwrites; nobody opens it."""
    SHOWN = "shown"
    """Former content is read from it. A number follows, as several stand on one another."""


class Fill(StrEnum):
    """How much is in the store of a device."""

    NOTHING = "nothing"
    SOMETHING = "something"
    TOO_MUCH = "too much"
    """It had no more room; what was in it is lost."""


@dataclass(frozen=True)
class DeviceName:
    """The name of a device, made of digests: what a folder or a volume is called can do no harm in it."""

    pool: str
    volume: str
    role: str

    def __str__(self) -> str:
        return f"crannog-{self.pool}-{self.volume}-{self.role}"

    @property
    def is_shown(self) -> bool:
        """Whether former content is read from it."""
        return self.role.startswith(Role.SHOWN)

    @property
    def uuid(self) -> str:
        """What it is found by; device-mapper has no two devices with the same."""
        return f"CRANNOG-{self.pool}-{self.volume}-{self.role}"

    @property
    def path(self) -> str:
        """Where it is opened."""
        return f"{FOLDER}/{self}"


@dataclass(frozen=True)
class Device:
    """A device that is to be made, with the lines of its table."""

    name: DeviceName
    table: tuple[str, ...]
    is_writable: bool = True

    def describe(self) -> str:
        """Return it as `dmsetup create --concise` takes it (dmsetup(8))."""
        return ",".join((str(self.name), self.name.uuid, "", "rw" if self.is_writable else "ro", *self.table))


def name_device(folder: str, vid: str, role: str) -> DeviceName:
    """Return what a device of a volume is called, whose pool is in a folder."""
    return DeviceName(digest(os.path.realpath(folder)), digest(vid), role)


def parse_name(text: str) -> DeviceName | None:
    """Return the name of one of our devices; None for any other."""
    match = _NAME.fullmatch(text)
    return DeviceName(match[1], match[2], match[3]) if match else None


def digest(text: str) -> str:
    """Return 16 hexadecimal digits that stand for a text."""
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:16]


def round_up(size: int, unit: int = BLOCK) -> int:
    """Return the least multiple of `unit` that is not below `size`."""
    return -(-size // unit) * unit


def store_size(size: int) -> int:
    """Return the bytes of a store in which all of a disk of `size` bytes has room, with its entries."""
    chunks = -(-size // _CHUNK_BYTES)
    entries = -(-chunks // (_CHUNK_BYTES // _ENTRY)) + 1
    return HEADER + (chunks + entries) * _CHUNK_BYTES


def origin_line(size: int, origin: str) -> str:
    """Return the table of a device that writes to `origin`, after what was there has gone to the stores over it."""
    return f"0 {size // BLOCK} snapshot-origin {origin}"


def snapshot_line(size: int, origin: str, store: str, *, lasts: bool) -> str:
    """Return the table of a device that shows `origin` and what is in `store`, and writes to that alone.

    With `lasts`, what is in the store can be used again later; else it is lost with the device.
    """
    return f"0 {size // BLOCK} snapshot {origin} {store} {'P' if lasts else 'N'} {CHUNK}"


def layer_table(below: int, size: int, origin: str, store: str, *, lasts: bool) -> tuple[str, ...]:
    """Return the table of a layer of `size` bytes over `below` bytes of `origin`.

    What is larger than the origin lies at the end of the store's device.
    """
    lines = [snapshot_line(below, origin, store, lasts=lasts)]
    if size > below:
        lines.append(f"{below // BLOCK} {(size - below) // BLOCK} linear {store} {store_size(below) // BLOCK}")
    return tuple(lines)


def parse_fill(status: str) -> Fill:
    """Return what `dmsetup status` says of a snapshot: sectors in use, `/`, sectors, sectors for entries."""
    words = status.split()
    figures = words[3:5]
    if len(figures) == 2 and "/" in figures[0]:
        return Fill.NOTHING if figures[0].partition("/")[0] == figures[1] else Fill.SOMETHING
    return Fill.TOO_MUCH
