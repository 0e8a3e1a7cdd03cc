"""Drives: images of this host that a VM is given for one start, to boot from or as a further disk. Pure.

A user writes `cdrom:PATH` or `hd:PATH`, where PATH may be said to be dom0's (`hd:dom0:/srv/disk.img`). What the file
really is, somebody else finds out (`DriveFile`); here is decided whether it will do.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

from crannog.errors import StartError, ValueRefusedError

_OTHER_VM = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*:")
_HOST = "dom0:"


class DriveKind(StrEnum):
    """How the guest sees the image."""

    CDROM = "cdrom"
    HD = "hd"


@dataclass(frozen=True)
class Drive:
    """An image that was named for one start. `path` is absolute; `may_be_device` lets it be a device of the host."""

    kind: DriveKind
    path: str
    may_be_device: bool = False

    @property
    def is_writable(self) -> bool:
        """Whether the guest writes to the image."""
        return self.kind is DriveKind.HD


class FileKind(StrEnum):
    """What is found at a path."""

    FILE = "file"
    DEVICE = "block device"
    OTHER = "other"
    ABSENT = "absent"


@dataclass(frozen=True)
class DriveFile:
    """What a path leads to: `path` is free of symbolic links. The two rights are those of whoever runs QEMU."""

    path: str
    kind: FileKind
    is_readable: bool = True
    is_writable: bool = True
    owner: str = ""
    """The folder of ours that holds it; empty for everything else."""


def absent_file(path: str) -> DriveFile:
    """Return that there is nothing at `path`: what is known where nobody looks."""
    return DriveFile(path, FileKind.ABSENT)


def parse_drive(text: str, *, may_be_device: bool = False) -> Drive:
    """Return the drive that `cdrom:PATH` or `hd:PATH` names; a path alone is a CD-ROM.

    Raises ValueRefusedError for anything else.
    """
    if text.startswith("/"):
        return Drive(DriveKind.CDROM, _parse_path(text), may_be_device)
    kind, separator, path = text.partition(":")
    if not separator or kind not in tuple(DriveKind):
        raise ValueRefusedError(f"'{text[:80]}' is not a drive; write cdrom:PATH or hd:PATH")
    return Drive(DriveKind(kind), _parse_path(path), may_be_device)


def strip_host(path: str) -> str:
    """Return the path without `dom0:`; raises ValueRefusedError for one that is said to be another VM's."""
    rest = path.removeprefix(_HOST)
    if _OTHER_VM.match(rest):
        raise ValueRefusedError(f"'{path[:80]}' is not on this host; a VM can be started from images of dom0 only")
    return rest


def _parse_path(text: str) -> str:
    path = strip_host(text)
    if not path.startswith("/"):
        raise ValueRefusedError(f"'{path[:80]}' is not an absolute path; name the image from / on")
    if "\0" in path:
        raise ValueRefusedError("the path of an image cannot hold a zero byte")
    return path


def check_drive(vm: str, drive: Drive, file: DriveFile) -> None:
    """Raise StartError unless the image can be given to the VM called `vm`."""
    problem = _find_problem(drive, file)
    if problem:
        raise StartError(f"{vm} cannot be started with the image {drive.path}: {problem}")


def _find_problem(drive: Drive, file: DriveFile) -> str:
    if file.kind is FileKind.ABSENT:
        return "there is no such file; give the path of an image on this host"
    if file.kind is FileKind.OTHER:
        return "it is not a regular file; give the path of an image on this host"
    if file.kind is FileKind.DEVICE and not drive.may_be_device:
        return "it is a device of this host; root may name one with --allow-device"
    if file.owner:
        return f"it is inside {file.owner}, which Crannog itself keeps; copy it elsewhere first"
    if not file.is_readable:
        return "the user that runs crannogd may not read it; change its permissions"
    if drive.is_writable and not file.is_writable:
        return "the user that runs crannogd may not write it; change its permissions, or use it as a cdrom"
    return ""
