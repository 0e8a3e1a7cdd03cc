"""Looks at the images of this host that somebody wants to start a VM with."""

import os
import stat
from collections.abc import Iterable

from crannog.core.drives import DriveFile, FileKind


def look_at_drive(path: str, our_folders: Iterable[str]) -> DriveFile:
    """Return what `path` leads to. Only whoever runs this process is asked for: it runs QEMU as well.

    `our_folders` are those that hold VMs' volumes and the store: no guest may be given a file out of them.
    """
    try:
        real = os.path.realpath(path)
        kind = _kind(os.stat(real).st_mode)
    except (OSError, ValueError):
        return DriveFile(path, FileKind.ABSENT)
    return DriveFile(
        real,
        kind,
        is_readable=os.access(real, os.R_OK),
        is_writable=os.access(real, os.W_OK),
        owner=next((folder for folder in our_folders if _is_below(real, folder)), ""),
    )


def _kind(mode: int) -> FileKind:
    if stat.S_ISREG(mode):
        return FileKind.FILE
    return FileKind.DEVICE if stat.S_ISBLK(mode) else FileKind.OTHER


def _is_below(path: str, folder: str) -> bool:
    return path.startswith(os.path.join(os.path.realpath(folder), ""))
