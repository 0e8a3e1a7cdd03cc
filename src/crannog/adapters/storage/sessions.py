"""What a VM's start and stop do to its volumes, where contents are files.

Files of a volume `V`, by what the volume's flags say (core.volumes); LAYER is the driver's kind of file for a layer,
`img` (raw) or `qcow2`:

- `V.img`: the VM's own data, raw, written in place;
- `V.1.img`, `V.2.LAYER`, ...: revisions of a volume that keeps revisions, never changed again; a running VM writes to
  `V.dirty.LAYER`, which becomes the next revision when it stops, so that VMs that started from an older revision are
  not disturbed (design.md, B12). A volume that ceases to keep revisions is written in place from then on, in whatever
  file its newest content is;
- `V.img` of a volume that is empty at every start as well;
- `V.volatile.LAYER`: a layer over the template's newest revision, dropped at each start (B1, one layer);
- `V.new`, `V.import.new`: what is no content yet.
"""

import os
from dataclasses import replace

from crannog.adapters.storage.content import FileContent
from crannog.adapters.storage.files import HALF_MADE, MODE, discard, failure, make_text, read_text, settle
from crannog.adapters.storage.revisions import Revision
from crannog.core.volumes import LayerState, Location, Volume
from crannog.errors import NotFoundError


class FileSessions(FileContent):
    """Sessions of VMs with files (see ports.storage.Pool). A driver says what a layer is, in `_fill_layer`."""

    notes_source = False
    """A layer does not tell by itself what it was made of, so that it is noted beside each."""

    def __init__(self, name: str, folder: str, *, is_elsewhere: bool = False) -> None:
        super().__init__(name, folder, is_elsewhere=is_elsewhere)
        self._begun: set[str] = set()
        """Layers of sessions that began here and can still be abandoned: what a crash left is never forgotten."""

    def locate(self, volume: Volume) -> Location:
        """Return where the volume is while its VM runs."""
        files = self._files(volume.vid)
        if volume.snap_on_start:
            return files.volatile
        if volume.is_volatile:
            return Location(files.only, "raw")
        if volume.revisions_to_keep > 0:
            return files.dirty
        newest = files.newest()
        if os.path.exists(files.dirty.path) or (newest and newest.is_frozen()):  # what a start does first
            return files.next_layer()
        return newest.location if newest else Location(files.only, "raw")

    async def start(self, volume: Volume) -> None:
        """Make the volume's file for this session. A session that was never stopped is kept first."""
        files = self._files(volume.vid)
        if volume.snap_on_start:
            await self._start_over(volume)
            return
        if volume.is_volatile:
            self._start_empty(volume)
            return
        await self.stop(volume)
        newest = self._newest(volume.vid)
        if volume.revisions_to_keep > 0:
            self._begun.add(files.dirty.path)
            await self._start_layer(files.dirty, newest.location, volume)
        elif newest.is_frozen():
            await self._start_layer(files.next_layer(), newest.location, volume, lasts=True)

    def _start_empty(self, volume: Volume) -> None:
        try:
            self._make_empty(self._files(volume.vid).only, volume.size)
        except OSError as error:
            raise failure(f"volume {volume.vid} cannot get {volume.size} bytes", error) from error

    async def _start_over(self, volume: Volume) -> None:
        """Make a layer over the volume's source, or go on with one that is kept."""
        if volume.keeps_layer and await self.layer_state(volume) is LayerState.CURRENT:
            return
        self._drop(volume)
        source = self._describe_newest(volume.source)
        await self._start_layer(self._files(volume.vid).volatile, self.newest(volume.source), volume)
        try:
            if volume.keeps_layer or self.notes_source:
                make_text(self._files(volume.vid).volatile_source, source)
        except OSError as error:
            self._drop(volume)
            raise failure(f"volume {volume.vid} cannot be started", error) from error

    async def layer_state(self, volume: Volume) -> LayerState:
        """Return what there is of a layer."""
        files = self._files(volume.vid)
        if not volume.snap_on_start or not os.path.exists(files.volatile.path):
            return LayerState.ABSENT
        is_current = read_text(files.volatile_source) == self._describe_newest(volume.source)
        return LayerState.CURRENT if is_current else LayerState.OUTDATED

    def _describe_newest(self, vid: str) -> str:
        """Return what tells the newest content of a volume from all others, former and later ones."""
        newest = self._newest(vid)
        return f"{vid} {newest.number} {os.stat(newest.path).st_mtime_ns}\n"

    async def _start_layer(self, layer: Location, below: Location, volume: Volume, *, lasts: bool = False) -> None:
        is_raw = below.format == "raw"
        size = max(volume.size, os.stat(below.path).st_size if is_raw else 0)
        await self._make_layer(layer, below, size, volume, lasts=lasts)

    async def stop(self, volume: Volume) -> None:
        """Drop a layer that is not kept; make a dirty one the next revision, whatever the volume keeps by now."""
        files = self._files(volume.vid)
        if volume.snap_on_start:
            self._drop_unless_kept(volume)
        elif volume.is_volatile:
            discard(files.only)
        elif os.path.exists(files.dirty.path):
            try:
                settle(files.dirty.path, files.next_layer().path)
            except OSError as error:
                raise failure(f"the changes of volume {volume.vid} cannot be kept", error) from error
            self._begun.discard(files.dirty.path)
            await self._settled(volume)

    async def abandon(self, volume: Volume) -> None:
        """Drop the session's layer, if the volume has one."""
        files = self._files(volume.vid)
        if volume.snap_on_start:
            self._drop_unless_kept(volume)
        elif volume.is_volatile:
            discard(files.only)
        elif files.dirty.path in self._begun:
            discard(files.dirty.path)
            self._begun.discard(files.dirty.path)

    def _drop_unless_kept(self, volume: Volume) -> None:
        """Drop a layer. One of which it is not known what is below cannot be kept."""
        if not (volume.keeps_layer and os.path.exists(self._files(volume.vid).volatile_source)):
            self._drop(volume)

    def _drop(self, volume: Volume) -> None:
        files = self._files(volume.vid)
        for path in (files.volatile.path, files.volatile_source):
            discard(path)

    async def revert(self, volume: Volume, revision: str) -> Volume:
        """Put a layer over a revision on top of all; the present content stays, as the newest revision."""
        chosen = self._find_kept(volume, revision)
        size = await self._size_of(chosen.location)
        layer = self._files(volume.vid).next_layer()
        await self._make_layer(layer, chosen.location, size, volume, lasts=True)
        await self._settled(volume)
        return replace(volume, size=size)

    def _find_kept(self, volume: Volume, ident: str) -> Revision:
        """Return the revision that is called so; raises NotFoundError."""
        chosen = next((kept for kept in self._kept(volume) if kept.ident == ident), None)
        if chosen is None:
            raise NotFoundError(f"volume {volume.vid} has no revision '{ident[:80]}' to go back to")
        return chosen

    async def _make_layer(
        self, layer: Location, below: Location, size: int, volume: Volume, *, lasts: bool = False
    ) -> None:
        """Make a layer of `size` bytes; with `lasts`, it is brought to the disk."""
        purpose = f"volume {volume.vid} cannot get its layer over {os.path.basename(below.path)}"
        half_made = layer.path + HALF_MADE
        try:
            os.makedirs(os.path.dirname(half_made), mode=0o700, exist_ok=True)
            discard(half_made)
            with self._using(below.path):
                await self._fill_layer(purpose, half_made, below, size)
                os.chmod(half_made, MODE)
                self._forget(layer.path)
                (settle if lasts else os.rename)(half_made, layer.path)
        except OSError as error:
            raise failure(purpose, error) from error
        finally:
            discard(half_made)

    async def _fill_layer(self, purpose: str, path: str, below: Location, size: int) -> None:
        """Make a file at `path` that shows what is below until it is written to; raises OSError or StorageError."""
        raise NotImplementedError
