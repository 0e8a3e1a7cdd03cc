"""What Crannog asks of a storage pool."""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from crannog.core.kernels import KernelFiles
from crannog.core.pools import PoolConfig, PoolOption
from crannog.core.volumes import LayerState, Location, Volume


class Pool(Protocol):
    """A place for volumes. Every method raises StorageError with the cause; none leaves half-made files behind.

    What gives a volume new content makes the former one a revision, where the volume keeps revisions. A volume that is
    passed names its source (`Volume.source`) when it is a layer over another.
    """

    name: str
    driver: str
    shares_live: bool
    """Whether VMs may use the finished content of a volume with revisions while its own VM runs (design.md, B12)."""

    def locate(self, volume: Volume) -> Location:
        """Return where the volume will be once it is started. Changes nothing."""

    def newest(self, vid: str) -> Location:
        """Return the newest finished content of a volume that is no layer."""

    def reading(self, vid: str) -> AbstractAsyncContextManager[Location]:
        """Return what gives out the same, for `async with`: it stays as it is until the end of the block."""

    def usage(self, volume: Volume) -> int:
        """Return the bytes that the volume takes now, with its revisions."""

    def revisions(self, volume: Volume) -> list[str]:
        """Return what the volume can go back to, oldest first: not more than it keeps."""

    async def is_outdated(self, volume: Volume) -> bool:
        """Tell whether a started layer stands on content of its source that is not the newest any more."""

    async def layer_state(self, volume: Volume) -> LayerState:
        """Return what there is of a layer of a halted VM, which a start with `Volume.keeps_layer` would go on with."""

    async def create(self, volumes: tuple[Volume, ...]) -> None:
        """Make the volumes of one new VM, all or none. They are provisional until `claim`."""

    async def claim(self, volumes: tuple[Volume, ...]) -> None:
        """Make new volumes lasting: the VM that they belong to is in the store now."""

    async def import_file(self, volume: Volume, path: str) -> Volume:
        """Make the raw image at `path` the content of a stopped volume; return the volume with its new size."""

    async def begin_import(self, volume: Volume, size: int) -> str:
        """Make a file of `size` bytes, all zeros, that somebody else writes new content to; return its path."""

    async def finish_import(self, volume: Volume, size: int) -> Volume:
        """Make that file the content of the volume, which is stopped; return the volume with its new size."""

    async def give_up_import(self, volume: Volume) -> None:
        """Delete that file; an absent one is no error."""

    async def clone(self, source: Volume, target: Volume, home: "Pool | None" = None) -> Volume:
        """Make the finished content of `source` that of `target`, which is stopped; return it with its new size.

        `source` is in the pool `home`, else in this one.
        """

    async def clear(self, volume: Volume) -> None:
        """Make the content of a stopped volume all zeros."""

    async def resize(self, volume: Volume, size: int) -> Volume:
        """Make a stopped volume larger; return it with its new size."""

    async def make_room(self, volume: Volume, size: int) -> int:
        """Have a started volume be able to become larger, and return the bytes that it gets: `size` or a few more.

        A block device has them then; the hypervisor makes a file larger by itself. Raises StorageError where a volume
        can only be made larger while it is stopped.
        """

    async def revert(self, volume: Volume, revision: str) -> Volume:
        """Make a revision the content of a stopped volume again; return the volume with its new size.

        Raises NotFoundError for a revision that is not among `revisions`.
        """

    async def trim(self, volume: Volume) -> None:
        """Delete revisions beyond those that the volume keeps, as far as nothing stands on them."""

    async def start(self, volume: Volume) -> None:
        """Make the volume ready for use at `locate`. What a dropped layer held is gone from here on.

        With `Volume.keeps_layer`, a layer that stands on what its source holds now is taken up again.
        """

    def can_copy_session(self, volume: Volume) -> bool:
        """Tell whether what a session has written to the volume can be copied, to be what another one begins with."""

    async def copy_session(self, volume: Volume, path: str) -> None:
        """Copy what was written since `start` to a new file; nobody writes to the volume meanwhile."""

    async def start_from(self, volume: Volume, path: str) -> None:
        """Make the volume ready as `start` does, with what such a file holds written to it already.

        Raises StorageError as well when that stands on anything but what a start would use now.
        """

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


class PoolDrivers(Protocol):
    """The kinds of pools that this host can serve."""

    def options(self) -> Mapping[str, tuple[PoolOption, ...]]:
        """Return the names of the drivers, each with its options."""

    def settings(self, config: PoolConfig) -> dict[str, str]:
        """Return everything that is configured of a pool, defaults too, by name; what is stored where it is unknown."""

    def space(self, config: PoolConfig) -> tuple[int, int] | None:
        """Return size and usage of where the pool is, in bytes; None when that cannot be said."""

    def make(self, config: PoolConfig, others: list[PoolConfig]) -> Pool:
        """Make the place of a new pool, beside the others; raises StorageError or ValueRefusedError."""

    def unmake(self, config: PoolConfig) -> None:
        """Take away what `make` made, if nothing is in it."""


class Kernels(Protocol):
    """The pool of kernels from the host. Methods raise StorageError with the cause."""

    def files(self, name: str) -> KernelFiles:
        """Return the files of a kernel."""

    async def add(self, name: str, source: str) -> None:
        """Copy the kernel in folder `source`, whole or not at all; one that is there is replaced."""

    async def remove(self, name: str) -> None:
        """Delete a kernel; an absent one is no error."""
