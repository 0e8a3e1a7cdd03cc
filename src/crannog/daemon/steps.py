"""How each kind of step of a start is done and undone, and what is told about it."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass

from crannog.core import events
from crannog.core.domain import DomainState
from crannog.core.plan import AwaitAgent, CreatePaused, PrepareVolume, Renew, ReserveMemory, Resume, StartRpc, Step
from crannog.daemon.agents import AgentWatch
from crannog.daemon.machines import Machines
from crannog.daemon.memory import MemoryLedger
from crannog.daemon.runner import Action
from crannog.daemon.waiting import first_of
from crannog.daemon.world import Tell, World
from crannog.editing.upkeep import Upkeep
from crannog.errors import HypervisorError, StartError, VMNotRunningError

log = logging.getLogger(__name__)

NEWS_TIMEOUT = 5
"""Seconds after which the news of a domain's new state is not waited for any more; it comes within milliseconds."""
LOOK_TIMEOUT = 0.5
"""Seconds without news after which a look at the domains tells whether one that was ended is gone: libvirt tells nobody
of the end of a domain whose creation it gave up for that."""


@dataclass
class Starting:
    """One start that goes on: its number, as events have it, and whether the domain was told of."""

    vm: str
    guid: str
    is_spawned: bool = False


class Steps:
    """Does and undoes steps. `starting` holds the starts that go on, by the UUID of their VM."""

    def __init__(self, world: World, machines: Machines, ledger: MemoryLedger, tell: Tell, upkeep: Upkeep) -> None:
        self._world = world
        self._upkeep = upkeep
        self._machines = machines
        self._ledger = ledger
        self._tell = tell
        self._watch = AgentWatch(world, machines)
        self.starting: dict[str, Starting] = {}
        self._endings: dict[str, asyncio.Task[None]] = {}
        """Domains that the hypervisor is just ending, by UUID."""

    def actions(self) -> dict[type[Step], Action]:
        """Return what the runner needs."""
        return {
            PrepareVolume: Action(self._prepare_volume, self._abandon_volume),
            ReserveMemory: Action(self._ledger.reserve, self._give_back),
            StartRpc: Action(self._start_rpc, self._stop_rpc),
            CreatePaused: Action(self._create_paused, self._destroy),
            Resume: Action(self._resume),
            AwaitAgent: Action(self._watch.until_ready),
            Renew: Action(self._renew),
        }

    async def _prepare_volume(self, step: PrepareVolume) -> str:
        """Make a volume ready, if its images may be used; return what is odd about them."""
        remarks = await self._upkeep.examine(step.volume)
        for remark in remarks:
            log.warning("volume %s: %s", step.volume.vid, remark)
        pool = self._world.pool_of(step.volume)
        await (pool.start_from(step.volume, step.copy_of) if step.copy_of else pool.start(step.volume))
        return "; ".join(remarks)

    async def _abandon_volume(self, step: PrepareVolume) -> None:
        await self._world.pool_of(step.volume).abandon(step.volume)

    async def _give_back(self, step: ReserveMemory) -> None:
        self._ledger.release(step.uuid)

    async def _start_rpc(self, step: StartRpc) -> None:
        await self._world.agents.start(step.uuid, step.name, step.default_user)

    async def _stop_rpc(self, step: StartRpc) -> None:
        await self._world.agents.stop(step.uuid)

    async def _create_paused(self, step: CreatePaused) -> None:
        start = self.starting[step.spec.uuid]
        self._tell(events.domain_spawned(start.vm, start.guid, is_done=False))
        self._world.mark_start(step.spec.uuid)
        if step.spec.memory_files and step.spec.memory_files.is_saved:
            self._world.mark_restore(step.spec.uuid)
        info = await self._world.hypervisor.create_paused(step.spec)
        self._machines.note(info)
        start.is_spawned = True
        # Before its first instruction, so that it never sees a folder that it may not write to yet.
        if await asyncio.to_thread(self._world.trees.prepare, info.xid):
            await self._world.agents.introduce(step.spec.uuid)
        self._tell(events.domain_spawned(start.vm, start.guid, is_done=True))

    async def _destroy(self, step: CreatePaused) -> None:
        await self.end(step.spec.uuid)
        self._world.discard_channel(step.spec.uuid)
        self._world.unmark_start(step.spec.uuid)
        self._world.unmark_restore(step.spec.uuid)

    async def end(self, uuid: str) -> None:
        """End a domain and return when its end is known."""
        await self._world.hypervisor.destroy(uuid)
        for seconds in (LOOK_TIMEOUT, NEWS_TIMEOUT - LOOK_TIMEOUT):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._machines.ended(uuid)
                    return
            if uuid not in {info.uuid for info in await self._world.hypervisor.domains()}:
                self._machines.change(uuid, DomainState.ABSENT)
                return
        raise HypervisorError(f"domain {uuid} was ended but is still there; try again")

    async def cut(self, uuid: str) -> None:
        """End a domain and return when it is known to be gone. The hypervisor may be busy with it for longer.

        libvirt takes up to seconds to tidy up; who wants the VM gone need not wait for that. Raises HypervisorError
        when the domain could not be ended.
        """
        ending = self._endings.get(uuid)
        if ending is None:
            ending = self._endings[uuid] = asyncio.ensure_future(self.end(uuid))
            ending.add_done_callback(lambda task: self._note_ending(uuid, task))
        gone = asyncio.ensure_future(self._machines.ended(uuid))
        try:
            await asyncio.wait({ending, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
        if ending.done() and self._machines.has_domain(uuid):
            ending.result()

    def _note_ending(self, uuid: str, task: "asyncio.Task[None]") -> None:
        del self._endings[uuid]
        if not task.cancelled() and task.exception():
            log.error("domain %s: ending it failed: %s", uuid, task.exception())

    async def finished(self, uuid: str) -> None:
        """Return when the hypervisor is not ending a domain any more: a late command would hit the VM's next one."""
        ending = self._endings.get(uuid)
        if ending:
            await asyncio.wait([ending])

    async def _resume(self, step: Resume) -> None:
        try:
            await self.let_run(self.starting[step.uuid].vm, step.uuid)
        except HypervisorError as error:
            raise StartError(f"its processors could not be let run: {error}") from error
        self._world.unmark_start(step.uuid)

    async def _renew(self, step: Renew) -> None:
        await self._world.agents.renew(step.uuid, step.name, step.timeout)
        self._world.unmark_restore(step.uuid)

    async def let_run(self, vm: str, uuid: str) -> None:
        """Let a domain's processors run, and return when it is known to run, or to have ended."""
        self._tell(events.plain(vm, "domain-pre-unpaused"))
        await self._world.hypervisor.resume(uuid)
        await self._either(uuid, DomainState.RUNNING)

    async def stop_running(self, vm: str, uuid: str) -> None:
        """Stop a domain's processors, and return when it is known to be paused, or to have ended.

        Raises VMNotRunningError for one that ends while it is asked, HypervisorError for one that refuses.
        """
        self._tell(events.plain(vm, "domain-pre-paused"))
        async with self.told_of(vm, uuid, "paused"):
            await self._world.hypervisor.pause(uuid)
        await self._either(uuid, DomainState.PAUSED)

    @contextlib.asynccontextmanager
    async def told_of(self, vm: str, uuid: str, what: str) -> AsyncIterator[None]:
        """Have a refusal name the VM, and what it was not; one that has ended meanwhile is a VMNotRunningError."""
        try:
            yield
        except HypervisorError as error:
            # The news of a QEMU that died of itself may come a moment later than the failure of what it was asked.
            await first_of(LOOK_TIMEOUT, self._machines.ended(uuid))
            if self._machines.has_domain(uuid):
                raise HypervisorError(f"{vm} was not {what}: {error}") from error
            raise VMNotRunningError(f"{vm} was not {what}: it has just ended by itself") from error

    async def _either(self, uuid: str, state: DomainState) -> None:
        """Return when the news of a state, or of the domain's end, has come; or when it is overdue."""
        await first_of(NEWS_TIMEOUT, self._machines.reached(uuid, state), self._machines.ended(uuid))
