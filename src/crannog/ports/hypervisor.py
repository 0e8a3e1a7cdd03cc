"""What Crannog asks of a hypervisor, and the values that cross that border.

All names are the field's: a *domain* is what the hypervisor runs for a VM. Domains are transient: one exists from
`create_paused` until it ends, and never outside that time (design.md, B3).
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class DomainState(StrEnum):
    """The state of a domain, as the hypervisor tells it. A VM without a domain is halted."""

    RUNNING = "running"
    PAUSED = "paused"
    SUSPENDED = "suspended"
    DYING = "dying"
    CRASHED = "crashed"
    ABSENT = "absent"


class Boot(StrEnum):
    """How the guest's first code is found."""

    KERNEL = "kernel"
    """The host hands over kernel and initramfs (pv, pvh)."""
    DISK = "disk"
    """The firmware boots the first disk (hvm)."""
    CDROM = "cdrom"
    """The firmware boots the CD-ROM (hvm)."""


@dataclass(frozen=True)
class Disk:
    """One block device. `path` is absolute; `target` is the guest's name for it (vda, vdb, sda)."""

    path: str
    target: str
    bus: str = "virtio"
    format: str = "qcow2"
    device: str = "disk"
    is_readonly: bool = False


@dataclass(frozen=True)
class Channel:
    """A named byte channel into the guest: `name` as the guest sees it, `path` of the host's unix socket."""

    name: str
    path: str


@dataclass(frozen=True)
class DomainSpec:
    """Everything that a hypervisor needs to know to create one domain. Memory is in MiB."""

    uuid: str
    name: str
    virt_mode: str
    memory: int
    vcpus: int
    boot: Boot
    disks: tuple[Disk, ...]
    channels: tuple[Channel, ...]
    console_log: str
    kernel: str = ""
    initrd: str = ""
    kernelopts: str = ""
    has_display: bool = False
    display_socket: str = ""
    """Unix socket on which the device model serves its screen (VNC); empty: the screen is only photographed."""


@dataclass(frozen=True)
class DomainInfo:
    """One domain that exists now. `xid` is the hypervisor's running number for it."""

    uuid: str
    name: str
    state: DomainState
    xid: int


@dataclass(frozen=True)
class DomainUsage:
    """What a domain uses: `memory` and `memory_max` in KiB, `cpu_time` in ns since its start."""

    memory: int
    memory_max: int
    cpu_time: int


@dataclass(frozen=True)
class HostCapabilities:
    """What this host can run."""

    accel: str
    has_hvm: bool
    emulator: str


StateListener = Callable[[str, DomainState], None]
"""Called in the event loop with a domain's UUID and its new state."""


class Hypervisor(Protocol):
    """The connection to a hypervisor. Every method raises HypervisorError with the hypervisor's own reason."""

    async def open(self) -> None:
        """Connect. Called once, at first use."""

    async def close(self) -> None:
        """Disconnect. Domains go on running."""

    def listen(self, listener: StateListener) -> None:
        """Have `listener` called whenever a domain changes its state or ends."""

    async def capabilities(self) -> HostCapabilities:
        """Return what the host can run."""

    async def domains(self) -> list[DomainInfo]:
        """Return all domains, in one bulk call."""

    async def create_paused(self, spec: DomainSpec) -> DomainInfo:
        """Create a domain with its CPUs stopped."""

    async def resume(self, uuid: str) -> None:
        """Let the CPUs run. An absent domain is an error."""

    async def destroy(self, uuid: str) -> None:
        """End the domain at once. An absent domain is no error: what was wanted is true already."""

    async def press_power_button(self, uuid: str) -> None:
        """Send the ACPI power button. An absent domain is no error."""

    async def usage(self, uuid: str) -> DomainUsage | None:
        """Return what the domain uses; None when it is absent."""

    async def screenshot(self, uuid: str) -> bytes:
        """Return the picture of the emulated screen as PPM (P6) or PNG bytes. An absent domain is an error."""
