"""Looking after pools: what is wrong in them, what nobody needs, and whether a VM may be started from its images."""

import logging
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass

from crannog.core.findings import Finding, Kind, Stake
from crannog.core.registry import Registry
from crannog.core.templates import origin
from crannog.core.vms import QubeBase
from crannog.core.volumes import Volume
from crannog.editing.hold import Busy, Hold, hold_nothing
from crannog.editing.places import find_pool
from crannog.errors import NotYetError, StorageError, ValueRefusedError
from crannog.ports.storage import Pool
from crannog.ports.upkeep import Stakes, TendedPool

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Waste:
    """What can be deleted, or was. `remarks` are sentences about what was left alone because of doubt."""

    found: list[Finding]
    remarks: list[str]


class Upkeep:
    """Looks after the pools of one registry. Pools and volumes are named; methods raise KeyError for unknown ones."""

    def __init__(
        self,
        registry: Registry,
        pools: Mapping[str, Pool],
        hold: Hold = hold_nothing,
        *,
        busy: Busy | None = None,
    ) -> None:
        self._registry = registry
        self._pools = pools
        self._hold = hold
        self._busy: Busy = {} if busy is None else busy

    # -- pools

    async def check(self, name: str) -> list[Finding]:
        """Return what is wrong or superfluous in a pool; raises StorageError or NotYetError. Changes nothing."""
        return await self._tended(name).check(self._stakes(name))

    async def find_waste(self, name: str) -> Waste:
        """Return what can be deleted in a pool; raises StorageError or NotYetError. Changes nothing."""
        pool = self._tended(name)
        needed, remarks = await self._find_needed()
        return Waste(await pool.find_waste(self._stakes(name), needed), remarks)

    async def collect(self, name: str) -> Waste:
        """Delete what can be deleted in a pool; return what is gone. Raises StorageError or NotYetError."""
        pool, stakes = self._tended(name), self._stakes(name)
        needed, remarks = await self._find_needed()
        gone = []
        for found in await pool.find_waste(stakes, needed):
            try:
                async with self._hold_owner(name, found):
                    gone += [found] if await pool.discard(stakes, found, needed) else []
            except StorageError as error:
                remarks.append(str(error))
        for found in gone:
            log.info("pool %s: deleted %s (%s)", name, found.path, found.kind)
        return Waste(gone, remarks)

    def _tended(self, name: str) -> TendedPool:
        """Return a pool that can be looked after; raises StorageError or NotYetError when there is none."""
        config = self._registry.pools[name]
        pool = self._pools.get(name)
        if isinstance(pool, TendedPool):
            return pool
        if pool is None:
            raise StorageError(f"pool {name} of driver {config.driver} holds no volumes of this host's VMs")
        raise NotYetError(f"pool {name} cannot be checked: pools of driver {config.driver} are not looked at yet")

    def _stakes(self, name: str) -> Stakes:
        """Return what lists the volumes that the store has in a pool, each time it is asked."""

        def find() -> list[Stake]:
            vms = [(vm, vm.power_state != "Halted" or vm.uuid in self._busy) for vm in self._registry]
            return [Stake(v, is_used) for vm, is_used in vms for v in vm.volumes.values() if v.pool == name]

        return find

    async def _find_needed(self) -> tuple[set[str] | None, list[str]]:
        """Return all that anything in any pool stands on; None, with the reason, when that cannot be known."""
        needed: set[str] = set()
        for name, pool in self._pools.items():
            if isinstance(pool, TendedPool):
                try:
                    needed |= await pool.reach(self._stakes(name))
                except StorageError as error:
                    return None, [f"only what is half-made can be deleted as long as {error}"]
        return needed, []

    def _hold_owner(self, pool: str, found: Finding) -> AbstractAsyncContextManager[object]:
        """Return what keeps others away from the VM in whose folder something was found, if it is in one."""
        for vm in self._registry:
            for volume in vm.volumes.values():
                if volume.pool == pool and f"/{volume.vid.partition('/')[0]}/" in found.path:
                    return self._hold(vm.uuid)
        return nullcontext()

    # -- volumes

    async def accept(self, vm: QubeBase, name: str) -> None:
        """Take a volume's images for what they are now, though they were changed; raises StorageError."""
        volume = vm.volumes[name]
        if not (volume.save_on_stop or volume.snap_on_start):
            raise ValueRefusedError(f"volume {name} of {vm.name} has no images of its own that could be accepted")
        if not volume.save_on_stop:
            owner = origin(vm, name)[0]
            raise ValueRefusedError(
                f"volume {name} of {vm.name} is a layer over that of {owner.name}; 'crannog storage accept "
                f"{owner.name} {name}' takes that one as it is"
            )
        pool = find_pool(self._pools, volume)
        if not isinstance(pool, TendedPool):
            raise NotYetError(f"pool {volume.pool} does not watch whether its images are changed")
        async with self._hold(vm.uuid):
            await pool.accept(volume)

    async def examine(self, volume: Volume) -> list[str]:
        """Look at what a start of a volume would use; return a sentence for each thing that is odd and does no harm.

        Raises StorageError, with what to do, for images that must not be used.
        """
        pool = self._pools.get(volume.pool)
        found = await pool.examine(volume) if isinstance(pool, TendedPool) else []
        owner = self._find_owner(volume.pool, volume.source or volume.vid)
        for finding in found:
            if finding.is_fatal:
                raise StorageError(f"{finding.sentence}; {self._advise(finding, owner, volume)}")
        return [f"{finding.sentence}; it is taken as it is" for finding in found]

    def _find_owner(self, pool: str, vid: str) -> tuple[QubeBase, Volume] | None:
        """Return the volume with an id, and its VM; None when it is not in the store."""
        for vm in self._registry:
            for volume in vm.volumes.values():
                if (volume.pool, volume.vid) == (pool, vid):
                    return vm, volume
        return None

    def _advise(self, finding: Finding, owner: tuple[QubeBase, Volume] | None, used: Volume) -> str:
        """Return what a user can do about images that must not be used."""
        if owner is None:
            return "restore it from a backup"
        vm, volume = owner
        pool = self._pools[volume.pool]
        whole = f"{vm.name}:{volume.name}"
        if f"/{used.vid}." in finding.path and used.snap_on_start:
            return "have the kept layer dropped: start the VM once with its property debug switched off"
        accept = f"take it as it is with 'crannog storage accept {vm.name} {volume.name}'"
        accept += ", which drops the layer that is kept" if used.keeps_layer else ""
        revert = f"go back with 'qvm-volume revert {whole}'" if pool.revisions(volume) else ""
        restore = f"restore a backup with 'qvm-volume import {whole} FILE'"
        steps = [accept if finding.kind is Kind.CHANGED else "", revert, restore]
        return ", or ".join(filter(None, steps))
