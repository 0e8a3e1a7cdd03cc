"""The content of qcow2 volumes: where it is, how it gets another one, and which former ones are there to go back to."""

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from crannog.adapters.storage.chains import Chains
from crannog.adapters.storage.files import HALF_MADE, MODE, discard, failure, grow, make_empty, settle
from crannog.adapters.storage.process import run_tool
from crannog.adapters.storage.revisions import Revision, VolumeFiles
from crannog.core.volumes import Location, Volume
from crannog.errors import NotFoundError, StorageError
from crannog.ports.storage import Pool

log = logging.getLogger(__name__)

_COPY = ("cp", "--sparse=always", "--reflink=auto", "--")
_LAYERS = (".volatile.qcow2", ".dirty.qcow2")


class Qcow2Content:
    """A folder of images, a folder a VM (see adapters.storage.qcow2)."""

    def __init__(self, name: str, folder: str) -> None:
        self.name = name
        self.folder = folder
        self._chains = Chains()
        self._in_use: Counter[str] = Counter()
        """Images that are being read, or get a layer: they are not deleted."""

    def newest(self, vid: str) -> Location:
        """Return the newest finished content of a volume; raises StorageError when there is none."""
        files = self._files(vid)
        newest = files.newest()
        if newest is None:
            raise StorageError(f"volume {vid} of pool {self.name} has no content: {files.base}.img does not exist")
        return newest.location

    def usage(self, volume: Volume) -> int:
        """Return the bytes that all files of the volume take on the disk."""
        return self._files(volume.vid).usage()

    def revisions(self, volume: Volume) -> list[str]:
        """Return number and time of the contents before the newest one, as many as the volume keeps."""
        return [revision.ident for revision in self._kept(volume)]

    def _kept(self, volume: Volume) -> list[Revision]:
        older = [revision for revision in self._files(volume.vid).revisions()[:-1] if not revision.is_blank()]
        return older[-volume.revisions_to_keep :] if volume.revisions_to_keep > 0 else []

    async def is_outdated(self, volume: Volume) -> bool:
        """Tell whether a layer that is there stands on anything but the newest content of its source."""
        layer = self._files(volume.vid).volatile
        if not volume.snap_on_start or not os.path.exists(layer):
            return False
        below = (await self._chains.look(Location(layer, "qcow2"))).below
        return below[:1] != (os.path.realpath(self.newest(volume.source).path),)

    # -- new content

    async def import_file(self, volume: Volume, path: str) -> Volume:
        """Copy the raw image at `path`, holes kept, and put it in the place of the volume's content."""
        return await self._copy(volume, f"image {path} cannot be imported into volume {volume.vid}", path, _COPY)

    async def clone(self, source: Volume, target: Volume, home: Pool | None = None) -> Volume:
        """Copy the newest finished content of `source`; layers become one image, so that the copy stands alone."""
        newest = (home or self).newest(source.vid)
        command = _COPY if newest.format == "raw" else ("qemu-img", "convert", "-q", "-f", newest.format, "-O", "raw")
        purpose = f"volume {source.vid} cannot be copied to {target.vid}"
        reader = home if isinstance(home, Qcow2Content) else self
        with reader._using(newest.path):
            return await self._copy(target, purpose, newest.path, command, least=source.size)

    async def _copy(
        self, volume: Volume, purpose: str, source: str, command: tuple[str, ...], least: int = 0
    ) -> Volume:
        half_made = self._files(volume.vid).half_made
        try:
            os.stat(source)
            os.makedirs(os.path.dirname(half_made), mode=0o700, exist_ok=True)  # a VM that was brought over has none
            await run_tool(purpose, *command, source, half_made)
            os.chmod(half_made, MODE)
            grow(half_made, least)  # a volume that was made larger can have content from before
            return await self._take(volume, half_made)
        except OSError as error:
            raise failure(purpose, error) from error
        finally:
            discard(half_made)

    async def _take(self, volume: Volume, half_made: str) -> Volume:
        """Make a finished raw file the content of a volume; raises OSError."""
        files = self._files(volume.vid)
        size = os.stat(half_made).st_size
        content = files.next_content(keeps_revisions=volume.revisions_to_keep > 0)
        # Writing gigabytes to the disk takes a while, in which others want their answers.
        await asyncio.to_thread(settle, half_made, content)
        await self.trim(volume)
        return replace(volume, size=size)

    async def begin_import(self, volume: Volume, size: int) -> str:
        """Make an empty file beside the content."""
        path = self._files(volume.vid).imported
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            discard(path)
            make_empty(path, size)
        except OSError as error:
            discard(path)
            raise failure(f"volume {volume.vid} cannot get {size} bytes", error) from error
        return path

    async def finish_import(self, volume: Volume, size: int) -> Volume:
        """Put the file in the place of the volume's content; raises StorageError unless it has exactly that size."""
        path = self._files(volume.vid).imported
        try:
            found = os.lstat(path).st_size
            if found != size:
                raise StorageError(f"volume {volume.vid} was not changed: {found} bytes were written, not {size}")
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
            os.makedirs(os.path.dirname(half_made), mode=0o700, exist_ok=True)
            discard(half_made)
            make_empty(half_made, volume.size)
            await self._take(volume, half_made)
        except OSError as error:
            raise failure(f"volume {volume.vid} cannot be cleared", error) from error
        finally:
            discard(half_made)

    async def resize(self, volume: Volume, size: int) -> Volume:
        """Make a volume larger. What keeps revisions is only told: its next layer is as large as it shall be."""
        newest = self._files(volume.vid).newest()
        purpose = f"volume {volume.vid} cannot get {size} bytes"
        if newest and volume.save_on_stop and volume.revisions_to_keep <= 0:
            try:
                if newest.location.format == "raw":
                    grow(newest.path, size)
                elif (await self._chains.look(newest.location)).size < size:
                    await run_tool(purpose, "qemu-img", "resize", "-q", "-f", "qcow2", newest.path, str(size))
                    self._chains.forget(newest.path)
            except OSError as error:
                raise failure(purpose, error) from error
        return replace(volume, size=size)

    # -- former content

    async def revert(self, volume: Volume, revision: str) -> Volume:
        """Put a layer over a revision on top of all; the present content stays, as the newest revision."""
        chosen = next((kept for kept in self._kept(volume) if kept.ident == revision), None)
        if chosen is None:
            raise NotFoundError(f"volume {volume.vid} has no revision '{revision[:80]}' to go back to")
        size = (await self._chains.look(chosen.location)).size
        path = self._files(volume.vid).next_revision("qcow2")
        await self._layer(path, chosen.location, size, volume, lasts=True)
        await self.trim(volume)
        return replace(volume, size=size)

    async def trim(self, volume: Volume) -> None:
        """Delete older revisions beyond those that the volume keeps. One that any image stands on stays."""
        revisions = self._files(volume.vid).revisions()
        kept = [*self._kept(volume), *revisions[-1:]]
        doomed = [revision for revision in revisions if revision not in kept]
        if volume.snap_on_start or not doomed:
            return
        try:
            needed = await self._standing_on(revision.location for revision in kept)
            if any(os.path.realpath(revision.path) not in needed for revision in doomed):
                needed |= await self._standing_on(self._layers())
            for revision in doomed:
                if os.path.realpath(revision.path) not in needed | set(self._in_use):
                    discard(revision.path)
                    self._chains.forget(revision.path)
        except (StorageError, OSError) as error:
            # What made them old is done; the next time tries again.
            log.warning("pool %s: old revisions of %s stay: %s", self.name, volume.vid, error)

    async def _standing_on(self, locations: Iterable[Location]) -> set[str]:
        """Return all images that some images need: those below, and those that are read right now."""
        needed = set(self._in_use)
        for location in locations:
            needed.update((await self._chains.look(location)).below if os.path.exists(location.path) else ())
        return needed

    def _layers(self) -> list[Location]:
        """Return the layers of all VMs that are there, and what is just getting one."""
        folders = [entry.path for entry in os.scandir(self.folder) if entry.is_dir()]
        paths = [os.path.join(folder, entry) for folder in folders for entry in os.listdir(folder)]
        layers = [Location(path, "qcow2") for path in paths if path.endswith(_LAYERS)]
        return layers + [Location(path, "qcow2") for path in self._in_use if path.endswith(".qcow2")]

    # -- layers

    async def _layer(self, path: str, below: Location, size: int, volume: Volume, *, lasts: bool = False) -> None:
        """Make a layer of `size` bytes; with `lasts`, it is brought to the disk."""
        backing = os.path.relpath(below.path, os.path.dirname(path))
        purpose = f"volume {volume.vid} cannot get its layer over {os.path.basename(below.path)}"
        half_made = path + HALF_MADE
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            with self._using(below.path):
                await run_tool(
                    *(purpose, "qemu-img", "create", "-q", "-f", "qcow2", "-F", below.format, "-b", backing),
                    *(half_made, str(size)),
                )
                self._chains.forget(path)
                (settle if lasts else os.rename)(half_made, path)
        except OSError as error:
            raise failure(purpose, error) from error
        finally:
            discard(half_made)

    @contextmanager
    def _using(self, path: str) -> Iterator[None]:
        """Keep an image, and what it stands on, from being deleted."""
        real = os.path.realpath(path)
        self._in_use[real] += 1
        try:
            yield
        finally:
            self._in_use[real] -= 1
            if not self._in_use[real]:
                del self._in_use[real]

    def _files(self, vid: str) -> VolumeFiles:
        parts = vid.split("/")
        if len(parts) != 2 or any(part in ("", ".", "..") or part.startswith(".") for part in parts):
            raise StorageError(f"'{vid}' is not the id of a volume in pool {self.name}")
        return VolumeFiles(os.path.join(self.folder, *parts))
