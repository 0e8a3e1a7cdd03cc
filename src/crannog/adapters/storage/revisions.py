"""The files of one volume: what they are called, and which of them is its content (see storage.sessions)."""

import os
import stat
from dataclasses import dataclass
from datetime import UTC, datetime

from crannog.adapters.storage.files import HALF_MADE, allocated, is_link
from crannog.core.volumes import Location
from crannog.errors import StorageError

_FORMATS = {"img": "raw", "qcow2": "qcow2"}
_EXTENSIONS = {format_: extension for extension, format_ in _FORMATS.items()}


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

    def is_frozen(self) -> bool:
        """Tell whether it may never be written again, because another volume stands on it (see storage.bases)."""
        return not os.stat(self.path).st_mode & stat.S_IWUSR

    @property
    def ident(self) -> str:
        """Number and time of its last change (UTC): what a user chooses by. Raises OSError when it is gone."""
        changed = datetime.fromtimestamp(int(os.stat(self.path).st_mtime), UTC)
        return f"{self.number}-{changed:%Y-%m-%dT%H:%M:%SZ}"


@dataclass(frozen=True)
class VolumeFiles:
    """The files whose paths begin with `base`, which is the pool's folder and the volume's id.

    What would lead elsewhere, because somebody put a link in its place, raises StorageError.
    """

    base: str
    layer_format: str

    @property
    def folder(self) -> str:
        """The folder of the VM."""
        return os.path.dirname(self.base)

    @property
    def only(self) -> str:
        """The file of a volume that keeps no revisions."""
        return self.base + ".img"

    @property
    def volatile(self) -> Location:
        """The layer over another volume."""
        return self._layer("volatile")

    @property
    def volatile_source(self) -> str:
        """The file that says which content that layer was copied from, where a copy does not tell by itself."""
        return self.base + ".volatile.source"

    @property
    def dirty(self) -> Location:
        """The layer that becomes the next revision."""
        return self._layer("dirty")

    @property
    def half_made(self) -> str:
        """What becomes the content when it is whole."""
        return self.base + HALF_MADE

    @property
    def imported(self) -> str:
        """The file that another program writes new content to."""
        return f"{self.base}.import{HALF_MADE}"

    def _layer(self, name: str) -> Location:
        path = f"{self.base}.{name}.{_EXTENSIONS[self.layer_format]}"
        refuse_link(path)
        return Location(path, self.layer_format)

    def revisions(self) -> list[Revision]:
        """Return the finished contents, oldest first; the last one is what counts."""
        name = os.path.basename(self.base) + "."
        found = []
        for entry in os.listdir(self.folder) if os.path.isdir(self.folder) else ():
            number, _, extension = entry.removeprefix(name).partition(".")
            path = os.path.join(self.folder, entry)
            if path == self.only:
                found.append(Revision(0, path))
            elif entry.startswith(name) and extension in _FORMATS and number.isascii() and number.isdigit():
                found.append(Revision(int(number), path))
        for revision in found:
            refuse_link(revision.path)
        return sorted(found)

    def newest(self) -> Revision | None:
        """Return the newest finished content, if there is one."""
        return max(self.revisions(), default=None)

    def next_layer(self) -> Location:
        """Return where the next revision is that begins as a layer."""
        return Location(self._next_revision(_EXTENSIONS[self.layer_format]), self.layer_format)

    def _next_revision(self, extension: str) -> str:
        newest = self.newest()
        return f"{self.base}.{newest.number + 1 if newest else 1}.{extension}"

    def next_content(self, *, keeps_revisions: bool) -> str:
        """Return the path of new raw content: what keeps no revisions, and never did, has one file only."""
        newest = self.newest()
        if keeps_revisions or (newest and (newest.number or newest.is_frozen())):
            return self._next_revision("img")
        return self.only

    def usage(self) -> int:
        """Return the bytes that all files of the volume take on the disk."""
        name = os.path.basename(self.base) + "."
        entries = os.listdir(self.folder) if os.path.isdir(self.folder) else []
        return sum(allocated(os.path.join(self.folder, entry)) for entry in entries if entry.startswith(name))


def refuse_link(path: str) -> None:
    """Raise StorageError when a path is a link: it could lead out of the pool."""
    if is_link(path):
        raise StorageError(f"{path} is a link, which no volume may be; put the file itself there")
