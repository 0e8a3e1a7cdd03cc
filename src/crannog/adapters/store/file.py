"""The file behind the store: whole or not at all, whatever happens while it is written."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from crannog.adapters.store import qubes_xml, xml_document
from crannog.adapters.store.history import History
from crannog.adapters.store.lock import StoreLock
from crannog.adapters.store.notes import NotesFolder
from crannog.adapters.store.qubes_xml import Document
from crannog.adapters.store.r4_writer import R4Writer
from crannog.adapters.store.texts import TextFolder
from crannog.adapters.store.whole_file import NotPutBackError, write_whole
from crannog.core.registry import Registry
from crannog.errors import StorageError

Generation = tuple[int, int, int, int] | None
"""What tells one version of the file from another: device, inode, time and size; None when there is none."""

MAX_FIREWALL = 4 * 2**20
"""Bytes of firewall rules that are read: more than what is ever kept of one VM."""


class FileStore:
    """Keeps the registry in one file (see ports.store)."""

    def __init__(self, path: str, kernels_folder: str) -> None:
        self.path = path
        self.kernels_folder = kernels_folder
        folder = os.path.dirname(path)
        self.lock = StoreLock(path + ".lock")
        self.history = History(os.path.join(folder, "history"))
        self._notes = NotesFolder(os.path.join(folder, "notes"))
        self._firewall = TextFolder(os.path.join(folder, "firewall"), "firewall rules")
        self._writer = R4Writer()
        self._generation: Generation = None
        self.remarks: tuple[str, ...] = ()
        """A sentence for each thing of the file that could not be taken over when it was loaded."""

    def kernels(self) -> set[str]:
        """Return the names in pool linux-kernel."""
        try:
            return {entry.name for entry in os.scandir(self.kernels_folder) if not entry.name.startswith(".")}
        except FileNotFoundError:
            return set()

    def load(self) -> Registry:
        """Read the registry; an absent file is an empty one.

        Raises StorageError with line and reason; the file is left as it is.
        """
        data, generation = self._read_file()
        if data is None:
            registry = Registry()
            registry.kernels = self.kernels()
        else:
            with _no_collections():
                document = self.parse(data, self.path)
            registry, self.remarks = document.registry, document.remarks
            self._writer = R4Writer()
            self._writer.learn(registry, document.texts)
        self._generation = generation
        return registry

    def parse(self, data: bytes, path: str) -> Document:
        """Return what the bytes of the file at `path` say; raises StorageError that names it."""
        try:
            return qubes_xml.from_bytes(data, self.kernels())
        except StorageError as error:
            raise StorageError(
                f"the store {path} cannot be used: {error}; repair the file, or go back to a former version with "
                f"'crannog store restore'"
            ) from error

    def _read_file(self) -> tuple[bytes | None, Generation]:
        try:
            with open(self.path, "rb") as file:
                return file.read(xml_document.MAX_FILE_SIZE + 1), _generation_of(os.fstat(file.fileno()))
        except FileNotFoundError:
            return None, None
        except OSError as error:
            raise StorageError(f"the store {self.path} cannot be read: {error.strerror}") from error

    def note_generation(self) -> None:
        """Take the file as it is now, readable or not, for what `replace` shall take the place of.

        Raises StorageError.
        """
        try:
            self._generation = self._look()
        except OSError as error:
            raise StorageError(f"the store {self.path} cannot be used: {error.strerror}") from error

    def _look(self) -> Generation:
        """Return the generation of the file that is there now."""
        try:
            return _generation_of(os.stat(self.path))
        except FileNotFoundError:
            return None

    def save(self, registry: Registry) -> None:
        """Write the registry whole, and keep the version that it replaces.

        Raises StorageError; the old file is then intact. So it does when another program has written the file since it
        was read: what that program wrote would be lost.
        """
        try:
            with _no_collections():
                data = self._writer.to_bytes(registry)
        except ValueError as error:
            raise StorageError(f"the change cannot be kept in {self.path}: {error}; nothing was changed") from error
        self.replace(data)

    def replace(self, data: bytes) -> None:
        """Write bytes in place of the file; raises StorageError."""
        try:
            with self.lock.held():
                self._check_generation()
                status = write_whole(self.path, data, self._check_generation, self.history.take)
        except NotPutBackError as error:
            raise StorageError(
                f"the store {self.path} was written but may not last: {error.strerror}, and the old file, "
                f"{self.path}.old, could not be put back; see to the disk, then stop crannogd and compare the two"
            ) from error
        except OSError as error:
            self._accept_put_back()
            raise StorageError(
                f"the store {self.path} cannot be written: {error.strerror}; "
                f"the change was not made, the old file is intact"
            ) from error
        self._generation = _generation_of(status)

    def _accept_put_back(self) -> None:
        """Take note that a file was put back as a copy, where the file system has no links."""
        with suppress(OSError):
            current = self._look()
            if current and self._generation and current[2:] == self._generation[2:]:
                self._generation = current

    def _check_generation(self) -> None:
        if self._look() != self._generation:
            raise StorageError(
                f"the store {self.path} was written by another program since it was read; the change was not made: "
                f"have crannogd read the file anew with 'crannog daemon stop', then try again"
            )

    def notes(self, uuid: str) -> str:
        """Return a VM's notes."""
        return self._notes.read(uuid)

    def save_notes(self, uuid: str, text: str) -> None:
        """Keep a VM's notes; the empty text removes them."""
        self._notes.write(uuid, text)

    def firewall(self, uuid: str) -> str | None:
        """Return a VM's firewall rules as text, None when it was never given any."""
        data = self._firewall.read(uuid, MAX_FIREWALL)
        return None if data is None else data.decode("ascii", "replace")

    def save_firewall(self, uuid: str, text: str | None) -> None:
        """Keep a VM's firewall rules; None forgets them."""
        self._firewall.write(uuid, None if text is None else text.encode("ascii"))


@contextmanager
def _no_collections() -> Iterator[None]:
    """Pause the cyclic garbage collector: it would look again and again at thousands of VMs, none of them garbage."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _generation_of(status: os.stat_result) -> Generation:
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
