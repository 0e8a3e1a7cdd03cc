"""What drivers have in common whose layers are raw files: copies that stand alone. How one is made, the driver says."""

from crannog.adapters.storage.collect import CollectedFiles
from crannog.adapters.storage.files import lengthen
from crannog.core.volumes import LayerState, Location, Volume


class RawPool(CollectedFiles):
    """A folder of raw files (see ports.storage.Pool)."""

    layer_format = "raw"
    notes_source = True

    async def is_outdated(self, volume: Volume) -> bool:
        """Tell whether a layer that is there was copied from anything but what its source holds now."""
        return await self.layer_state(volume) is LayerState.OUTDATED

    async def _fill_layer(self, purpose: str, path: str, below: Location, size: int) -> None:
        await self._duplicate(purpose, below, path)
        lengthen(path, size)

    async def _duplicate(self, purpose: str, content: Location, path: str) -> None:
        """Make a file at `path` with some content of this pool; raises OSError or StorageError."""
        await self._fill(purpose, content, path)
