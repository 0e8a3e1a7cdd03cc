"""Making memory images: a disposable that boots to be saved, and goes.

It is a VM of the store like any other, with a feature that says what it is there for: whatever this daemon had begun
when it was killed is found by the next one, and ended.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

from crannog.core.announcement import CAN_RENEW
from crannog.core.domain import MemoryFiles
from crannog.core.layers import in_session, used_volumes
from crannog.core.memory_images import SPARE_DISK, Prospect
from crannog.core.preload import Host
from crannog.core.preload_wishes import INTERNAL, SEEDLING
from crannog.core.startup import StartRequest
from crannog.core.vms import ADMIN_NAME, LocalVM
from crannog.daemon.lifecycle import Lifecycle
from crannog.daemon.memory_images import MemoryImages
from crannog.editing.population import Population
from crannog.errors import CrannogError, HypervisorError, StorageError

log = logging.getLogger(__name__)

DESYNC_SECONDS = 0.3
"""So long a guest goes on after its channel was closed: its agent then waits for the next host."""
_MIB = 2**20

PutAway = Callable[[LocalVM], Awaitable[None]]
"""Ends and removes a VM, whatever state it is in."""


class Seedlings:
    """Grows one seedling at a time."""

    def __init__(
        self, lifecycle: Lifecycle, population: Population, images: MemoryImages, clock: Callable[[], float]
    ) -> None:
        self.current: LocalVM | None = None
        """The seedling that there is now."""
        self.is_going = False
        self._lifecycle = lifecycle
        self._world = lifecycle.world
        self._population = population
        self._images = images
        self._shelf = lifecycle.world.memory_shelf
        self._clock = clock

    def can_begin(self, host: Host) -> bool:
        """Tell whether a seedling may start now at all: nothing else starts meanwhile."""
        return self._world.hypervisor.saves_memory and not host.is_busy and not self.is_going

    def find_due(self, prospects: Iterable[Prospect], host: Host) -> Prospect | None:
        """Return the template of which an image is to be made now, if there is one."""
        there = set(self._shelf.templates())
        nursery, now = self._images.nursery, self._clock()
        due = (p for p in prospects if p.uuid not in there and nursery.is_due(p, now) and host.has_room(p.cost))
        return next(due, None)

    async def make(self, template: LocalVM, put_away: PutAway) -> None:
        """Make an image of a template. Whatever goes wrong is logged, leaves nothing, and is tried again later."""
        recipe, nursery = self._images.recipe(template), self._images.nursery
        self.is_going = True
        try:
            await self._make(template, recipe, put_away)
            log.info("%s: has a memory image now, from which its disposables are restored", template.name)
        except _HopelessError as error:
            nursery.give_up(template.uuid, recipe)
            log.info("%s: there is no memory image: %s", template.name, error)
        except Exception as error:
            nursery.note_failure(template.uuid, recipe, self._clock())
            trace = not isinstance(error, CrannogError)
            log.warning("%s: no memory image was made: %s", template.name, error, exc_info=trace)
        finally:
            self.is_going = False
            self._shelf.give_up(template.uuid)

    async def _make(self, template: LocalVM, recipe: str, put_away: PutAway) -> None:
        marks = {SEEDLING: "1", INTERNAL: "1"}
        vm = await self._population.create_disposable(template, created_by=ADMIN_NAME, features=marks)
        assert isinstance(vm, LocalVM)  # noqa: S101 - disposables are
        self.current = vm
        try:
            key = await self._find_key(vm)
            files = await asyncio.to_thread(self._begin, vm, template)
            await self._grow(vm, template, files)
        finally:
            await put_away(vm)
            self.current = None
        if self._images.recipe(template) != recipe:
            raise StorageError("what it is made from has changed meanwhile")
        await asyncio.to_thread(self._shelf.finish, template.uuid, key, recipe)

    async def _find_key(self, vm: LocalVM) -> str:
        plan = await self._lifecycle.plan(vm, StartRequest(wait=True, is_shown=False))
        key = await self._images.find_key(vm, plan)
        if not key:
            raise _HopelessError("its pool or its hypervisor cannot save such a VM")
        return key

    def _begin(self, vm: LocalVM, template: LocalVM) -> MemoryFiles:
        """Make the files of the image, if there is room for them: QEMU dies of a full disk. Blocks."""
        size = int(vm.get("memory")) * _MIB
        if self._shelf.free() < size + SPARE_DISK:
            raise StorageError(f"it needs {(size + SPARE_DISK) // _MIB} MiB of free space; free some")
        return self._shelf.begin(template.uuid, size)

    async def _grow(self, vm: LocalVM, template: LocalVM, files: MemoryFiles) -> None:
        """Boot the seedling, and save it with what it has written."""
        agents = self._world.agents
        await self._lifecycle.start(vm, StartRequest(wait=True, is_shown=False, memory_files=files))
        await agents.exercise(vm.uuid)
        status = agents.status(vm.uuid)
        if not status or not status.announced or status.announced.renewal != CAN_RENEW:
            raise _HopelessError("the agent of its guest cannot give a restored guest an identity of its own")
        await agents.put_to_sleep(vm.uuid)
        await agents.stop(vm.uuid)
        await asyncio.sleep(DESYNC_SECONDS)
        await self._lifecycle.pausing.pause(vm)
        if not self._lifecycle.machines.has_domain(vm.uuid):
            raise HypervisorError(f"{vm.name} has ended by itself")
        await self._world.hypervisor.save_memory(vm.uuid, files)
        for volume in used_volumes(vm):
            path = self._shelf.layer(template.uuid, volume.name)
            await self._world.pool_of(volume).copy_session(in_session(vm, volume), path)


class _HopelessError(Exception):
    """There can be no image of what a template is now."""
