"""Devices of device-mapper over files: made, looked at and removed with dmsetup and losetup.

Nothing is remembered here: what there is, the kernel says, in /sys. A loop device is freed by the kernel when the last
device over it goes (LO_FLAGS_AUTOCLEAR, loop(4)).
"""

import glob
import os
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from crannog.adapters.storage.dm_tables import Device, DeviceName, Fill, Role, digest, parse_fill, parse_name
from crannog.adapters.storage.process import read_tool, run_tool
from crannog.errors import StorageError

CONTROL = "/dev/mapper/control"
_ALTERNATIVE = "driver qcow2 needs neither root nor device-mapper"


def check_host(name: str) -> None:
    """Raise StorageError, naming what is missing, where a pool of device-mapper cannot be served."""
    start = f"pool {name} of driver device-mapper cannot be used"
    if os.geteuid() != 0:
        raise StorageError(
            f"{start}: crannogd does not run as root; start it as root, or use another pool: {_ALTERNATIVE}"
        )
    for program in ("dmsetup", "losetup"):
        if not shutil.which(program):
            raise StorageError(f"{start}: {program} is not installed; install it, or use another pool: {_ALTERNATIVE}")
    for path, module in ((CONTROL, "dm-mod"), ("/dev/loop-control", "loop")):
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            raise StorageError(
                f"{start}: {path} cannot be opened ({error.strerror}): this kernel has no device-mapper or no loop "
                f"devices; try 'modprobe {module}', or use another pool: {_ALTERNATIVE}"
            ) from error


@asynccontextmanager
async def loop_devices(purpose: str, *files: tuple[str, bool]) -> AsyncIterator[list[str]]:
    """Give out a loop device for each file, which is a path and whether it is written to, for as long as it takes.

    Devices that were made over them meanwhile keep them.
    """
    found: list[str] = []
    try:
        for path, is_writable in files:
            found.append(await _attach(purpose, path, is_writable=is_writable))
        yield found
    finally:
        await detach(found)


async def _attach(purpose: str, path: str, *, is_writable: bool) -> str:
    """Make a loop device; returns its path. Through the page cache, as others read and write the file as well."""
    rights = () if is_writable else ("--read-only",)
    found = await read_tool(purpose, "losetup", "--direct-io=off", *rights, "--find", "--show", "--", path)
    return found.decode().strip()


async def detach(loops: Sequence[str]) -> None:
    """Free loop devices, each at once or with the last device over it."""
    if loops:
        await run_tool(f"{', '.join(loops)} cannot be freed", "losetup", "--detach", *loops)


async def make(purpose: str, devices: Sequence[Device]) -> None:
    """Make devices, one after the other: all or none."""
    try:
        await run_tool(purpose, "dmsetup", "create", "--concise", ";".join(device.describe() for device in devices))
        for device in devices:
            if not os.path.exists(device.name.path):  # where no udevd makes them
                await run_tool(purpose, "dmsetup", "mknodes", str(device.name))
    except BaseException:
        await remove([device.name for device in reversed(devices) if exists(device.name)])
        raise


async def remove(names: Sequence[DeviceName]) -> None:
    """Remove devices in that order, up to the first that cannot be removed.

    Somebody may just be looking at one; raises StorageError when that goes on for seconds.
    """
    if names:
        paths = " ".join(name.path for name in names)
        purpose = f"{paths}: not removed; end what has it open ('fuser {paths}') and try again"
        # It ends at the first failure: what saves content is never removed under somebody who writes.
        await run_tool(purpose, "dmsetup", "remove", "--retry", *map(str, names))


async def look_at_fill(name: DeviceName) -> Fill:
    """Return how much is in the store of a device that is there."""
    status = await read_tool(f"{name.path} cannot be looked at", "dmsetup", "status", str(name))
    return parse_fill(status.decode())


def exists(name: DeviceName) -> bool:
    """Tell whether there is a device of that name."""
    return name in list_devices(name.pool)


def list_devices(pool: str) -> list[DeviceName]:
    """Return our devices of a pool, which is named by its digest."""
    found = [parse_name(_read(path)) for path in glob.glob("/sys/block/dm-*/dm/name")]
    return [name for name in found if name and name.pool == pool]


def devices_of(folder: str, vid: str) -> list[DeviceName]:
    """Return the devices of one volume's session, in the order in which they can be removed.

    While a VM can still write to its disk, what it overwrites must be kept.
    """
    pool, volume = digest(os.path.realpath(folder)), digest(vid)
    found = [name for name in list_devices(pool) if name.volume == volume and not name.is_shown]
    return sorted(found, key=_turn)


def unused_devices(folder: str, known: frozenset[str]) -> list[DeviceName]:
    """Return devices of a pool that belong to none of the known volumes, or are left from reading former content."""
    volumes = {digest(vid) for vid in known}
    found = list_devices(digest(os.path.realpath(folder)))
    unused = [name for name in found if name.volume not in volumes or name.is_shown]
    return sorted(unused, key=_turn)


def _turn(name: DeviceName) -> tuple[bool, bool, int]:
    number = name.role.removeprefix(Role.SHOWN)
    return name.role == Role.FORMER, name.role != Role.DISK, -int(number) if number.isdigit() else 0


def idle_loops(folder: str) -> list[str]:
    """Return loop devices over files in a folder, or once in it, that no other device uses."""
    return [_node(device) for device in _loops_over(folder) if not os.listdir(f"{device}/holders")]


def lasting_loops(folder: str) -> list[str]:
    """Return those which are used, and would stay when what uses them goes: who made them was killed."""
    loops = _loops_over(folder)
    return [_node(one) for one in loops if os.listdir(f"{one}/holders") and _read(f"{one}/loop/autoclear") == "0"]


def _loops_over(folder: str) -> list[str]:
    inside = os.path.realpath(folder) + "/"
    found = glob.glob("/sys/block/loop*/loop/backing_file")
    return sorted(os.path.dirname(os.path.dirname(path)) for path in found if _read(path).startswith(inside))


def _node(device: str) -> str:
    return f"/dev/{os.path.basename(device)}"


def _read(path: str) -> str:
    """Return what a file of /sys says; nothing when its device has just gone."""
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""
