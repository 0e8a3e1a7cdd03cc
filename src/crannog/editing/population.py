"""VMs that come and go, together with their volumes: whole in the store and in the pools, or in neither."""

import logging
import secrets
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from types import MappingProxyType

from crannog.core import events
from crannog.core.registry import Registry
from crannog.core.tags import claim_tags, creation_tags, following_tags
from crannog.core.templates import origin
from crannog.core.vms import QubeBase
from crannog.core.volumes import Volume
from crannog.editing.editor import Editor
from crannog.editing.hold import Busy, Hold, check_free, hold_all, hold_nothing
from crannog.editing.places import check_steady, choose_pools, find_pool
from crannog.errors import InUseError, StorageError
from crannog.ports.storage import Pool

log = logging.getLogger(__name__)

MAX_DISPID = 10000


@dataclass(frozen=True)
class NewVM:
    """What a new VM shall be; an empty label means the default, no template the default one.

    `pools` says in which pools volumes shall be, by their names; the empty name stands for all volumes that are no
    layers. Others go where the global properties say.
    """

    klass: str
    name: str
    label: str
    template: QubeBase | None
    pools: Mapping[str, str] = field(default_factory=dict)


async def _make_no_way(_vm: QubeBase) -> None:
    return


class Population:
    """Adds and removes the VMs of one registry."""

    def __init__(
        self,
        editor: Editor,
        pools: Mapping[str, Pool],
        *,
        hold: Hold = hold_nothing,
        busy: Busy | None = None,
        forget: Callable[[str], None] = lambda _name: None,
        new_uuid: Callable[[], str] = lambda: str(uuid.uuid4()),
        choose: Callable[[list[int]], int] = secrets.choice,
    ) -> None:
        """`forget` is called with the name of each VM that was removed, to clean up what is kept under it."""
        self._editor = editor
        self._pools = pools
        self._hold = hold
        self._busy: Busy = {} if busy is None else busy
        self._dispids: set[int] = set()
        """Numbers of disposables that are just being made."""
        self.make_way: Callable[[QubeBase], Awaitable[None]] = _make_no_way
        """Called with each VM that is to be removed; has VMs go that are there for its sake alone."""
        self._forget = forget
        self._new_uuid = new_uuid
        self._choose = choose

    @property
    def _registry(self) -> Registry:
        return self._editor.registry

    async def create(self, wanted: NewVM, *, created_by: str) -> QubeBase:
        """Make a new VM with its volumes; a failure at any step leaves nothing of it."""
        with self._dispid_for(self._registry.find_class(wanted.klass), self._free_dispid) as dispid:
            return await self._create(wanted, created_by, dispid)

    async def create_disposable(
        self, template: QubeBase, *, created_by: str, features: Mapping[str, str] = MappingProxyType({})
    ) -> QubeBase:
        """Make a disposable that is named after its number and goes when it stops, with these features besides."""
        with self._dispid_for(self._registry.find_class("DispVM"), self._free_numbered_name) as dispid:
            wanted = NewVM("DispVM", f"disp{dispid}", "", template)
            return await self._create(wanted, created_by, dispid, is_for_one_use=True, features=features)

    async def _create(
        self,
        wanted: NewVM,
        created_by: str,
        dispid: int | None,
        *,
        is_for_one_use: bool = False,
        features: Mapping[str, str] = MappingProxyType({}),
    ) -> QubeBase:
        registry = self._registry
        label = registry.find_label(wanted.label) if wanted.label else None
        cls = registry.find_class(wanted.klass)
        template = wanted.template
        if template is None and cls.is_template_based:
            template = registry.get("default_dispvm" if cls.is_disposable else "default_template")
        vm = registry.draft(wanted.klass, wanted.name, self._new_uuid(), template, dispid=dispid)
        vm.volumes = choose_pools(vm, wanted.pools)
        if label:
            vm.values["label"] = label
        if is_for_one_use:
            vm.values["auto_cleanup"] = True
            vm.tags |= claim_tags(registry.find_vm(created_by))
        vm.features.update(features)
        async with self._new_volumes(vm):
            self._add_with_texts(vm, created_by, rules_of=vm.template if cls.is_disposable else None)
        return vm

    async def clone(
        self, source: QubeBase, name: str, *, klass: str, created_by: str, pools: Mapping[str, str] | None = None
    ) -> QubeBase:
        """Make a VM with all settings of `source`, its notes, and copies of its volumes. The source must be halted.

        `pools` is that of NewVM.
        """
        self._editor.check_halted(source, "be cloned")  # one that is starting would be waited for
        owners = {owner for owner, held in (origin(source, volume) for volume in source.volumes) if held.is_in_place}
        async with hold_all(self._hold, source, *owners):
            return await self._clone(source, NewVM(klass, name, "", None, pools or {}), created_by)

    async def _clone(self, source: QubeBase, wanted: NewVM, created_by: str) -> QubeBase:
        self._editor.check_halted(source, "be cloned")
        check_free(self._busy, source, "be cloned")
        cls = self._registry.find_class(wanted.klass or source.klass)
        with self._dispid_for(cls, self._free_dispid) as dispid:
            vm = self._registry.draft_clone(source, wanted.name, self._new_uuid(), wanted.klass, dispid=dispid)
            vm.volumes = choose_pools(vm, wanted.pools)
            async with self._new_volumes(vm):
                for volume in list(vm.volumes.values()):
                    if volume.save_on_stop:
                        vm.volumes[volume.name] = await self._copy(source, volume)
                self._add_with_texts(vm, created_by, notes=self._editor.notes(source), rules_of=source)
        return vm

    async def _copy(self, source: QubeBase, target: Volume) -> Volume:
        """Copy what the volume of the same name of another VM shows."""
        check_steady(self._editor, source, target.name)
        _, held = origin(source, target.name)
        return await self._pool(target).clone(held, target, self._pool(held))

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

    def _add_with_texts(
        self, vm: QubeBase, created_by: str, *, notes: str = "", rules_of: QubeBase | None = None
    ) -> None:
        """Add a VM that has its notes, and the firewall rules of another VM, before anybody hears of it.

        A disposable has the rules of the VM that it is made from: else it would be a way around them.
        """
        rules = self._editor.firewall(rules_of) if rules_of else None
        try:
            if notes:
                self._editor.set_notes(vm, notes)
            if rules is not None:
                self._editor.set_firewall(vm, rules)
            self._add(vm, created_by)
        except BaseException:
            with suppress(StorageError):  # texts that nobody refers to do no harm
                self._discard_texts(vm)
            raise

    def _discard_texts(self, vm: QubeBase) -> None:
        self._editor.set_notes(vm, "")
        self._editor.set_firewall(vm, None)

    def _add(self, vm: QubeBase, created_by: str) -> None:
        creator = self._registry.find_vm(created_by)
        self._by_pool(vm)  # a pool may have been removed while the volumes were made
        vm.tags |= creation_tags(creator) | following_tags(vm)
        with self._editor.change(self._registry) as told:
            self._registry.add(vm)
            told.extend(events.vm_created(vm.name, vm.tags))

    async def remove(self, vm: QubeBase) -> None:
        """Remove a halted VM: from the store first, so that a crash leaves at most files that nobody refers to.

        Volumes in pools that this host cannot serve stay where they are.
        """
        self._editor.check_halted(vm, "be removed")  # one that is starting would be waited for
        async with self._hold(vm.uuid):
            try:
                await self.make_way(vm)
                await self._remove(vm)
            finally:
                if self._registry.find_uuid(vm.uuid) is None:
                    self._forget(vm.name)

    async def _remove(self, vm: QubeBase) -> None:
        self._editor.check_halted(vm, "be removed")
        check_free(self._busy, vm, "be removed")
        with self._editor.change(self._registry) as told:
            self._registry.remove(vm)
            told.extend(events.vm_removed(vm.name))
        self._discard_texts(vm)
        for volume in vm.pool_volumes():
            pool = self._pools.get(volume.pool)
            if pool:
                await pool.remove((volume,))
            else:
                log.warning("%s: its volume %s stays: no pool '%s' here", vm.name, volume.vid, volume.pool)
        self._editor.tell(events.volumes_removed(vm.name))

    def _by_pool(self, vm: QubeBase) -> dict[Pool, tuple[Volume, ...]]:
        groups: dict[Pool, tuple[Volume, ...]] = {}
        for volume in vm.pool_volumes():
            pool = self._pool(volume)
            groups[pool] = (*groups.get(pool, ()), volume)
        return groups

    def _pool(self, volume: Volume) -> Pool:
        return find_pool(self._pools, volume)

    @contextmanager
    def _dispid_for(self, cls: type[QubeBase], choose: Callable[[], int]) -> Iterator[int | None]:
        """Give out a number for a disposable that nobody else gets meanwhile; none for a VM of another class."""
        dispid = choose() if cls.is_disposable else None
        self._dispids |= {dispid} if dispid else set()
        try:
            yield dispid
        finally:
            self._dispids -= {dispid} if dispid else set()

    def _free_dispid(self) -> int:
        """Return a number that no disposable has: any, so that it says nothing about those before."""
        return self._choose_from(self._free_dispids())

    def _free_numbered_name(self) -> int:
        """Return such a number that is in no VM's name either."""
        return self._choose_from([n for n in self._free_dispids() if self._registry.by_name(f"disp{n}") is None])

    def _free_dispids(self) -> list[int]:
        taken = self._dispids | {vm.values.get("dispid") for vm in self._registry}
        return [number for number in range(1, MAX_DISPID) if number not in taken]

    def _choose_from(self, free: list[int]) -> int:
        if not free:
            raise InUseError(f"all {MAX_DISPID - 1} numbers of disposables are in use; remove some disposables first")
        return self._choose(free)
