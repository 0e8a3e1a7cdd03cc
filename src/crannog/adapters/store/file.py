"""The file behind the store: whole or not at all, whatever happens while it is written."""

import logging
import os

from crannog.adapters.store import qubes_xml
from crannog.core.registry import Registry
from crannog.errors import StorageError

log = logging.getLogger(__name__)


class FileStore:
    """Keeps the registry in one file (see ports.store)."""

    def __init__(self, path: str, kernels_folder: str) -> None:
        self.path = path
        self.kernels_folder = kernels_folder

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
        try:
            with open(self.path, "rb") as file:
                data = file.read(qubes_xml.MAX_FILE_SIZE + 1)
        except FileNotFoundError:
            registry = Registry()
            registry.kernels = self.kernels()
            return registry
        except OSError as error:
            raise StorageError(f"the store {self.path} cannot be read: {error.strerror}") from error
        try:
            return qubes_xml.from_bytes(data, self.kernels())
        except StorageError as error:
            raise StorageError(
                # lxml's reasons can have several lines.
                f"the store {self.path} cannot be used: {' '.join(str(error).split())}; repair the file or put it aside"
            ) from error

    def save(self, registry: Registry) -> None:
        """Write the registry to a temporary file, then rename it over the old one (rename(2) is atomic).

        Raises StorageError; the old file is then intact.
        """
        temporary = self.path + ".new"
        try:
            self._write_whole(temporary, qubes_xml.to_bytes(registry))
            os.replace(temporary, self.path)
        except OSError as error:
            self._discard(temporary)
            raise StorageError(
                f"the store {self.path} cannot be written: {error.strerror}; "
                f"the change was not made, the old file is intact"
            ) from error
        self._sync_folder()

    @staticmethod
    def _write_whole(path: str, data: bytes) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)

    def _sync_folder(self) -> None:
        """Have the rename survive a power cut. The new file is in place already, so a failure is only logged."""
        try:
            descriptor = os.open(os.path.dirname(self.path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            log.warning("the folder of %s could not be synced: %s", self.path, error.strerror)

    @staticmethod
    def _discard(path: str) -> None:
        try:
            os.unlink(path)
        except FileNotFoundError:
            return
