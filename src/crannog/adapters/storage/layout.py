"""Files that lie on the disk in many pieces, laid out anew in the background.

To share a file takes the longer the more pieces it lies in: 6 microseconds a piece on btrfs, 18 on xfs. A session
that writes here and there leaves thousands. A copy of the same content, in few pieces, takes the file's place; who has
the old one open keeps it. What the copy takes is no longer shared with older content.
"""

import asyncio
import logging
import os
from functools import partial

from crannog.adapters.storage.files import HALF_MADE, MODE, allocated, discard, sync
from crannog.adapters.storage.process import run_tool
from crannog.adapters.storage.reflinks import count_extents
from crannog.adapters.storage.seals import equal_replacement
from crannog.errors import StorageError

log = logging.getLogger(__name__)

MANY = 500
"""Pieces from which on it is worth the copying: they cost 3 to 9 ms at each start of a VM."""
SMALL = 2**18
"""Bytes: content in pieces that are larger on average would not lie in fewer after a copy."""
_HOLE = "1M"
"""Zeros of less than this are written: holes make pieces as well."""


class Layout:
    """The files of one pool that are, or will be, laid out anew: one after the other."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._turn = asyncio.Lock()

    def look_after(self, path: str) -> None:
        """Have a finished file laid out anew, if it needs that. Only whoever starts to write to it must say so."""
        if path not in self._tasks:
            task = self._tasks[path] = asyncio.ensure_future(self._lay_out(path))
            task.add_done_callback(partial(self._drop, path))

    def _drop(self, path: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(path) is task:
            del self._tasks[path]

    async def give_up(self, path: str) -> None:
        """Leave a file as it is: from the return on it can be written to."""
        task = self._tasks.get(path)
        if task:
            task.cancel()
            await asyncio.wait([task])

    async def finished(self) -> None:
        """Wait until all files are laid out."""
        while self._tasks:
            await asyncio.wait(list(self._tasks.values()))

    async def _lay_out(self, path: str) -> None:
        half_made = path + HALF_MADE
        async with self._turn:
            try:
                before = os.stat(path)
                if await asyncio.to_thread(_is_worth_it, path):
                    await self._copy(path, half_made)
                    _replace(path, half_made, before)
            except FileNotFoundError:
                return  # another content is the newest by now
            except (StorageError, OSError) as error:
                log.warning("%s stays in many pieces on the disk: %s", path, error)
            finally:
                discard(half_made)

    @staticmethod
    async def _copy(path: str, half_made: str) -> None:
        purpose = f"{path} cannot be laid out anew"
        command = ("nice", "qemu-img", "convert", "-q", "-f", "raw", "-O", "raw", "-S", _HOLE)
        await run_tool(purpose, *command, path, half_made)
        os.chmod(half_made, MODE)
        await asyncio.to_thread(sync, half_made)


def _is_worth_it(path: str) -> bool:
    """Tell whether a file lies in many small pieces, and there is room for a copy, and for other things beside it."""
    sync(path)  # what is not on the disk yet is in no piece that could be counted
    pieces, bytes_ = count_extents(path), allocated(path)
    room = os.statvfs(path)
    return pieces > MANY and bytes_ < pieces * SMALL and room.f_bavail * room.f_frsize > 2 * bytes_


def _replace(path: str, half_made: str, before: os.stat_result) -> None:
    """Put the copy in the file's place, unless that has changed meanwhile. Nothing can come in between."""
    now = os.stat(path)
    if (now.st_ino, now.st_mtime_ns) == (before.st_ino, before.st_mtime_ns):
        os.utime(half_made, ns=(before.st_atime_ns, before.st_mtime_ns))  # the time is a part of a revision's name
        with equal_replacement(path):
            os.replace(half_made, path)
        sync(os.path.dirname(path))
