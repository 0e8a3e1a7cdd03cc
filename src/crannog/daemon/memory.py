"""The host's memory that was promised to VMs: two starts cannot promise the same."""

import asyncio
import logging

from crannog.core.memory import Claim, Need, check_room, need_of
from crannog.core.plan import ReserveMemory
from crannog.core.registry import Registry
from crannog.core.vms import LocalVM
from crannog.daemon.machines import Machines
from crannog.daemon.world import World

log = logging.getLogger(__name__)


class MemoryLedger:
    """Who was promised how much. What is counted, and why, is in core.memory."""

    def __init__(self, world: World, registry: Registry, machines: Machines) -> None:
        self._world = world
        self._registry = registry
        self._machines = machines
        self._promises: dict[str, Need] = {}
        """By UUID, from a VM's start until its domain has ended: settings that change meanwhile count from the next."""
        self._turn = asyncio.Lock()
        self._is_blind = False

    async def reserve(self, step: ReserveMemory) -> None:
        """Promise a VM its memory; where the host does not tell what it has, everybody is let in.

        Raises MemoryRefusedError when the host has not that much that nobody else was promised.
        """
        need = Need(step.mib, step.overhead)
        async with self._turn:
            claims = await self._find_claims(step.uuid)
            # In this order: what a guest takes between the two looks is then counted twice, and not left out.
            available = await asyncio.to_thread(self._world.host_memory.available)
            if available:
                check_room(step.name, need, available, claims)
            self._note_blindness(is_blind=not available)
            self._promises[step.uuid] = need

    def _note_blindness(self, *, is_blind: bool) -> None:
        if is_blind and not self._is_blind:
            log.warning("this host does not tell how much memory is free: VMs are started without a look at that")
        self._is_blind = is_blind

    def release(self, uuid: str) -> None:
        """Take back the promise to a VM that has no domain any more; one without a promise is fine."""
        self._promises.pop(uuid, None)

    async def _find_claims(self, newcomer: str) -> list[Claim]:
        needs = await self._find_needs()
        needs.pop(newcomer, None)
        resident = await asyncio.to_thread(self._world.host_memory.resident, frozenset(needs))
        names = {uuid: vm.name for uuid in needs if (vm := self._registry.find_uuid(uuid))}
        return [Claim(names.get(uuid, uuid), need.total, resident.get(uuid, 0)) for uuid, need in needs.items()]

    async def _find_needs(self) -> dict[str, Need]:
        """Return what was promised, and what those need to whom we promised nothing: a former daemon started them."""
        needs = dict(self._promises)
        active = [self._registry.find_uuid(uuid) for uuid in self._machines.active() - needs.keys()]
        adopted = [vm for vm in active if isinstance(vm, LocalVM) and self._machines.has_domain(vm.uuid)]
        if adopted:
            capabilities = await self._world.hypervisor.capabilities()
            needs |= {vm.uuid: need_of(vm, capabilities) for vm in adopted}
        return needs
