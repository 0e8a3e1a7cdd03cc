"""Where a driver's pools are in a test, and what the tests of all drivers do with volumes."""

import mmap
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import pytest

from crannog.adapters.storage.folders import FolderPool
from crannog.core.volumes import Location, Volume
from crannog.ports.storage import Pool

SIZE = 2**20
PLACE = 65536
"""Where the tests write 4096 bytes."""
KEEPING = Volume("root", "p", "debian-1/root", SIZE, save_on_stop=True, revisions_to_keep=2)
IN_PLACE = Volume("private", "p", "work-2/private", SIZE, save_on_stop=True)
LAYER = Volume("root", "p", "work-2/root", SIZE, snap_on_start=True, source=KEEPING.vid)
OWN = [KEEPING, IN_PLACE]
ALL = frozenset(volume.vid for volume in (KEEPING, IN_PLACE, LAYER))
own = pytest.mark.parametrize("volume", OWN, ids=["keeping", "in-place"])


class Bench(Protocol):
    """One driver's pools, for one test. The first one that is opened is called `p`."""

    def open(self, name: str = "p") -> Pool:
        """Return a pool as a daemon does that has just started: it knows nothing but what is there."""

    def contents(self) -> list[str]:
        """Return everything that is there of pool `p`, with sizes: equal lists, nothing was made or deleted."""

    def half_made(self) -> list[str]:
        """Return what is there of pool `p` that is not finished, and nobody will ever use."""

    def full(self) -> AbstractContextManager[None]:
        """Have no room for new data at all until the end of the block."""


class FolderBench:
    """Pools that are folders, in one folder."""

    def __init__(self, driver: type[FolderPool], folder: Path) -> None:
        self.driver = driver
        self.folder = folder

    def open(self, name: str = "p") -> Pool:
        pool = self.driver(name, str(self.folder / name))
        os.makedirs(pool.folder, mode=0o700, exist_ok=True)
        return pool  # type: ignore[return-value]

    def contents(self) -> list[str]:
        pool = self.folder / "p"
        return sorted(f"{path.relative_to(pool)} {path.lstat().st_size}" for path in pool.rglob("*"))

    def half_made(self) -> list[str]:
        return [path for path in self.contents() if ".new" in path]

    @contextmanager
    def full(self) -> Iterator[None]:
        ballast = self.folder / "ballast"
        free = os.statvfs(self.folder)
        with ballast.open("wb") as file:
            for size in (free.f_bavail * free.f_frsize, 2**20, 2**16, 4096):
                fill(file.fileno(), size)
        try:
            yield
        finally:
            ballast.unlink()
            os.sync()  # btrfs gives room back with the next transaction


def fill(descriptor: int, size: int) -> None:
    """Take room in pieces of `size` bytes until there is none."""
    while True:
        try:
            os.posix_fallocate(descriptor, os.fstat(descriptor).st_size, size)
        except OSError:
            return


class Contract:
    """What the classes of the contract have in common. Whoever takes them has fixtures `bench` and `small_bench`."""

    @pytest.fixture
    async def pool(self, bench: Bench) -> Pool:
        """Return a pool with a TemplateVM and an AppVM whose volumes are empty."""
        return await furnish(bench.open())


async def furnish(pool: Pool) -> Pool:
    """Make a TemplateVM and an AppVM in a pool."""
    await pool.create((KEEPING,))
    await pool.create((IN_PLACE, LAYER))
    await pool.claim((KEEPING, IN_PLACE, LAYER))
    return pool


def io(location: Location, command: str) -> str:
    """Do what a guest would; -U because a test looks on while others have the image."""
    options = ["-r", "-U"] if command.startswith("read") else []
    # Of what goes to a device through the page cache the kernel says that it failed, but not that there is no room.
    options += ["-t", "none"] if location.is_block else []
    run = ["qemu-io", "-f", location.format, *options, "-c", command, location.path]
    result = subprocess.run(run, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=20)
    return result.stdout


def write(location: Location, letter: str) -> None:
    if location.format == "raw":
        put(location.path, letter.encode() * 4096, PLACE)
        return
    output = io(location, f"write -P {ord(letter)} {PLACE} 4096")
    assert "wrote 4096/4096" in output, output


def peek(location: Location, place: int = PLACE) -> str:
    """Return the letter of which 4096 bytes at a place consist; `?` when they are not all the same."""
    found = set(get(location.path, place, 4096)) if location.format == "raw" else look(location, place)
    return chr(found.pop()) if len(found) == 1 else "?"


def look(location: Location, place: int) -> set[int]:
    """Return the bytes of which 4096 bytes at a place consist, in an image that QEMU has to read."""
    output = io(location, f"read -v {place} 4096")
    assert "read 4096/4096" in output, output
    lines = re.findall(r"^[0-9a-f]{8}: ((?: [0-9a-f]{2}){16})", output, re.MULTILINE)
    return {int(byte, 16) for line in lines for byte in line.split()}


def holds(location: Location, letter: str, place: int = PLACE) -> bool:
    return peek(location, place) == letter


async def session(pool: Pool, volume: Volume, letter: str) -> None:
    """Have a VM start, write and stop."""
    await pool.start(volume)
    write(pool.locate(volume), letter)
    await pool.stop(volume)


async def see(pool: Pool, volume: Volume) -> str:
    """Return the letter that a VM would find at its next start."""
    await pool.start(volume)
    try:
        return peek(pool.locate(volume))
    finally:
        await pool.abandon(volume)


async def stored(pool: Pool, vid: str) -> str:
    """Return the letter that the newest finished content of a volume holds."""
    async with pool.reading(vid) as content:
        return peek(content)


def put(path: str, data: bytes, place: int = 0) -> None:
    """Write data to a file or device that is there, and to the disk; a device takes whole blocks."""
    is_block = Location(path, "raw").is_block
    with mmap.mmap(-1, -(-len(data) // 4096) * 4096) as blocks:  # where O_DIRECT wants it
        blocks.write(data)
        descriptor = os.open(path, os.O_WRONLY | (os.O_DIRECT if is_block else 0))
        try:
            with memoryview(blocks) as whole:
                end = len(whole) if is_block else len(data)
                done = 0
                while done < end:
                    done += os.pwrite(descriptor, whole[done:end], place + done)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def get(path: str, place: int, count: int) -> bytes:
    """Return whole blocks of a file, or of a device past all caches."""
    with mmap.mmap(-1, count) as blocks:
        descriptor = os.open(path, os.O_RDONLY | (os.O_DIRECT if Location(path, "raw").is_block else 0))
        try:
            assert os.preadv(descriptor, [blocks], place) == count
        finally:
            os.close(descriptor)
        return blocks[:]


def image(folder: Path, letter: str, size: int = SIZE) -> str:
    path = folder / f"image-{ord(letter)}"
    path.write_bytes(letter.encode() * size)
    return str(path)
