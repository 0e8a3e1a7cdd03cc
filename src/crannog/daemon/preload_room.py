"""Ending VMs that nobody has asked for, where others need their memory, or what they stand on."""

from crannog.core.preload import Reserve, Stage
from crannog.core.templates import origin
from crannog.core.vms import LocalVM, QubeBase
from crannog.daemon.lifecycle import Lifecycle
from crannog.daemon.preload_vms import PreloadVMs
from crannog.daemon.seedlings import Seedlings


class PreloadRoom:
    """Makes room."""

    def __init__(self, reserve: Reserve, seedlings: Seedlings, lifecycle: Lifecycle, vms: PreloadVMs) -> None:
        self._reserve = reserve
        self._seedlings = seedlings
        self._lifecycle = lifecycle
        self._vms = vms

    async def make_way(self, vm: QubeBase) -> None:
        """End the VMs that were started in advance and that a VM, which is to start or to go, could not be beside."""
        seedling = self._seedlings.current
        source = seedling.template if seedling else None
        if seedling and isinstance(source, LocalVM) and (source is vm or self._stands_on(source, vm)):
            await self._vms.put_away(seedling)
        for template in self._lifecycle.registry.local_vms():
            if self._reserve.unclaimed_of(template.uuid) and (template is vm or self._stands_on(template, vm)):
                for uuid in self._reserve.unclaimed_of(template.uuid):
                    await self._vms.discard(uuid, f"{vm.name} is to start, or to be removed")

    def _stands_on(self, template: LocalVM, vm: QubeBase) -> bool:
        """Tell whether disposables of a template show volumes of a VM that cannot be used while that one runs."""
        for name in template.volumes:
            owner, volume = origin(template, name)
            if owner is vm and not volume.is_kernel:
                pool = self._lifecycle.world.pools.get(volume.pool)
                if pool is None or not volume.can_be_used_beside(shares_live=pool.shares_live):
                    return True
        return False

    def spare(self, newcomer: str) -> list[str]:
        """Return who may be ended for a VM that is wanted now and has no room, by UUID, in that order."""
        member, seedling = self._reserve.members.get(newcomer), self._seedlings.current
        if (member and member.stage is Stage.WARMING) or (seedling and seedling.uuid == newcomer):
            return []
        has_domain = seedling and self._lifecycle.machines.has_domain(seedling.uuid)
        return [*([seedling.uuid] if seedling and has_domain else []), *self._reserve.find_victims()]

    async def give_up(self, uuid: str) -> None:
        """End one of those."""
        seedling = self._seedlings.current
        if seedling and seedling.uuid == uuid:
            await self._vms.put_away(seedling)
        else:
            await self._vms.discard(uuid, "its memory is needed")
