"""Replacing a file as a whole: after a crash or a failure at any moment it is the old one or the new one.

Beside the file stand `.new`, what is being written, and, for the moment of replacing, `.old`: a second name of the old
file, to go back to when the folder cannot be synced, and to be kept as a former version after that.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)


class NotPutBackError(OSError):
    """The new file is in its place, it is not known whether for good, and the old one could not be put back."""


def discard(path: str) -> None:
    """Delete a file that may not be there; raises OSError when it is there and cannot be deleted."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def write_whole(
    path: str, data: bytes, before: Callable[[], None] = lambda: None, take_old: Callable[[str], None] = discard
) -> os.stat_result:
    """Write to a temporary file in the same folder, fsync, rename over the old file (rename(2)), fsync the folder.

    `before` is asked right before the rename and may refuse by raising; `take_old` gets the old file under its second
    name and must take it away. Returns the new file's status. Raises OSError, or what `before` raises; then the old
    file is in its place, and nothing else is left. NotPutBackError says that this could not be reached.
    """
    temporary, old = path + ".new", path + ".old"
    has_old = False
    try:
        status = _write_synced(temporary, data)
        before()
        _take_left(path, old, take_old)
        has_old = _give_second_name(path, old)
        os.replace(temporary, path)
    except BaseException:
        for left in (temporary, old) if has_old else (temporary,):
            with contextlib.suppress(OSError):
                os.unlink(left)
        raise
    try:
        sync_folder(os.path.dirname(path))
    except BaseException as error:
        _put_back(path, old if has_old else "", error)
        raise
    if has_old:
        with contextlib.suppress(OSError):  # the file is written; what is left is taken the next time
            take_old(old)
    return status


def _take_left(path: str, old: str, take_old: Callable[[str], None]) -> None:
    """Take away what a crash has left: the version before the present one, or a second name of the present one."""
    if not os.path.lexists(old):
        return
    if os.path.exists(path) and os.path.samefile(old, path):
        os.unlink(old)
    else:
        take_old(old)


def _put_back(path: str, old: str, cause: BaseException) -> None:
    try:
        if old:
            os.replace(old, path)
        else:
            os.unlink(path)
    except OSError as error:
        number, reason = (cause.errno, cause.strerror) if isinstance(cause, OSError) else (error.errno, error.strerror)
        raise NotPutBackError(number, reason) from error


def _write_synced(path: str, data: bytes) -> os.stat_result:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)
        return os.fstat(descriptor)


def _give_second_name(path: str, name: str) -> bool:
    """Give the file at `path`, if there is one, a second name; where the file system has no links, make a copy."""
    try:
        os.link(path, name)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        try:
            shutil.copy2(path, name)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)  # half a copy would be taken for a former version
            raise
    return True


def sync_folder(folder: str) -> None:
    """Have a rename survive a power cut; raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
