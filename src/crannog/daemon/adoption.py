"""Taking over the domains that a former daemon left, and cleaning up after those that ended meanwhile."""

import asyncio
import logging

from crannog.core.domain import DomainInfo, DomainState
from crannog.core.startup import chosen_user
from crannog.core.vms import LocalVM
from crannog.daemon.lifecycle import Lifecycle
from crannog.daemon.steps import NEWS_TIMEOUT
from crannog.errors import HypervisorError

log = logging.getLogger(__name__)

ADOPTION_CHECKS = (0.2, 1, 5, 30)
"""Pauses in seconds."""


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
        registry = self._lifecycle.registry
        adopted, ended = [], set()
        for info in await self._world.hypervisor.domains():
            vm = registry.find_uuid(info.uuid)
            if vm is None and self._world.hypervisor.is_shared:
                continue
            self._news.ours.add(info.uuid)
            if isinstance(vm, LocalVM) and self._is_whole(info):
                log.info("%s: still %s, adopted", vm.name, info.state)
                self._machines.note(info)
                adopted.append(info)
                await self._world.agents.adopt(vm.uuid, vm.name, chosen_user(vm))
            else:
                log.warning("domain %s (%s): %s without an owner, ended", info.name, info.uuid, info.state)
                ended.add(info.uuid)
                await self._end_leftover(info)
                self._world.unmark_start(info.uuid)
        for vm in registry.local_vms():
            if not self._machines.has_domain(vm.uuid) and vm.uuid not in ended:  # the news of their end settles those
                await self._news.release(vm)
                self._world.unmark_start(vm.uuid)
                self._news.on_halted(vm)
        if adopted:
            self._news.keep(asyncio.ensure_future(self._look_again(adopted)))

    def _is_whole(self, info: DomainInfo) -> bool:
        """Tell whether a domain has run. A mark on one that runs is left from the moment in which it was let run."""
        if info.state is DomainState.RUNNING:
            self._world.unmark_start(info.uuid)
        is_alive = info.state not in (DomainState.DYING, DomainState.CRASHED)
        return is_alive and not self._world.is_marked(info.uuid)

    async def _end_leftover(self, info: DomainInfo) -> None:
        """End a domain that nobody owns; while it cannot be ended it is shown as what it is, and the daemon goes on."""
        self._machines.note(info)
        ending = asyncio.ensure_future(self._lifecycle.steps.end(info.uuid))
        self._news.keep(ending)
        try:
            async with asyncio.timeout(NEWS_TIMEOUT):
                await asyncio.shield(ending)
        except (HypervisorError, TimeoutError) as error:
            log.error("domain %s could not be ended: %s", info.name, error or f"no answer in {NEWS_TIMEOUT} s")

    async def _look_again(self, adopted: list[DomainInfo]) -> None:
        """Look some more times whether the adopted domains are there, and what they do.

        libvirt lists a domain as it was last saved, before it has found its QEMU again, and tells nobody when it then
        does not find it, or finds it paused.
        """
        for pause in ADOPTION_CHECKS:
            await asyncio.sleep(pause)
            believed = {info.uuid: self._machines.domain_state(info.uuid) for info in adopted}
            try:
                there = {info.uuid: info for info in await self._world.hypervisor.domains()}
            except HypervisorError as error:
                log.warning("the domains could not be looked at again: %s", error)
                continue
            for info in adopted:
                state = there[info.uuid].state if info.uuid in there else DomainState.ABSENT
                is_news = state is not believed[info.uuid] is self._machines.domain_state(info.uuid)
                if is_news and self._machines.xid(info.uuid) == info.xid:
                    log.warning("%s: in truth it is %s", info.name, state)
                    self._machines.change(info.uuid, state)
