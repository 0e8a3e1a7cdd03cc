"""Taking over the domains that a former daemon left, and cleaning up after those that ended meanwhile."""

import asyncio
import logging

from crannog.core.domain import DomainInfo, DomainState
from crannog.core.preload_wishes import is_nobodys
from crannog.core.startup import chosen_user
from crannog.core.vms import LocalVM
from crannog.daemon.lifecycle import Lifecycle
from crannog.daemon.steps import NEWS_TIMEOUT
from crannog.errors import HypervisorError

log = logging.getLogger(__name__)

_NAMESAKE = "domain %s (%s) is not ours, and VM %s of that name cannot start beside it: end it, or rename the VM"


class Adoption:
    """Done once, when the daemon starts."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._world = lifecycle.world
        self._machines = lifecycle.machines
        self._news = lifecycle.news

    async def adopt(self) -> None:
        """Take over all domains.

        One that was created and never ran is a start that was not finished: it is ended. So is one whose VM is not in
        the store, unless the hypervisor serves others as well.
        """
        ours, leftovers = self._sort_out(await self._world.hypervisor.domains())
        for vm, info in ours:
            log.info("%s: still %s, adopted", vm.name, info.state)
            await self._world.agents.adopt(vm.uuid, vm.name, chosen_user(vm))
            if not is_nobodys(vm):
                await self._lifecycle.displays.adopt(vm)
        for info in leftovers:
            log.warning("domain %s (%s): %s without an owner, ended", info.name, info.uuid, info.state)
            await self._end_leftover(info)
            self._world.unmark_start(info.uuid)
            self._world.unmark_restore(info.uuid)
        await self._end_strays()
        ended = {info.uuid for info in leftovers}  # the news of their end settles those
        for vm in self._lifecycle.registry.local_vms():
            if not self._machines.has_domain(vm.uuid) and vm.uuid not in ended:
                await self._news.release(vm)
                self._world.unmark_start(vm.uuid)
                self._world.unmark_restore(vm.uuid)
                self._news.on_halted(vm)

    def _sort_out(self, found: list[DomainInfo]) -> tuple[list[tuple[LocalVM, DomainInfo]], list[DomainInfo]]:
        """Return our VMs with their domains, and the domains that are to be ended. All are known from here on."""
        registry, ours, leftovers = self._lifecycle.registry, [], []
        names = {vm.name for vm in registry.local_vms()}
        for info in found:
            vm = registry.find_uuid(info.uuid)
            if vm is None and self._world.hypervisor.is_shared:
                if info.name in names:
                    log.warning(_NAMESAKE, info.name, info.uuid, info.name)
                continue
            self._news.ours.add(info.uuid)
            self._machines.note(info)
            if isinstance(vm, LocalVM) and self._is_whole(info):
                ours.append((vm, info))
            else:
                leftovers.append(info)
        return ours, leftovers

    async def _end_strays(self) -> None:
        """End processes that belong to no domain; that this fails keeps nobody from starting VMs."""
        ours = frozenset(vm.uuid for vm in self._lifecycle.registry.local_vms())
        try:
            sentences = await self._world.hypervisor.end_strays(ours)
            sentences += await self._world.agents.end_strays()
        except HypervisorError as error:
            sentences = [str(error)]
        for sentence in sentences:
            log.warning("%s", sentence)

    def _is_whole(self, info: DomainInfo) -> bool:
        """Tell whether a domain has run, as the VM that it is to be.

        A start's mark on one that runs is left from the moment in which it was let run.
        """
        if info.state is DomainState.RUNNING:
            self._world.unmark_start(info.uuid)
        is_alive = info.state not in (DomainState.DYING, DomainState.CRASHED)
        return is_alive and not self._world.is_marked(info.uuid) and not self._world.is_copy(info.uuid)

    async def _end_leftover(self, info: DomainInfo) -> None:
        """End a domain that nobody owns; while it cannot be ended it is shown as what it is, and the daemon goes on."""
        ending = asyncio.ensure_future(self._lifecycle.steps.cut(info.uuid))
        self._news.keep(ending)
        try:
            async with asyncio.timeout(NEWS_TIMEOUT):
                await asyncio.shield(ending)
        except (HypervisorError, TimeoutError) as error:
            log.error("domain %s could not be ended: %s", info.name, str(error) or f"no answer in {NEWS_TIMEOUT} s")
