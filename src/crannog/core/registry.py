"""All VMs, labels and global properties, and the rules that hold between them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from crannog.core.labels import BUILT_IN, Label
from crannog.core.names import check_name
from crannog.core.properties import INT, STR, VM, Holder, Property, check_range
from crannog.core.templates import may_use_template, template_refusal
from crannog.core.vms import ADMIN_UUID, CLASSES, AdminVM, LocalVM, QubeBase
from crannog.core.volumes import DEFAULT_PRIVATE_SIZE, DEFAULT_ROOT_SIZE, Volume
from crannog.errors import InUseError, NotFoundError, ValueRefusedError, VMNotFoundError

DEFAULT_POOL = "vm-pool"


def _seconds(_registry: Registry) -> object:
    return 60


class Registry(Holder):
    """The state that qubes.xml holds. Look-ups by name, UUID and qid take constant time."""

    GLOBALS: ClassVar[tuple[Property, ...]] = (
        Property("default_template", VM, "Template of new VMs.", default=lambda _r: None),
        Property(
            "default_kernel", STR, "Kernel of VMs that get one from the host.",
            default=lambda _r: "", check=lambda r, value: r.check_kernel(value),
        ),
        Property("default_kernelopts", STR, "Command line of kernels from the host.", default=lambda r: r.kernelopts),
        Property(
            "default_qrexec_timeout", INT, "Seconds to wait for an agent.",
            default=_seconds, check=check_range(1, 86400, "seconds"),
        ),
        Property(
            "default_shutdown_timeout", INT, "Seconds to wait for a clean shutdown.",
            default=_seconds, check=check_range(1, 86400, "seconds"),
        ),
    )  # fmt: skip
    _BY_NAME: ClassVar[dict[str, Property]] = {p.name: p for p in GLOBALS}
    kernelopts = "root=/dev/vda rw console=ttyS0 quiet no_timer_check cryptomgr.notests"

    def __init__(self) -> None:
        super().__init__()
        self.labels = {label.name: label for label in BUILT_IN}
        self.kernels: set[str] = set()
        self._by_name: dict[str, QubeBase] = {}
        self._by_uuid: dict[str, QubeBase] = {}
        self._by_qid: dict[int, QubeBase] = {}
        self._next_qid = 1
        dom0 = AdminVM(self)
        dom0.values.update(name="dom0", uuid=ADMIN_UUID, qid=0, label=self.labels["black"])
        self._index(dom0)

    @classmethod
    def declared(cls) -> dict[str, Property]:
        """Return the global properties by name."""
        return cls._BY_NAME

    def title(self) -> str:
        """Return how messages call the global properties' holder."""
        return "dom0"

    def __iter__(self) -> Iterator[QubeBase]:
        return iter(list(self._by_name.values()))

    def local_vms(self) -> list[LocalVM]:
        """Return the VMs that can run on this host."""
        return [vm for vm in self._by_name.values() if isinstance(vm, LocalVM)]

    def find_vm(self, name: str) -> QubeBase:
        """Return the VM called `name` or `uuid:UUID`; raises VMNotFoundError."""
        vm = self._by_uuid.get(name[5:]) if name.startswith("uuid:") else self._by_name.get(name)
        if vm is None:
            raise VMNotFoundError(f"there is no VM '{name[:80]}'; qvm-ls lists the VMs that there are")
        return vm

    def find_uuid(self, uuid: str) -> QubeBase | None:
        """Return the VM with that UUID, or None."""
        return self._by_uuid.get(uuid)

    def find_label(self, name: str) -> Label:
        """Return the label called `name`; raises NotFoundError."""
        try:
            return self.labels[name]
        except KeyError:
            known = ", ".join(self.labels)
            raise NotFoundError(f"there is no label '{name[:80]}'; use one of {known}") from None

    def check_name_is_free(self, name: str) -> None:
        """Raise InUseError when a VM has that name."""
        if name in self._by_name:
            raise InUseError(f"a VM called '{name}' exists already; choose another name")

    def check_kernel(self, name: str) -> None:
        """Raise ValueRefusedError when the pool linux-kernel has no such kernel. The empty name means none."""
        if name and name not in self.kernels:
            known = ", ".join(sorted(self.kernels)) or "none yet; 'crannog template build' adds one"
            raise ValueRefusedError(f"there is no kernel '{name[:80]}' in pool linux-kernel (there: {known})")

    def users_of_template(self, template: QubeBase) -> list[QubeBase]:
        """Return the VMs that start from this VM's root."""
        return [vm for vm in self._by_name.values() if vm.values.get("template") is template]

    def create(self, klass: str, name: str, uuid: str, template: QubeBase | None) -> LocalVM:
        """Add a new VM. Nothing is added when a rule refuses.

        Raises ValueRefusedError (class, name, template) or InUseError (name taken).
        """
        cls = CLASSES.get(klass)
        if cls is None or not issubclass(cls, LocalVM):
            raise ValueRefusedError(f"VMs of class '{klass[:40]}' cannot be created")
        check_name(name)
        self.check_name_is_free(name)
        vm = cls(self)
        vm.values.update(name=name, uuid=uuid, qid=self._next_qid, label=self.labels["red"])
        self._check_template(vm, template)
        if template:
            vm.values["template"] = template
        vm.volumes = {volume: self._new_volume(vm, volume) for volume in vm.VOLUME_RULES}
        self._index(vm)
        return vm

    @staticmethod
    def _check_template(vm: LocalVM, template: QubeBase | None) -> None:
        if template is None and not vm.is_template_based:
            return
        mode = str(template.get("virt_mode")) if isinstance(template, LocalVM) else ""
        if template is None or not may_use_template(type(vm), mode, template):
            raise ValueRefusedError(template_refusal(vm.name, type(vm), mode, template))

    @staticmethod
    def _new_volume(vm: LocalVM, name: str) -> Volume:
        rule = vm.VOLUME_RULES[name]
        return Volume(
            name=name,
            pool=DEFAULT_POOL,
            vid=f"{vm.name}-{vm.uuid[:8]}/{name}",
            size=DEFAULT_ROOT_SIZE if name == "root" else DEFAULT_PRIVATE_SIZE,
            snap_on_start=rule.snap_on_start,
            save_on_stop=rule.save_on_stop,
            revisions_to_keep=rule.revisions_to_keep,
        )

    def _index(self, vm: QubeBase) -> None:
        self._by_name[vm.name] = vm
        self._by_uuid[vm.uuid] = vm
        self._by_qid[vm.qid] = vm
        self._next_qid = max(self._next_qid, vm.qid + 1)

    def adopt(self, vm: QubeBase) -> None:
        """Add a VM that was read from the store.

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
        """Give a VM another name; raises what `Property.check` of the name raises."""
        if vm.klass == "AdminVM":
            raise ValueRefusedError("dom0 cannot get another name")
        old = vm.name
        vm.set("name", name)
        del self._by_name[old]
        self._by_name[name] = vm

    def remove(self, vm: QubeBase) -> None:
        """Forget a VM; raises InUseError when something refers to it."""
        if vm.klass == "AdminVM":
            raise InUseError("dom0 cannot be removed")
        users = [f"{other.name} ({name})" for other in self for name, value in other.values.items() if value is vm]
        users += [f"global property {name}" for name, value in self.values.items() if value is vm]
        if users:
            raise InUseError(f"{vm.name} is in use by {', '.join(users)}; change or remove that first")
        del self._by_name[vm.name]
        del self._by_uuid[vm.uuid]
        del self._by_qid[vm.qid]
