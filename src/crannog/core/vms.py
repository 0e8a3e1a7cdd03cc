"""The VM classes and what their properties are (Admin API, section 6, "Property sets").

A class adds to the properties of its parent; nothing outside asks a VM for its class by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from crannog.core.names import check_name
from crannog.core.properties import BOOL, INT, LABEL, STR, VM, Holder, Property, check_range
from crannog.core.templates import may_use_template, template_refusal
from crannog.core.virt_modes import VirtMode, find_mode
from crannog.core.volumes import Volume
from crannog.errors import ValueRefusedError

if TYPE_CHECKING:
    from crannog.core.registry import Registry

ADMIN_UUID = "00000000-0000-0000-0000-000000000000"
MIN_MEMORY = 64
MAX_MEMORY = 2**24


def constant(value: object) -> Callable[[QubeBase], object]:
    """Return a default that is the same for every VM."""
    return lambda _vm: value


def inherited(name: str, fallback: Callable[[QubeBase], object]) -> Callable[[QubeBase], object]:
    """Return a default that is the template's value, where there is a template."""

    def compute(vm: QubeBase) -> object:
        template = vm.template
        return template.get(name) if template else fallback(vm)

    return compute


def from_global(name: str) -> Callable[[QubeBase], object]:
    """Return a default that is a global property's value."""
    return lambda vm: vm.registry.get(name)


def _check_name(vm: QubeBase, value: str) -> None:
    check_name(value)
    vm.registry.check_name_is_free(value)


def _check_virt_mode(vm: QubeBase, value: str) -> None:
    find_mode(value)
    if vm.template and not may_use_template(type(vm), value, vm.template):
        raise ValueRefusedError(template_refusal(vm.name, type(vm), value, vm.template))
    for user in vm.registry.users_of_template(vm):
        mode = str(user.values.get("virt_mode", value))
        if not may_use_template(type(user), mode, vm, value):
            raise ValueRefusedError(
                f"{vm.name} is the template of {user.name}, and with virt_mode {value} it could not be; "
                f"give {user.name} another template first"
            )


def _check_template(vm: QubeBase, value: QubeBase | None) -> None:
    own = vm.values.get("virt_mode")
    mode = str(own or (value.get("virt_mode") if isinstance(value, LocalVM) and not value.is_template_based else ""))
    if value is None or not may_use_template(type(vm), mode, value):
        raise ValueRefusedError(template_refusal(vm.name, type(vm), mode, value))


def _default_kernel(vm: QubeBase) -> object:
    if not vm.mode.has_host_kernel():
        return ""
    return vm.template.get("kernel") if vm.template else vm.registry.get("default_kernel")


def _icon(vm: QubeBase) -> str:
    return f"{vm.klass.lower()}-{vm.label_name}"


class QubeBase(Holder):
    """A VM of any class, the AdminVM included."""

    klass: ClassVar[str] = ""
    is_template_based: ClassVar[bool] = False
    OWN: ClassVar[tuple[Property, ...]] = (
        Property("name", STR, "Name of the VM.", check=_check_name, needs_halted=True),
        Property("uuid", STR, "UUID of the VM, from its creation on.", is_readonly=True),
        Property("qid", INT, "Number of the VM, from its creation on.", is_readonly=True),
        Property("klass", STR, "Class of the VM.", default=lambda vm: vm.klass, is_readonly=True),
        Property(
            "label",
            LABEL,
            "Colour of the VM's trust level.",
            default=lambda vm: vm.registry.find_label("red"),
        ),
        Property("icon", STR, "Name of the VM's icon.", default=_icon, is_readonly=True),
        Property("include_in_backups", BOOL, "Back this VM up.", default=constant(value=True)),
    )
    _declared: ClassVar[dict[str, Property]] = {}

    def __init_subclass__(cls) -> None:
        """Collect the properties of the class and its parents, once."""
        own = {p.name: p for base in reversed(cls.__mro__) for p in base.__dict__.get("OWN", ())}
        cls._declared = own

    def __init__(self, registry: Registry) -> None:
        super().__init__()
        self.registry = registry
        self.features: dict[str, str] = {}
        self.tags: set[str] = set()
        self.volumes: dict[str, Volume] = {}

    @classmethod
    def declared(cls) -> dict[str, Property]:
        """Return all properties of this class by name."""
        return cls._declared

    def title(self) -> str:
        """Return the VM's name."""
        return self.name

    def __str__(self) -> str:
        return self.name

    @property
    def name(self) -> str:
        """Name, unique in the registry."""
        return str(self.values["name"])

    @property
    def uuid(self) -> str:
        """UUID in lower case with dashes."""
        return str(self.values["uuid"])

    @property
    def qid(self) -> int:
        """Number, unique in the registry."""
        return int(str(self.values["qid"]))

    @property
    def label_name(self) -> str:
        """Name of the label."""
        return str(self.get("label").name)

    @property
    def template(self) -> QubeBase | None:
        """The VM whose root this one starts from, if any."""
        value = self.values.get("template")
        return value if isinstance(value, QubeBase) else None

    @property
    def mode(self) -> type[VirtMode]:
        """The virtualisation mode."""
        return find_mode(str(self.get("virt_mode")))

    def feature(self, name: str) -> str | None:
        """Return a feature of this VM or else of its template (CheckWithTemplate)."""
        if name in self.features:
            return self.features[name]
        return self.template.feature(name) if self.template else None


class AdminVM(QubeBase):
    """dom0: an object that costs nothing (B5): it knows nothing of the host's memory or processors."""

    klass = "AdminVM"
    OWN: ClassVar[tuple[Property, ...]] = (
        Property("maxmem", INT, "Always 0: dom0 is not managed.", default=constant(0), is_readonly=True),
        Property("vcpus", INT, "Always 0: dom0 is not managed.", default=constant(0), is_readonly=True),
        Property("updateable", BOOL, "Can be updated.", default=constant(value=True), is_readonly=True),
    )


def _default_maxmem(vm: QubeBase) -> object:
    return vm.get("memory")


@dataclass(frozen=True)
class VolumeRule:
    """How a class uses one of its volumes (see `core.volumes`)."""

    snap_on_start: bool
    save_on_stop: bool
    revisions_to_keep: int = 0


class LocalVM(QubeBase):
    """A VM that runs on this host."""

    VOLUME_RULES: ClassVar[dict[str, VolumeRule]] = {}
    OWN: ClassVar[tuple[Property, ...]] = (
        Property(
            "virt_mode", STR, "How the VM is virtualised: pv, pvh or hvm.",
            default=inherited("virt_mode", constant("pvh")), check=_check_virt_mode, needs_halted=True,
        ),
        Property(
            "kernel", STR, "Kernel from the host, by its name in pool linux-kernel; empty: the VM's own.",
            default=_default_kernel, check=lambda vm, value: vm.registry.check_kernel(value), needs_halted=True,
        ),
        Property(
            "kernelopts", STR, "Command line of a kernel from the host.",
            default=inherited("kernelopts", from_global("default_kernelopts")),
        ),
        Property(
            "memory", INT, "Memory at start, in MiB.",
            default=inherited("memory", constant(400)), check=check_range(MIN_MEMORY, MAX_MEMORY, "MiB"),
        ),
        Property(
            "maxmem", INT, "Most memory the VM may get, in MiB.",
            default=_default_maxmem, check=check_range(0, MAX_MEMORY, "MiB"),
        ),
        Property(
            "vcpus", INT, "Number of virtual processors.",
            default=inherited("vcpus", constant(2)), check=check_range(1, 255, "processors"),
        ),
        Property(
            "xid", INT, "Number of the running VM at its hypervisor; -1 when halted.",
            default=constant(-1), is_readonly=True,
        ),
        Property("debug", BOOL, "Debug mode.", default=constant(value=False)),
        Property(
            "default_user", STR, "User that commands run as.",
            default=inherited("default_user", constant("user")),
        ),
        Property(
            "qrexec_timeout", INT, "Seconds to wait for the agent at a start.",
            default=inherited("qrexec_timeout", from_global("default_qrexec_timeout")),
            check=check_range(1, 86400, "seconds"),
        ),
        Property(
            "shutdown_timeout", INT, "Seconds to wait for a clean shutdown.",
            default=inherited("shutdown_timeout", from_global("default_shutdown_timeout")),
            check=check_range(1, 86400, "seconds"),
        ),
        Property(
            "updateable", BOOL, "Can be updated by itself (its root is its own).",
            default=lambda vm: not vm.is_template_based, is_readonly=True,
        ),
    )  # fmt: skip


class TemplateVM(LocalVM):
    """A VM whose root others start from; each of its sessions makes a new revision."""

    klass = "TemplateVM"
    VOLUME_RULES = {
        "root": VolumeRule(snap_on_start=False, save_on_stop=True, revisions_to_keep=1),
        "private": VolumeRule(snap_on_start=False, save_on_stop=True),
    }


class StandaloneVM(LocalVM):
    """A VM with a root of its own."""

    klass = "StandaloneVM"
    VOLUME_RULES = {
        "root": VolumeRule(snap_on_start=False, save_on_stop=True),
        "private": VolumeRule(snap_on_start=False, save_on_stop=True),
    }


class AppVM(LocalVM):
    """A VM whose root is its template's, and whose private volume is its own."""

    klass = "AppVM"
    is_template_based = True
    VOLUME_RULES = {
        "root": VolumeRule(snap_on_start=True, save_on_stop=False),
        "private": VolumeRule(snap_on_start=False, save_on_stop=True),
    }
    OWN: ClassVar[tuple[Property, ...]] = (
        Property("template", VM, "VM whose root this one starts from.", check=_check_template, needs_halted=True),
    )


CLASSES: dict[str, type[QubeBase]] = {cls.klass: cls for cls in (AdminVM, AppVM, StandaloneVM, TemplateVM)}
"""The classes by name."""
