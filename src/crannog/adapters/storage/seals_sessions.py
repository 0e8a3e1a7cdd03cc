"""When images get their seals and lose them: at the ends of sessions, with new content, before they are written to."""

from crannog.adapters.storage import seals
from crannog.adapters.storage.checks import CheckedFolders
from crannog.adapters.storage.files import failure
from crannog.core.volumes import Volume


class SealedSessions(CheckedFolders):
    """A folder of images that are sealed when they are finished (see storage.seals)."""

    async def start(self, volume: Volume) -> None:
        """Make the volume's file for this session. Content that its VM writes to in place has no seal from here on."""
        self._unseal(volume)
        await super().start(volume)

    async def resize(self, volume: Volume, size: int) -> Volume:
        """Make a volume larger."""
        self._unseal(volume)
        return await super().resize(volume, size)

    def _unseal(self, volume: Volume) -> None:
        newest = self._files(volume.vid).newest() if volume.is_in_place else None
        if newest and not newest.is_frozen():
            self._drop_seal(newest.path)

    def _drop_seal(self, path: str) -> None:
        try:
            seals.drop(path)
        except OSError as error:
            raise failure(f"{path} cannot be made writable", error) from error

    async def _take(self, volume: Volume, half_made: str) -> Volume:
        """Make a finished raw file the content, perhaps under the name that another one had.

        A session that was never stopped is kept first, so that it does not become newer content than this at a start.
        """
        await self.stop(volume)
        self._drop_seal(self._files(volume.vid).only)
        return await super()._take(volume, half_made)

    async def revert(self, volume: Volume, revision: str) -> Volume:
        """Put a layer over a revision on top of all; a session that was never stopped is kept first."""
        await self.stop(volume)
        return await super().revert(volume, revision)

    async def _settled(self, volume: Volume) -> None:
        """Seal new content, unless the VM will write to that very file."""
        newest = self._newest(volume.vid)
        if not volume.is_in_place or newest.is_frozen():
            seals.put(newest.path, is_sound=newest.location.format == "raw")
        await super()._settled(volume)
