"""What is said of domains between the planners and a hypervisor: values, nothing else.

A *domain* is what the hypervisor runs for a VM. One exists from its creation until it ends, and never outside that
time (design.md, B3).
"""

from dataclasses import dataclass
from enum import StrEnum

from crannog.core.clock import UTC, Clock


class DomainState(StrEnum):
    """The state of a domain, as the hypervisor tells it. A VM without a domain is halted."""

    RUNNING = "running"
    PAUSED = "paused"
    STALLED = "stalled"
    """Paused by the hypervisor, because a disk could not be written."""
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
    DRIVE = "drive"
    """The firmware boots the drive that was named for this start, then the first disk (hvm)."""


@dataclass(frozen=True)
class Disk:
    """One block device. `path` is absolute; `target` is the guest's name for it (vda, vdb, sda, xvda)."""

    path: str
    target: str = ""
    bus: str = "virtio"
    format: str = "qcow2"
    device: str = "disk"
    is_readonly: bool = False
    is_block: bool = False
    """`path` is a block device of the host, not an image file."""
    boots_first: bool = False
    """The firmware tries it before all others."""


@dataclass(frozen=True)
class Channel:
    """A named byte channel into the guest: `name` as the guest sees it, `path` of the host's unix socket."""

    name: str
    path: str


@dataclass(frozen=True)
class MemoryFiles:
    """Where a machine is kept in files: `memory` holds the guest's RAM, `state` all else of it.

    With `is_saved` both are whole, and a domain goes on from there, on RAM of its own that begins as a copy; else the
    domain boots, with `memory` as its RAM, so that it can be saved.
    """

    memory: str
    state: str
    is_saved: bool = False


@dataclass(frozen=True)
class DomainSpec:
    """Everything that a hypervisor needs to know to create one domain. Memory is in MiB.

    `memory` is what the guest has at its start; a `maxmem` above it is what it may grow to.
    """

    uuid: str
    name: str
    virt_mode: str
    memory: int
    vcpus: int
    boot: Boot
    disks: tuple[Disk, ...]
    channels: tuple[Channel, ...]
    console_log: str
    """File that keeps what the guest writes to its console; the console itself is a terminal of this host."""
    kernel: str = ""
    initrd: str = ""
    kernelopts: str = ""
    has_display: bool = False
    display_socket: str = ""
    """Unix socket on which the device model serves its screen (VNC); empty: the screen is only photographed."""
    video_model: str = "vga"
    """The card that the guest sees, a name of libvirt's."""
    maxmem: int = 0
    clock: Clock = UTC
    is_disposable: bool = False
    """The guest keeps nothing, and is told so: then it has secrets of its own in place of its template's."""
    memory_files: MemoryFiles | None = None
    """Files that its memory is kept in, or comes from (core.memory_images)."""
    warnings: tuple[str, ...] = ()
    """What was wrong with the VM's settings and could be ignored, a sentence each without the VM's name."""

    @property
    def can_grow(self) -> bool:
        """Whether its memory may change while it runs."""
        return self.maxmem > self.memory


@dataclass(frozen=True)
class DomainInfo:
    """One domain that exists now. `xid` is the hypervisor's running number for it."""

    uuid: str
    name: str
    state: DomainState
    xid: int


@dataclass(frozen=True)
class DomainStats:
    """What a domain uses now: memory in KiB, `cpu_time` in ns since its start, processors that are online.

    `measured_at` is when `cpu_time` was read, in seconds of the monotonic clock.
    """

    uuid: str
    memory: int
    memory_max: int
    cpu_time: int
    vcpus: int
    measured_at: float


@dataclass(frozen=True)
class HostCapabilities:
    """What this host can run: `accel` is `kvm`, `tcg` or `xen`, `kind` the hypervisor's (core.hypervisor_kinds)."""

    accel: str
    has_hvm: bool
    emulator: str
    kind: str = "qemu"
    loader: str = ""
    """The firmware of HVMs, as a file; empty: the emulator brings its own."""
    runs_as: str = ""
    """User and group of the emulator, as `+UID:+GID`; empty: as the hypervisor chooses."""
