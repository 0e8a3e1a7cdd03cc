"""What the methods ask of the daemon. Offline, the same methods run over another backend."""

from dataclasses import dataclass
from typing import Protocol

from crannog.core.domain import DomainUsage, HostCapabilities
from crannog.core.plan import Plan
from crannog.core.properties import Holder
from crannog.core.registry import Registry
from crannog.core.startup import StartRequest
from crannog.core.vms import LocalVM, QubeBase


@dataclass(frozen=True)
class NewVM:
    """What a new VM shall be; an empty label means the default, no template the default one."""

    klass: str
    name: str
    label: str
    template: QubeBase | None


class Backend(Protocol):
    """Everything that a method may do. Each change is saved before the call returns."""

    registry: Registry

    def power_state(self, vm: QubeBase) -> str:
        """Return the power state in the Admin API's words."""

    def value(self, holder: Holder, name: str) -> object:
        """Return the value of a property, those included that only the running VM has (xid)."""

    async def usage(self, vm: QubeBase) -> DomainUsage | None:
        """Return what a VM uses; None when it is halted."""

    async def plan(self, vm: LocalVM, request: StartRequest) -> Plan:
        """Return what a start would do."""

    async def start(self, vm: LocalVM, request: StartRequest) -> list[tuple[str, float]]:
        """Start a VM; return its stages with their seconds."""

    async def shutdown(self, vm: LocalVM, *, wait: bool) -> None:
        """Ask a VM to shut down."""

    async def kill(self, vm: LocalVM) -> None:
        """End a VM at once."""

    async def screenshot(self, vm: LocalVM) -> bytes:
        """Return the picture of a running VM's emulated screen."""

    async def create(self, wanted: NewVM, *, created_by: str) -> LocalVM:
        """Make a new VM with its volumes."""

    async def remove(self, vm: QubeBase) -> None:
        """Remove a halted VM with its volumes."""

    async def set_property(self, holder: Holder, name: str, text: str) -> None:
        """Give a property the value that `text` means."""

    async def reset_property(self, holder: Holder, name: str) -> None:
        """Give a property its default again."""

    async def set_feature(self, vm: QubeBase, name: str, value: str | None) -> None:
        """Set a feature; None removes it."""

    async def import_volume(self, vm: LocalVM, name: str, path: str) -> None:
        """Make the raw image at `path` the content of a halted VM's volume."""

    async def capabilities(self) -> HostCapabilities:
        """Return what this host can run."""

    async def diagnose(self) -> list[str]:
        """Return what this host can and cannot do, a sentence each."""

    async def import_kernel(self, name: str, folder: str) -> None:
        """Add the kernel in `folder` (vmlinux or vmlinuz, initramfs) to pool linux-kernel."""
