"""Single files of pools: made, deleted and put in place so that a crash leaves the old state or the new one."""

import os

from crannog.adapters.storage.process import space_hint
from crannog.errors import StorageError

HALF_MADE = ".new"
"""How the names of files end that are no content yet: whoever finds one at a start of the daemon deletes it."""

MODE = 0o600
FROZEN = 0o400
BLOCK = 512
"""Bytes of a block as stat(2) counts them, whatever the file system's own are."""


def make_empty(path: str, size: int) -> None:
    """Make a file of `size` bytes that are all holes; raises OSError, also when there is one already."""
    with open(_make(path), "wb") as file:
        file.truncate(size)


def make_text(path: str, text: str) -> None:
    """Make a small file with a text; raises OSError, also when there is one already."""
    with open(_make(path), "w") as file:
        file.write(text)


def read_text(path: str) -> str:
    """Return what such a file says; nothing where there is none. Raises OSError."""
    try:
        with open(path) as file:
            return file.read()
    except FileNotFoundError:
        return ""


def _make(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, MODE)


def grow(path: str, size: int) -> None:
    """Make a file at least `size` bytes long, for good; raises OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(descriptor).st_size < size:
            os.ftruncate(descriptor, size)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lengthen(path: str, size: int) -> None:
    """Make a file at least `size` bytes long, until the power fails; raises OSError."""
    if os.stat(path).st_size < size:
        os.truncate(path, size)


def sync(path: str) -> None:
    """Have a file or folder written to the disk; raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def settle(half_made: str, path: str) -> None:
    """Give a finished file its lasting name, in the place of another perhaps; raises OSError."""
    sync(half_made)
    os.replace(half_made, path)
    sync(os.path.dirname(path))


def discard(path: str) -> None:
    """Delete a file; an absent one is no error. Raises StorageError."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise failure(f"{path} cannot be deleted", error) from error


def is_link(path: str) -> bool:
    """Tell whether a path is a symbolic link: it could lead out of the pool, to a file that a guest must not have."""
    return os.path.islink(path)


def freeze(path: str) -> None:
    """Have nobody write to a file any more, for good; raises OSError. Privileged processes must look at its rights."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchmod(descriptor, FROZEN)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def allocated(path: str) -> int:
    """Return how many bytes a file takes on the disk; none when it is not there."""
    try:
        return os.lstat(path).st_blocks * BLOCK
    except OSError:
        return 0


def failure(what: str, error: OSError) -> StorageError:
    """Return the sentence for what could not be done to a file."""
    reason = error.strerror or str(error)
    return StorageError(f"{what}: {reason}{space_hint(reason)}")
