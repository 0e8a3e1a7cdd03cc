"""VMs that come and go, together with their volumes: whole in the store and in the pools, or in neither."""

import logging
import secrets
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from crannog.core import events
from crannog.core.registry import Registry
from crannog.core.tags import creation_tags, following_tags
from crannog.core.templates import origin
from crannog.core.vms import QubeBase
from crannog.core.volumes import Volume
from crannog.editing.editor import Editor
from crannog.editing.hold import Hold, hold_nothing
from crannog.errors import StorageError
from crannog.ports.storage import Pool

log = logging.getLogger(__name__)

MAX_DISPID = 10000


@dataclass(frozen=True)
class NewVM:
    """What a new VM shall be; an empty label means the default, no template the default one."""

    klass: str
    name: str
    label: str
    template: QubeBase | None


class Population:
    """Adds and removes the VMs of one registry."""

    def __init__(
        self,
        editor: Editor,
        pools: Mapping[str, Pool],
        *,
        hold: Hold = hold_nothing,
        forget: Callable[[str], None] = lambda _name: None,
        new_uuid: Callable[[], str] = lambda: str(uuid.uuid4()),
        choose: Callable[[list[int]], int] = secrets.choice,
    ) -> None:
        """`forget` is called with the name of each VM that was removed, to clean up what is kept under it."""
        self._editor = editor
        self._pools = pools
        self._hold = hold
        self._forget = forget
        self._new_uuid = new_uuid
        self._choose = choose

    @property
    def _registry(self) -> Registry:
        return self._editor.registry

    async def create(self, wanted: NewVM, *, created_by: str) -> QubeBase:
        """Make a new VM with its volumes; a failure at any step leaves nothing of it."""
        registry = self._registry
        label = registry.find_label(wanted.label) if wanted.label else None
        cls = registry.find_class(wanted.klass)
        template = wanted.template
        if template is None and cls.is_template_based:
            template = registry.get("default_dispvm" if cls.is_disposable else "default_template")
        dispid = self._free_dispid() if cls.is_disposable else None
        vm = registry.draft(wanted.klass, wanted.name, self._new_uuid(), template, dispid=dispid)
        if label:
            vm.values["label"] = label
        async with self._new_volumes(vm):
            self._add(vm, created_by)
        return vm

    async def clone(self, source: QubeBase, name: str, *, klass: str, created_by: str) -> QubeBase:
        """Make a VM with all settings of `source`, its notes, and copies of its volumes. The source must be halted."""
        async with self._hold(source.uuid):
            return await self._clone(source, name, klass, created_by)

    async def _clone(self, source: QubeBase, name: str, klass: str, created_by: str) -> QubeBase:
        self._editor.check_halted(source, "be cloned")
        cls = self._registry.find_class(klass or source.klass)
        dispid = self._free_dispid() if cls.is_disposable else None
        vm = self._registry.draft_clone(source, name, self._new_uuid(), klass, dispid=dispid)
        async with self._new_volumes(vm):
            for volume in list(vm.volumes.values()):
                if volume.save_on_stop:
                    vm.volumes[volume.name] = await self._pool(volume).clone(origin(source, volume.name)[1], volume)
            notes = self._editor.notes(source)
            if notes:
                self._editor.set_notes(vm, notes)
            try:
                self._add(vm, created_by)
            except BaseException:
                with suppress(StorageError):  # notes that nobody refers to do no harm
                    self._editor.set_notes(vm, "")
                raise
        return vm

    @asynccontextmanager
    async def _new_volumes(self, vm: QubeBase) -> AsyncIterator[None]:
        """Make the VM's volumes, run the block that puts it into the store, and make them lasting.

        When the block fails the volumes are removed. A daemon that dies meanwhile leaves them marked as provisional.
        """
        groups = self._by_pool(vm)
        done: list[Pool] = []
        try:
            for pool, volumes in groups.items():
                await pool.create(volumes)
                done.append(pool)  # one that fails leaves nothing by itself
            yield
        except BaseException:
            for pool in done:
                try:
                    await pool.remove(groups[pool])
                except StorageError as error:
                    log.warning("%s: %s", vm.name, error)
            raise
        for pool, volumes in groups.items():
            try:
                await pool.claim(volumes)
            except StorageError as error:
                log.warning("%s: %s; the next start of crannogd tries again", vm.name, error)

    def _add(self, vm: QubeBase, created_by: str) -> None:
        creator = self._registry.find_vm(created_by)
        vm.tags |= creation_tags(creator) | following_tags(vm)
        with self._editor.change(self._registry) as told:
            self._registry.add(vm)
            told.extend(events.vm_created(vm.name, vm.tags))

    async def remove(self, vm: QubeBase) -> None:
        """Remove a halted VM: from the store first, so that a crash leaves at most files that nobody refers to.

        Volumes in pools that this host cannot serve stay where they are.
        """
        async with self._hold(vm.uuid):
            try:
                await self._remove(vm)
            finally:
                if self._registry.find_uuid(vm.uuid) is None:
                    self._forget(vm.name)

    async def _remove(self, vm: QubeBase) -> None:
        self._editor.check_halted(vm, "be removed")
        with self._editor.change(self._registry) as told:
            self._registry.remove(vm)
            told.extend(events.vm_removed(vm.name))
        self._editor.set_notes(vm, "")
        for volume in vm.volumes.values():
            pool = self._pools.get(volume.pool)
            if pool:
                await pool.remove((volume,))
            else:
                log.warning("%s: its volume %s stays: no pool '%s' here", vm.name, volume.vid, volume.pool)
        self._editor.tell(events.volumes_removed(vm.name))

    def _by_pool(self, vm: QubeBase) -> dict[Pool, tuple[Volume, ...]]:
        groups: dict[Pool, tuple[Volume, ...]] = {}
        for volume in vm.volumes.values():
            pool = self._pool(volume)
            groups[pool] = (*groups.get(pool, ()), volume)
        return groups

    def _pool(self, volume: Volume) -> Pool:
        return find_pool(self._pools, volume)

    def _free_dispid(self) -> int:
        """Return a number that no disposable has: any, so that it says nothing about those before."""
        taken = {vm.values.get("dispid") for vm in self._registry}
        free = [number for number in range(1, MAX_DISPID) if number not in taken]
        return self._choose(free) if free else self._registry.free_dispid()


def find_pool(pools: Mapping[str, Pool], volume: Volume) -> Pool:
    """Return the pool of a volume; raises StorageError when this host cannot serve it."""
    try:
        return pools[volume.pool]
    except KeyError:
        raise StorageError(
            f"volume {volume.vid} is in pool '{volume.pool}', which cannot be served on this host (there: "
            f"{', '.join(pools)}); 'qubes-prefs default_pool' says where new volumes go"
        ) from None
