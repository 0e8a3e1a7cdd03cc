"""The content of volumes over which device-mapper makes layers: how it is replaced, and how a former one comes back."""

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from crannog.adapters.storage import dm_devices as devices
from crannog.adapters.storage.dm_files import MappedFiles
from crannog.adapters.storage.dm_tables import Device, DeviceName, Fill, Role, name_device, round_up, snapshot_line
from crannog.adapters.storage.dm_udev import keep_away
from crannog.adapters.storage.files import BLOCK, failure, lengthen
from crannog.adapters.storage.revisions import Revision
from crannog.adapters.storage.sessions import FileSessions
from crannog.core.volumes import Location, Volume
from crannog.errors import StorageError


class MappedContent(FileSessions):
    """A folder of raw files with devices over them (see ports.storage.Pool)."""

    layer_format = "raw"
    shares_live = False

    @classmethod
    def check_file_system(cls, name: str, folder: str) -> None:
        """Raise StorageError, naming what is missing, where this host or this user cannot have such devices."""
        del folder  # any file system will do
        devices.check_host(name)

    async def _prepare_host(self) -> None:
        """See that devices can be made, and that nobody looks into them; raises StorageError."""
        self._check_there()
        await keep_away(self.folder)

    def _files(self, vid: str) -> MappedFiles:
        files = super()._files(vid)
        return MappedFiles(files.base, files.layer_format)

    def _name(self, vid: str, role: str) -> DeviceName:
        return name_device(self.folder, vid, role)

    @asynccontextmanager
    async def reading(self, vid: str) -> AsyncIterator[Location]:
        """Give out the content as an open file, which stays what it is when another takes its place."""
        descriptor = os.open(self.newest(vid).path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            yield Location(f"/proc/{os.getpid()}/fd/{descriptor}", "raw")
        finally:
            os.close(descriptor)

    async def _take(self, volume: Volume, half_made: str) -> Volume:
        """Make a finished raw file the content; the one before becomes a former one, whole."""
        await self.stop(volume)
        lengthen(half_made, round_up(os.stat(half_made).st_size))
        files = self._files(volume.vid)
        files.keep_content()
        try:
            return await super()._take(volume, half_made)
        finally:
            files.forget_kept_content()

    async def revert(self, volume: Volume, revision: str) -> Volume:
        """Copy a former content, and make that the content. The present one becomes the newest former one."""
        chosen = self._find_kept(volume, revision)
        purpose = f"volume {volume.vid} cannot go back to {chosen.ident}"
        try:
            async with self._showing(volume, chosen, purpose) as content:
                return await self._copy(volume, purpose, content)
        except OSError as error:
            raise failure(purpose, error) from error

    @asynccontextmanager
    async def _showing(self, volume: Volume, revision: Revision, purpose: str) -> AsyncIterator[Location]:
        """Give out a former content: the next one that is whole, with what was saved of those before it on top."""
        await self._prepare_host()
        whole, *stores = self._files(volume.vid).needed_for(revision)
        size = os.stat(whole.path).st_size // BLOCK * BLOCK
        bottom = whole.path
        async with AsyncExitStack() as stack:
            for number, store in enumerate(stores):
                files = [(bottom, False)] if bottom == whole.path else []
                loops = devices.loop_devices(purpose, *files, (store.path, False))
                *origin, overwritten = await stack.enter_async_context(loops)
                name = self._name(volume.vid, f"{Role.SHOWN}{number}")
                table = (snapshot_line(size, (origin or [bottom])[0], overwritten, lasts=True),)
                await devices.make(purpose, [Device(name, table, is_writable=False)])
                stack.push_async_callback(devices.remove, [name])
                if await devices.look_at_fill(name) is Fill.TOO_MUCH:
                    raise StorageError(f"{purpose}: it was lost when the disk was full; choose a newer one")
                bottom = name.path
            yield Location(bottom, "raw")

    async def _close(self, vid: str) -> Fill | None:
        """Remove the devices of a volume's session; return how much it has overwritten, if that can be said."""
        names = devices.devices_of(self.folder, vid)
        former = [name for name in names if name.role == Role.FORMER]
        fill = await devices.look_at_fill(former[0]) if former else None
        await devices.remove(names)
        return fill

    # -- VMs that go, and what a crash left

    async def remove(self, volumes: tuple[Volume, ...]) -> None:
        """Remove the devices of a VM, and its folder."""
        for volume in volumes:
            self._files(volume.vid)
            await self._close(volume.vid)
        await super().remove(volumes)

    async def recover(self, known: frozenset[str]) -> list[str]:
        """Clean up what a killed daemon was just making; of devices, those that no VM can be using."""
        done = await super().recover(known)
        for name in devices.unused_devices(self.folder, known):
            try:
                await devices.remove([name])
                done.append(f"pool {self.name}: removed {name.path}, which no volume uses")
            except StorageError as error:
                done.append(f"pool {self.name}: {error}")
        loops = devices.idle_loops(self.folder)
        await devices.detach([*loops, *devices.lasting_loops(self.folder)])
        return done + [f"pool {self.name}: freed {loop}, which nothing used" for loop in loops]
