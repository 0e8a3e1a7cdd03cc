"""Looking after the store's file itself: its former versions, whether it can be read, files of Qubes brought over.

Here nothing needs the present file to be readable: this is what is left when it is not.
"""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from crannog.adapters.store import qubes_xml
from crannog.adapters.store.file import FileStore
from crannog.adapters.store.history import Version
from crannog.adapters.store.qubes_xml import Document
from crannog.adapters.store.r4_writer import R4Writer
from crannog.adapters.store.xml_document import MAX_FILE_SIZE
from crannog.config import Paths
from crannog.errors import CrannogError, InUseError, NotFoundError, StorageError

TOOL = "crannog store"
LISTED = 50
"""Former versions that are listed: each is read to count its VMs."""


@dataclass(frozen=True)
class Row:
    """A version in the list: `number` is empty for the present file, `content` says what can be read in it."""

    number: str
    written: str
    size: int
    content: str


class Repair:
    """The store of one home."""

    def __init__(self, paths: Paths | None = None) -> None:
        self.paths = paths or Paths()
        self._store = FileStore(self.paths.store, self.paths.kernels)
        logging.basicConfig(format=f"{TOOL}: %(message)s", level=logging.WARNING)

    def history(self) -> list[Row]:
        """Return the present file and its former versions, the newest first; raises NotFoundError when there are none.

        Nothing is locked: a version that goes away meanwhile is left out.
        """
        paths = [("", self._store.path), *self._newest_paths()]
        rows = [row for number, path in paths if (row := self._look_at(number, path))]
        if not rows:
            raise self._absent()
        return rows

    def _look_at(self, number: str, path: str) -> Row | None:
        try:
            status = os.stat(path)
            content = self._describe(path)
        except (OSError, NotFoundError):
            return None
        return Row(number, _show_time(status.st_mtime), -(-status.st_size // 1024), content)

    def _newest_paths(self) -> list[tuple[str, str]]:
        return [(str(version.number), version.path) for version in reversed(self._versions()[-LISTED:])]

    def _describe(self, path: str) -> str:
        try:
            return count_vms(self._parse(_read(path)))
        except StorageError as error:
            return f"broken: {error}"

    def restore(self, number: int | None = None) -> str:
        """Put a former version in the file's place; without a number, the newest that can be read and differs from it.

        Returns a sentence that says what was done. Raises NotFoundError, DaemonError, or StorageError for a version
        that cannot be used; the file is as it was then.
        """
        self._choose(number)  # what cannot be done is refused before anything is locked
        with self._locked():
            self._store.note_generation()
            version, data, document = self._choose(number)
            before = self._newest_number()
            self._store.replace(data)
        kept = self._newest_number()
        where = f"the file that was there is version {kept} now" if kept > before else "no file was there"
        return (
            f"version {version.number} of {_show_time(version.written)} is the store again, with "
            f"{count_vms(document)}; {where}"
        )

    def _choose(self, number: int | None) -> tuple[Version, bytes, Document]:
        """Return the version to go back to, with what it says."""
        history = self._store.history
        if number is None:
            return self._newest_usable()
        version, data = history.find(number), history.read(number)
        try:
            return version, data, self._parse(data)
        except StorageError as error:
            raise StorageError(
                f"version {number} of the store cannot be used: {error}; choose another with 'crannog store history'"
            ) from error

    def _newest_usable(self) -> tuple[Version, bytes, Document]:
        try:
            present = self._present()
        except StorageError:
            present = None
        for version in reversed(self._versions()):
            try:
                data = self._store.history.read(version.number)
                if data != present:
                    return version, data, self._parse(data)
            except CrannogError:
                continue
        raise NotFoundError(
            f"the store {self._store.path} has no former version that can be read and differs from the present file; "
            f"'crannog store history' lists what there is"
        )

    def check(self, path: str = "") -> list[str]:
        """Return what a file, or without a path the store's, has in it, and a remark for each thing that is not taken.

        Raises StorageError with line and reason for a file that cannot be used, NotFoundError for one that is missing.
        """
        document = self._read_document(path) if path else self._present_document()
        return [f"{path or self._store.path}: {count_vms(document)}, format {_format(document)}", *document.remarks]

    def _present_document(self) -> Document:
        data = self._present()
        if data is None:
            raise self._absent()
        return self._store.parse(data, self._store.path)

    def _read_document(self, path: str) -> Document:
        data = _read(path)
        try:
            return self._parse(data)
        except StorageError as error:
            raise StorageError(f"{path} cannot be used as a store: {error}") from error

    def import_file(self, path: str, *, may_replace: bool, is_rehearsal: bool) -> Document:
        """Make what the file at `path` says the store; return that, with a remark for each thing that was left out.

        Raises InUseError when the store has VMs and `may_replace` is false, NotFoundError, DaemonError, or StorageError
        for a file that cannot be used; the store is as it was then. A rehearsal locks and changes nothing.
        """
        document = self._read_document(path)
        data = self._to_bytes(path, document)
        if not may_replace:
            self._refuse_vms()
        if not is_rehearsal:
            self._make_home()
            with self._locked():
                self._store.note_generation()
                if not may_replace:
                    self._refuse_vms()
                self._store.replace(data)
        return document

    def _to_bytes(self, path: str, document: Document) -> bytes:
        """Return the bytes of the store's file to be. They are read once, so that no file is made that cannot be."""
        try:
            data = R4Writer().to_bytes(document.registry)
            self._parse(data)
        except (ValueError, StorageError) as error:
            raise StorageError(f"{path} cannot be taken over: {error}") from error
        return data

    def _refuse_vms(self) -> None:
        data = self._present()
        document = self._store.parse(data, self._store.path) if data is not None else None
        if document and len(document.registry) > 1:
            raise InUseError(
                f"the store {self._store.path} has {count_vms(document)} already; "
                f"add --replace to have those of the file in their place"
            )

    def _parse(self, data: bytes) -> Document:
        """Return what bytes say; raises StorageError that starts with the line."""
        return qubes_xml.from_bytes(data, self._store.kernels())

    def _present(self) -> bytes | None:
        """Return the present file's bytes; None when there is none. Raises StorageError."""
        try:
            return _read(self._store.path)
        except NotFoundError:
            return None

    def _versions(self) -> list[Version]:
        try:
            return self._store.history.versions()
        except OSError as error:
            raise StorageError(f"{self._store.history.folder} cannot be read: {error.strerror}") from error

    def _newest_number(self) -> int:
        return max((version.number for version in self._versions()), default=0)

    def _absent(self) -> NotFoundError:
        if self._versions():
            advice = "bring the newest former version back with 'crannog store restore'"
        else:
            advice = "it is made with the first VM"
        return NotFoundError(f"there is no store {self._store.path}; {advice}")

    def _make_home(self) -> None:
        try:
            os.makedirs(self.paths.home, mode=0o700, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{self.paths.home} cannot be used: {error.strerror}") from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._store.lock.acquire(TOOL)
        try:
            yield
        finally:
            self._store.lock.release()


def count_vms(document: Document) -> str:
    """Return how many VMs a document has, dom0 not counted, as words."""
    number = len(document.registry) - 1
    return "1 VM" if number == 1 else f"{number} VMs"


def _format(document: Document) -> str:
    return "R3" if document.is_old else "R4"


def _read(path: str) -> bytes:
    """Return a file's bytes, or more than a store may have; raises NotFoundError or StorageError."""
    try:
        with open(path, "rb") as file:
            return file.read(MAX_FILE_SIZE + 1)
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {path}") from None
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error


def _show_time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
