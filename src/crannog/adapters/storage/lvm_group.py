"""What is in one thin pool, and what can be done there, each by one program of lvm2.

What there is is kept in memory, and changed there with each command that succeeds: crannogd alone changes these LVs. So
questions that cannot wait are answered at once. After a command that failed LVM is asked again.
"""

import asyncio
import errno
import logging
import os
from collections.abc import Coroutine, Sequence
from dataclasses import replace

from crannog.adapters.storage.dm_udev import place_rules
from crannog.adapters.storage.files import failure, sync
from crannog.adapters.storage.lvm_commands import (
    UDEV_RULES,
    Place,
    alteration,
    ask,
    creation,
    dooming,
    read_picture,
    run_lvm,
)
from crannog.adapters.storage.lvm_names import Mark, Owner, State, ThinVolume, device_name, locate_volume
from crannog.adapters.storage.lvm_report import Picture, parse_mapped
from crannog.core.volumes import Location

log = logging.getLogger(__name__)


class ThinGroup:
    """The LVs of one pool. All methods but the simplest raise StorageError, which begins with the purpose."""

    def __init__(self, place: Place, owner: Owner) -> None:
        self.place = place
        self.owner = owner
        self._picture: Picture | None = None
        self._turn = asyncio.Lock()
        self._is_guarded = False

    # -- questions

    def picture(self) -> Picture:
        """Return what there is; blocks where LVM has to be asked, which is once, and after a command that failed."""
        if self._picture is None:
            self._picture = read_picture(self.place, self.owner)
        return self._picture

    async def seen(self) -> Picture:
        """Return the same, and let others work meanwhile."""
        return self._picture or await self.look()

    async def look(self) -> Picture:
        """Ask LVM what there is."""
        async with self._turn:
            self._picture = picture = await asyncio.to_thread(read_picture, self.place, self.owner)
        return picture

    def locate(self, name: str) -> Location:
        """Return where an LV is opened."""
        return locate_volume(self.place.group, name)

    def is_active(self, name: str) -> bool:
        """Tell whether an LV can be opened now."""
        return os.path.exists(self.locate(name).path)

    def mapped(self, volume: ThinVolume) -> int | None:
        """Return the bytes that an LV takes: of an active one as the kernel counts them, else as they were noted.

        Blocks for some milliseconds.
        """
        if not self.is_active(volume.name):
            return volume.mapped
        device = device_name(self.place.group, volume.name)
        return parse_mapped(ask(f"{device} cannot be looked at", "dmsetup", "status", "--noflush", device))

    # -- changes

    async def create(self, purpose: str, volume: ThinVolume, *, is_active: bool = False) -> None:
        """Make an LV, empty or as a snapshot of its origin, whose size it then must have."""
        if is_active:
            await self._guard()
        await self._change(purpose, creation(self.place, self.owner, volume, is_active=is_active), (volume,))

    async def alter(self, purpose: str, old: ThinVolume, new: ThinVolume) -> None:
        """Change what the tags of an LV say, and whether it can be written to, in one step."""
        words = alteration(self.place, self.owner, old, new)
        if words:
            await self._change(purpose, words, (new,))

    async def rename(self, purpose: str, old: ThinVolume, name: str) -> ThinVolume:
        """Give an LV another name; return it."""
        new = replace(old, name=name)
        await self._change(purpose, ["lvrename", self.place.group, old.name, name], (new,), (old.name,))
        return new

    async def extend(self, purpose: str, volume: ThinVolume, size: int) -> ThinVolume:
        """Make an LV at least `size` bytes large; return it."""
        new = replace(volume, size=(await self.seen()).round_up(size))
        if new.size <= volume.size:
            return volume
        words = ["lvextend", "--size", f"{new.size}b", f"{self.place.group}/{new.name}"]
        await self._change(purpose, words, (new,))
        return new

    async def remove(self, purpose: str, volumes: Sequence[ThinVolume]) -> None:
        """Delete LVs, active or not. Who is killed meanwhile leaves some of them."""
        if volumes:
            names = [volume.name for volume in volumes]
            await self._change(purpose, ["lvremove", "--yes", *self._paths(names)], gone=names)

    async def remove_together(self, purpose: str, volumes: Sequence[ThinVolume]) -> None:
        """Delete LVs of one VM; who is killed meanwhile leaves them marked, so that the rest is deleted later."""
        if len(volumes) > 1:
            doomed = [replace(volume, mark=Mark.DOOMED) for volume in volumes]
            await self._change(purpose, dooming(self.place, [volume.name for volume in volumes]), doomed)
        await self.remove(purpose, volumes)

    async def activate(self, purpose: str, volume: ThinVolume) -> None:
        """Make it possible to open an LV."""
        if not self.is_active(volume.name):
            await self._guard()
            await self._change(purpose, ["lvchange", "--activate", "y", "-K", *self._paths([volume.name])])

    async def _guard(self) -> None:
        """Keep udev away from all that is activated from here on."""
        if not self._is_guarded:
            await place_rules("12-crannog-lvm", UDEV_RULES, f"the LVs in {self.place}")
            self._is_guarded = True

    async def deactivate(self, purpose: str, volumes: Sequence[ThinVolume]) -> None:
        """Make it impossible to open LVs; those that are not active stay as they are."""
        active = [volume.name for volume in volumes if self.is_active(volume.name)]
        if active:
            await self._change(purpose, ["lvchange", "--activate", "n", *self._paths(active)])

    async def put_down(self, purpose: str, volume: ThinVolume) -> int | None:
        """Bring to the disk what was written to an LV, and deactivate it; return the bytes that it takes then.

        What has no room is lost; of new content it raises StorageError, as that must be whole.
        """
        try:
            if self.is_active(volume.name):
                await asyncio.to_thread(sync, self.locate(volume.name).path)
        except OSError as error:
            if error.errno != errno.ENOSPC or volume.state is State.HALF_MADE:
                raise failure(purpose, error) from error
            # The VM was told that its write failed; it must be able to end all the same.
            log.warning("%s: thin pool %s was full, what a VM wrote to it last is lost", volume.vid, self.place)
        mapped = await asyncio.to_thread(self.mapped, volume)
        await self.deactivate(purpose, [volume])
        return mapped

    def _paths(self, names: Sequence[str]) -> list[str]:
        return [f"{self.place.group}/{name}" for name in names]

    async def _change(
        self, purpose: str, words: list[str], new: Sequence[ThinVolume] = (), gone: Sequence[str] = ()
    ) -> None:
        await finish(self._run(purpose, words, new, gone))

    async def _run(self, purpose: str, words: list[str], new: Sequence[ThinVolume], gone: Sequence[str]) -> None:
        async with self._turn:
            try:
                await run_lvm(purpose, self.place, words)
            except BaseException:
                self._picture = None
                raise
            after = self._picture and self._picture.without(gone)
            for volume in new:
                after = after and after.with_volume(volume)
            self._picture = after


async def finish(act: Coroutine[object, object, None]) -> None:
    """Do something to its end, also when whoever waits for it is cancelled.

    A program of lvm2 that is killed half-way can leave the thin pool suspended, and all VMs with it.
    """
    task = asyncio.ensure_future(act)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # nobody is there to hear it
        raise
