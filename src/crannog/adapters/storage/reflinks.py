"""Files that share their data on the disk until one of them is written to (btrfs, xfs)."""

import errno
import fcntl
import os
import struct
import tempfile
from contextlib import suppress

_FICLONE = 0x40049409
"""ioctl_ficlone(2): make a file share all data of another one."""
_FS_IOC_FIEMAP = 0xC020660B
_FIEMAP = struct.Struct("=QQLLLL")
"""Begin, length, flags, number of extents that were found, room for extents, nothing (linux/fiemap.h)."""
_PROBE = 4096
CANNOT_SHARE = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV)
"""Errors of FICLONE that say that these files cannot share; any other is a failure."""


def share(source: str, path: str) -> None:
    """Make a new file at `path` that shares all data of `source`; raises OSError."""
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(source, os.O_RDONLY | flags)
    try:
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | flags, 0o600)
        try:
            fcntl.ioctl(target, _FICLONE, descriptor)
        finally:
            os.close(target)
    finally:
        os.close(descriptor)


def count_extents(path: str) -> int:
    """Return in how many pieces a file lies on the disk; raises OSError. What is not on the disk yet is in none."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        # No room for extents: they are only counted (Documentation/filesystems/fiemap.rst).
        request = bytearray(_FIEMAP.pack(0, 2**64 - 1, 0, 0, 0, 0))
        fcntl.ioctl(descriptor, _FS_IOC_FIEMAP, request)
        return int(_FIEMAP.unpack(request)[3])
    finally:
        os.close(descriptor)


def can_share(folder: str) -> bool:
    """Tell whether files in a folder can share data. Raises OSError when nothing can be written there."""
    with tempfile.TemporaryFile(dir=folder) as source, tempfile.TemporaryFile(dir=folder) as target:
        source.write(b"\1" * _PROBE)
        source.flush()
        try:
            fcntl.ioctl(target, _FICLONE, source.fileno())
        except OSError as error:
            if error.errno in CANNOT_SHARE:
                return False
            raise
    return True


def file_system_of(folder: str) -> str:
    """Return the kind of file system that a folder is on, as /proc/self/mountinfo calls it (proc(5))."""
    kind = "an unknown file system"
    with suppress(OSError):
        device = os.stat(folder).st_dev
        name = f"{os.major(device)}:{os.minor(device)}"
        real = os.path.realpath(folder) + "/"
        longest = ""
        with open("/proc/self/mountinfo") as mounts:
            for line in mounts:
                place, _, rest = line.partition(" - ")
                fields = place.split()
                point = fields[4].encode().decode("unicode_escape").rstrip("/") + "/"
                # btrfs gives each subvolume a device number of its own, so the path counts as well.
                if (fields[2] == name or real.startswith(point)) and len(point) >= len(longest):
                    longest, kind = point, rest.split()[0]
    return kind
