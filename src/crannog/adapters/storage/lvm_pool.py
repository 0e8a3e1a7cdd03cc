"""A pool whose volumes are thin LVs: made for one VM whole or not at all, and cleaned up after a crash."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import ClassVar, cast

from crannog.adapters.storage.lvm_commands import Place, read_picture
from crannog.adapters.storage.lvm_group import ThinGroup
from crannog.adapters.storage.lvm_names import GROUP, THIN_POOL, Mark, Owner, State, ThinVolume, vm_of
from crannog.adapters.storage.lvm_report import Picture
from crannog.adapters.storage.pool_driver import PoolDriver
from crannog.config import Paths
from crannog.core.pools import EPHEMERAL, REVISIONS, PoolConfig, PoolOption, is_pool_name
from crannog.core.volumes import Volume
from crannog.errors import StorageError, ValueRefusedError
from crannog.ports.storage import Pool


class ThinPool(PoolDriver):
    """Thin LVs in one thin pool (see ports.storage.Pool)."""

    options: ClassVar[tuple[PoolOption, ...]] = (GROUP, THIN_POOL, REVISIONS, EPHEMERAL)

    def __init__(self, name: str, place: Place, home: str, clock: Callable[[], float] = time.time) -> None:
        """`home` is the path of the home's folder: its LVs are told by it from those of others."""
        self.name = name
        self._group = ThinGroup(place, Owner(os.path.realpath(home), name))
        self._clock = clock

    # -- the thin pool itself

    @classmethod
    def open(cls, config: PoolConfig, paths: Paths) -> Pool | None:
        """Return the pool; None where a file from elsewhere names no volume group and thin pool that could be."""
        with suppress(ValueRefusedError):
            return cast("Pool", cls(config.name, _find_place(config), paths.home))
        return None

    @classmethod
    def make_place(cls, config: PoolConfig, paths: Paths) -> None:
        """Check that the thin pool can be used. Whose disks it is made of is for the user to say, so none is made."""
        read_picture(_find_place(config), Owner(os.path.realpath(paths.home), config.name))

    @classmethod
    def space(cls, config: PoolConfig, paths: Paths) -> tuple[int, int] | None:
        """Return size and usage of the thin pool's data, in bytes; None when it is not there."""
        with suppress(StorageError, ValueRefusedError):
            picture = read_picture(_find_place(config), Owner(paths.home, config.name))
            return picture.size, picture.used
        return None

    # -- the LVs of VMs

    def _check(self, vid: str) -> str:
        """Return the VM's part of a volume's id; raises StorageError for what is no id."""
        vm = vm_of(vid)
        if not vm:
            raise StorageError(f"'{vid[:80]}' is not the id of a volume in pool {self.name}")
        return vm

    def _now(self) -> str:
        return f"{datetime.fromtimestamp(self._clock(), UTC):%Y-%m-%dT%H:%M:%S.%f}"

    def _new(self, picture: Picture, volume: Volume, *, size: int = 0, state: State = State.FINISHED) -> ThinVolume:
        """Return the next content of a volume, as an empty LV that is to be made. It is as provisional as its VM."""
        name = self._group.owner.name(volume.vid, picture.next_number(volume.vid))
        marks = {found.mark for found in picture.of_vm(vm_of(volume.vid))}
        mark = Mark.PROVISIONAL if Mark.PROVISIONAL in marks else Mark.NONE
        empty = ThinVolume(name, volume.vid, state, picture.round_up(size or volume.size), mark=mark)
        if state is State.FINISHED:
            return replace(empty, mapped=0, changed=self._now(), is_readonly=not volume.is_in_place)
        return empty

    async def create(self, volumes: tuple[Volume, ...]) -> None:
        """Make the empty LVs of a VM. The first one is marked as provisional, which holds for all of them."""
        vm = {self._check(volume.vid) for volume in volumes}.pop()
        purpose = f"the volumes of {vm} cannot be made"
        picture = await self._group.seen()
        if picture.of_vm(vm):
            raise StorageError(
                f"{purpose}: there are some in thin pool {self._group.place}; delete them with lvremove(8)"
            )
        mark = Mark.PROVISIONAL
        try:
            for volume in volumes:
                if volume.save_on_stop:
                    await self._group.create(purpose, replace(self._new(picture, volume), mark=mark))
                    mark = Mark.NONE
        except BaseException:
            await self._delete(vm)
            raise

    async def claim(self, volumes: tuple[Volume, ...]) -> None:
        """Take the mark away."""
        for vm in {self._check(volume.vid) for volume in volumes}:
            for volume in (await self._group.seen()).of_vm(vm):
                await self._group.alter(f"the volumes of {vm} cannot be kept", volume, replace(volume, mark=Mark.NONE))

    async def remove(self, volumes: tuple[Volume, ...]) -> None:
        """Delete all LVs of the VM. They are marked first, so that a crash never leaves a part of them."""
        for vm in {self._check(volume.vid) for volume in volumes}:
            await self._delete(vm)

    async def _delete(self, vm: str) -> None:
        doomed = (await self._group.seen()).of_vm(vm)
        await self._group.remove_together(f"the volumes of {vm} cannot be deleted", doomed)

    async def recover(self, known: frozenset[str]) -> list[str]:
        """Delete what a killed daemon was just making or deleting. A thin pool that is not there is waited for."""
        try:
            picture = await self._group.look()
        except StorageError as error:
            return [str(error)]
        vms = {vm_of(vid) for vid in known}
        done = []
        for vm in sorted({vm_of(volume.vid) for volume in picture.volumes.values()}):
            try:
                done += await self._clean_up(vm, picture.of_vm(vm), is_known=vm in vms)
            except StorageError as error:
                done.append(f"pool {self.name}: {error}")
        return done

    async def _clean_up(self, vm: str, volumes: list[ThinVolume], *, is_known: bool) -> list[str]:
        marks = {volume.mark for volume in volumes}
        if Mark.DOOMED in marks or (Mark.PROVISIONAL in marks and not is_known):
            await self._delete(vm)
            return [f"pool {self.name}: deleted half-made {vm}"]
        if not is_known:
            return []
        for volume in volumes:
            await self._group.alter(f"{vm} cannot be kept", volume, replace(volume, mark=Mark.NONE))
        await self._put_away(vm, [volume for volume in volumes if volume.is_readonly and volume.is_idle])
        half_made = [volume for volume in volumes if volume.state is State.HALF_MADE]
        await self._group.remove(f"what is half-made of {vm} cannot be deleted", half_made)
        return [f"pool {self.name}: deleted half-made {volume.name} of {volume.vid}" for volume in half_made]

    async def _put_away(self, vm: str, volumes: list[ThinVolume]) -> None:
        """Deactivate what was being read."""
        finished = [volume for volume in volumes if volume.state is State.FINISHED]
        await self._group.deactivate(f"what was read of {vm} cannot be deactivated", finished)


def _find_place(config: PoolConfig) -> Place:
    """Return what the options name; raises ValueRefusedError when that cannot be."""
    if not is_pool_name(config.name):
        raise ValueRefusedError(f"'{config.name[:80]}' cannot be the name of a pool")
    values = [(option, config.option(option.name)) for option in (GROUP, THIN_POOL)]
    for option, text in values:
        if not text:
            raise ValueRefusedError(f"pool {config.name} of driver {config.driver} needs option {option.name}")
    return Place(*(option.check(text) for option, text in values))
