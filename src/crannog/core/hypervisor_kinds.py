"""Kinds of hypervisors as variants: each is one class that knows what its guests call their disks and console.

Adding a kind is adding a class here, and one that writes its XML (adapters.libvirt.xml); nothing else in the package
asks "is it Xen?".
"""

from collections.abc import Sequence
from dataclasses import replace
from string import ascii_lowercase

from crannog.core.domain import Disk, HostCapabilities
from crannog.errors import HypervisorError


class HypervisorKind:
    """What all kinds answer."""

    name = ""
    kernel_words: tuple[str, ...] = ()
    """What every kernel from the host is told first."""
    starts_small = False
    """A guest that may grow has from its first instruction only what it starts with."""

    hardware_modes: tuple[str, ...] = ("hvm",)
    """The virt_modes that need what HVMs need of the host's processor."""

    takes_host_memory = True
    """What its guests use is missing in the host's own memory, as /proc/meminfo shows it."""

    @classmethod
    def kernel_command(cls, *, is_verbose: bool) -> str:
        """Return the first words for a kernel from the host; with `is_verbose` it says on the console what it does."""
        words = cls.kernel_words if is_verbose else (*cls.kernel_words, "quiet")
        return " ".join(words)

    @classmethod
    def name_disks(cls, disks: Sequence[Disk], *, is_virtio: bool) -> tuple[Disk, ...]:
        """Return the disks with their buses, and the names that the guest gives them, in this order."""
        raise NotImplementedError


class Qemu(HypervisorKind):
    """QEMU, with or without KVM. A guest that never said it knows virtio gets SATA disks; CD-ROMs always are.

    A guest that may grow has all its memory at first, and its driver gives back the rest of it page by page: 17 s of a
    processor for 3,600 MiB when emulated.
    """

    name = "qemu"
    kernel_words = ("root=/dev/vda", "rw", "console=ttyS0", "no_timer_check", "cryptomgr.notests")

    @classmethod
    def name_disks(cls, disks: Sequence[Disk], *, is_virtio: bool) -> tuple[Disk, ...]:
        """Return them as vda, vdb, ... on virtio and sda, sdb, ... on SATA."""
        letters = {"vd": iter(ascii_lowercase), "sd": iter(ascii_lowercase)}
        named = []
        for disk in disks:
            bus, prefix = ("virtio", "vd") if is_virtio and disk.device == "disk" else ("sata", "sd")
            named.append(replace(disk, bus=bus, target=prefix + next(letters[prefix])))
        return tuple(named)


class Xen(HypervisorKind):
    """Xen. Its firmware can boot the first disk or the CD-ROM, so that a disk to boot from has to be the first."""

    name = "xen"
    starts_small = (
        True  # pages are populated on demand, and no more of them than the guest's target (xl.cfg(5), maxmem)
    )
    hardware_modes = ("hvm", "pvh")
    takes_host_memory = False  # dom0 sees its own share alone; Xen refuses by itself what does not fit
    kernel_words = ("root=/dev/xvda", "rw", "console=hvc0")

    @classmethod
    def name_disks(cls, disks: Sequence[Disk], *, is_virtio: bool) -> tuple[Disk, ...]:
        """Return them as xvda, xvdb, ..."""
        del is_virtio  # every guest on Xen is shown the same disks both ways
        ordered = sorted(disks, key=lambda disk: not (disk.boots_first and disk.device == "disk"))
        return tuple(
            replace(disk, bus="xen", target=f"xvd{letter}")
            for letter, disk in zip(ascii_lowercase, ordered, strict=False)
        )


class Mock(Qemu):
    """libvirt's test driver: names and states of domains, and no guest. What it is told looks like QEMU's."""

    name = "test"
    takes_host_memory = False


KINDS: dict[str, type[HypervisorKind]] = {kind.name: kind for kind in (Qemu, Xen, Mock)}


def find_kind(capabilities: HostCapabilities) -> type[HypervisorKind]:
    """Return the kind of a host's hypervisor; raises HypervisorError for one that is not known."""
    try:
        return KINDS[capabilities.kind]
    except KeyError:
        raise HypervisorError(
            f"the hypervisor '{capabilities.kind[:40]}' is not known; use one of {', '.join(KINDS)}"
        ) from None
