"""Content that several volumes stand on: a copy that copies nothing.

A copy of much content is an empty layer over it. What it stands on becomes a base: it may not be written any more (its
file says so, by rights), and stays as long as anything stands on it. A volume that is written in place, and whose
content became a base, gets a layer of its own at its next start. At each step a crash leaves a base that nothing stands
on, at worst, which costs that volume a layer.

Of a VM that is removed, the bases stay in its folder, which is then marked as removed; when the last image that stands
on one of them goes, or at the latest at the next start of the daemon, they go as well.
"""

import logging
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace

from crannog.adapters.storage.collect import CollectedFiles
from crannog.adapters.storage.files import allocated, failure, freeze
from crannog.adapters.storage.folders import REMOVED
from crannog.adapters.storage.revisions import Revision
from crannog.core.volumes import Location, Volume
from crannog.errors import StorageError

log = logging.getLogger(__name__)

_SESSIONS = (".volatile.qcow2", ".dirty.qcow2")
_DEEPEST = 16
"""Images in a chain from which on a copy is made whole: each costs memory, and time at a start."""


class SharedBases(CollectedFiles):
    """A folder of images that stand on one another (see ports.storage.Pool)."""

    copied_whole = 4 * 2**20
    """Bytes: less content than this is copied, which takes no longer than a layer does."""

    def __init__(self, name: str, folder: str, *, is_elsewhere: bool = False) -> None:
        super().__init__(name, folder, is_elsewhere=is_elsewhere)
        self._changes = 0
        """How many images came or went."""

    # -- copies

    async def _clone_own(self, target: Volume, purpose: str, content: Location, least: int) -> Volume:
        image = await self._chains.verify(content)
        chain = (content.path, *image.below)
        if sum(map(allocated, chain)) <= self.copied_whole or len(chain) >= _DEEPEST:
            return await self._copy(target, purpose, content, least)
        try:
            for path in chain:
                freeze(path)
        except OSError as error:
            raise failure(purpose, error) from error
        size = max(image.size, least)
        await self.stop(target)  # a session that was never stopped would become newer content than this
        await self._make_layer(self._files(target.vid).next_layer(), content, size, target, lasts=True)
        await self._settled(target)
        return replace(target, size=size)

    # -- what stands on what

    async def _needed(self, kept: list[Revision], doomed: list[Revision]) -> set[str]:
        needed = await self._standing_on(lambda: [revision.location for revision in kept])
        rest = [revision for revision in doomed if os.path.realpath(revision.path) not in needed]
        if rest:
            ends = "" if any(revision.is_frozen() for revision in rest) else _SESSIONS
            going = {revision.path for revision in doomed} - set(self._in_use)
            needed |= await self._standing_on(lambda: [i for i in self._images(ends) if i.path not in going])
        return needed

    async def _standing_on(self, find: Callable[[], list[Location]]) -> set[str]:
        """Return all images that some images need: those below, and those that are read right now.

        It takes a while to look at images: if meanwhile others came, they are looked at as well.
        """
        needed: set[str] = set()
        changes = -1
        while changes != self._changes:
            changes = self._changes
            for location in find():
                needed.update((await self._chains.look(location)).below if os.path.exists(location.path) else ())
        return needed | set(self._in_use)

    def _images(self, ends: str | tuple[str, ...] = "", but: str = "") -> list[Location]:
        """Return the qcow2 images of all VMs but those in one folder, and what is just getting a layer."""
        folders = [folder for folder in self._folders() if folder != but]
        paths = [os.path.join(folder, entry) for folder in folders for entry in os.listdir(folder)]
        found = [path for path in [*paths, *self._in_use] if path.endswith(".qcow2")]
        return [Location(path, "qcow2") for path in found if path.endswith(ends) or path in self._in_use]

    def _forget(self, path: str) -> None:
        self._chains.forget(path)
        self._changes += 1

    # -- VMs that go

    async def remove(self, volumes: tuple[Volume, ...]) -> None:
        """Delete the VM's folder, but for what others stand on."""
        for volume in volumes:
            folder = self._files(volume.vid).folder
            bases = await self._bases_in(folder)
            if bases:
                self._strip(folder, bases)
            else:
                await super().remove((volume,))
        await self._collect()

    async def trim(self, volume: Volume) -> None:
        """Delete older revisions, and what only they stood on of VMs that were removed."""
        await super().trim(volume)
        await self._collect()

    async def recover(self, known: frozenset[str]) -> list[str]:
        """Clean up as all pools do, and delete what only removed VMs' images stood on."""
        done = await super().recover(known)
        return done + await self._collect()

    async def _bases_in(self, folder: str) -> set[str]:
        """Return the files in a VM's folder that images of other VMs stand on."""
        entries = os.scandir(folder) if os.path.isdir(folder) else ()
        modes = {entry.path: entry.stat(follow_symlinks=False).st_mode for entry in entries}
        frozen = {path for path, mode in modes.items() if stat.S_ISREG(mode) and not mode & stat.S_IWUSR}
        if not frozen:
            return set()
        try:
            needed = await self._standing_on(lambda: self._images(but=folder))
        except StorageError as error:
            log.warning("pool %s: %s stays as it is: %s", self.name, folder, error)
            return frozen
        return {path for path in frozen if os.path.realpath(path) in needed}

    async def _collect(self) -> list[str]:
        """Delete what nothing stands on any more of VMs that were removed; return a sentence for each that is gone."""
        done = []
        for folder in [folder for folder in self._folders() if os.path.exists(os.path.join(folder, REMOVED))]:
            bases = await self._bases_in(folder)
            try:
                self._strip(folder, bases)
            except StorageError as error:
                log.warning("%s", error)  # the next time tries again
            if not bases:
                shutil.rmtree(folder, ignore_errors=True)
                done.append(f"pool {self.name}: deleted what was left of {os.path.basename(folder)}")
        return done

    def _folders(self) -> list[str]:
        """Return the folders of all VMs that are there, or were."""
        entries = os.scandir(self.folder) if os.path.isdir(self.folder) else ()
        return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
