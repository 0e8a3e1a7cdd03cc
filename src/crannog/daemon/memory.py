"""The host's memory that was promised to VMs: two starts cannot promise the same."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

from crannog.core.memory import Claim, Need, check_room, count_headroom, need_of, would_fit
from crannog.core.plan import ReserveMemory
from crannog.core.registry import Registry
from crannog.core.vms import LocalVM
from crannog.daemon.machines import Machines
from crannog.daemon.world import World
from crannog.errors import MemoryRefusedError

log = logging.getLogger(__name__)


def _spare_nothing(_newcomer: str) -> Sequence[str]:
    return ()


async def _give_up_nothing(_uuid: str) -> None:
    return


class MemoryLedger:
    """Who was promised how much. What is counted, and why, is in core.memory."""

    def __init__(self, world: World, registry: Registry, machines: Machines) -> None:
        self._world = world
        self._registry = registry
        self._machines = machines
        self._promises: dict[str, Need] = {}
        """By UUID, from a VM's start until its domain has ended: settings that change meanwhile count from the next."""
        self._turn = asyncio.Lock()
        self.spare: Callable[[str], Sequence[str]] = _spare_nothing
        """Called with the UUID of a VM that there is no memory for; returns those that may be ended for it, by UUID."""
        self.give_up: Callable[[str], Awaitable[None]] = _give_up_nothing
        """Called with one of those, to end it."""
        self._is_blind = False

    async def reserve(self, step: ReserveMemory) -> None:
        """Promise a VM its memory; where the host does not tell what it has, everybody is let in.

        Raises MemoryRefusedError when the host has not that much that nobody else was promised.
        """
        need = Need(step.mib, step.overhead)
        given_up = set[str]()  # who does not end is not asked to again and again
        async with self._turn:
            while not await self._has_room(step, need, given_up):
                pass  # another VM was ended for it
            self._promises[step.uuid] = need

    async def _has_room(self, step: ReserveMemory, need: Need, given_up: set[str]) -> bool:
        """Return True when there is room, False when there may be now; raises MemoryRefusedError."""
        available, claims = await self._look(step.uuid)
        self._note_blindness(is_blind=not available)
        try:
            if available:
                check_room(step.name, need, available, claims.values())
        except MemoryRefusedError:
            spare = [uuid for uuid in self.spare(step.uuid) if uuid not in given_up]
            if not spare or not would_fit(need, available, claims, spare):
                raise
            given_up.add(spare[0])
            await self.give_up(spare[0])
            return False
        return True

    async def _look(self, newcomer: str) -> tuple[int, Mapping[str, Claim]]:
        """Return the host's free memory in MiB, 0 where it is not known, and what was promised to others, by UUID."""
        claims = await self._find_claims(newcomer)
        # In this order: what a guest takes between the two looks is then counted twice, and not left out.
        return await asyncio.to_thread(self._world.host_memory.available), claims

    async def headroom(self) -> int | None:
        """Return the MiB that nobody was promised, negative when they were promised twice; None: not known."""
        available, claims = await self._look("")
        return count_headroom(available, claims.values()) if available else None

    def _note_blindness(self, *, is_blind: bool) -> None:
        if is_blind and not self._is_blind:
            log.warning("this host does not tell how much memory is free: VMs are started without a look at that")
        self._is_blind = is_blind

    def release(self, uuid: str) -> None:
        """Take back the promise to a VM that has no domain any more; one without a promise is fine."""
        self._promises.pop(uuid, None)

    async def _find_claims(self, newcomer: str) -> Mapping[str, Claim]:
        needs = await self._find_needs()
        needs.pop(newcomer, None)
        resident = await asyncio.to_thread(self._world.host_memory.resident, frozenset(needs))
        names = {uuid: vm.name for uuid in needs if (vm := self._registry.find_uuid(uuid))}
        return {uuid: Claim(names.get(uuid, uuid), need.total, resident.get(uuid, 0)) for uuid, need in needs.items()}

    async def _find_needs(self) -> dict[str, Need]:
        """Return what was promised, and what those need to whom we promised nothing: a former daemon started them."""
        needs = dict(self._promises)
        active = [self._registry.find_uuid(uuid) for uuid in self._machines.active() - needs.keys()]
        adopted = [vm for vm in active if isinstance(vm, LocalVM) and self._machines.has_domain(vm.uuid)]
        if adopted:
            capabilities = await self._world.hypervisor.capabilities()
            needs |= {vm.uuid: need_of(vm, capabilities) for vm in adopted}
        return needs
