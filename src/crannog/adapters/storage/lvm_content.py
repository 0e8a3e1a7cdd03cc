"""The content of volumes that are thin LVs: where it is, how it gets another one, which former ones can come back.

Contents of a volume are numbered; the largest number is what counts. A content that is not whole yet is called
half-made by its tags; one command takes that away, and it is the newest. Snapshots stand alone: nothing needs what it
was made from, so any content can be deleted at any time.
"""

import logging
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import cast

from crannog.adapters.storage.chains import Chains
from crannog.adapters.storage.files import failure
from crannog.adapters.storage.lvm_commands import Place
from crannog.adapters.storage.lvm_names import IMPORT, State, ThinVolume
from crannog.adapters.storage.lvm_pool import ThinPool
from crannog.adapters.storage.lvm_report import Picture
from crannog.adapters.storage.process import run_tool
from crannog.core.volumes import Location, Volume
from crannog.errors import NotFoundError, StorageError
from crannog.ports.storage import Pool

log = logging.getLogger(__name__)

# The LV is empty, so zeros need not be written. Past the page cache, as the kernel says of what it writes from there
# only that it failed, and not that there is no room.
_COPY = ("qemu-img", "convert", "-q", "-n", "--target-is-zero", "-t", "none", "-O", "raw")


class ThinContent(ThinPool):
    """Contents, and how they change (see ports.storage.Pool)."""

    shares_live = True

    def __init__(self, name: str, place: Place, home: str, clock: Callable[[], float] = time.time) -> None:
        super().__init__(name, place, home, clock)
        self._in_use: Counter[str] = Counter()
        """LVs that are being read: they are neither deleted nor deactivated."""
        self._shown: set[str] = set()
        """Those of them that were activated for that."""

    def newest(self, vid: str) -> Location:
        """Return the newest finished content of a volume, which can be opened inside of `reading` alone."""
        return self._group.locate(self._newest(self._group.picture(), vid).name)

    def _newest(self, picture: Picture, vid: str) -> ThinVolume:
        self._check(vid)
        finished = picture.finished(vid)
        if not finished:
            reason = f"no LV in thin pool {self._group.place} has its tags; restore it from a backup"
            raise StorageError(f"volume {vid} of pool {self.name} has no content: {reason}")
        return finished[-1]

    @asynccontextmanager
    async def reading(self, vid: str) -> AsyncIterator[Location]:
        """Give out the newest finished content, active, which is not deleted until the end of the block."""
        volume = self._newest(await self._group.seen(), vid)
        self._in_use[volume.name] += 1
        try:
            if not self._group.is_active(volume.name):
                self._shown.add(volume.name)
                await self._group.activate(f"volume {vid} cannot be read", volume)
            yield self._group.locate(volume.name)
        finally:
            self._in_use[volume.name] -= 1
            if not self._in_use[volume.name] and volume.name in self._shown:
                await self._hide(volume)

    async def _hide(self, volume: ThinVolume) -> None:
        del self._in_use[volume.name]
        self._shown.remove(volume.name)
        try:
            await self._group.deactivate(f"volume {volume.vid} stays open", [volume])
        except StorageError as error:
            log.warning("pool %s: %s", self.name, error)

    def usage(self, volume: Volume) -> int:
        """Return the bytes that the volume's LVs have in the thin pool; what they share with others counts for each."""
        self._check(volume.vid)
        return sum(self._group.mapped(found) or 0 for found in self._group.picture().of_volume(volume.vid))

    def revisions(self, volume: Volume) -> list[str]:
        """Return number and time of the contents before the newest one, as many as the volume keeps."""
        return [revision.ident for revision in self._kept(self._group.picture(), volume)]

    def _kept(self, picture: Picture, volume: Volume) -> list[ThinVolume]:
        self._check(volume.vid)
        older = [content for content in picture.finished(volume.vid)[:-1] if not content.is_blank()]
        return older[-volume.revisions_to_keep :] if volume.revisions_to_keep > 0 else []

    # -- new content

    async def import_file(self, volume: Volume, path: str) -> Volume:
        """Copy the raw image at `path`, holes kept, and make that the volume's content."""
        return await self._copy(
            volume, f"image {path} cannot be imported into volume {volume.vid}", Location(path, "raw")
        )

    async def clone(self, source: Volume, target: Volume, home: Pool | None = None) -> Volume:
        """Make the newest finished content of `source` that of `target`; from another pool it is copied whole."""
        purpose = f"volume {source.vid} cannot be copied to {target.vid}"
        self._check(target.vid)
        if home is None or home is cast("Pool", self):
            content = self._newest(await self._group.seen(), source.vid)
            return await self._show(target, purpose, content, least=source.size)
        async with home.reading(source.vid) as location:
            return await self._copy(target, purpose, location, least=source.size)

    async def _show(self, volume: Volume, purpose: str, content: ThinVolume, least: int = 0) -> Volume:
        """Make a snapshot of some content that of a volume, with at least so many bytes."""
        new = self._new(await self._group.seen(), volume)
        new = replace(new, size=content.size, origin=content.name, mapped=content.mapped)
        if least <= new.size:
            await self._group.create(purpose, new)
            return await self._settled(volume, new)
        async with self._whole_or_not(purpose, volume.vid):
            half_made = replace(new, state=State.HALF_MADE)
            await self._group.create(purpose, half_made)
            return await self._publish(volume, purpose, await self._group.extend(purpose, half_made, least))

    async def _copy(self, volume: Volume, purpose: str, content: Location, least: int = 0) -> Volume:
        self._check(volume.vid)
        size = max(await _size_of(purpose, content), least)
        half_made = self._new(await self._group.seen(), volume, size=size, state=State.HALF_MADE)
        async with self._whole_or_not(purpose, volume.vid):
            await self._group.create(purpose, half_made, is_active=True)
            await run_tool(purpose, *_COPY, "-f", content.format, content.path, self._group.locate(half_made.name).path)
            return await self._publish(volume, purpose, half_made)

    @asynccontextmanager
    async def _whole_or_not(self, purpose: str, vid: str) -> AsyncIterator[None]:
        """Delete what is still half-made of a volume at the end of the block."""
        try:
            yield
        finally:
            left = (await self._group.seen()).of_volume(vid)
            await self._group.remove(purpose, [volume for volume in left if volume.state is State.HALF_MADE])

    async def _publish(self, volume: Volume, purpose: str, made: ThinVolume) -> Volume:
        """Make an LV that is whole the newest content of a volume; return the volume with its size."""
        mapped = await self._group.put_down(purpose, made)
        if not made.number:
            number = (await self._group.seen()).next_number(made.vid)
            made = await self._group.rename(purpose, made, self._group.owner.name(made.vid, number))
        is_readonly, changed = not volume.is_in_place, self._now()
        content = replace(made, state=State.FINISHED, is_readonly=is_readonly, changed=changed, mapped=mapped)
        await self._group.alter(purpose, made, content)
        return await self._settled(volume, content)

    async def _settled(self, volume: Volume, content: ThinVolume) -> Volume:
        await self.trim(volume)
        return replace(volume, size=content.size)

    async def begin_import(self, volume: Volume, size: int) -> str:
        """Make an empty LV beside the content."""
        await self.give_up_import(volume)
        new = self._new(await self._group.seen(), volume, size=size, state=State.HALF_MADE)
        imported = replace(new, name=self._imported(volume))
        await self._group.create(f"volume {volume.vid} cannot get {size} bytes", imported, is_active=True)
        return self._group.locate(imported.name).path

    def _imported(self, volume: Volume) -> str:
        self._check(volume.vid)
        return self._group.owner.name(volume.vid, IMPORT)

    async def finish_import(self, volume: Volume, size: int) -> Volume:
        """Make that LV the content of the volume. Its size is that of an LV in which so many bytes have room."""
        purpose = f"what was written for volume {volume.vid} cannot be used"
        async with self._whole_or_not(purpose, volume.vid):
            picture = await self._group.seen()
            imported = picture.volumes.get(self._imported(volume))
            if imported is None or imported.size != picture.round_up(size):
                raise StorageError(f"{purpose}: there is no LV of {size} bytes for it any more; begin anew")
            return await self._publish(volume, purpose, imported)

    async def give_up_import(self, volume: Volume) -> None:
        """Delete that LV."""
        imported = (await self._group.seen()).volumes.get(self._imported(volume))
        if imported:
            await self._group.remove(f"what was written for volume {volume.vid} cannot be deleted", [imported])

    async def clear(self, volume: Volume) -> None:
        """Make an empty LV the content of the volume."""
        self._check(volume.vid)
        new = self._new(await self._group.seen(), volume)
        await self._group.create(f"volume {volume.vid} cannot be cleared", new)
        await self._settled(volume, new)

    async def resize(self, volume: Volume, size: int) -> Volume:
        """Make a volume larger. What gets a snapshot at its next start is only told: that one will be so large."""
        picture = await self._group.seen()
        if not volume.is_in_place or not picture.finished(volume.vid):
            return replace(volume, size=picture.round_up(size))
        newest = self._newest(picture, volume.vid)
        larger = await self._group.extend(f"volume {volume.vid} cannot get {size} bytes", newest, size)
        return replace(volume, size=larger.size)

    async def make_room(self, volume: Volume, size: int) -> int:
        """Make the LV larger that a running VM writes to; return its size."""
        picture = await self._group.seen()
        written = picture.dirty(volume.vid) or self._newest(picture, volume.vid)
        return (await self._group.extend(f"volume {volume.vid} cannot get {size} bytes", written, size)).size

    # -- former content

    async def revert(self, volume: Volume, revision: str) -> Volume:
        """Make a snapshot of a revision the newest content; the present one stays, as a revision."""
        chosen = next((kept for kept in self._kept(await self._group.seen(), volume) if kept.ident == revision), None)
        if chosen is None:
            raise NotFoundError(f"volume {volume.vid} has no revision '{revision[:80]}' to go back to")
        return await self._show(volume, f"volume {volume.vid} cannot go back to revision {chosen.number}", chosen)

    async def trim(self, volume: Volume) -> None:
        """Delete older contents beyond those that the volume keeps, but for what is being read."""
        self._check(volume.vid)
        if volume.snap_on_start:
            return
        try:
            picture = await self._group.seen()
            kept = self._kept(picture, volume)
            older = picture.finished(volume.vid)[:-1]
            doomed = [content for content in older if content not in kept and not self._in_use[content.name]]
            await self._group.remove("they cannot be deleted", doomed)
        except StorageError as error:
            # What made them old is done; the next time tries again.
            log.warning("pool %s: old revisions of %s stay: %s", self.name, volume.vid, error)


async def _size_of(purpose: str, content: Location) -> int:
    """Return the size of some content in bytes, as a guest sees it. A raw one can be a file or a device."""
    if content.format != "raw":
        return (await Chains().look(content)).size
    try:
        descriptor = os.open(content.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.lseek(descriptor, 0, os.SEEK_END)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise failure(purpose, error) from error
