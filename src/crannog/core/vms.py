"""The VM classes. Their properties are in core.vm_properties; nothing outside asks a VM for its class by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from crannog.core import vm_properties
from crannog.core.devices import Assignment
from crannog.core.features import find_feature
from crannog.core.properties import Holder, Property, collect
from crannog.core.virt_modes import VirtMode, find_mode
from crannog.core.volumes import KERNEL, PRIVATE, ROOT, VOLATILE, Volume

if TYPE_CHECKING:
    from crannog.core.registry import Registry

ADMIN_NAME = "dom0"
ADMIN_UUID = "00000000-0000-0000-0000-000000000000"


@dataclass(frozen=True)
class VolumeRule:
    """How a class uses one of its volumes (see `core.volumes`)."""

    snap_on_start: bool
    save_on_stop: bool
    revisions_to_keep: int = 0
    rw: bool = True


class QubeBase(Holder):
    """A VM of any class, the AdminVM included."""

    klass: ClassVar[str] = ""
    is_template_based: ClassVar[bool] = False
    is_disposable: ClassVar[bool] = False
    fixed_state: ClassVar[str] = ""
    """Power state of VMs that are not started and stopped here."""
    VOLUME_RULES: ClassVar[dict[str, VolumeRule]] = {}
    OWN: ClassVar[tuple[Property, ...]] = vm_properties.OF_ALL

    def __init_subclass__(cls) -> None:
        """Collect the properties of the class and its parents, once."""
        cls.DECLARED = collect(*(base.__dict__.get("OWN", ()) for base in reversed(cls.__mro__)))

    def __init__(self, registry: Registry) -> None:
        super().__init__()
        self.registry = registry
        self.features: dict[str, str] = {}
        self.tags: set[str] = set()
        self.volumes: dict[str, Volume] = {}
        self.devices: tuple[Assignment, ...] = ()

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
    def netvm(self) -> LocalVM | None:
        """The VM that this one gets its network from, if any."""
        return None

    @property
    def mode(self) -> type[VirtMode]:
        """The virtualisation mode."""
        return find_mode(str(self.get("virt_mode")))

    def pool_volumes(self) -> list[Volume]:
        """Return the volumes that pools keep for this VM: all but the kernel, which the host has for all VMs."""
        return [volume for volume in self.volumes.values() if not volume.is_kernel]

    @property
    def power_state(self) -> str:
        """The power state in the Admin API's words (section 9)."""
        return self.fixed_state or self.registry.runtime.power_state(self.uuid)

    def feature(self, name: str) -> str | None:
        """Return a feature of this VM or else of its template (CheckWithTemplate)."""
        return find_feature(self, name, via="template")

    def is_disposable_template(self) -> bool:
        """Tell whether disposables may start from this VM."""
        return False


class AdminVM(QubeBase):
    """dom0: an object that costs nothing (B5): it knows nothing of the host's memory or processors."""

    klass = "AdminVM"
    fixed_state = "Running"
    OWN = vm_properties.OF_ADMIN


class LocalVM(QubeBase):
    """A VM that runs on this host."""

    OWN: ClassVar[tuple[Property, ...]] = vm_properties.OF_LOCAL

    @property
    def netvm(self) -> LocalVM | None:
        """The VM that this one gets its network from, if any."""
        value = self.get("netvm")
        return value if isinstance(value, LocalVM) else None

    @property
    def dispid(self) -> int | None:
        """Number of a disposable; None for any other VM."""
        return None


_OWN = VolumeRule(snap_on_start=False, save_on_stop=True)
_LAYERED = VolumeRule(snap_on_start=True, save_on_stop=False)
_OF_ALL = {
    VOLATILE: VolumeRule(snap_on_start=False, save_on_stop=False),
    KERNEL: VolumeRule(snap_on_start=False, save_on_stop=False, rw=False),
}


class TemplateVM(LocalVM):
    """A VM whose root others start from; each of its sessions makes a new revision."""

    klass = "TemplateVM"
    OWN = vm_properties.OF_TEMPLATE
    VOLUME_RULES = {
        ROOT: VolumeRule(snap_on_start=False, save_on_stop=True, revisions_to_keep=1),
        PRIVATE: _OWN,
        **_OF_ALL,
    }


class StandaloneVM(LocalVM):
    """A VM with a root of its own."""

    klass = "StandaloneVM"
    VOLUME_RULES = {ROOT: _OWN, PRIVATE: _OWN, **_OF_ALL}


class AppVM(LocalVM):
    """A VM whose root is its template's, and whose private volume is its own."""

    klass = "AppVM"
    is_template_based = True
    OWN = vm_properties.OF_APP
    VOLUME_RULES = {ROOT: _LAYERED, PRIVATE: _OWN, **_OF_ALL}

    def is_disposable_template(self) -> bool:
        """Tell whether disposables may start from this VM."""
        return bool(self.get("template_for_dispvms"))


class DispVM(LocalVM):
    """A VM that starts from an AppVM as it is, and keeps nothing."""

    klass = "DispVM"
    is_template_based = True
    is_disposable = True
    OWN = vm_properties.OF_DISPOSABLE
    VOLUME_RULES = {ROOT: _LAYERED, PRIVATE: _LAYERED, **_OF_ALL}

    @property
    def dispid(self) -> int | None:
        """Number of the disposable."""
        value = self.values.get("dispid")
        return value if isinstance(value, int) else None


class RemoteVM(QubeBase):
    """A VM on another host, that calls can be relayed to."""

    klass = "RemoteVM"
    fixed_state = "Running"
    OWN = vm_properties.OF_REMOTE


CLASSES: dict[str, type[QubeBase]] = {
    cls.klass: cls for cls in (AdminVM, AppVM, DispVM, RemoteVM, StandaloneVM, TemplateVM)
}
"""The classes by name."""
