"""Former versions of the store: the last ones are kept, to go back to."""

import contextlib
import logging
import os
from dataclasses import dataclass

from crannog.errors import NotFoundError, StorageError

log = logging.getLogger(__name__)

KEEP = 50
"""Versions that are kept. A version is a whole file, but one of 250 VMs takes 0.3 MB only."""

_SUFFIX = ".xml"


@dataclass(frozen=True)
class Version:
    """A former version: its number, when it was written (seconds since 1970), its size in bytes."""

    number: int
    written: float
    size: int
    path: str


class History:
    """Former versions as files in one folder, numbered in the order in which they were replaced."""

    def __init__(self, folder: str, keep: int = KEEP) -> None:
        self.folder = folder
        self.keep = keep

    def versions(self) -> list[Version]:
        """Return the versions, the oldest first."""
        found = []
        for entry in os.scandir(self.folder) if os.path.isdir(self.folder) else ():
            stem = entry.name.removesuffix(_SUFFIX)
            if stem.isascii() and stem.isdigit() and entry.name.endswith(_SUFFIX):
                with contextlib.suppress(FileNotFoundError):  # another process may drop it meanwhile
                    status = entry.stat(follow_symlinks=False)
                    found.append(Version(int(stem), status.st_mtime, status.st_size, entry.path))
        return sorted(found, key=lambda version: version.number)

    def find(self, number: int) -> Version:
        """Return one version; raises NotFoundError that says which there are."""
        versions = self.versions()
        for version in versions:
            if version.number == number:
                return version
        numbers = f"{versions[0].number} to {versions[-1].number}" if versions else "none yet"
        raise NotFoundError(
            f"there is no version {number} of the store (there: {numbers}); see 'crannog store history'"
        )

    def read(self, number: int) -> bytes:
        """Return the bytes of one version; raises NotFoundError or StorageError."""
        version = self.find(number)
        try:
            with open(version.path, "rb") as file:
                return file.read()
        except OSError as error:
            raise StorageError(f"version {number} of the store cannot be read: {error.strerror}") from error

    def take(self, path: str) -> None:
        """Take the file at `path`, which was replaced, as the newest version; drop the oldest beyond what is kept.

        That it cannot be kept is logged and does not stop the change: the change is what the user asked for.
        """
        try:
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
            versions = self.versions()
            number = versions[-1].number + 1 if versions else 1
            os.rename(path, os.path.join(self.folder, f"{number:08}{_SUFFIX}"))
            for version in versions[: max(0, len(versions) + 1 - self.keep)]:
                os.unlink(version.path)
        except OSError as error:
            log.warning("a former version of the store could not be kept: %s", error.strerror)
            with contextlib.suppress(OSError):
                os.unlink(path)
