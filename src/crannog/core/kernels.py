"""Kernels as values: what a pv or pvh guest gets from the host beside its disks."""

from dataclasses import dataclass


@dataclass(frozen=True)
class KernelFiles:
    """One kernel of pool linux-kernel, by absolute paths."""

    kernel: str
    initrd: str
    modules: str = ""
    """The image with the tree /lib/modules/RELEASE; empty where the kernel came without one."""
    has_layers: bool = False
    """Its initramfs can put the volatile disk over a root that is read-only (design.md, B1)."""
