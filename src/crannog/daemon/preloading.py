"""Disposables that are started before they are needed: what core.preload decides is done here, in the background."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from crannog.core.events import Event
from crannog.core.memory_images import Sow
from crannog.core.preload import Discard, Reserve, Stage, Step
from crannog.core.preload_wishes import MAX, is_nobodys
from crannog.core.vms import ADMIN_NAME, LocalVM, QubeBase
from crannog.daemon.lifecycle import Lifecycle
from crannog.daemon.memory_images import MemoryImages
from crannog.daemon.preload_books import PreloadBooks
from crannog.daemon.preload_facts import PreloadFacts
from crannog.daemon.preload_room import PreloadRoom
from crannog.daemon.preload_vms import PreloadVMs
from crannog.daemon.seedlings import Seedlings
from crannog.editing.editor import Editor
from crannog.editing.population import Population
from crannog.errors import CrannogError, StateError

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
        self.clock = clock
        self.facts = PreloadFacts(lifecycle, editor)
        self.books = PreloadBooks(lifecycle.registry, editor)
        self.images = MemoryImages(lifecycle.world, lifecycle.registry, self.facts.recipe, clock)
        self.seedlings = Seedlings(lifecycle, population, self.images, clock)
        lifecycle.images = self.images
        self.claims_going = 0
        """Calls that just hand one out."""
        self._registry = lifecycle.registry
        self._machines = lifecycle.machines
        self._wake = asyncio.Event()
        self.vms = PreloadVMs(self.reserve, lifecycle, population, self.facts, self.books, clock, self._wake.set)
        self._room = PreloadRoom(self.reserve, self.seedlings, lifecycle, self.vms)
        self.make_way = self._room.make_way
        lifecycle.ledger.spare, lifecycle.ledger.give_up = self._room.spare, self._room.give_up
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
        now = self.clock()
        times = [LOOK_SECONDS] if self.reserve.members else []
        times += [due for due in (self.reserve.due(now), self.images.nursery.due(now)) if due is not None]
        try:
            async with asyncio.timeout(min(times, default=None)):
                await self._wake.wait()
        except TimeoutError:
            return
        await asyncio.sleep(CALM)

    async def decide(self) -> Sequence[Step | Sow]:
        """Return what is to be done now."""
        wishes = self.facts.wishes()
        self.reserve.wish(wishes)
        self.books.keep_names(wishes.keys() | {member.pool for member in self.reserve.members.values()})
        await self._sweep()
        await self.images.weed()
        if not wishes and not self.reserve.members and not self.images.nursery.has_seen_any():
            return []
        warming = {m.uuid for m in self.reserve.members.values() if m.stage is Stage.WARMING}
        is_busy = bool(self.lifecycle.starting() - warming) or self.claims_going > 0 or self.seedlings.is_going
        host = await self.facts.host(is_busy=is_busy)
        steps = self.reserve.next_steps(self.clock(), host)
        has_more_urgent = bool(warming) or any(isinstance(step, Discard) for step in steps)
        if has_more_urgent or not self.seedlings.can_begin(host):
            return steps
        due = self.seedlings.find_due(self.facts.prospects(wishes, self.reserve), host)
        return [Sow(due.uuid)] if due else steps

    async def _sweep(self) -> None:
        """Remove what is nobody's and has ended, and could not be removed then: the store could not be written."""
        for vm in self._registry.local_vms():
            is_known = vm.uuid in self.reserve.members or vm is self.seedlings.current
            if is_nobodys(vm) and vm.power_state == "Halted" and not is_known:
                await self.vms.discard(vm.uuid, "it has ended")

    async def _do(self, step: Step | Sow) -> None:
        if isinstance(step, Discard):
            await self.vms.discard(step.uuid, step.reason)
            return
        template = self._registry.find_uuid(step.pool)
        if not isinstance(template, LocalVM) or self.facts.is_blocked(template):  # time has passed since the look
            return
        if isinstance(step, Sow):
            self.vms.keep(self._sow(template))
        else:
            await self.vms.begin(template, step.reason)

    async def _sow(self, template: LocalVM) -> None:
        """Make a memory image; pools wait for that."""
        try:
            await self.seedlings.make(template, self.vms.put_away)
        finally:
            self._wake.set()

    def _note(self, event: Event) -> None:
        """Look again after whatever has changed: it is known only then whether that matters."""
        if event.name == "domain-unpaused":
            self._note_unpaused(self._registry.by_name(event.subject))
        elif event.name == f"domain-feature-set:{MAX}":
            self._note_wish(event.subject)
        elif event.name in ("domain-shutdown", "domain-delete"):
            self._note_end()
        self._wake.set()

    def _note_wish(self, name: str) -> None:
        """Fill pools whose size was set, also to what it was: the loop sees what holds now, and not each step there."""
        vm = self._registry.get("default_dispvm") if name == ADMIN_NAME else self._registry.by_name(name)
        if isinstance(vm, LocalVM):
            self.reserve.renew(vm.uuid)

    def _note_unpaused(self, vm: QubeBase | None) -> None:
        """Take a VM that somebody lets run by hand as handed out to them: it must not be anybody else's too."""
        member = self.reserve.members.get(vm.uuid) if vm else None
        if vm and member and member.stage is Stage.READY:
            log.warning("%s: was let run without being asked for, and is nobody else's now", vm.name)
            self.reserve.take(vm.uuid, self.clock())
            self.vms.keep(self._forget_marks(vm))

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
        return await self.vms.begin(template, "it was asked for")

    async def abandon_seedling(self) -> None:
        """End the VM that is to be saved: the daemon goes."""
        if self.seedlings.current:
            await self.vms.put_away(self.seedlings.current)
