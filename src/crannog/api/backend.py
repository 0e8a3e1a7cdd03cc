"""What the methods ask of who answers them: crannogd, or a tool in offline mode (design.md, B7)."""

from typing import Protocol

from crannog.core.domain import DomainUsage, HostCapabilities
from crannog.core.plan import Plan
from crannog.core.registry import Registry
from crannog.core.startup import StartRequest
from crannog.core.vms import LocalVM, QubeBase
from crannog.editing.editor import Editor
from crannog.editing.population import NewVM


class Backend(Protocol):
    """Everything that a method may do. Each change is saved before the call returns.

    Settings are changed through the editor. The rest of the calls can take time, or need more than the store: offline,
    those that need the hypervisor raise OfflineError.
    """

    registry: Registry
    editor: Editor

    async def create(self, wanted: NewVM, *, created_by: str) -> QubeBase:
        """Make a new VM with its volumes."""

    async def clone(self, source: QubeBase, name: str, *, klass: str, created_by: str) -> QubeBase:
        """Make a VM with the settings, notes and volumes of a halted one, of another class if `klass` is given."""

    async def remove(self, vm: QubeBase) -> None:
        """Remove a halted VM with its volumes."""

    async def import_volume(self, vm: LocalVM, name: str, path: str) -> None:
        """Make the raw image at `path` the content of a halted VM's volume."""

    async def import_kernel(self, name: str, folder: str) -> None:
        """Add the kernel in `folder` (vmlinux or vmlinuz, initramfs) to pool linux-kernel."""

    async def remove_kernel(self, name: str) -> None:
        """Remove a kernel that nobody uses from pool linux-kernel."""

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

    async def capabilities(self) -> HostCapabilities:
        """Return what this host can run."""

    async def diagnose(self) -> list[str]:
        """Return what this host can and cannot do, a sentence each."""
