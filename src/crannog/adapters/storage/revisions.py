"""The files of one qcow2 volume: what they are called, and which of them is its content (see storage.qcow2)."""

import os
from dataclasses import dataclass
from datetime import UTC, datetime

from crannog.adapters.storage.files import HALF_MADE, allocated
from crannog.core.volumes import Location

_FORMATS = {"img": "raw", "qcow2": "qcow2"}


@dataclass(frozen=True, order=True)
class Revision:
    """One finished content. Number 0 is a volume's only file, of before it kept revisions."""

    number: int
    path: str

    @property
    def location(self) -> Location:
        """Where it is. The name decides the format, never the content of the file."""
        return Location(self.path, _FORMATS[self.path.rpartition(".")[2]])

    def is_blank(self) -> bool:
        """Tell whether it is what a new volume begins with, which nobody ever goes back to."""
        return self.number <= 1 and self.location.format == "raw" and allocated(self.path) == 0

    @property
    def ident(self) -> str:
        """Number and time of its last change (UTC): what a user chooses by. Raises OSError when it is gone."""
        changed = datetime.fromtimestamp(int(os.stat(self.path).st_mtime), UTC)
        return f"{self.number}-{changed:%Y-%m-%dT%H:%M:%SZ}"


@dataclass(frozen=True)
class VolumeFiles:
    """The files whose paths begin with `base`, which is the pool's folder and the volume's id."""

    base: str

    @property
    def folder(self) -> str:
        """The folder of the VM."""
        return os.path.dirname(self.base)

    @property
    def volatile(self) -> str:
        """The layer over another volume."""
        return self.base + ".volatile.qcow2"

    @property
    def dirty(self) -> str:
        """The layer that becomes the next revision."""
        return self.base + ".dirty.qcow2"

    @property
    def half_made(self) -> str:
        """What becomes the content when it is whole."""
        return self.base + HALF_MADE

    @property
    def imported(self) -> str:
        """The file that another program writes new content to."""
        return f"{self.base}.import{HALF_MADE}"

    def revisions(self) -> list[Revision]:
        """Return the finished contents, oldest first; the last one is what counts."""
        name = os.path.basename(self.base) + "."
        found = []
        for entry in os.listdir(self.folder) if os.path.isdir(self.folder) else ():
            number, _, extension = entry.removeprefix(name).partition(".")
            path = os.path.join(self.folder, entry)
            if entry == name + "img":
                found.append(Revision(0, path))
            elif entry.startswith(name) and extension in _FORMATS and number.isascii() and number.isdigit():
                found.append(Revision(int(number), path))
        return sorted(found)

    def newest(self) -> Revision | None:
        """Return the newest finished content, if there is one."""
        return max(self.revisions(), default=None)

    def next_revision(self, extension: str) -> str:
        """Return the path of the next revision."""
        newest = self.newest()
        return f"{self.base}.{newest.number + 1 if newest else 1}.{extension}"

    def next_content(self, *, keeps_revisions: bool) -> str:
        """Return the path of new raw content: what keeps no revisions, and never did, has one file only."""
        newest = self.newest()
        if keeps_revisions or (newest and newest.number):
            return self.next_revision("img")
        return self.base + ".img"

    def usage(self) -> int:
        """Return the bytes that all files of the volume take on the disk."""
        name = os.path.basename(self.base) + "."
        entries = os.listdir(self.folder) if os.path.isdir(self.folder) else []
        return sum(allocated(os.path.join(self.folder, entry)) for entry in entries if entry.startswith(name))
