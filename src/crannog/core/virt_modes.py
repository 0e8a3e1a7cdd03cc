"""Virtualisation modes as variants: each is one class that knows its own defaults and rules.

Adding a mode is adding a class here; nothing else in the package asks "is it hvm?".
"""

from crannog.core.domain import Boot
from crannog.errors import ValueRefusedError


class VirtMode:
    """What all modes answer."""

    name = ""
    boot = Boot.KERNEL
    has_display = False
    """The emulated screen exists, for boot messages and guests without an agent (design.md, B9)."""
    has_one_layer = False
    """What a template-based VM writes to its root is in one layer over its template's, on the host (design.md, B1)."""
    is_balanced = True
    """Its memory can grow and shrink while it runs, unless the VM's settings say otherwise."""

    @classmethod
    def has_host_kernel(cls) -> bool:
        """Tell whether kernel and initramfs come from the host."""
        return cls.boot is Boot.KERNEL


class Pv(VirtMode):
    """Paravirtual; on QEMU: kernel from the host, virtio disks."""

    name = "pv"


class Pvh(VirtMode):
    """Paravirtual in a hardware container; on QEMU the same as pv."""

    name = "pvh"


class Hvm(VirtMode):
    """A full machine whose firmware boots the disk. Its memory is balanced only where its tools say they can."""

    name = "hvm"
    boot = Boot.DISK
    has_display = True
    has_one_layer = True
    is_balanced = False


MODES = {mode.name: mode for mode in VirtMode.__subclasses__()}


def find_mode(name: str) -> type[VirtMode]:
    """Return the mode called `name`, or raise ValueRefusedError that lists the modes."""
    try:
        return MODES[name]
    except KeyError:
        raise ValueRefusedError(f"virt_mode '{name[:40]}' does not exist; use one of {', '.join(MODES)}") from None
