"""Driver reflink: a layer is a raw file that shares the data of another one until it is written to (btrfs, xfs).

Where files cannot share data, such a pool is refused: nothing is copied instead. Content that layers are made of is
kept in few pieces (see storage.layout).
"""

import asyncio
import errno
import os

from crannog.adapters.storage.files import failure
from crannog.adapters.storage.layout import Layout
from crannog.adapters.storage.raw import RawPool
from crannog.adapters.storage.reflinks import can_share, file_system_of, share
from crannog.core.volumes import Location, Volume
from crannog.errors import StorageError

_CANNOT = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL)
"""What sharing ends with where it is not possible (ioctl_ficlone(2))."""


class ReflinkPool(RawPool):
    """A folder of raw files that share data (see ports.storage.Pool)."""

    driver = "reflink"

    def __init__(self, name: str, folder: str, *, is_elsewhere: bool = False) -> None:
        super().__init__(name, folder, is_elsewhere=is_elsewhere)
        self.layout = Layout()

    @classmethod
    def check_file_system(cls, name: str, folder: str) -> None:
        """Raise StorageError, naming folder and file system, where files cannot share data."""
        place = folder
        while not os.path.isdir(place):
            place = os.path.dirname(place)
        try:
            is_possible = can_share(place)
        except OSError as error:
            raise failure(f"pool {name} cannot be used in {folder}", error) from error
        if not is_possible:
            raise StorageError(
                f"pool {name} of driver reflink cannot be in {folder}: files on {file_system_of(place)} cannot share "
                f"data; choose a folder on btrfs or xfs, or driver qcow2"
            )

    async def start(self, volume: Volume) -> None:
        """Make the volume's file for this session."""
        await super().start(volume)
        if volume.is_in_place:  # from here on its VM writes to what would be laid out anew
            await self.layout.give_up(self._newest(volume.vid).path)

    async def _settled(self, volume: Volume) -> None:
        await super()._settled(volume)
        self.layout.look_after(self._newest(volume.vid).path)

    async def _clone_own(self, target: Volume, purpose: str, content: Location, least: int) -> Volume:
        cloned = await self._copy(target, purpose, content, least, fill=self._duplicate)
        self.layout.look_after(content.path)
        return cloned

    async def _duplicate(self, purpose: str, content: Location, path: str) -> None:
        try:
            await asyncio.to_thread(share, content.path, path)
        except OSError as error:
            if error.errno in _CANNOT:
                self.check_file_system(self.name, self.folder)
            raise failure(purpose, error) from error
