"""Notes: free text of a VM, a file each, because it may be long and is seldom read."""

import contextlib
import os
import unicodedata

from crannog.adapters.store.whole_file import write_whole
from crannog.errors import StorageError, ValueRefusedError

MAX_NOTES = 256000
"""Longest notes in bytes (Admin API, section 6)."""


class NotesFolder:
    """The notes of all VMs, by UUID."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def _path(self, uuid: str) -> str:
        return os.path.join(self.folder, f"{uuid}.txt")

    def read(self, uuid: str) -> str:
        """Return a VM's notes, empty when there are none; raises StorageError."""
        try:
            with open(self._path(uuid), "rb") as file:
                return file.read(MAX_NOTES).decode("utf-8", "replace")
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise StorageError(f"notes cannot be read: {error.strerror} ({self._path(uuid)})") from error

    def write(self, uuid: str, text: str) -> None:
        """Keep a VM's notes, cleaned; the empty text removes them. Raises ValueRefusedError or StorageError."""
        data = clean(text).encode("utf-8")
        if len(data) > MAX_NOTES:
            raise ValueRefusedError(f"the notes are {len(data)} bytes long; at most {MAX_NOTES} can be kept")
        try:
            if not data:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._path(uuid))
                return
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
            write_whole(self._path(uuid), data)
        except OSError as error:
            raise StorageError(f"the notes cannot be written: {error.strerror}; the old ones are intact") from error


def clean(text: str) -> str:
    """Return the text with `_` for characters that could deceive who reads it on a terminal or in a window.

    Line feed and tab stay; control, format (such as direction overrides), surrogate and private characters go.
    """
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") else "_"
        for c in text.replace("\r\n", "\n")
    )
