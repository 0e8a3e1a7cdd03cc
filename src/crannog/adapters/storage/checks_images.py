"""Whether images are what they were when they were finished, and undamaged: at a check, and before each start."""

import json
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from crannog.adapters.storage import seals
from crannog.adapters.storage.chains import Chains, ImageError
from crannog.adapters.storage.checks_open import find_open_files, identify
from crannog.adapters.storage.files import failure
from crannog.adapters.storage.folders import REMOVED
from crannog.adapters.storage.process import read_tool
from crannog.adapters.storage.revisions import Revision
from crannog.adapters.storage.seals_sessions import SealedSessions
from crannog.core.findings import Finding, Kind, Stake
from crannog.core.volumes import LayerState, Location, Volume
from crannog.errors import StorageError
from crannog.ports.storage import Pool
from crannog.ports.upkeep import Stakes

_CORRUPT, _LEAKS = 2, 3
"""Exit codes of qemu-img check that are answers (qemu-img(1)). Leaks cost room and harm nothing."""
_EXTENSIONS = {".img": "raw", ".qcow2": "qcow2"}


@dataclass(frozen=True)
class _Use:
    """What a start does with the newest of the images that it uses."""

    top: Location
    is_written: bool = False
    """The VM writes to that file itself."""
    is_built_on: bool = False
    """What the VM writes becomes content over it."""
    has_layer: bool = False
    """A layer over it is there, and the VM goes on with that."""


class CheckedImages(SealedSessions):
    """A folder of images that are looked at before they are used (see ports.upkeep.TendedPool)."""

    def __init__(self, name: str, folder: str, *, is_elsewhere: bool = False) -> None:
        super().__init__(name, folder, is_elsewhere=is_elsewhere)
        self._chains = Chains()

    # -- before content is read

    async def clone(self, source: Volume, target: Volume, home: Pool | None = None) -> Volume:
        """Make the newest finished content of `source` that of `target`, if it is sound."""
        try:
            return await super().clone(source, target, home)
        except ImageError as error:
            raise StorageError(f"volume {source.vid} cannot be copied to {target.vid}: {error}") from error

    @asynccontextmanager
    async def reading(self, vid: str) -> AsyncIterator[Location]:
        """Give out the newest finished content, if it is sound: who opens it opens all that it names.

        Damage shows as zeros, or as what is below, in whatever is copied from it.
        """
        async with super().reading(vid) as location:
            is_written = location.path == self._files(vid).only
            for found in await self._judge_all(_Use(location, is_written=is_written)):
                if found.is_fatal:
                    raise ImageError.about(found.path, found.reason)
            yield location

    async def accept(self, volume: Volume) -> None:
        """Take the images of a volume for what they are now; raises StorageError for broken ones."""
        newest = self._newest(volume.vid)
        image = await self._chains.verify(newest.location)
        for path in (newest.path, *image.below):
            damage = await find_damage(path)
            if damage:
                raise ImageError.about(path, damage)
            seals.put(path, is_sound=True)

    # -- before a start

    async def examine(self, volume: Volume) -> list[Finding]:
        """Return what is wrong with the images that a start of the volume would use; seal those that are not yet."""
        if not (volume.snap_on_start or volume.save_on_stop):
            return []
        try:
            use = await self._plan_use(volume)
            return [*await self._judge_all(use), *_find_loss(volume, use)]
        except ImageError as error:
            return [Finding(Kind.BROKEN, error.path, error.reason)]
        except OSError as error:
            raise failure(f"volume {volume.vid} cannot be looked at", error) from error

    async def _plan_use(self, volume: Volume) -> _Use:
        """Return what a start would do; raises StorageError when there is no content, ImageError for a bad layer."""
        files = self._files(volume.vid)
        if volume.snap_on_start:
            return await self._plan_layer(volume)
        if os.path.exists(files.dirty.path):
            return _Use(files.dirty, is_built_on=True)
        newest = self._newest(volume.vid)
        is_written = volume.is_in_place and not newest.is_frozen()
        return _Use(newest.location, is_written=is_written, is_built_on=not is_written)

    async def _plan_layer(self, volume: Volume) -> _Use:
        below = self._newest(volume.source).location
        layer = self._files(volume.vid).volatile
        is_kept = volume.keeps_layer and os.path.exists(layer.path)
        if is_kept and layer.format != "raw" and await self.layer_state(volume) is LayerState.CURRENT:
            stands_on = (await self._chains.verify(layer, over=below.path)).below[:1]
            if stands_on != (os.path.realpath(below.path),):
                raise ImageError.about(layer.path, f"is damaged: it does not stand on {below.path}, as it did")
            damage = await find_damage(layer.path)
            if damage:
                raise ImageError.about(layer.path, damage)
        return _Use(below, has_layer=is_kept)

    async def _judge_all(self, use: _Use) -> list[Finding]:
        """Return what is wrong with the images that are used, the newest first; raises ImageError, or OSError."""
        image = await self._chains.verify(use.top)
        return [finding for path in (use.top.path, *image.below) for finding in await self._judge(path, use)]

    async def _judge(self, path: str, use: _Use) -> list[Finding]:
        """Return what is wrong with one image of the chain that a start would use; seal it if nothing is."""
        sealed, difference = _compare(path)
        is_top = path == use.top.path
        if not (sealed and sealed.is_sound and not difference):
            damage = await find_damage(path)
            if damage:
                return [Finding(Kind.BROKEN, path, damage)]
        if difference:
            return [self._judge_change(path, difference, use, is_top=is_top)]
        if not (sealed and sealed.is_sound) and not (is_top and use.is_written):
            seals.put(path, is_sound=True)
        return []

    @staticmethod
    def _judge_change(path: str, difference: str, use: _Use, *, is_top: bool) -> Finding:
        """Return what a changed image means. Data over it were written to go with what it was, and would be mixed."""
        is_base = Revision(0, path).is_frozen()
        is_fatal = not is_top or use.has_layer or (is_base and use.is_built_on)
        if use.is_built_on and not is_fatal:
            # What the VM writes from here on goes with what the image is now.
            seals.put(path, is_sound=True)
        return Finding(Kind.CHANGED, path, difference, is_fatal=is_fatal)

    # -- at a check

    async def _check_images(self, stakes: Stakes) -> list[Finding]:
        """Return what is wrong with images that no running VM uses, and which sealed ones were changed."""
        used, opened = await self._find_used(stakes()), find_open_files()
        found = [finding for stake in stakes() for finding in self._check_size(stake)]
        folders = {stake.volume.vid.partition("/")[0] for stake in stakes()}
        for location in list(self._locations(folders)):
            with suppress(FileNotFoundError):  # it has just been deleted
                path = location.path
                difference = _compare(path)[1]
                found += [Finding(Kind.CHANGED, path, difference)] if difference else []
                if path not in used and identify(path) not in opened:
                    found += await self._check_image(location)
        return found

    async def _check_image(self, location: Location) -> list[Finding]:
        try:
            is_layer = ".volatile." in os.path.basename(location.path)
            await (self._chains.look if is_layer else self._chains.verify)(location)
            damage = await find_damage(location.path)
        except ImageError as error:
            return [Finding(Kind.BROKEN, error.path, error.reason)]
        return [Finding(Kind.BROKEN, location.path, damage)] if damage else []

    def _check_size(self, stake: Stake) -> list[Finding]:
        """Return whether the content of a volume that is written in place has lost its end."""
        volume = stake.volume
        if not volume.is_in_place or stake.is_used:
            return []
        try:
            newest = self._files(volume.vid).newest()
        except StorageError:
            return []  # a link, which is told as one
        return _find_loss(volume, _Use(newest.location, is_written=True)) if newest else []

    async def _find_used(self, stakes: Sequence[Stake]) -> set[str]:
        """Return the paths of images that VMs which run, or are worked on, may be using."""
        used: set[str] = set()
        for volume in [stake.volume for stake in stakes if stake.is_used]:
            for location in self._images_of(volume):
                used.add(location.path)
                try:
                    used.update((await self._chains.look(location)).below)
                except StorageError:
                    continue  # it is told when nobody uses it any more
        return used

    def _images_of(self, volume: Volume) -> list[Location]:
        """Return the images of a volume that are there: finished ones, and those of its sessions."""
        try:
            files = self._files(volume.vid)
            sessions = [location for location in (files.dirty, files.volatile) if os.path.exists(location.path)]
            return [*(revision.location for revision in files.revisions()), *sessions]
        except StorageError:
            return []  # a link, which is told as one

    def _locations(self, folders: set[str]) -> Iterator[Location]:
        """Give the images in some VMs' folders, and in those of removed VMs that others stand on."""
        for folder in sorted(os.listdir(self.folder)):
            place = os.path.join(self.folder, folder)
            is_ours = folder in folders or os.path.exists(os.path.join(place, REMOVED))
            for entry in sorted(os.listdir(place)) if is_ours and not os.path.islink(place) else ():
                path = os.path.join(place, entry)
                format_ = _EXTENSIONS.get(os.path.splitext(entry)[1])
                if format_ and os.path.isfile(path) and not os.path.islink(path):
                    yield Location(path, format_)


def _compare(path: str) -> tuple[seals.Seal | None, str]:
    """Return the seal of an image, and how the image differs from it."""
    sealed = seals.find(path)
    return sealed, sealed.difference(seals.take(path)) if sealed else ""


def _find_loss(volume: Volume, use: _Use) -> list[Finding]:
    """Return whether a file that is written in place, and always was, is smaller than its volume."""
    path = use.top.path
    if not use.is_written or os.path.basename(path) != os.path.basename(volume.vid) + ".img":
        return []
    size = os.stat(path).st_size
    if size >= volume.size:
        return []
    reason = f"has {size} bytes, but its volume {volume.size}: what was behind them is lost"
    return [Finding(Kind.BROKEN, path, reason, volume.vid, is_fatal=False)]


async def find_damage(path: str) -> str:
    """Return how an image is damaged in itself, to go on a sentence; empty for a sound one. Nothing is repaired.

    Who calls has looked at what it stands on, which qemu-img opens as well.
    """
    if not path.endswith(".qcow2"):
        return ""
    command = ("qemu-img", "check", "--output=json", "-f", "qcow2", path)
    try:
        said = json.loads(await read_tool("is damaged", *command, answers=(_CORRUPT, _LEAKS)))
        damages = int(said.get("corruptions", 0)) + int(said.get("check-errors", 0))
    except (ValueError, TypeError, AttributeError):
        return "is damaged: qemu-img check says nothing of it that makes sense"
    except StorageError as error:
        return str(error)
    return f"is damaged in {damages} places, which 'qemu-img check' lists" if damages else ""
