"""What the hypervisor tells of VMs, told on as events. Every way in which a VM can end comes by here."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from crannog.core import events
from crannog.core.domain import DomainState
from crannog.core.layers import in_session, used_volumes
from crannog.core.registry import Registry
from crannog.core.startup import chosen_user
from crannog.core.vms import LocalVM
from crannog.daemon.machines import Machines
from crannog.daemon.world import Tell, World
from crannog.errors import CrannogError

log = logging.getLogger(__name__)

_GOING = {DomainState.RUNNING: "domain-unpaused", DomainState.PAUSED: "domain-paused"}
_GOING |= dict.fromkeys((DomainState.STALLED, DomainState.SUSPENDED), "domain-paused")
"""What is told when a domain that was there before gets into a state."""


class News:
    """Follows the states of domains, and cleans up after those that have ended."""

    def __init__(
        self,
        world: World,
        registry: Registry,
        machines: Machines,
        tell: Tell,
        *,
        is_starting: Callable[[str], bool],
        finished: Callable[[str], Awaitable[None]],
    ) -> None:
        """`is_starting` tells whether a start of the VM with that UUID goes on: that start then sees to its end.

        `finished` returns when the hypervisor has nothing more to do with the domain that ended.
        """
        self.world = world
        self.registry = registry
        self.machines = machines
        self._tell = tell
        self._is_starting = is_starting
        self._finished = finished
        self.ours: set[str] = set()
        """UUIDs of the domains that are known to be there: one that is not was started behind our back."""
        self.on_halted: Callable[[LocalVM], None] = lambda _vm: None
        """Called with a VM that has ended, after everything of it was cleaned up and told."""
        self.on_gone: Callable[[str], None] = lambda _uuid: None
        """Called with the UUID of a domain that has ended, at once."""
        self._cleanups: dict[str, asyncio.Task[None]] = {}
        self._chores: set[asyncio.Future[Any]] = set()
        machines.on_change = self._note_change
        machines.on_ended = self.note_end

    def _note_change(self, uuid: str, before: DomainState, after: DomainState) -> None:
        vm = self.registry.find_uuid(uuid)
        if not isinstance(vm, LocalVM):
            return
        if before is DomainState.ABSENT:
            if uuid not in self.ours:
                self._note_stranger(vm, after)
        elif after is DomainState.ABSENT:
            if not self._is_starting(uuid):
                self._tell(events.plain(vm.name, "domain-stopped"))
        elif _GOING.get(after) and _GOING.get(after) != _GOING.get(before):
            self._tell(events.plain(vm.name, _GOING[after]))
            if before is DomainState.SUSPENDED:
                self._tell(events.plain(vm.name, "domain-resumed"))

    def _note_stranger(self, vm: LocalVM, state: DomainState) -> None:
        """Tell at once of a VM that somebody started behind our back: more news of it may come in the same moment."""
        log.warning("%s: was started by somebody else", vm.name)
        self.ours.add(vm.uuid)
        self._tell(events.started(vm.name))
        if state is DomainState.PAUSED:
            self._tell(events.plain(vm.name, "domain-paused"))
        self.keep(asyncio.ensure_future(self._take_in(vm)))

    async def _take_in(self, vm: LocalVM) -> None:
        """Find out the number of a VM that somebody started, and follow its agent, unless it has ended by then."""
        async with self.machines.lock(vm.uuid):
            try:
                xids = {info.uuid: info.xid for info in await self.world.hypervisor.domains()}
                self.machines.learn_xid(vm.uuid, xids.get(vm.uuid, -1))
                if self.machines.has_domain(vm.uuid):
                    await self.world.agents.adopt(vm.uuid, vm.name, chosen_user(vm))
            except CrannogError as error:
                log.error("%s: %s", vm.name, error)

    def note_end(self, uuid: str) -> None:
        """Clean up after a VM that has ended."""
        self.on_gone(uuid)
        vm = self.registry.find_uuid(uuid)
        if isinstance(vm, LocalVM) and not self._is_starting(uuid):
            self.ours.discard(uuid)
            task = self._cleanups[uuid] = asyncio.ensure_future(self._clean_up(vm))
            self.keep(task)
            task.add_done_callback(lambda _task: self._forget_cleanup(uuid, task))

    async def _clean_up(self, vm: LocalVM) -> None:
        async with self.machines.lock(vm.uuid):
            if self.machines.has_domain(vm.uuid):
                return
            log.info("%s: ended", vm.name)
            await self._finished(vm.uuid)
            await self.release(vm)
            self._tell(events.plain(vm.name, "domain-shutdown"))
        self.on_halted(vm)

    def _forget_cleanup(self, uuid: str, task: asyncio.Task[None]) -> None:
        if self._cleanups.get(uuid) is task:
            del self._cleanups[uuid]

    async def release(self, vm: LocalVM) -> None:
        """End what served a VM that has no domain any more, and settle its volumes."""
        try:
            await self.world.agents.stop(vm.uuid)
            self.world.discard_channel(vm.uuid)
        except (CrannogError, OSError) as error:
            log.error("%s: %s", vm.name, error)
        for volume in used_volumes(vm):
            try:
                await self.world.pool_of(volume).stop(in_session(vm, volume))
            except CrannogError as error:
                log.error("%s: %s", vm.name, error)

    async def settled(self, uuid: str) -> None:
        """Return when the clean-up after the VM's end is done."""
        cleanup = self._cleanups.get(uuid)
        if cleanup:
            await asyncio.wait([cleanup])

    def keep(self, task: asyncio.Future[Any]) -> None:
        """Hold a reference until the task is done: the event loop itself holds none."""
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)
