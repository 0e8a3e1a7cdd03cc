"""Using memory images: which start is a restore, and what becomes of images that are of no use any more."""

import asyncio
import logging
from collections.abc import Callable

from crannog.core.memory_images import Nursery, make_key, may_restore, restored, spec_of, without_names
from crannog.core.plan import Plan, PrepareVolume
from crannog.core.registry import Registry
from crannog.core.vms import LocalVM, QubeBase
from crannog.daemon.world import World
from crannog.errors import CrannogError, StorageError

log = logging.getLogger(__name__)

Recipe = Callable[[LocalVM], str]
"""Returns what a disposable of a template is made from now (daemon.preload_facts)."""


class MemoryImages:
    """The images of all disposable templates, and what is remembered of starts without one."""

    def __init__(self, world: World, registry: Registry, recipe: Recipe, clock: Callable[[], float]) -> None:
        self.nursery = Nursery()
        self.recipe = recipe
        self._world = world
        self._registry = registry
        self._clock = clock
        self._shelf = world.memory_shelf

    # -- starts

    async def choose(self, vm: LocalVM, plan: Plan) -> Plan | None:
        """Return the plan of a cold start as one that restores an image; None where there is none that fits.

        Never raises: a start that cannot be a restore is a cold one.
        """
        template = vm.template
        if not vm.is_disposable or not isinstance(template, LocalVM) or not self.may_have(template):
            return None
        try:
            image = await asyncio.to_thread(self._shelf.find, template.uuid)
            if image is None:
                log.debug("%s: is started cold: %s has no memory image", vm.name, template.name)
                return None
            key = await self.find_key(vm, plan)
            if key != image.key:
                log.info("%s: is started cold: the memory image of %s is of another machine", vm.name, template.name)
                return None
            return restored(plan, image.files, image.layers, int(vm.get("qrexec_timeout")))
        except (CrannogError, LookupError) as error:
            log.warning("%s: is started cold: %s", vm.name, error)
            await self.drop(template.uuid, "it cannot be used")
            return None

    def may_have(self, template: QubeBase) -> bool:
        """Tell whether there can be images of a template at all."""
        return self._world.hypervisor.saves_memory and template.is_disposable_template() and may_restore(template)

    async def find_key(self, vm: LocalVM, plan: Plan) -> str:
        """Return the key that an image must have for the VM to be restored from it; empty when none can be.

        Raises HypervisorError, and StorageError for a volume whose pool is not there.
        """
        steps = [step for step in plan if isinstance(step, PrepareVolume)]
        pools = [(self._world.pool_of(step.volume), step.volume) for step in steps]
        if not all(pool.can_copy_session(volume) for pool, volume in pools) or not isinstance(vm.template, LocalVM):
            return ""
        own = frozenset(pool.locate(volume).path for pool, volume in pools)
        machine = await self._world.hypervisor.machine_key(without_names(spec_of(plan), own), vm.name)
        return make_key(self.recipe(vm.template), machine) if machine else ""

    def note_cold(self, vm: LocalVM) -> None:
        """Note that a VM was started cold; of a disposable that could have been restored, that counts.

        One whose agent was not waited for does not: it may have none, and without it nothing can be saved.
        """
        template, status = vm.template, self._world.agents.status(vm.uuid)
        if status is None or not status.runs_commands:
            return
        if vm.is_disposable and isinstance(template, LocalVM) and self.may_have(template):
            self.nursery.note_cold(template.uuid, self.recipe(template))

    async def note_useless(self, vm: LocalVM) -> None:
        """Note that a VM could not be restored although its image fits, and was started cold without trouble."""
        template = vm.template
        if isinstance(template, LocalVM):
            self.nursery.note_failure(template.uuid, self.recipe(template), self._clock())
            await self.drop(template.uuid, "nothing could be restored from it")

    # -- images that go

    async def drop(self, template: str, reason: str) -> None:
        """Delete the image of a template; none is no error."""
        vm = self._registry.find_uuid(template)
        name = vm.name if vm else template
        try:
            if template in await asyncio.to_thread(self._shelf.templates):
                log.info("%s: its memory image is dropped: %s", name, reason)
                await asyncio.to_thread(self._shelf.discard, template)
        except StorageError as error:
            log.error("%s: %s", name, error)

    async def weed(self) -> None:
        """Drop what is out of date: images of templates that are gone, have changed, or are to have none."""
        self.nursery.forget(frozenset(vm.uuid for vm in self._registry))
        for uuid in await asyncio.to_thread(self._shelf.templates):
            template = self._registry.find_uuid(uuid)
            if not isinstance(template, LocalVM):
                await self.drop(uuid, "its template is gone")
            elif not self.may_have(template):
                await self.drop(uuid, "its template is to have none")
            elif await asyncio.to_thread(self._shelf.read_recipe, uuid) != self.recipe(template):
                await self.drop(uuid, "what it was made from has changed")
