"""Small file systems: for disks that run full, and of kinds that the host's own is not.

Mounting takes root: an ordinary user's tests use sudo.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MAKERS = {
    "btrfs": ("mkfs.btrfs", "-q"),
    "xfs": ("mkfs.xfs", "-q", "-m", "reflink=1"),
    "ext4": ("mkfs.ext4", "-q"),
}
_SIZE = 2**30
"""Bytes, of which the file takes what is written to it. mkfs.xfs makes no file system below 300 MiB."""


def _as_root(*command: str) -> None:
    prefix = [] if os.geteuid() == 0 else ["sudo", "-n"]
    subprocess.run([*prefix, *command], check=True, timeout=20)


@contextmanager
def small_file_system(folder: Path, size: str) -> Iterator[Path]:
    """Mount a tmpfs of `size` (as mount(8) takes it) at `folder`, which is made; unmount it afterwards."""
    folder.mkdir(exist_ok=True)
    options = f"size={size},mode=700,uid={os.geteuid()}"
    _as_root("mount", "-t", "tmpfs", "-o", options, "crannog-test", str(folder))
    try:
        yield folder
    finally:
        _as_root("umount", "-l", str(folder))


@contextmanager
def disk_file_system(folder: Path, kind: str, size: int = _SIZE) -> Iterator[Path]:
    """Make a file system of that kind in a file of `size` bytes in `folder`, mounted beside it; take both away again.

    The kernel frees the loop device by itself when the file system is unmounted (mount(8)).
    """
    file, place = folder / f"{kind}.img", folder / kind
    with file.open("wb") as disk:
        disk.truncate(size)
    subprocess.run([*_MAKERS[kind], str(file)], check=True, timeout=60, stdout=subprocess.DEVNULL)
    place.mkdir()
    _as_root("mount", "-o", "loop", str(file), str(place))
    try:
        _as_root("chown", str(os.geteuid()), str(place))
        yield place
    finally:
        _as_root("umount", "-l", str(place))
        file.unlink()
