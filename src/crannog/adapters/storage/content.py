"""The content of volumes in files: where it is, how it gets another one, and which former ones can come back."""

import asyncio
import logging
import os
import stat
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import ClassVar, cast

from crannog.adapters.storage.files import MODE, discard, failure, grow, make_empty, settle
from crannog.adapters.storage.folders import FolderPool
from crannog.adapters.storage.process import run_tool
from crannog.adapters.storage.revisions import Revision
from crannog.core.volumes import Location, Volume
from crannog.errors import StorageError
from crannog.ports.storage import Pool

log = logging.getLogger(__name__)

SECTOR = 512
"""Disks have whole sectors (QEMU, block_resize)."""

Fill = Callable[[str, Location, str], Awaitable[None]]
"""Makes a raw file with some content at a path; its failure begins with the purpose."""


class FileContent(FolderPool):
    """What all drivers do alike whose contents are files (see ports.storage.Pool)."""

    shares_live = True
    raw_copy: ClassVar[tuple[str, ...]] = ("cp", "--sparse=always", "--reflink=auto", "--")
    """The command that copies raw content."""

    def __init__(self, name: str, folder: str, *, is_elsewhere: bool = False) -> None:
        super().__init__(name, folder, is_elsewhere=is_elsewhere)
        self._in_use: Counter[str] = Counter()
        """Files that are being read, or get a layer: they are not deleted."""

    def newest(self, vid: str) -> Location:
        """Return the newest finished content of a volume; raises StorageError when there is none."""
        return self._newest(vid).location

    def _newest(self, vid: str) -> Revision:
        files = self._files(vid)
        newest = files.newest()
        if newest is None:
            reason = f"{files.only} does not exist; restore it from a backup"
            raise StorageError(f"volume {vid} of pool {self.name} has no content: {reason}")
        return newest

    @asynccontextmanager
    async def reading(self, vid: str) -> AsyncIterator[Location]:
        """Give out the newest finished content, which is not deleted until the end of the block."""
        location = self.newest(vid)
        with self._using(location.path):
            yield location

    @contextmanager
    def _using(self, path: str) -> Iterator[None]:
        """Keep a file, and what it stands on, from being deleted."""
        real = os.path.realpath(path)
        self._in_use[real] += 1
        try:
            yield
        finally:
            self._in_use[real] -= 1
            if not self._in_use[real]:
                del self._in_use[real]

    def usage(self, volume: Volume) -> int:
        """Return the bytes that all files of the volume take on the disk."""
        return self._files(volume.vid).usage()

    def revisions(self, volume: Volume) -> list[str]:
        """Return number and time of the contents before the newest one, as many as the volume keeps."""
        return [revision.ident for revision in self._kept(volume)]

    def _kept(self, volume: Volume) -> list[Revision]:
        older = [revision for revision in self._files(volume.vid).revisions()[:-1] if not revision.is_blank()]
        return older[-volume.revisions_to_keep :] if volume.revisions_to_keep > 0 else []

    # -- new content

    async def import_file(self, volume: Volume, path: str) -> Volume:
        """Copy the raw image at `path`, holes kept, and put it in the place of the volume's content."""
        purpose = f"image {path} cannot be imported into volume {volume.vid}"
        return await self._copy(volume, purpose, Location(path, "raw"))

    async def clone(self, source: Volume, target: Volume, home: Pool | None = None) -> Volume:
        """Make the newest finished content of `source` that of `target`; from another pool it is copied whole."""
        purpose = f"volume {source.vid} cannot be copied to {target.vid}"
        own = cast("Pool", self)
        reader = home or own
        async with reader.reading(source.vid) as content:
            if reader is own:
                return await self._clone_own(target, purpose, content, source.size)
            return await self._copy(target, purpose, content, least=source.size)

    async def _clone_own(self, target: Volume, purpose: str, content: Location, least: int) -> Volume:
        """Make content of this pool that of another volume, with at least so many bytes."""
        return await self._copy(target, purpose, content, least)

    async def _copy(
        self, volume: Volume, purpose: str, content: Location, least: int = 0, fill: Fill | None = None
    ) -> Volume:
        half_made = self._files(volume.vid).half_made
        try:
            os.stat(content.path)
            os.makedirs(os.path.dirname(half_made), mode=0o700, exist_ok=True)  # a VM that was brought over has none
            discard(half_made)
            await (fill or self._fill)(purpose, content, half_made)
            os.chmod(half_made, MODE)
            grow(half_made, least)  # a volume that was made larger can have content from before
            return await self._take(volume, half_made)
        except OSError as error:
            raise failure(purpose, error) from error
        finally:
            discard(half_made)

    async def _fill(self, purpose: str, content: Location, path: str) -> None:
        """Make a raw file with some content, wherever that is; layers become one image, which stands alone."""
        is_raw = content.format == "raw"
        command = self.raw_copy if is_raw else ("qemu-img", "convert", "-q", "-f", content.format, "-O", "raw")
        await run_tool(purpose, *command, content.path, path)

    async def _take(self, volume: Volume, half_made: str) -> Volume:
        """Make a finished raw file the content of a volume; raises OSError."""
        files = self._files(volume.vid)
        size = os.stat(half_made).st_size
        content = files.next_content(keeps_revisions=volume.revisions_to_keep > 0)
        # Writing gigabytes to the disk takes a while, in which others want their answers.
        await asyncio.to_thread(settle, half_made, content)
        await self._settled(volume)
        return replace(volume, size=size)

    async def _settled(self, volume: Volume) -> None:
        """Do what is to be done when a volume has new content."""
        await self.trim(volume)

    async def begin_import(self, volume: Volume, size: int) -> str:
        """Make an empty file beside the content."""
        path = self._files(volume.vid).imported
        try:
            self._make_empty(path, size)
        except OSError as error:
            discard(path)
            raise failure(f"volume {volume.vid} cannot get {size} bytes", error) from error
        return path

    def _make_empty(self, path: str, size: int) -> None:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        discard(path)
        make_empty(path, size)

    async def finish_import(self, volume: Volume, size: int) -> Volume:
        """Put the file in the place of the volume's content; raises StorageError unless it has exactly that size."""
        path = self._files(volume.vid).imported
        try:
            status = os.lstat(path)
            if not stat.S_ISREG(status.st_mode):
                raise StorageError(f"volume {volume.vid} was not changed: {path} is no file any more")
            if status.st_size != size:
                found = f"{status.st_size} bytes were written, not {size}"
                raise StorageError(f"volume {volume.vid} was not changed: {found}")
            return await self._take(volume, path)
        except OSError as error:
            raise failure(f"what was written for volume {volume.vid} cannot be used", error) from error
        finally:
            discard(path)

    async def give_up_import(self, volume: Volume) -> None:
        """Delete the file."""
        discard(self._files(volume.vid).imported)

    async def clear(self, volume: Volume) -> None:
        """Put an empty file in the place of the volume's content."""
        half_made = self._files(volume.vid).half_made
        try:
            self._make_empty(half_made, volume.size)
            await self._take(volume, half_made)
        except OSError as error:
            raise failure(f"volume {volume.vid} cannot be cleared", error) from error
        finally:
            discard(half_made)

    async def resize(self, volume: Volume, size: int) -> Volume:
        """Make a volume larger. What gets a layer at its next start is only told: that one will be so large."""
        newest = self._files(volume.vid).newest()
        purpose = f"volume {volume.vid} cannot get {size} bytes"
        if newest and volume.is_in_place and not newest.is_frozen():
            try:
                await self._enlarge(newest.location, size, purpose)
            except OSError as error:
                raise failure(purpose, error) from error
        return replace(volume, size=size)

    async def make_room(self, volume: Volume, size: int) -> int:
        """Return the size in whole sectors: who writes to a file makes it larger."""
        del volume
        return -(-size // SECTOR) * SECTOR

    async def _enlarge(self, content: Location, size: int, purpose: str) -> None:
        """Make content that is written in place at least that large; raises OSError or StorageError."""
        del purpose
        grow(content.path, size)

    async def _size_of(self, content: Location) -> int:
        """Return the size of some content in bytes, as a guest sees it; raises OSError or StorageError."""
        return os.stat(content.path).st_size

    # -- former content

    async def trim(self, volume: Volume) -> None:
        """Delete older revisions beyond those that the volume keeps. One that anything stands on stays."""
        if volume.snap_on_start:
            return
        revisions = self._files(volume.vid).revisions()
        try:
            for revision in await self._unneeded(volume, revisions):
                discard(revision.path)
                self._forget(revision.path)
        except (StorageError, OSError) as error:
            # What made them old is done; the next time tries again.
            log.warning("pool %s: old revisions of %s stay: %s", self.name, volume.vid, error)

    async def _unneeded(self, volume: Volume, revisions: list[Revision]) -> list[Revision]:
        """Return those of a volume's revisions that it does not keep and that nothing stands on."""
        kept = [*self._kept(volume), *revisions[-1:]]
        doomed = [revision for revision in revisions if revision not in kept]
        needed = await self._needed(kept, doomed) if doomed else set()
        return [revision for revision in doomed if os.path.realpath(revision.path) not in needed | set(self._in_use)]

    async def _needed(self, kept: list[Revision], doomed: list[Revision]) -> set[str]:
        """Return the real paths of all files that others stand on, as far as the doomed ones are among them."""
        del kept, doomed
        return set()

    def _forget(self, path: str) -> None:
        """Take note that a file is gone, or will be another one."""
