"""Starting, pausing and stopping VMs: plans are made here."""

import asyncio
import logging
import uuid as uuids
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol

from crannog.core import events
from crannog.core.layers import ready_volumes
from crannog.core.memory_images import with_memory
from crannog.core.plan import OpenDisplays, Plan, StartNetvm
from crannog.core.registry import Registry
from crannog.core.startup import StartFacts, StartRequest, plan_start
from crannog.core.templates import origin
from crannog.core.vms import LocalVM
from crannog.core.volumes import LayerState
from crannog.daemon.displays import DisplayKeeper
from crannog.daemon.machines import Machines
from crannog.daemon.memory import MemoryLedger
from crannog.daemon.netvms import NetvmStarts
from crannog.daemon.news import News
from crannog.daemon.pausing import Pausing, check_running
from crannog.daemon.runner import Action, Runner, StageTime
from crannog.daemon.shutdowns import Shutdowns, describe_failure
from crannog.daemon.steps import Starting, Steps
from crannog.daemon.world import Tell, World
from crannog.editing.hold import check_free
from crannog.editing.upkeep import Upkeep
from crannog.errors import (
    CrannogError,
    MemoryRefusedError,
    StartError,
    VMNotFoundError,
    VMNotHaltedError,
)

log = logging.getLogger(__name__)

KILL_GRACE = 0.05
"""Seconds that a kill waits for the clean-up. Mostly it is over by then, and who looks at the volumes next finds them
settled; a slow disk or hypervisor keeps nobody waiting."""

Start = asyncio.Task[list[tuple[str, float]]]


async def _make_no_way(_vm: LocalVM) -> None:
    return


class Images(Protocol):
    """What a start asks of memory images (daemon.memory_images)."""

    async def choose(self, vm: LocalVM, plan: Plan) -> Plan | None:
        """Return the plan of a cold start as one that restores; None where it cannot."""

    def note_cold(self, vm: LocalVM) -> None:
        """Note that a VM was started cold."""

    async def note_useless(self, vm: LocalVM) -> None:
        """Note that it could not be restored, and was started cold then."""


class Lifecycle:
    """Changes the power states of VMs."""

    def __init__(self, world: World, registry: Registry, machines: Machines, tell: Tell) -> None:
        self.world = world
        self.registry = registry
        self.machines = machines
        self.grace = KILL_GRACE
        self._tell = tell
        self.ledger = MemoryLedger(world, registry, machines)
        self.upkeep = Upkeep(registry, world.pools, machines.lock, busy=machines.busy)
        self.displays = DisplayKeeper(world, registry, machines)
        self.steps = Steps(world, machines, self.ledger, tell, self.upkeep)
        self.pausing = Pausing(machines, self.steps)
        netvms = NetvmStarts(registry, self.ensure_runs)
        others = {
            StartNetvm: Action(netvms.start),
            OpenDisplays: Action(self.displays.begin, self.displays.abandon),
        }
        self._runner = Runner({**self.steps.actions(), **others})
        self._starts: dict[str, Start] = {}
        self.images: Images | None = None
        """The memory images from which disposables are restored, if there are any."""
        self.make_way: Callable[[LocalVM], Awaitable[None]] = _make_no_way
        """Called with a VM that is about to start; has those go that nobody uses and that it could not be beside."""
        self.news = News(
            world,
            registry,
            machines,
            tell,
            is_starting=lambda uuid: uuid in self._starts,
            finished=self.steps.finished,
        )
        self.news.on_gone = self._let_go
        self.shutdowns = Shutdowns(world, machines, self.steps, self.news, self._starts, tell)

    def _let_go(self, uuid: str) -> None:
        """Give back what a domain had that has just ended."""
        self.ledger.release(uuid)
        self.displays.end(uuid)

    # -- starting

    async def plan(self, vm: LocalVM, request: StartRequest) -> Plan:
        """Return the steps of a start; raises what `plan_start` raises."""
        check_free(self.machines.busy, vm, "be started")
        kept = [volume for volume in ready_volumes(vm) if volume.keeps_layer]
        layers = {volume.vid: await self.world.pool_of(volume).layer_state(volume) for volume in kept}
        facts = StartFacts(
            power_state=self.machines.power_state(vm.uuid),
            active=self.machines.active(),
            capabilities=await self.world.hypervisor.capabilities(),
            kernel_files=self.world.kernels.files,
            locate=lambda volume: self.world.pool_of(volume).locate(volume),
            channel_path=self.world.paths.channel_socket(vm.uuid),
            console_log=self.world.paths.console_log(vm.name),
            screen_path=self.world.paths.screen_socket(vm.uuid),
            shares_live=lambda volume: self.world.pool_of(volume).shares_live,
            layer_state=lambda volume: layers.get(volume.vid, LayerState.ABSENT),
            serving=self.machines.serving(),
            drive_file=lambda path: self.world.look_at_drive(path, self.registry.pools.values()),
        )
        plan = plan_start(vm, request, facts)
        return with_memory(plan, request.memory_files) if request.memory_files else plan

    async def preview(self, vm: LocalVM, request: StartRequest) -> Plan:
        """Return the steps that a start now would have: those of a restore for a VM that would be restored."""
        plan = await self.plan(vm, request)
        return (await self.images.choose(vm, plan) if self.images else None) or plan

    async def start(self, vm: LocalVM, request: StartRequest) -> list[tuple[str, float]]:
        """Start a VM; return its stages with their seconds. A failed start leaves it halted.

        The start goes on when the caller goes away. Raises StartError and its kin.
        """
        if vm.uuid in self._starts:
            raise VMNotHaltedError(f"{vm.name} cannot be started: it is being started already")
        self.displays.show_again(vm)
        task = asyncio.ensure_future(self._start(vm, request))
        self._starts[vm.uuid] = task
        task.add_done_callback(lambda _task: self._finish_start(vm))
        return await self._follow(vm, task)

    def starting(self) -> frozenset[str]:
        """Return the UUIDs of the VMs that just start."""
        return frozenset(self._starts)

    async def show(self, vm: LocalVM) -> None:
        """Open the displays of a VM whose start left that for later."""
        await self.displays.begin(OpenDisplays(vm.uuid, vm.name))

    async def _follow(self, vm: LocalVM, task: Start) -> list[tuple[str, float]]:
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise StartError(f"{vm.name} was killed while it started") from None
            raise

    async def ensure_runs(self, vm: LocalVM) -> None:
        """Start a VM unless it runs; who starts it already is waited for, and its end, if it just ends.

        Raises what the start raises.
        """
        await self.steps.finished(vm.uuid)
        await self.shutdowns.over(vm.uuid)
        if vm.uuid in self._starts:
            await self._follow(vm, self._starts[vm.uuid])
        elif not self.machines.has_domain(vm.uuid):
            await self.start(vm, StartRequest())

    async def _start(self, vm: LocalVM, request: StartRequest) -> list[tuple[str, float]]:
        async with self.machines.lock(vm.uuid):
            await self._settle_origins(vm)
            await self.make_way(vm)
            plan = await self.plan(vm, request)
            start = self.steps.starting[vm.uuid] = Starting(vm.name, str(uuids.uuid4()))
            self.machines.begin(vm.uuid, "Transient")
            self.news.ours.add(vm.uuid)
            self._tell(events.start_began(vm.name, start.guid, int(vm.get("memory")) * 2**20))
            try:
                stages = await self._carry_out(vm, request, plan)
            except BaseException as error:
                self._tell_failure(vm, start, describe_failure(error))
                if not isinstance(error, CrannogError):
                    raise
                is_named = str(error).startswith(f"{vm.name} ")
                raise type(error)(f"{'' if is_named else f'{vm.name} was not started: '}{error}") from error
            finally:
                self.machines.finish(vm.uuid)
                del self.steps.starting[vm.uuid]
            self._tell(events.started(vm.name, start.guid))
        return [(stage.stage, stage.seconds) for stage in stages]

    async def _carry_out(self, vm: LocalVM, request: StartRequest, plan: Plan) -> list[StageTime]:
        """Do the steps of a start: those that restore the VM if they can be, else those of a cold start."""
        images = None if request.memory_files else self.images
        quick = await images.choose(vm, plan) if images else None
        if images is None or quick is None:
            stages = await self._runner.run(vm.name, plan)
            if images:
                images.note_cold(vm)
            return stages
        try:
            return await self._runner.run(vm.name, quick)
        except MemoryRefusedError:
            raise
        except CrannogError as error:
            log.warning("%s: is started cold, as it could not be restored: %s", vm.name, error)
        self.steps.starting[vm.uuid].is_spawned = False
        stages = await self._runner.run(vm.name, plan)
        await images.note_useless(vm)
        return stages

    async def _settle_origins(self, vm: LocalVM) -> None:
        """Wait for the volumes that the VM's are layers over: a template that has just ended makes a new revision.

        Raises VMNotFoundError for a VM that was removed while its start waited for its turn.
        """
        if self.registry.find_uuid(vm.uuid) is not vm:
            raise VMNotFoundError(f"{vm.name} was not started: it has just been removed")
        for uuid in {origin(vm, name)[0].uuid for name in vm.volumes} - {vm.uuid}:
            await self.news.settled(uuid)

    def _tell_failure(self, vm: LocalVM, start: Starting, reason: str) -> None:
        self.machines.finish(vm.uuid)
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

    # -- stopping

    async def kill(self, vm: LocalVM) -> None:
        """End a VM at once, also one that is just being started. Raises VMNotRunningError for a halted one.

        Returns when its domain is gone. The clean-up is waited for no longer than `grace`: it goes on by itself, and
        whoever wants to start or remove the VM waits for the rest of it.
        """
        starting = self._starts.get(vm.uuid)
        if starting:
            starting.cancel()
            await asyncio.wait([starting])
            if not self.machines.has_domain(vm.uuid):
                return
            # It was just done, or was refused, as the VM ran already.
        check_running(vm, self.machines)
        await self.steps.cut(vm.uuid)
        with suppress(TimeoutError):
            async with asyncio.timeout(self.grace):
                await self.news.settled(vm.uuid)
