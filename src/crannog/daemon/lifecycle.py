"""Starting, pausing and stopping VMs: plans are made here."""

import asyncio
import logging
import uuid as uuids

from crannog.core import events
from crannog.core.domain import DomainState
from crannog.core.plan import Plan
from crannog.core.registry import Registry
from crannog.core.startup import StartFacts, StartRequest, plan_start
from crannog.core.stopping import check_shutdown
from crannog.core.vms import LocalVM
from crannog.daemon.machines import Machines
from crannog.daemon.news import News
from crannog.daemon.runner import Runner
from crannog.daemon.steps import Starting, Steps
from crannog.daemon.world import Tell, World
from crannog.errors import (
    CrannogError,
    ShutdownTimeoutError,
    StartError,
    StateError,
    VMNotHaltedError,
    VMNotPausedError,
    VMNotRunningError,
    VMNotSuspendedError,
)

log = logging.getLogger(__name__)

Shutdown = tuple["asyncio.Task[None]", "asyncio.Task[bool]"]
"""Done when the guest was asked to shut down; and when it has ended (True) or its time was over (False)."""


class Lifecycle:
    """Changes the power states of VMs."""

    def __init__(self, world: World, registry: Registry, machines: Machines, tell: Tell) -> None:
        self.world = world
        self.registry = registry
        self.machines = machines
        self._tell = tell
        self.steps = Steps(world, machines, tell)
        self._runner = Runner(self.steps.actions())
        self._starts: dict[str, asyncio.Task[list[tuple[str, float]]]] = {}
        self._shutdowns: dict[str, Shutdown] = {}
        self.news = News(world, registry, machines, tell, is_starting=lambda uuid: uuid in self._starts)

    # -- starting

    async def plan(self, vm: LocalVM, request: StartRequest) -> Plan:
        """Return the steps of a start; raises what `plan_start` raises."""
        if vm.uuid in self.machines.busy:
            raise StateError(f"{vm.name} cannot be started: {self.machines.busy[vm.uuid]}")
        facts = StartFacts(
            power_state=self.machines.power_state(vm.uuid),
            active=self.machines.active(),
            capabilities=await self.world.hypervisor.capabilities(),
            kernel_files=self.world.kernels.files,
            locate=lambda volume: self.world.pool_of(volume).locate(volume),
            channel_path=self.world.paths.channel_socket(vm.uuid),
            console_log=self.world.paths.console_log(vm.name),
        )
        return plan_start(vm, request, facts)

    async def start(self, vm: LocalVM, request: StartRequest) -> list[tuple[str, float]]:
        """Start a VM; return its stages with their seconds. A failed start leaves it halted.

        The start goes on when the caller goes away. Raises StartError and its kin.
        """
        if vm.uuid in self._starts:
            raise VMNotHaltedError(f"{vm.name} cannot be started: it is being started already")
        task = asyncio.ensure_future(self._start(vm, request))
        self._starts[vm.uuid] = task
        task.add_done_callback(lambda _task: self._finish_start(vm))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise StartError(f"{vm.name} was killed while it started") from None
            raise

    async def _start(self, vm: LocalVM, request: StartRequest) -> list[tuple[str, float]]:
        async with self.machines.lock(vm.uuid):
            plan = await self.plan(vm, request)
            start = self.steps.starting[vm.uuid] = Starting(vm.name, str(uuids.uuid4()))
            self.machines.begin(vm.uuid, "Transient")
            self.news.ours.add(vm.uuid)
            self._tell(events.start_began(vm.name, start.guid, int(vm.get("memory")) * 2**20))
            try:
                stages = await self._runner.run(vm.name, plan)
            except BaseException as error:
                self._tell_failure(start, _reason(error))
                if not isinstance(error, CrannogError):
                    raise
                is_named = str(error).startswith(f"{vm.name} ")
                raise type(error)(f"{'' if is_named else f'{vm.name} was not started: '}{error}") from error
            finally:
                self.machines.finish(vm.uuid)
                del self.steps.starting[vm.uuid]
            self._tell(events.started(vm.name, start.guid))
        return [(stage.stage, stage.seconds) for stage in stages]

    def _tell_failure(self, start: Starting, reason: str) -> None:
        self.machines.finish(next(uuid for uuid, other in self.steps.starting.items() if other is start))
        if start.is_spawned:
            self._tell(events.plain(start.vm, "domain-stopped") + events.plain(start.vm, "domain-shutdown"))
        self._tell(events.start_failed(start.vm, reason))

    def _finish_start(self, vm: LocalVM) -> None:
        """Forget a start that is over; a VM that ended in the last moment of it is cleaned up now."""
        task = self._starts.pop(vm.uuid)
        is_started = not task.cancelled() and task.exception() is None
        if self.machines.has_domain(vm.uuid):
            return
        self.news.ours.discard(vm.uuid)
        if is_started:
            self._tell(events.plain(vm.name, "domain-stopped"))
            self.news.note_end(vm.uuid)
        else:
            self.news.on_halted(vm)

    async def abandon_starts(self) -> None:
        """Undo every start that is not finished: a daemon that ends must not leave half of one."""
        starts = set(self._starts.values())
        for start in starts:
            start.cancel()
        if starts:
            await asyncio.wait(starts)

    # -- pausing

    async def pause(self, vm: LocalVM) -> None:
        """Stop the processors of a running VM; raises VMNotRunningError unless it runs."""
        self._check_going(vm, "paused")
        await self.steps.stop_running(vm.name, vm.uuid)

    async def unpause(self, vm: LocalVM) -> None:
        """Let a paused VM go on; raises VMNotPausedError for one that is not."""
        if self.machines.power_state(vm.uuid) != "Paused":
            raise VMNotPausedError(f"{vm.name} is not paused: it is {self.machines.power_state(vm.uuid)}")
        await self.steps.let_run(vm.name, vm.uuid)

    async def suspend(self, vm: LocalVM) -> None:
        """Put a VM to sleep. It has no devices of the host that would have to sleep with it, so it is paused."""
        self._check_going(vm, "suspended")
        await self.steps.stop_running(vm.name, vm.uuid)

    async def resume(self, vm: LocalVM) -> None:
        """Wake a VM that sleeps; raises VMNotSuspendedError for one that does not."""
        self._check_running(vm)
        if self.machines.power_state(vm.uuid) not in ("Paused", "Suspended"):
            raise VMNotSuspendedError(f"{vm.name} is not suspended: it is {self.machines.power_state(vm.uuid)}")
        await self.steps.let_run(vm.name, vm.uuid)

    def _check_going(self, vm: LocalVM, purpose: str) -> None:
        state = self.machines.power_state(vm.uuid)
        if state != "Running":
            raise VMNotRunningError(f"{vm.name} cannot be {purpose}: it is {state}, not Running")

    def _check_running(self, vm: LocalVM) -> None:
        if not self.machines.has_domain(vm.uuid):
            raise VMNotRunningError(f"{vm.name} is not running; start it with 'qvm-start {vm.name}'")

    # -- stopping

    async def shutdown(self, vm: LocalVM, *, force: bool, wait: bool) -> None:
        """Ask the guest to shut down: its agent, or else its power button.

        With `wait`, return when it is halted; raises ShutdownTimeoutError when that takes longer than the VM's
        shutdown_timeout (it goes on running). Raises VMNotRunningError for a halted VM, and, without `force`,
        InUseError when running VMs get their network from it; HypervisorError when it cannot even be asked.
        """
        self._check_running(vm)
        asked, ended = self._shutdowns.get(vm.uuid) or self._ask_to_end(vm, force=force)
        await asyncio.shield(asked)
        if wait and not await asyncio.shield(ended):
            raise ShutdownTimeoutError(
                f"{vm.name} did not shut down within {vm.get('shutdown_timeout')} s and still runs; "
                f"try again, or end it with 'qvm-kill {vm.name}'"
            )

    def _ask_to_end(self, vm: LocalVM, *, force: bool) -> Shutdown:
        self._tell(events.shutdown_asked(vm.name, force=force))
        try:
            self._check_can_end(vm)
            if not force:
                check_shutdown(vm, self.machines.active())
        except CrannogError as error:
            self._tell(events.shutdown_failed(vm.name, str(error)))
            raise
        if vm.uuid not in self.steps.starting:
            self.machines.begin(vm.uuid, "Halting")
        asked = asyncio.ensure_future(self._press(vm))
        ended = asyncio.ensure_future(self._shut_down(vm, asked))
        ended.add_done_callback(lambda _task: self._finish_shutdown(vm, ended))
        self._shutdowns[vm.uuid] = asked, ended
        return asked, ended

    async def _press(self, vm: LocalVM) -> None:
        if not await self.world.agents.power_off(vm.uuid):
            await self.world.hypervisor.press_power_button(vm.uuid)

    def _check_can_end(self, vm: LocalVM) -> None:
        state = self.machines.domain_state(vm.uuid)
        if state is DomainState.STALLED:
            raise StateError(
                f"{vm.name} cannot shut down: it is paused, because a disk could not be written; free some space, "
                f"or end it with 'qvm-kill {vm.name}'"
            )
        if state in (DomainState.PAUSED, DomainState.SUSPENDED):
            raise StateError(
                f"{vm.name} cannot shut down while it is paused: let it go on with 'qvm-unpause {vm.name}', or end it "
                f"with 'qvm-kill {vm.name}'"
            )

    async def _shut_down(self, vm: LocalVM, asked: "asyncio.Task[None]") -> bool:
        try:
            await asked
            async with asyncio.timeout(int(vm.get("shutdown_timeout"))):
                await self.machines.ended(vm.uuid)
        except TimeoutError:
            self._tell_refusal(vm, f"it did not end within {vm.get('shutdown_timeout')} s")
            return False
        except BaseException as error:
            self._tell_refusal(vm, _reason(error))
            raise
        self._finish_halting(vm)
        if vm.uuid in self._starts:
            await asyncio.wait([self._starts[vm.uuid]])  # it cleans up after itself
        await self.news.settled(vm.uuid)
        return True

    def _tell_refusal(self, vm: LocalVM, reason: str) -> None:
        self._finish_halting(vm)
        self._tell(events.shutdown_failed(vm.name, reason))

    def _finish_halting(self, vm: LocalVM) -> None:
        """Show the VM as what it is again; one that still starts is shown as that all the time."""
        if vm.uuid not in self.steps.starting:
            self.machines.finish(vm.uuid)

    def _finish_shutdown(self, vm: LocalVM, task: "asyncio.Task[bool]") -> None:
        self._shutdowns.pop(vm.uuid, None)
        if not task.cancelled() and task.exception():
            log.error("%s: its shutdown failed: %s", vm.name, task.exception())

    async def kill(self, vm: LocalVM) -> None:
        """End a VM at once, also one that is just being started. Raises VMNotRunningError for a halted one."""
        starting = self._starts.get(vm.uuid)
        if starting:
            starting.cancel()
            await asyncio.wait([starting])
            if not self.machines.has_domain(vm.uuid):
                return
            # It was just done, or was refused, as the VM ran already.
        self._check_running(vm)
        await self.steps.end(vm.uuid)
        await self.news.settled(vm.uuid)


def _reason(error: BaseException) -> str:
    """Return why something failed, as readers of events are told it."""
    if isinstance(error, CrannogError):
        return str(error)
    return "it was killed" if isinstance(error, asyncio.CancelledError) else "crannogd failed; its log says where"
