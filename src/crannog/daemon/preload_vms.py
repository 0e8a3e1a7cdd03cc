"""The VMs of the pools of disposables: how each begins, gets ready, is taken over by another daemon, and goes."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from crannog.core.domain import DomainState
from crannog.core.preload import Reserve, Stage
from crannog.core.preload_wishes import COMPLETED, IN_PROGRESS, INTERNAL, is_nobodys
from crannog.core.startup import StartRequest
from crannog.core.vms import ADMIN_NAME, LocalVM
from crannog.daemon.lifecycle import Lifecycle
from crannog.daemon.preload_books import PreloadBooks
from crannog.daemon.preload_facts import PreloadFacts
from crannog.editing.population import Population
from crannog.errors import CrannogError, VMNotFoundError, VMNotRunningError

log = logging.getLogger(__name__)


class PreloadVMs:
    """Does with one VM what the pools' state machine wants; `wake` has that look again."""

    def __init__(
        self,
        reserve: Reserve,
        lifecycle: Lifecycle,
        population: Population,
        facts: PreloadFacts,
        books: PreloadBooks,
        clock: Callable[[], float],
        wake: Callable[[], None],
    ) -> None:
        self._reserve = reserve
        self._lifecycle = lifecycle
        self._population = population
        self._facts = facts
        self._books = books
        self._clock = clock
        self._wake = wake
        self._chores: set[asyncio.Future[None]] = set()
        self._registry = lifecycle.registry
        self._machines = lifecycle.machines
        self._discarded: set[str] = set()
        """VMs that were ended while they started: that this fails then is nobody's fault."""

    async def begin(self, template: LocalVM, reason: str) -> LocalVM:
        """Create a VM, and have it started in the background."""
        recipe = self._facts.recipe(template)
        self._books.note_begin(template, reason)
        marks = {IN_PROGRESS: "1", INTERNAL: "1"}
        try:
            vm = await self._population.create_disposable(template, created_by=ADMIN_NAME, features=marks)
        except CrannogError:
            self._reserve.note_failure(template.uuid, self._clock())
            raise
        assert isinstance(vm, LocalVM)  # noqa: S101 - disposables are
        self._reserve.add(template.uuid, vm.uuid, recipe)
        self.keep(self._warm(vm, template.uuid))
        return vm

    async def _warm(self, vm: LocalVM, pool: str) -> None:
        """Start a VM up to the moment in which it could be handed out."""
        try:
            if vm.template and self._facts.is_blocked(vm.template):
                await self.discard(vm.uuid, f"{vm.template.name} is in use by now")
                return
            await self._lifecycle.start(vm, StartRequest(wait=True, is_shown=False))
            await self._set_aside(vm)
        except Exception as error:
            if vm.uuid not in self._discarded:
                # A mistake of ours must not be made again and again without a pause either.
                log.warning("no disposable is ready: %s", error, exc_info=not isinstance(error, CrannogError))
                self._reserve.note_failure(pool, self._clock())
                await self.discard(vm.uuid, "it did not start")
        finally:
            self._discarded.discard(vm.uuid)
            self._wake()

    async def _set_aside(self, vm: LocalVM) -> None:
        """Pause a VM that has started, unless somebody has claimed it, or does so just then."""
        await self._lifecycle.world.agents.exercise(vm.uuid)
        member = self._reserve.members.get(vm.uuid)
        if member and member.stage is Stage.WARMING:
            await self._lifecycle.pausing.pause(vm)
            if self._reserve.members.get(vm.uuid) is not member:
                return  # it was discarded
            if self._reserve.note_ready(vm.uuid):
                self._books.note_ready(vm, member.recipe)
                return
            await self._lifecycle.steps.let_run(vm.name, vm.uuid)
        await self._lifecycle.show(vm)

    async def discard(self, uuid: str, reason: str) -> None:
        """End and remove a VM that nobody has claimed; one that is gone already is no error."""
        vm = self._registry.find_uuid(uuid)
        member = self._reserve.members.get(uuid)
        if member and member.stage is Stage.WARMING:
            self._discarded.add(uuid)
        self._reserve.spend(uuid)
        if not isinstance(vm, LocalVM):
            return
        log.info("%s: is not kept ready any more: %s", vm.name, reason)
        await self.put_away(vm)

    async def put_away(self, vm: LocalVM) -> None:
        """End and remove a disposable, whoever had it; one that goes by itself meanwhile is no error."""
        try:
            if self._machines.has_domain(vm.uuid) or vm.uuid in self._lifecycle.starting():
                await self._lifecycle.kill(vm)
            await self._lifecycle.news.settled(vm.uuid)
            await self._population.remove(vm)
        except (VMNotFoundError, VMNotRunningError):
            return  # it went by itself
        except CrannogError as error:
            log.error("%s: %s", vm.name, error)

    async def adopt(self) -> None:
        """Take over what a former daemon has left: what is ready stays so, and what was half done is ended.

        To be called when all domains are known.
        """
        claimed = set(self._lifecycle.world.marked_claims())
        for vm in [vm for vm in self._registry.local_vms() if is_nobodys(vm) or vm.uuid in claimed]:
            recipe = vm.features.get(COMPLETED, "")
            is_paused = self._machines.domain_state(vm.uuid) is DomainState.PAUSED
            if recipe and is_paused and vm.template and vm.uuid not in claimed:
                self._reserve.add(vm.template.uuid, vm.uuid, recipe, Stage.READY)
            else:
                await self.discard(vm.uuid, "a former crannogd did not get further with it")
        for uuid in claimed:
            self._lifecycle.world.unmark_claim(uuid)

    def keep(self, chore: Coroutine[Any, Any, None]) -> None:
        """Have something done in the background."""
        task = asyncio.ensure_future(chore)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)
