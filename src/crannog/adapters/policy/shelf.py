"""Changing policy on the disk: each file is replaced as a whole (ports.policies)."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from crannog.adapters.policy.files import PolicyFiles
from crannog.errors import StorageError

_MODE, _FOLDER_MODE = 0o640, 0o750


class FolderShelf:
    """Policy files in folders, wherever they are."""

    def reader(self) -> PolicyFiles:
        """Return what policy is loaded with."""
        return PolicyFiles()

    def read(self, path: str) -> bytes | None:
        """Return a file's content; None when there is no such file. Raises StorageError."""
        with _telling(path, "read"):
            try:
                with open(path, "rb", opener=_open_quickly) as file:
                    return file.read()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def write(self, path: str, data: bytes) -> None:
        """Write a temporary file beside it, fsync, rename over the old one, fsync the folder (rename(2)).

        Raises StorageError; the old file is in its place then, unless it was the last step that failed.
        """
        with _telling(path, "written"):
            folder, name = os.path.split(path)
            os.makedirs(folder, mode=_FOLDER_MODE, exist_ok=True)
            new = f"{folder}/.{name}.new"  # no file of policy is called so
            try:
                _write_synced(new, data, _mode_of(path))
                os.replace(new, path)
            except BaseException:
                with suppress(OSError):
                    os.unlink(new)
                raise
            _sync_folder(path)

    def delete(self, path: str) -> None:
        """Delete a file that is there. Raises StorageError."""
        with _telling(path, "deleted"):
            os.unlink(path)
            _sync_folder(path)


@contextmanager
def _telling(path: str, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"the policy file {path} cannot be {what}: {error.strerror}; see to its folder") from error


def _open_quickly(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe in a file's place must not hold anybody


def _mode_of(path: str) -> int | None:
    try:
        return stat.S_IMODE(os.stat(path).st_mode)
    except OSError:
        return None


def _write_synced(path: str, data: bytes, mode: int | None) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    with open(os.open(path, flags, _MODE), "wb") as file:
        if mode is not None:
            os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: str) -> None:
    """Have what was done to a file's name survive a power cut."""
    descriptor = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
