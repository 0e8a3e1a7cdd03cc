"""All VMs, labels, pools and global properties. Look-ups by name, UUID and qid take constant time.

What may be changed is said by core.rules; the registry asks it and keeps its indexes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

from crannog.core import rules
from crannog.core.copying import copy_settings, keep_inherited
from crannog.core.global_properties import GLOBAL
from crannog.core.labels import BUILT_IN, Label
from crannog.core.names import check_name
from crannog.core.pools import BUILT_IN_POOLS, KERNEL_POOL, PoolConfig
from crannog.core.properties import Holder, Property, collect
from crannog.core.runtime import HostFacts, NothingRuns, Runtime
from crannog.core.templates import origin
from crannog.core.vms import ADMIN_NAME, ADMIN_UUID, CLASSES, AdminVM, LocalVM, QubeBase
from crannog.core.volumes import DEFAULT_SIZES, KERNEL, Volume
from crannog.errors import (
    InUseError,
    LabelNotFoundError,
    PoolInUseError,
    UUIDRefusedError,
    ValueRefusedError,
    VMExistsError,
    VMNotFoundError,
)

_UUID = re.compile(r"uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

Listed = tuple["QubeBase", str, str, str]
"""A VM with its UUID, and what its line in a list begins and ends with; the power state stands between."""


class Registry(Holder):
    """The state that qubes.xml holds."""

    DECLARED: ClassVar[dict[str, Property]] = collect(GLOBAL)

    def __init__(self) -> None:
        super().__init__()
        self.labels = {label.name: label for label in BUILT_IN}
        self.pools = {pool.name: pool for pool in BUILT_IN_POOLS}
        self.kernels: set[str] = set()
        self.runtime: Runtime = NothingRuns()
        self.host = HostFacts()
        self._by_name: dict[str, QubeBase] = {}
        self._by_uuid: dict[str, QubeBase] = {}
        self._by_qid: dict[int, QubeBase] = {}
        self._next_qid = 1
        self._listing: list[Listed] | None = None
        self.dom0 = AdminVM(self)
        self.dom0.values.update(name=ADMIN_NAME, uuid=ADMIN_UUID, qid=0)
        self._index(self.dom0)

    def title(self) -> str:
        """Return how messages call the global properties' holder."""
        return ADMIN_NAME

    def __iter__(self) -> Iterator[QubeBase]:
        return iter(list(self._by_name.values()))

    def __len__(self) -> int:
        return len(self._by_name)

    def listing(self) -> list[Listed]:
        """Return all VMs for `admin.vm.List` (Admin API, section 6): dom0 first, then by name."""
        if self._listing is None:
            ordered = sorted(self._by_name.values(), key=lambda vm: (vm is not self.dom0, vm.name))
            self._listing = [
                (vm, vm.uuid, f"{vm.name} class={vm.klass} state=", f" uuid={vm.uuid}\n") for vm in ordered
            ]
        return self._listing

    def local_vms(self) -> list[LocalVM]:
        """Return the VMs that can run on this host."""
        return [vm for vm in self._by_name.values() if isinstance(vm, LocalVM)]

    def by_name(self, name: str) -> QubeBase | None:
        """Return the VM called `name`, or None."""
        return self._by_name.get(name)

    def find_vm(self, name: str) -> QubeBase:
        """Return the VM called `name` or `uuid:UUID`; raises UUIDRefusedError or VMNotFoundError."""
        if name.startswith("uuid:") and not _UUID.fullmatch(name):
            raise UUIDRefusedError(f"'{name[5:85]}' is not the UUID of a VM")
        vm = self._by_uuid.get(name[5:]) if name.startswith("uuid:") else self._by_name.get(name)
        if vm is None:
            raise VMNotFoundError(f"there is no VM '{name[:80]}'; qvm-ls lists the VMs that there are")
        return vm

    def find_uuid(self, uuid: str) -> QubeBase | None:
        """Return the VM with that UUID, or None."""
        return self._by_uuid.get(uuid)

    def find_qid(self, qid: int) -> QubeBase | None:
        """Return the VM with that number, or None."""
        return self._by_qid.get(qid)

    @staticmethod
    def find_class(klass: str) -> type[QubeBase]:
        """Return the VM class of that name; raises ValueRefusedError for one that no VM can be made of."""
        cls = CLASSES.get(klass)
        if cls is None or cls is AdminVM:
            raise ValueRefusedError(f"VMs of class '{klass[:40]}' cannot be created")
        return cls

    def find_label(self, name: str) -> Label:
        """Return the label called `name`; raises LabelNotFoundError."""
        try:
            return self.labels[name]
        except KeyError:
            known = ", ".join(self.labels)
            raise LabelNotFoundError(f"there is no label '{name[:80]}'; use one of {known}") from None

    def default_label(self, name: str = "red") -> Label:
        """Return the label of that name, or the first one in a store that has its own labels in its place."""
        return self.labels.get(name) or next(iter(self.labels.values()))

    def check_name_is_free(self, name: str) -> None:
        """Raise VMExistsError when a VM has that name."""
        if name in self._by_name:
            raise VMExistsError(f"a VM called '{name}' exists already; choose another name")

    def users_of_template(self, template: QubeBase) -> list[QubeBase]:
        """Return the VMs that start from this VM's root."""
        return [vm for vm in self._by_name.values() if vm.values.get("template") is template]

    def users_of(self, vm: QubeBase) -> list[tuple[str, str]]:
        """Return who refers to a VM, and by what: name and property; the name is empty for a global property."""
        users = [(o.name, name) for o in self._by_name.values() for name, value in o.values.items() if value is vm]
        users += [(o.name, "device") for o in self._by_name.values() if any(d.backend == vm.name for d in o.devices)]
        users = [user for user in users if user[0] != vm.name]
        return users + [("", name) for name, value in self.values.items() if value is vm]

    def create(
        self, klass: str, name: str, uuid: str, template: QubeBase | None, *, dispid: int | None = None
    ) -> QubeBase:
        """Add a new VM; raises what `draft` raises, and nothing is added then."""
        vm = self.draft(klass, name, uuid, template, dispid=dispid)
        self.add(vm)
        return vm

    def draft(
        self, klass: str, name: str, uuid: str, template: QubeBase | None, *, dispid: int | None = None
    ) -> QubeBase:
        """Return a new VM that is not in the registry yet. A DispVM gets the settings of its template.

        Raises ValueRefusedError (class, name, template) or InUseError (name taken).
        """
        vm = self._blank(klass, name, uuid)
        vm.values["label"] = self.default_label()
        if template or vm.is_template_based:
            rules.template(vm, template)  # type: ignore[arg-type]
            vm.values["template"] = template
        if vm.is_disposable and template:
            copy_settings(template, vm)
            vm.set("dispid", self.free_dispid() if dispid is None else dispid)
        vm.volumes = {volume: self._new_volume(vm, volume, None) for volume in vm.VOLUME_RULES}
        return vm

    def draft_clone(
        self, source: QubeBase, name: str, uuid: str, klass: str = "", *, dispid: int | None = None
    ) -> QubeBase:
        """Return a VM with all settings of `source` that is not in the registry yet. Its volumes are its own.

        The settings are properties, features, tags and devices. `klass` makes it one of another class; what that class
        does not have is left out. Raises what `draft` raises.
        """
        vm = self._blank(klass or source.klass, name, uuid)
        copy_settings(source, vm)
        if vm.is_template_based:
            rules.template_class(vm, source.template)  # a mode that does not fit is told at the start
            vm.values["template"] = source.template
        elif source.template:
            keep_inherited(source, vm)
        if vm.is_disposable:
            vm.set("dispid", self.free_dispid() if dispid is None else dispid)
        needed = [volume for volume, rule in vm.VOLUME_RULES.items() if rule.save_on_stop or rule.snap_on_start]
        missing = [volume for volume in needed if volume not in source.volumes]
        if missing:
            raise ValueRefusedError(
                f"{name}: a {vm.klass} has a volume {missing[0]}, and {source.name}, a {source.klass}, has none to copy"
            )
        vm.volumes = {volume: self._new_volume(vm, volume, source) for volume in vm.VOLUME_RULES}
        return vm

    def _blank(self, klass: str, name: str, uuid: str) -> QubeBase:
        cls = self.find_class(klass)
        check_name(name)
        self.check_name_is_free(name)
        vm = cls(self)
        vm.values.update(name=name, uuid=uuid)
        return vm

    def add(self, vm: QubeBase) -> None:
        """Add a VM that was drafted, under the next number; raises what `adopt` raises, or VMNotFoundError.

        Time may have passed since the draft: its name can be taken by now, and VMs that it refers to can be gone.
        """
        self.check_name_is_free(vm.name)
        rules.new_vm(self, vm)
        vm.values["label"] = self.find_label(vm.label_name)
        if any(other.values.get("dispid") == vm.values.get("dispid", -1) for other in self._by_name.values()):
            vm.values["dispid"] = self.free_dispid()
        vm.values["qid"] = self._next_qid
        self.adopt(vm)

    def free_dispid(self) -> int:
        """Return the lowest number from 1 on that no disposable has; raises InUseError when all are taken."""
        taken = {vm.values.get("dispid") for vm in self._by_name.values()}
        free = next((number for number in range(1, 10000) if number not in taken), None)
        if free is None:
            raise InUseError("all 9999 numbers of disposables are in use; remove some disposables first")
        return free

    def _new_volume(self, vm: QubeBase, name: str, like: QubeBase | None) -> Volume:
        rule = vm.VOLUME_RULES[name]
        its = like.volumes.get(name) if like else None
        pool = KERNEL_POOL if name == KERNEL else str(self.get(f"default_pool_{name}"))
        if rule.snap_on_start and vm.template and name in vm.template.volumes:
            pool = origin(vm.template, name)[1].pool  # a layer lies beside what it stands on
        return Volume(
            name=name,
            pool=pool,
            vid="" if name == KERNEL else f"{vm.name}-{vm.uuid[:8]}/{name}",  # its property `kernel` says which
            size=its.size if its else DEFAULT_SIZES[name],
            rw=rule.rw,
            snap_on_start=rule.snap_on_start,
            save_on_stop=rule.save_on_stop,
            revisions_to_keep=self._revisions_to_keep(rule.revisions_to_keep, pool),
        )

    def _revisions_to_keep(self, rule: int, pool: str) -> int:
        """Return how many revisions a new volume keeps: what its pool says, if its class keeps any."""
        return self.pools[pool].revisions_to_keep if rule and pool in self.pools else rule

    def place_layers(self, vm: QubeBase) -> None:
        """Have the layers of a VM lie beside what they stand on: it got another template."""
        for name, volume in vm.volumes.items():
            if volume.snap_on_start and vm.template and name in vm.template.volumes:
                vm.volumes[name] = replace(volume, pool=origin(vm.template, name)[1].pool)

    def _index(self, vm: QubeBase) -> None:
        self._listing = None
        self._by_name[vm.name] = vm
        self._by_uuid[vm.uuid] = vm
        self._by_qid[vm.qid] = vm
        self._next_qid = max(self._next_qid, vm.qid + 1)

    def adopt(self, vm: QubeBase) -> None:
        """Add a VM that was read from the store, or that was removed and not forgotten.

        Raises ValueRefusedError when its name cannot be one, or its name, UUID or qid is missing or taken.
        """
        missing = [name for name in ("name", "uuid", "qid") if name not in vm.values]
        if missing:
            raise ValueRefusedError(f"a VM has no {missing[0]}")
        check_name(vm.name)
        if vm.name in self._by_name or vm.uuid in self._by_uuid or vm.qid in self._by_qid:
            raise ValueRefusedError(f"VM '{vm.name}' shares its name, UUID or qid with another VM")
        self._index(vm)

    def rename(self, vm: QubeBase, name: str) -> None:
        """Give a VM another name, also where devices name it; raises what `rules.vm_name` raises."""
        if vm is self.dom0:
            raise ValueRefusedError("dom0 cannot get another name")
        old = vm.name
        vm.set("name", name)
        self._listing = None
        # In the old one's place, so that lists keep their order.
        self._by_name = {(name if key == old else key): value for key, value in self._by_name.items()}
        for other in self._by_name.values():
            if any(device.backend == old for device in other.devices):
                other.devices = tuple(d.with_backend(name) if d.backend == old else d for d in other.devices)

    def remove(self, vm: QubeBase) -> None:
        """Forget a VM; raises InUseError when something refers to it, VMNotFoundError when it is gone already."""
        self.find_vm(f"uuid:{vm.uuid}")
        rules.removal(self, vm)
        self._listing = None
        del self._by_name[vm.name]
        del self._by_uuid[vm.uuid]
        del self._by_qid[vm.qid]

    def add_pool(self, pool: PoolConfig) -> None:
        """Add a pool; raises PoolInUseError when its name is taken."""
        self.check_pool_name_is_free(pool.name)
        self.pools[pool.name] = pool

    def check_pool_name_is_free(self, name: str) -> None:
        """Raise PoolInUseError when a pool has that name."""
        if name in self.pools:
            raise PoolInUseError(f"a pool called '{name}' exists already; choose another name")
