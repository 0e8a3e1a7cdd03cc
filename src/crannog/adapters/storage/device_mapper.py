"""Driver device-mapper: raw files, with layers that the kernel makes of them. It takes root, and dm-snapshot.

Contents are files (see storage.dm_files). What a VM writes to a volume that keeps revisions goes through a device that
first saves what was there (snapshot-origin): the content is always whole in one file, what was before is kept beside
it, and nothing is to be merged at a stop. A layer is a snapshot over its template's file. Neither can be used while
the other is, so that a template and its VMs never run at the same time (design.md, B1 and B12).
"""

import logging
import os

from crannog.adapters.storage import dm_devices as devices
from crannog.adapters.storage.dm_content import MappedContent
from crannog.adapters.storage.dm_tables import (
    HEADER,
    Device,
    Fill,
    Role,
    layer_table,
    origin_line,
    round_up,
    snapshot_line,
    store_size,
)
from crannog.adapters.storage.files import BLOCK, HALF_MADE, discard, failure, grow, lengthen, make_empty, settle, sync
from crannog.core.volumes import ROOT, LayerState, Location, Volume
from crannog.errors import StorageError

log = logging.getLogger(__name__)


class DeviceMapperPool(MappedContent):
    """A folder of raw files with devices over them (see ports.storage.Pool)."""

    driver = "device-mapper"

    def _has_device(self, volume: Volume) -> bool:
        """Tell whether a VM uses a device, and not the file. What was saved of a file is void once it is written to."""
        files = self._files(volume.vid)
        return volume.snap_on_start or (volume.save_on_stop and (volume.revisions_to_keep > 0 or files.has_stores()))

    def locate(self, volume: Volume) -> Location:
        """Return where the volume is while its VM runs: a device, or the file of what keeps no revisions."""
        if self._has_device(volume):
            return Location(self._name(volume.vid, Role.DISK).path, "raw")
        return super().locate(volume)

    async def start(self, volume: Volume) -> None:
        """Make the volume's device, or its file, ready. A session that was never stopped is kept first."""
        try:
            if volume.snap_on_start:
                await self._start_over(volume)
            elif self._has_device(volume):
                await self._start_session(volume)
            else:
                if volume.is_volatile:  # its file has the name of the layer that a root has without it
                    self._files(f"{os.path.dirname(volume.vid)}/{ROOT}").forget_lasting_layer()
                await super().start(volume)
                self._touch(volume)
        except OSError as error:
            raise failure(f"volume {volume.vid} cannot be started", error) from error

    async def stop(self, volume: Volume) -> None:
        """Remove the devices. Drop a layer that is not kept; of a session, keep what it has overwritten."""
        files = self._files(volume.vid)
        fill = await self._close(volume.vid)
        self._begun.discard(files.cow)
        if volume.snap_on_start:
            if not (volume.keeps_layer and files.is_lasting()):
                files.drop_layer()
            return
        if os.path.exists(files.cow):
            await self._end_session(volume, fill)
        discard(files.session)
        await super().stop(volume)

    async def abandon(self, volume: Volume) -> None:
        """Remove the devices. What a VM wrote to its own volume is content; the one before can be gone back to."""
        if volume.snap_on_start or self._files(volume.vid).cow in self._begun:
            await self.stop(volume)
        else:
            await super().abandon(volume)

    async def make_room(self, volume: Volume, size: int) -> int:
        """Return the size of a file; a device has a fixed one while it is used."""
        if self._has_device(volume):
            reason = f"pool {self.name} of driver {self.driver} has devices of a fixed size"
            raise StorageError(
                f"volume {volume.vid} cannot be made larger while its VM runs: {reason}; shut it down first"
            )
        return await super().make_room(volume, size)

    # -- a session of a VM with a volume of its own

    def _touch(self, volume: Volume) -> None:
        """Have layers know that the content will change, also when the power fails before its time is on the disk."""
        if volume.save_on_stop:
            os.utime(self._files(volume.vid).only)
            sync(self._files(volume.vid).only)

    async def _start_session(self, volume: Volume) -> None:
        await self._prepare_host()
        await self.stop(volume)
        files = self._files(volume.vid)
        newest = self._newest(volume.vid)
        self._begun.add(files.cow)
        try:
            files.forget_kept_content()
            size = round_up(max(volume.size, os.stat(newest.path).st_size))
            grow(newest.path, size)
            files.note_session()
            self._touch(volume)
            await self._map_session(volume, size, saves=not newest.is_blank())
        except BaseException:
            await self.stop(volume)
            raise
        finally:
            discard(files.cow + HALF_MADE)

    async def _map_session(self, volume: Volume, size: int, *, saves: bool) -> None:
        """Make the device that the VM writes to, and the one that saves what is there, on the disk, before that."""
        purpose = f"volume {volume.vid} cannot be started"
        files = self._files(volume.vid)
        half_made = files.cow + HALF_MADE
        if saves:
            _make_store(half_made, store_size(size), lasts=True)
        stores = [(half_made, True)] if saves else []
        async with devices.loop_devices(purpose, (files.only, True), *stores) as (origin, *store):
            lines = [snapshot_line(size, origin, one, lasts=True) for one in store]
            former = [Device(self._name(volume.vid, Role.FORMER), (line,), is_writable=False) for line in lines]
            disk = Device(self._name(volume.vid, Role.DISK), (origin_line(size, origin),))
            await devices.make(purpose, [*former, disk])
        if saves:
            settle(half_made, files.cow)  # it has its header now, and nobody has written yet

    async def _end_session(self, volume: Volume, fill: Fill | None) -> None:
        """Make what the session has overwritten a former content. It is unknown after a crash of the host."""
        files = self._files(volume.vid)
        if fill is Fill.TOO_MUCH:
            log.warning("pool %s: the disk was full: former contents of volume %s are lost", self.name, volume.vid)
            files.drop_stores()
        if fill in (Fill.NOTHING, Fill.TOO_MUCH):
            discard(files.cow)
            return
        try:
            files.date_store()
            settle(files.cow, files.older_store(self._newest(volume.vid).number))
        except OSError as error:
            raise failure(f"the changes of volume {volume.vid} cannot be kept", error) from error
        await self._settled(volume)

    # -- layers

    async def is_outdated(self, volume: Volume) -> bool:
        """Tell whether a layer that is there stands on anything but what its source holds now."""
        return await self.layer_state(volume) is LayerState.OUTDATED

    async def layer_state(self, volume: Volume) -> LayerState:
        """Return what there is of a layer."""
        files = self._files(volume.vid)
        return files.layer_state(self._describe_newest(volume.source)) if volume.snap_on_start else LayerState.ABSENT

    def _describe_newest(self, vid: str) -> str:
        return f"{vid} {self._files(vid).describe_content()}"

    async def _start_over(self, volume: Volume) -> None:
        await self._prepare_host()
        await self._close(volume.vid)
        files = self._files(volume.vid)
        self._newest(volume.source)
        if volume.keeps_layer and files.is_lasting() and await self.layer_state(volume) is LayerState.CURRENT:
            await self._map_layer(volume, files.layer)
            if await devices.look_at_fill(self._name(volume.vid, Role.DISK)) is not Fill.TOO_MUCH:
                return
            log.warning("pool %s: the layer of volume %s is lost: its disk was full", self.name, volume.vid)
            await self._close(volume.vid)
        await self._make_new_layer(volume)

    async def _make_new_layer(self, volume: Volume) -> None:
        files = self._files(volume.vid)
        files.drop_layer()
        discard(files.cow)
        store = files.layer if volume.rw else files.cow
        try:
            _make_store(store, 0, lasts=volume.keeps_layer)
            await self._map_layer(volume, store)
            files.note_layer(store, self._describe_newest(volume.source), lasts=volume.keeps_layer)
        except BaseException:
            await self._close(volume.vid)
            discard(store)
            files.drop_layer()
            raise

    async def _map_layer(self, volume: Volume, store: str) -> None:
        """Make the device of a layer over its source, with a store that is there."""
        purpose = f"volume {volume.vid} cannot be started"
        below = self._newest(volume.source).path
        size_below = os.stat(below).st_size // BLOCK * BLOCK
        size = max(round_up(volume.size), size_below)
        lengthen(store, store_size(size_below) + size - size_below)
        async with devices.loop_devices(purpose, (below, False), (store, True)) as (origin, store_device):
            table = layer_table(size_below, size, origin, store_device, lasts=volume.keeps_layer)
            disk = Device(self._name(volume.vid, Role.DISK), table, is_writable=volume.rw)
            await devices.make(purpose, [disk])


def _make_store(path: str, size: int, *, lasts: bool) -> None:
    """Make an empty store; one that lasts has room for its beginning. Raises OSError, for want of room as well."""
    discard(path)
    make_empty(path, size)
    if lasts:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.posix_fallocate(descriptor, 0, HEADER)
        finally:
            os.close(descriptor)
