"""What a session has written, copied to a file, and sessions that begin with such a copy (ports.storage.Pool).

Only what is dropped when the VM ends is copied: layers over another volume, and volumes that are empty at every start.
"""

import asyncio
import errno
import os

from crannog.adapters.storage.files import HALF_MADE, MODE, discard, failure
from crannog.adapters.storage.reflinks import CANNOT_SHARE, share
from crannog.adapters.storage.sessions import FileSessions
from crannog.core.volumes import Volume
from crannog.errors import StorageError

_PART = 2**24
"""Bytes that are copied with one call."""


def copy_file(source: str, path: str) -> None:
    """Copy a file to a new one; holes stay holes, and data are shared where the file system can.

    Raises OSError; there may be half a copy then.
    """
    try:
        share(source, path)
    except OSError as error:
        if error.errno not in CANNOT_SHARE:
            raise
        discard(path)
        _copy_data(source, path)


def _copy_data(source: str, path: str) -> None:
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    origin = os.open(source, os.O_RDONLY | flags)
    try:
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | flags, MODE)
        try:
            size = os.fstat(origin).st_size
            os.ftruncate(target, size)
            end = 0
            while (begin := _find_data(origin, end)) is not None:
                end = os.lseek(origin, begin, os.SEEK_HOLE)
                _copy_range(origin, target, begin, end)
        finally:
            os.close(target)
    finally:
        os.close(origin)


def _find_data(descriptor: int, begin: int) -> int | None:
    """Return where data are next; None when only a hole follows (lseek(2), SEEK_DATA)."""
    try:
        return os.lseek(descriptor, begin, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise


def _copy_range(origin: int, target: int, begin: int, end: int) -> None:
    while begin < end:
        data = os.pread(origin, min(_PART, end - begin), begin)
        if not data:
            return
        view = memoryview(data)
        while view:
            count = os.pwrite(target, view, begin)
            begin, view = begin + count, view[count:]


class CopiedSessions(FileSessions):
    """Sessions whose content is a file of a layer, or a raw one."""

    async def is_outdated(self, volume: Volume) -> bool:
        """Tell whether a layer that is there stands on anything but the newest content of its source."""
        raise NotImplementedError

    def can_copy_session(self, volume: Volume) -> bool:
        """Tell whether the volume's sessions leave nothing behind, and keep nothing from the one before."""
        return (volume.snap_on_start and not volume.keeps_layer) or volume.is_volatile

    async def copy_session(self, volume: Volume, path: str) -> None:
        """Copy what the session has written."""
        try:
            await asyncio.to_thread(copy_file, self.locate(volume).path, path)
        except OSError as error:
            discard(path)
            raise failure(f"what was written to volume {volume.vid} cannot be copied to {path}", error) from error

    async def start_from(self, volume: Volume, path: str) -> None:
        """Make the volume's file a copy. Its name is given to it last, as everywhere."""
        target = self.locate(volume).path
        half_made = target + HALF_MADE
        self._drop(volume)
        try:
            os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
            discard(half_made)
            await asyncio.to_thread(copy_file, path, half_made)
            self._forget(target)
            os.rename(half_made, target)
        except OSError as error:
            raise failure(f"volume {volume.vid} cannot begin with what {path} holds", error) from error
        finally:
            discard(half_made)
        try:
            if volume.snap_on_start and await self.is_outdated(volume):
                raise StorageError(f"{path} stands on what {volume.source} does not hold any more")
        except BaseException:
            discard(target)
            raise
