"""Notes: free text of a VM, a file each, because it may be long and is seldom read."""

import unicodedata

from crannog.adapters.store.texts import TextFolder
from crannog.errors import ValueRefusedError

MAX_NOTES = 256000
"""Longest notes in bytes (Admin API, section 6)."""


class NotesFolder:
    """The notes of all VMs, by UUID."""

    def __init__(self, folder: str) -> None:
        self._texts = TextFolder(folder, "notes")

    def read(self, uuid: str) -> str:
        """Return a VM's notes, empty when there are none; raises StorageError."""
        return (self._texts.read(uuid, MAX_NOTES) or b"").decode("utf-8", "replace")

    def write(self, uuid: str, text: str) -> None:
        """Keep a VM's notes, cleaned; the empty text removes them. Raises ValueRefusedError or StorageError."""
        data = clean(text).encode("utf-8")
        if len(data) > MAX_NOTES:
            raise ValueRefusedError(f"the notes are {len(data)} bytes long; at most {MAX_NOTES} can be kept")
        self._texts.write(uuid, data or None)


def clean(text: str) -> str:
    """Return the text with `_` for characters that could deceive who reads it on a terminal or in a window.

    Line feed and tab stay; control, format (such as direction overrides), surrogate and private characters go.
    """
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") else "_"
        for c in text.replace("\r\n", "\n")
    )
