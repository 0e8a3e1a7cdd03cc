"""Texts of VMs that are not in the registry's file: a folder of one kind, a file each VM, by UUID."""

import contextlib
import os

from crannog.adapters.store.whole_file import write_whole
from crannog.errors import StorageError


class TextFolder:
    """The texts of one kind. `what` is how messages call them, in the plural."""

    def __init__(self, folder: str, what: str) -> None:
        self.folder = folder
        self.what = what

    def _path(self, uuid: str) -> str:
        return os.path.join(self.folder, f"{uuid}.txt")

    def read(self, uuid: str, most: int) -> bytes | None:
        """Return a VM's text, at most so many bytes of it, None when there is none; raises StorageError."""
        try:
            with open(self._path(uuid), "rb") as file:
                return file.read(most)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"{self.what} cannot be read: {error.strerror} ({self._path(uuid)})") from error

    def write(self, uuid: str, data: bytes | None) -> None:
        """Keep a VM's text, whole or not at all; None removes it. Raises StorageError."""
        try:
            if data is None:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._path(uuid))
                return
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
            write_whole(self._path(uuid), data)
        except OSError as error:
            raise StorageError(
                f"the {self.what} cannot be written: {error.strerror}; the old ones are intact"
            ) from error
