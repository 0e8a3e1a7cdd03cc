"""Block devices and file systems for the tests of this folder, and what of them is there at a moment."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SECTOR = 512
MIB = 2**20
PROGRAM_TIMEOUT = 60
"""Seconds; everything is emulated here, and lvm2 takes a second for what takes 50 ms elsewhere."""


def run(*words: str | Path) -> str:
    """Run a program that must succeed, and return what it printed; its complaint is in the failure otherwise."""
    command = [str(word) for word in words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PROGRAM_TIMEOUT, check=False)
    assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}: {done.stderr}"
    return done.stdout


@contextmanager
def loop_device(path: Path, size: int = 0) -> Iterator[str]:
    """Attach a file to a loop device, and detach it afterwards. With `size`, in bytes, the sparse file is made."""
    if size:
        with path.open("wb") as file:
            file.truncate(size)
    device = run("losetup", "--find", "--show", path).strip()
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


@contextmanager
def mapped_device(name: str, table: str) -> Iterator[str]:
    """Make the device-mapper device `name` with a table as dmsetup(8) takes it, and remove it afterwards."""
    run("dmsetup", "create", name, "--table", table)
    try:
        yield f"/dev/mapper/{name}"
    finally:
        run("dmsetup", "remove", "--retry", name)


@contextmanager
def mounted(device: str, folder: Path) -> Iterator[Path]:
    """Mount a device at `folder`, which is made, and unmount it afterwards."""
    folder.mkdir()
    run("mount", device, folder)
    try:
        yield folder
    finally:
        run("umount", folder)


def count_sectors(device: str) -> int:
    """Return the size of a block device in sectors of 512 bytes."""
    return int(run("blockdev", "--getsz", device))


def read_at(device: str, offset: int, count: int) -> bytes:
    """Return bytes of a device as they are below all caches."""
    run("blockdev", "--flushbufs", device)
    with open(device, "rb") as file:
        file.seek(offset)
        return file.read(count)


def write_at(device: str, offset: int, data: bytes) -> None:
    """Write bytes to a device, through to what is below it."""
    with open(device, "r+b") as file:
        file.seek(offset)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def look_quickly() -> dict[str, list[str]]:
    """Return what the kernel says of devices of device-mapper, loop devices and mounts, without running a program."""
    return {
        "device-mapper": sorted(path.read_text() for path in Path("/sys/block").glob("dm-*/dm/name")),
        "loop devices": sorted(
            f"{path.parts[3]} {path.read_text()}" for path in Path("/sys/block").glob("loop*/loop/backing_file")
        ),
        "nodes": sorted(os.listdir("/dev/mapper")),
        "mounts": Path("/proc/mounts").read_text().splitlines(),
    }


def list_remains() -> dict[str, list[str]]:
    """Return the devices of device-mapper, the loop devices, the volume groups and the mounts that are there now."""
    run("udevadm", "settle")
    return {
        "device-mapper": run("dmsetup", "info", "--columns", "--noheadings", "-o", "name").splitlines(),
        "loop devices": run("losetup", "--list", "--noheadings", "-O", "NAME,BACK-FILE").splitlines(),
        "nodes": sorted(os.listdir("/dev/mapper")),
        "volume groups": run("vgs", "--noheadings", "-o", "vg_name").split(),
        "mounts": Path("/proc/mounts").read_text().splitlines(),
    }
