"""Reading policy from the disk, and noticing that it has changed since (policy.loader.Reader)."""

import os
import stat
from collections.abc import Sequence

from crannog.policy.loader import MAX_CHARACTERS

Stamp = tuple[int, int, int, int]
"""What changes with a file or folder: inode, size, times of its last change of content and of anything (ns)."""


class PolicyFiles:
    """Remembers everything that was looked for, there or not."""

    def __init__(self) -> None:
        self._seen: dict[str, Stamp | None] = {}

    def list_files(self, directory: str) -> Sequence[str] | None:
        """Return the names of the files in a directory, links followed; None when there is no such directory.

        Raises OSError when it cannot be read.
        """
        self._seen[directory] = _stamp(directory)
        try:
            with os.scandir(directory) as entries:
                return [entry.name for entry in entries if _is_file(entry)]
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read_text(self, path: str) -> str | None:
        """Return a file's text; None when there is no such file. Raises OSError, UnicodeError."""
        self._seen[path] = _stamp(path)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        with open(descriptor, encoding="utf-8", newline="") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(f"{path} is no file")
            return file.read(MAX_CHARACTERS + 1)

    def is_current(self) -> bool:
        """Tell whether nothing of what was read has changed since. Before anything was read, nothing is current."""
        return bool(self._seen) and all(_stamp(path) == stamp for path, stamp in self._seen.items())


def _is_file(entry: "os.DirEntry[str]") -> bool:
    # What cannot be looked at is listed, so that reading it says why.
    return entry.is_file() or entry.is_symlink()


def _stamp(path: str) -> Stamp | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
