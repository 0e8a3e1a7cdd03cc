"""Starting and stopping VMs: plans are made here, and every way in which a VM can end comes by here."""

import asyncio
import logging
from typing import Any

from crannog.core.domain import DomainInfo, DomainState
from crannog.core.plan import AwaitAgent, CreatePaused, Plan, PrepareVolume, Resume, StartRpc
from crannog.core.registry import Registry
from crannog.core.startup import StartFacts, StartRequest, chosen_user, plan_start
from crannog.core.vms import LocalVM, QubeBase
from crannog.daemon.agents import AgentWatch
from crannog.daemon.machines import Machines
from crannog.daemon.runner import Action, Runner
from crannog.daemon.world import World
from crannog.errors import (
    CrannogError,
    HypervisorError,
    ShutdownTimeoutError,
    StartError,
    StateError,
    VMNotHaltedError,
    VMNotRunningError,
)

log = logging.getLogger(__name__)

END_TIMEOUT = 5
"""Seconds after which the news of a domain's end is not waited for any more; it comes within milliseconds."""
ADOPTION_CHECKS = (0.2, 1, 5, 30)
"""Pauses in seconds."""


class Lifecycle:
    """Changes the power states of VMs."""

    def __init__(self, world: World, registry: Registry, machines: Machines) -> None:
        self._world = world
        self._registry = registry
        self._machines = machines
        self._watch = AgentWatch(world, machines)
        self._starts: dict[str, asyncio.Task[list[tuple[str, float]]]] = {}
        self._shutdowns: dict[str, asyncio.Task[bool]] = {}
        self._chores: set[asyncio.Future[Any]] = set()
        self._runner = Runner(
            {
                PrepareVolume: Action(self._prepare_volume, self._abandon_volume),
                StartRpc: Action(self._start_rpc, self._stop_rpc),
                CreatePaused: Action(self._create_paused, self._destroy),
                Resume: Action(self._resume),
                AwaitAgent: Action(self._watch.until_ready),
            }
        )
        machines.on_ended = self._note_end

    async def plan(self, vm: LocalVM, request: StartRequest) -> Plan:
        """Return the steps of a start; raises what `plan_start` raises."""
        facts = StartFacts(
            power_state=self._machines.power_state(vm.uuid),
            active=self._machines.active(),
            capabilities=await self._world.hypervisor.capabilities(),
            kernel_files=self._world.kernels.files,
            locate=lambda volume: self._world.pool_of(volume).locate(volume),
            channel_path=self._world.paths.channel_socket(vm.uuid),
            console_log=self._world.paths.console_log(vm.name),
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
        task.add_done_callback(lambda _task: self._starts.pop(vm.uuid, None))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise StartError(f"{vm.name} was killed while it started") from None
            raise

    async def _start(self, vm: LocalVM, request: StartRequest) -> list[tuple[str, float]]:
        async with self._machines.lock(vm.uuid):
            plan = await self.plan(vm, request)
            self._machines.begin(vm.uuid, "Transient")
            try:
                stages = await self._runner.run(vm.name, plan)
            except CrannogError as error:
                is_named = str(error).startswith(f"{vm.name} ")
                raise type(error)(f"{'' if is_named else f'{vm.name} was not started: '}{error}") from error
            finally:
                self._machines.finish(vm.uuid)
        return [(stage.stage, stage.seconds) for stage in stages]

    async def shutdown(self, vm: LocalVM, *, wait: bool) -> None:
        """Ask the guest to shut down: its agent, or else its power button.

        With `wait`, return when it is halted; raises ShutdownTimeoutError when that takes longer than the VM's
        shutdown_timeout (it goes on running). Raises VMNotRunningError for a halted VM.
        """
        self._check_running(vm)
        if self._machines.domain_state(vm.uuid) is DomainState.STALLED:
            raise StateError(
                f"{vm.name} cannot shut down: it is paused, because a disk could not be written; free some space, "
                f"or end it with 'qvm-kill {vm.name}'"
            )
        ended = self._shutdowns.get(vm.uuid)
        if ended is None:
            self._machines.begin(vm.uuid, "Halting")
            ended = self._shutdowns[vm.uuid] = asyncio.ensure_future(self._shut_down(vm))
            ended.add_done_callback(lambda _task: self._shutdowns.pop(vm.uuid, None))
        if wait and not await asyncio.shield(ended):
            raise ShutdownTimeoutError(
                f"{vm.name} did not shut down within {vm.get('shutdown_timeout')} s and still runs; "
                f"try again, or end it with 'qvm-kill {vm.name}'"
            )

    async def _shut_down(self, vm: LocalVM) -> bool:
        try:
            if not await self._world.agents.power_off(vm.uuid):
                await self._world.hypervisor.press_power_button(vm.uuid)
            async with asyncio.timeout(int(vm.get("shutdown_timeout"))):
                await self._machines.ended(vm.uuid)
        except TimeoutError:
            return False
        finally:
            self._machines.finish(vm.uuid)
        await self._settled(vm.uuid)
        return True

    async def kill(self, vm: LocalVM) -> None:
        """End a VM at once, also one that is just being started. Raises VMNotRunningError for a halted one."""
        starting = self._starts.get(vm.uuid)
        if starting is None:
            self._check_running(vm)
            await self._end(vm.uuid)
            await self._settled(vm.uuid)
            return
        starting.cancel()
        await asyncio.wait([starting])

    async def abandon_starts(self) -> None:
        """Undo every start that is not finished: a daemon that ends must not leave half of one."""
        starts = set(self._starts.values())
        for start in starts:
            start.cancel()
        if starts:
            await asyncio.wait(starts)

    async def _end(self, uuid: str) -> None:
        """End the domain and return when its end is known."""
        await self._world.hypervisor.destroy(uuid)
        try:
            async with asyncio.timeout(END_TIMEOUT):
                await self._machines.ended(uuid)
        except TimeoutError:
            if uuid in {info.uuid for info in await self._world.hypervisor.domains()}:
                raise HypervisorError(f"domain {uuid} was ended but is still there; try again") from None
            self._machines.change(uuid, DomainState.ABSENT)

    def _check_running(self, vm: QubeBase) -> None:
        if not self._machines.has_domain(vm.uuid):
            raise VMNotRunningError(f"{vm.name} is not running; start it with 'qvm-start {vm.name}'")

    async def adopt(self) -> None:
        """Take over the domains that a former daemon left, and clean up after those that ended meanwhile.

        A paused domain is a start that was never finished: it is ended. So is one whose VM is not in the store.
        """
        adopted = []
        for info in await self._world.hypervisor.domains():
            vm = self._registry.find_uuid(info.uuid)
            if isinstance(vm, LocalVM) and info.state in (DomainState.RUNNING, DomainState.STALLED):
                log.info("%s: still running, adopted", vm.name)
                self._machines.note(info)
                adopted.append(info)
                await self._world.agents.adopt(vm.uuid, vm.name, chosen_user(vm))
            else:
                log.warning("domain %s (%s): %s without an owner, ended", info.name, info.uuid, info.state)
                await self._end_leftover(info)
        for vm in self._registry.local_vms():
            if not self._machines.has_domain(vm.uuid):
                await self._release(vm)
        if adopted:
            self._keep(asyncio.ensure_future(self._look_again(adopted)))

    async def _end_leftover(self, info: DomainInfo) -> None:
        """End a domain that nobody owns; while it cannot be ended it is shown as what it is, and the daemon goes on."""
        self._machines.note(info)
        ending = asyncio.ensure_future(self._end(info.uuid))
        self._keep(ending)
        try:
            async with asyncio.timeout(END_TIMEOUT):
                await asyncio.shield(ending)
        except (HypervisorError, TimeoutError) as error:
            log.error("domain %s could not be ended: %s", info.name, error or f"no answer in {END_TIMEOUT} s")

    async def _look_again(self, adopted: list[DomainInfo]) -> None:
        """Look some more times whether the adopted domains are there, and what they do.

        libvirt lists a domain as it was last saved, before it has found its QEMU again, and tells nobody when it then
        does not find it, or finds it paused.
        """
        for pause in ADOPTION_CHECKS:
            await asyncio.sleep(pause)
            believed = {info.uuid: self._machines.domain_state(info.uuid) for info in adopted}
            there = {info.uuid: info for info in await self._world.hypervisor.domains()}
            for info in adopted:
                state = there[info.uuid].state if info.uuid in there else DomainState.ABSENT
                is_news = state is not believed[info.uuid] is self._machines.domain_state(info.uuid)
                if is_news and self._machines.xid(info.uuid) == info.xid:
                    log.warning("%s: in truth it is %s", info.name, state)
                    self._machines.change(info.uuid, state)

    def _note_end(self, uuid: str) -> None:
        vm = self._registry.find_uuid(uuid)
        if isinstance(vm, LocalVM) and uuid not in self._starts:
            self._keep(asyncio.ensure_future(self._clean_up(vm)))

    async def _clean_up(self, vm: LocalVM) -> None:
        async with self._machines.lock(vm.uuid):
            if not self._machines.has_domain(vm.uuid):
                log.info("%s: ended", vm.name)
                await self._release(vm)

    async def _release(self, vm: LocalVM) -> None:
        await self._world.agents.stop(vm.uuid)
        self._world.discard_channel(vm.uuid)
        for volume in vm.volumes.values():
            try:
                await self._world.pool_of(volume).stop(volume)
            except CrannogError as error:
                log.error("%s: %s", vm.name, error)

    async def _settled(self, uuid: str) -> None:
        """Return when the clean-up after the VM's end is done."""
        async with self._machines.lock(uuid):
            return

    def _keep(self, task: asyncio.Future[Any]) -> None:
        """Hold a reference until the task is done: the event loop itself holds none."""
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    async def _prepare_volume(self, step: PrepareVolume) -> None:
        await self._world.pool_of(step.volume).start(step.volume)

    async def _abandon_volume(self, step: PrepareVolume) -> None:
        await self._world.pool_of(step.volume).abandon(step.volume)

    async def _start_rpc(self, step: StartRpc) -> None:
        await self._world.agents.start(step.uuid, step.name, step.default_user)

    async def _stop_rpc(self, step: StartRpc) -> None:
        await self._world.agents.stop(step.uuid)

    async def _create_paused(self, step: CreatePaused) -> None:
        self._machines.note(await self._world.hypervisor.create_paused(step.spec))

    async def _destroy(self, step: CreatePaused) -> None:
        await self._end(step.spec.uuid)
        self._world.discard_channel(step.spec.uuid)

    async def _resume(self, step: Resume) -> None:
        try:
            await self._world.hypervisor.resume(step.uuid)
        except HypervisorError as error:
            raise StartError(f"its processors could not be let run: {error}") from error
