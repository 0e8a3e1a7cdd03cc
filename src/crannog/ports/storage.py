"""What Crannog asks of a storage pool."""

from typing import Protocol

from crannog.core.volumes import Location, Volume


class Pool(Protocol):
    """A place for volumes. Every method raises StorageError with the cause; none leaves half-made files behind."""

    name: str
    driver: str

    def locate(self, volume: Volume) -> Location:
        """Return where the volume will be once it is started. Touches nothing."""

    async def create(self, volumes: tuple[Volume, ...]) -> None:
        """Make the volumes of one new VM, all or none. They are provisional until `claim`."""

    async def claim(self, volumes: tuple[Volume, ...]) -> None:
        """Make new volumes lasting: the VM that they belong to is in the store now."""

    async def import_file(self, volume: Volume, path: str) -> Volume:
        """Make the raw image at `path` the content of a stopped volume; return the volume with its new size."""

    async def clone(self, source: Volume, target: Volume) -> Volume:
        """Make the finished content of `source` that of `target`, a new volume of the same pool that is stopped.

        Returns `target` with its new size.
        """

    async def start(self, volume: Volume) -> None:
        """Make the volume ready for use at `locate`. What a dropped layer held is gone from here on."""

    async def stop(self, volume: Volume) -> None:
        """Keep or drop what was written, as the volume's flags say. Stopping twice does nothing the second time."""

    async def abandon(self, volume: Volume) -> None:
        """Forget what was written since `start`: the start failed. A volume written in place stays as it is."""

    async def remove(self, volumes: tuple[Volume, ...]) -> None:
        """Delete the volumes of one VM. Absent ones are no error."""

    async def recover(self, known: frozenset[str]) -> list[str]:
        """Clean up what a killed daemon left half-made; return a sentence for each thing done.

        `known` are the ids of all volumes in the store: provisional ones among them are claimed, others deleted.
        """


class Kernels(Protocol):
    """The pool of kernels from the host. Methods raise StorageError with the cause."""

    async def add(self, name: str, source: str) -> None:
        """Copy the kernel in folder `source`, whole or not at all; one that is there is replaced."""

    async def remove(self, name: str) -> None:
        """Delete a kernel; an absent one is no error."""
