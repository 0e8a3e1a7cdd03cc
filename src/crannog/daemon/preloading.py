"""Disposables that are started before they are needed: what core.preload decides is done here, in the background."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from crannog.core import events
from crannog.core.domain import DomainState
from crannog.core.events import Event
from crannog.core.preload import Discard, Reserve, Stage, Step
from crannog.core.preload_wishes import COMPLETED, IN_PROGRESS, INTERNAL, is_preloaded
from crannog.core.startup import StartRequest
from crannog.core.templates import origin
from crannog.core.vms import ADMIN_NAME, LocalVM, QubeBase
from crannog.daemon.lifecycle import Lifecycle
from crannog.daemon.preload_books import PreloadBooks
from crannog.daemon.preload_facts import PreloadFacts
from crannog.editing.editor import Editor
from crannog.editing.population import Population
from crannog.errors import CrannogError, StateError, VMNotFoundError, VMNotRunningError

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
"""How often the host's memory, and what VMs are made from, is looked at while there are any: not all of it is told."""
CALM = 0.05
"""Seconds in which what is told is collected: one change tells several events."""


class Preloading:
    """Keeps the pools of all disposable templates filled."""

    def __init__(
        self, lifecycle: Lifecycle, population: Population, editor: Editor, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.reserve = Reserve()
        self.lifecycle = lifecycle
        self.editor = editor
        self.clock = clock
        self.facts = PreloadFacts(lifecycle, editor)
        self.books = PreloadBooks(lifecycle.registry, editor)
        self.claims_going = 0
        """Calls that just hand one out."""
        self._population = population
        self._registry = lifecycle.registry
        self._machines = lifecycle.machines
        self._wake = asyncio.Event()
        self._chores: set[asyncio.Future[Any]] = set()
        self._discarded: set[str] = set()
        """VMs that were ended while they started: that this fails then is nobody's fault."""
        lifecycle.ledger.give_up = self._give_up
        lifecycle.make_way = population.make_way = self.make_way
        editor.listen(self._note)

    # -- the loop

    async def run(self) -> None:
        """Look at what there is, and do what follows, for ever."""
        await self.facts.prepare()
        while True:
            self._wake.clear()
            try:
                for step in await self.decide():
                    await self._do(step)
            except Exception:
                log.exception("disposables are not started in advance now")
            await self._sleep()

    async def _sleep(self) -> None:
        """Return when something has happened, or it is time to look again."""
        due = self.reserve.due(self.clock())
        times = [LOOK_SECONDS] if self.reserve.members else []
        times += [due] if due is not None else []
        try:
            async with asyncio.timeout(min(times, default=None)):
                await self._wake.wait()
        except TimeoutError:
            return
        await asyncio.sleep(CALM)

    async def decide(self) -> list[Step]:
        """Return what is to be done now."""
        wishes = self.facts.wishes()
        self.reserve.wish(wishes)
        self.books.keep_names(wishes.keys() | {member.pool for member in self.reserve.members.values()})
        await self._sweep()
        if not wishes and not self.reserve.members:
            return []
        warming = {m.uuid for m in self.reserve.members.values() if m.stage is Stage.WARMING}
        is_busy = bool(self.lifecycle.starting() - warming) or self.claims_going > 0
        return self.reserve.next_steps(self.clock(), await self.facts.host(is_busy=is_busy))

    async def _sweep(self) -> None:
        """Remove what is nobody's and has ended, and could not be removed then: the store could not be written."""
        for vm in self._registry.local_vms():
            if is_preloaded(vm) and vm.power_state == "Halted" and vm.uuid not in self.reserve.members:
                await self.discard(vm.uuid, "it has ended")

    async def _do(self, step: Step) -> None:
        if isinstance(step, Discard):
            await self.discard(step.uuid, step.reason)
            return
        template = self._registry.find_uuid(step.pool)
        if isinstance(template, LocalVM) and not self.facts.is_blocked(template):  # time has passed since the look
            await self._begin(template, step.reason)

    def _note(self, event: Event) -> None:
        """Look again after whatever has changed: it is known only then whether that matters."""
        if event.name == "domain-unpaused":
            self._note_unpaused(self._registry.by_name(event.subject))
        elif event.name in ("domain-shutdown", "domain-delete"):
            self._note_end()
        self._wake.set()

    def _note_unpaused(self, vm: QubeBase | None) -> None:
        """Take a VM that somebody lets run by hand as handed out to them: it must not be anybody else's too."""
        member = self.reserve.members.get(vm.uuid) if vm else None
        if vm and member and member.stage is Stage.READY:
            log.warning("%s: was let run without being asked for, and is nobody else's now", vm.name)
            self.reserve.take(vm.uuid, self.clock())
            self.keep(asyncio.ensure_future(self._forget_marks(vm)))

    async def _forget_marks(self, vm: QubeBase) -> None:
        try:
            self.books.save_claim(vm, ADMIN_NAME)
        except CrannogError as error:
            log.error("%s: %s", vm.name, error)

    def _note_end(self) -> None:
        """Forget VMs that are not in the store any more, and those that were ready and have no domain any more."""
        for member in list(self.reserve.members.values()):
            is_gone = self._registry.find_uuid(member.uuid) is None
            if is_gone or (member.stage is Stage.READY and not self._machines.has_domain(member.uuid)):
                self.reserve.spend(member.uuid)

    # -- one VM

    async def ask(self, template: QubeBase) -> LocalVM:
        """Start one more VM of a template in advance now; return it while it starts.

        Raises StateError when there are as many as wanted, and what the creation raises.
        """
        wishes = self.facts.wishes()
        self.reserve.wish(wishes)
        there, wanted = len(self.reserve.unclaimed_of(template.uuid)), getattr(wishes.get(template.uuid), "size", 0)
        if there >= wanted or not isinstance(template, LocalVM):
            raise StateError(
                f"{template.name} has {there} of {wanted} disposables ready; raise that with 'qvm-features "
                f"{template.name} preload-dispvm-max'"
            )
        return await self._begin(template, "it was asked for")

    async def _begin(self, template: LocalVM, reason: str) -> LocalVM:
        """Create a VM, and have it started in the background."""
        recipe = self.facts.recipe(template)
        self.editor.tell(events.preload_began(template.name, reason))
        marks = {IN_PROGRESS: "1", INTERNAL: "1"}
        try:
            vm = await self._population.create_disposable(template, created_by=ADMIN_NAME, features=marks)
        except CrannogError:
            self.reserve.note_failure(template.uuid, self.clock())
            raise
        assert isinstance(vm, LocalVM)  # noqa: S101 - disposables are
        self.reserve.add(template.uuid, vm.uuid, recipe)
        self.keep(asyncio.ensure_future(self._warm(vm, template.uuid)))
        return vm

    async def _warm(self, vm: LocalVM, pool: str) -> None:
        """Start a VM up to the moment in which it could be handed out."""
        try:
            if vm.template and self.facts.is_blocked(vm.template):
                await self.discard(vm.uuid, f"{vm.template.name} is in use by now")
                return
            await self.lifecycle.start(vm, StartRequest(wait=True, is_shown=False))
            await self._set_aside(vm)
        except Exception as error:
            if vm.uuid not in self._discarded:
                # A mistake of ours must not be made again and again without a pause either.
                log.warning("no disposable is ready: %s", error, exc_info=not isinstance(error, CrannogError))
                self.reserve.note_failure(pool, self.clock())
                await self.discard(vm.uuid, "it did not start")
        finally:
            self._discarded.discard(vm.uuid)
            self._wake.set()

    async def _set_aside(self, vm: LocalVM) -> None:
        """Pause a VM that has started, unless somebody has claimed it, or does so just then."""
        await self.lifecycle.world.agents.exercise(vm.uuid)
        member = self.reserve.members.get(vm.uuid)
        if member and member.stage is Stage.WARMING:
            await self.lifecycle.pausing.pause(vm)
            if self.reserve.members.get(vm.uuid) is not member:
                return  # it was discarded
            if self.reserve.note_ready(vm.uuid):
                self.books.note_ready(vm, member.recipe)
                return
            await self.lifecycle.steps.let_run(vm.name, vm.uuid)
        await self.lifecycle.show(vm)

    async def discard(self, uuid: str, reason: str) -> None:
        """End and remove a VM that nobody has claimed; one that is gone already is no error."""
        vm = self._registry.find_uuid(uuid)
        member = self.reserve.members.get(uuid)
        if member and member.stage is Stage.WARMING:
            self._discarded.add(uuid)
        self.reserve.spend(uuid)
        if not isinstance(vm, LocalVM):
            return
        log.info("%s: is not kept ready any more: %s", vm.name, reason)
        await self.put_away(vm)

    async def put_away(self, vm: LocalVM) -> None:
        """End and remove a disposable, whoever had it; one that goes by itself meanwhile is no error."""
        try:
            if self._machines.has_domain(vm.uuid) or vm.uuid in self.lifecycle.starting():
                await self.lifecycle.kill(vm)
            await self.lifecycle.news.settled(vm.uuid)
            await self._population.remove(vm)
        except (VMNotFoundError, VMNotRunningError):
            return  # it went by itself
        except CrannogError as error:
            log.error("%s: %s", vm.name, error)

    # -- making room

    async def make_way(self, vm: QubeBase) -> None:
        """End the VMs that were started in advance and that a VM, which is to start or to go, could not be beside."""
        for template in self._registry.local_vms():
            if self.reserve.unclaimed_of(template.uuid) and (template is vm or self._stands_on(template, vm)):
                for uuid in self.reserve.unclaimed_of(template.uuid):
                    await self.discard(uuid, f"{vm.name} is to start, or to be removed")

    def _stands_on(self, template: LocalVM, vm: QubeBase) -> bool:
        """Tell whether disposables of a template show volumes of a VM that cannot be used while that one runs."""
        for name in template.volumes:
            owner, volume = origin(template, name)
            if owner is vm and not volume.is_kernel:
                pool = self.lifecycle.world.pools.get(volume.pool)
                if pool is None or not volume.can_be_used_beside(shares_live=pool.shares_live):
                    return True
        return False

    async def _give_up(self, newcomer: str) -> bool:
        """End a VM that nobody has claimed for one that is wanted now; return whether there was one."""
        member = self.reserve.members.get(newcomer)
        if member and member.stage is Stage.WARMING:
            return False
        victims = self.reserve.find_victims()
        if victims:
            await self.discard(victims[0], "its memory is needed")
        return bool(victims)

    # -- a daemon comes

    async def adopt(self) -> None:
        """Take over what a former daemon has left: what is ready stays so, and what was half done is ended.

        To be called when all domains are known.
        """
        claimed = set(self.lifecycle.world.marked_claims())
        for vm in [vm for vm in self._registry.local_vms() if is_preloaded(vm) or vm.uuid in claimed]:
            recipe = vm.features.get(COMPLETED, "")
            is_paused = self._machines.domain_state(vm.uuid) is DomainState.PAUSED
            if recipe and is_paused and vm.template and vm.uuid not in claimed:
                self.reserve.add(vm.template.uuid, vm.uuid, recipe, Stage.READY)
            else:
                await self.discard(vm.uuid, "a former crannogd did not get further with it")
        for uuid in claimed:
            self.lifecycle.world.unmark_claim(uuid)

    def keep(self, task: "asyncio.Future[Any]") -> None:
        """Hold a reference until the task is done."""
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)
