"""What Crannog asks of a hypervisor."""

from collections.abc import Callable
from typing import Protocol

from crannog.core.domain import (
    DomainInfo,
    DomainSpec,
    DomainState,
    DomainStats,
    HostCapabilities,
    MemoryFiles,
)
from crannog.core.runtime import HostFacts

StateListener = Callable[[str, DomainState], None]
"""Called in the event loop with a domain's UUID and its new state."""


class Hypervisor(Protocol):
    """The connection to a hypervisor. Every method raises HypervisorError with the hypervisor's own reason."""

    is_shared: bool
    """Others have domains there as well: what is not known is none of our business."""
    saves_memory: bool
    """It can save the memory of domains, of some at least: see `machine_key`."""

    async def open(self) -> None:
        """Connect. Called once, at first use."""

    async def close(self) -> None:
        """Disconnect. Domains go on running."""

    def listen(self, listener: StateListener) -> None:
        """Have `listener` called whenever a domain changes its state or ends."""

    async def capabilities(self) -> HostCapabilities:
        """Return what the host can run."""

    async def host_facts(self) -> HostFacts | None:
        """Return what there is for all VMs where our kernel sees only its own share of it; elsewhere None."""

    async def diagnose(self) -> list[str]:
        """Return what the host can and cannot do, a sentence each, for a person to read."""

    async def domains(self) -> list[DomainInfo]:
        """Return all domains, in one bulk call."""

    async def end_strays(self, ours: frozenset[str]) -> list[str]:
        """End what is left of domains that are not there, of the VMs with these UUIDs; return a sentence for each."""

    async def create_paused(self, spec: DomainSpec) -> DomainInfo:
        """Create a domain with its CPUs stopped. One whose memory was saved goes on from there once it is resumed."""

    async def machine_key(self, spec: DomainSpec, name: str) -> str:
        """Return a text that two domains have in common when the memory of one can be restored as the other.

        Empty when the memory of such a domain cannot be saved or restored here. `spec` has none of the names that
        differ between the two (core.memory_images); `name` is what the domain will be called.
        """

    async def save_memory(self, uuid: str, files: MemoryFiles) -> None:
        """Save a paused domain that was created with these files, and does not go on after that.

        Its disks are written to no more; it is to be destroyed. An absent domain is an error.
        """

    async def resume(self, uuid: str) -> None:
        """Let the CPUs run. An absent domain is an error."""

    async def pause(self, uuid: str) -> None:
        """Stop the CPUs. An absent domain is an error."""

    async def destroy(self, uuid: str) -> None:
        """End the domain at once. An absent domain is no error: what was wanted is true already."""

    async def enlarge_disk(self, uuid: str, path: str, size: int) -> None:
        """Make the disk whose image or device is at `path` larger, `size` in bytes, while its guest uses it.

        A block device must have that size already. An absent domain is an error.
        """

    async def press_power_button(self, uuid: str) -> None:
        """Send the ACPI power button. An absent domain is no error."""

    async def usage(self, uuid: str) -> DomainStats | None:
        """Return what the domain uses; None when it is absent."""

    async def statistics(self) -> list[DomainStats]:
        """Return what all domains use. One that hangs is not waited for."""

    async def console(self, uuid: str) -> str:
        """Return the path of the terminal that is the domain's console. An absent domain is an error."""

    async def screenshot(self, uuid: str) -> bytes:
        """Return the picture of the emulated screen as PPM (P6) or PNG bytes. An absent domain is an error."""
