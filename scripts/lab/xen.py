"""`scripts/xen-lab`: a real Xen with a Debian dom0, for tests of guests on Xen."""

import argparse
import os

from crannog.config import Paths
from crannog.images.guestfiles import GuestFile
from crannog.images.recipe import Recipe
from lab import program
from lab.machine import MachineSpec
from lab.root import DRIVERS, Blueprint, LabRoot, read_file

RECIPE = Recipe(
    name="xen-lab",
    distribution="debian",
    version="12",
    suite="bookworm",
    architecture="amd64",
    packages=(
        "busybox-static",
        "dmsetup",
        "e2fsprogs",
        "iproute2",
        "kmod",
        "libvirt-clients",
        "libvirt-daemon",
        "libvirt-daemon-driver-xen",
        # The cloud kernel can be a guest of Xen, not its dom0.
        "linux-image-amd64",
        "mount",
        "procps",
        "psmisc",
        "python3",
        "qemu-system-xen",
        "qemu-utils",
        # Stands in for the packages that would make a large initramfs with each kernel.
        "tiny-initramfs",
        "udev",
        "usr-is-merged",
        "util-linux",
        "xen-hypervisor-4.17-amd64",
        "xen-utils-4.17",
        "xenstore-utils",
    ),
    kernel_package="linux-image-amd64",
)

_DOM0_MEMORY = 1536
"""MiB."""
_MEMORY = 4096

# libvirt wants a processor that its map knows; Xen shows guests and dom0 what it can virtualise of this one. svm and
# npt are for HVM and PVH guests. One with smap or smep has the dom0 crash at its first page fault under emulation.
CPU = "qemu64,+svm,+npt,+ssse3,+sse4.1,+sse4.2,+popcnt,+rdrand,+pdpe1gb"
NO_HVM = CPU.replace("+svm,+npt", "-svm")
"""A processor for a host that can run PV guests alone."""

# Detours around real processors' flaws make everything slower that is emulated: nothing here is safe from them anyway.
_XEN_WORDS = (
    f"dom0_mem={_DOM0_MEMORY}M,max:{_DOM0_MEMORY}M console=com1 com1=115200 noreboot "
    "loglvl=warning guest_loglvl=warning spec-ctrl=no xpti=no"
)
_KERNEL_WORDS = "console=hvc0 quiet panic=-1 cryptomgr.notests mitigations=off norandmaps CONSOLE=hvc0"
CACHE_TAG = "cache"


def describe(root: LabRoot, options: argparse.Namespace, words: str) -> MachineSpec:
    """Return the machine: QEMU loads Xen, and Xen the dom0's kernel."""
    cache = os.path.join(os.path.abspath(Paths().cache), "images")
    own = f'{_KERNEL_WORDS} {words} "CACHE={cache}"'
    return MachineSpec(
        root.kernel,
        root.initramfs,
        own,
        root.disk,
        memory=_MEMORY,
        vcpus=options.vcpus,
        cpu=options.cpu,
        hypervisor=f"{root.path}/xen",
        hypervisor_words=_XEN_WORDS,
        folders={CACHE_TAG: cache},
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what the other lab has not."""
    parser.add_argument(
        "--cpu",
        default=CPU,
        metavar="MODEL",
        help="the machine's processor as QEMU's -cpu takes it; one without svm makes a host that has no HVMs",
    )


LAB = program.Lab(
    Blueprint(
        RECIPE,
        files=(
            GuestFile("etc/libvirt/libvirtd.conf", content=read_file("libvirtd.conf")),
            GuestFile("etc/default/xen", content=read_file("xen.default")),
        ),
        start=read_file("xen"),
        # This kernel has no file system built in; ext4 names its checksum nowhere.
        drivers=(*DRIVERS, "crc32c_generic", "ext4"),
        hypervisor="xen-4.17-amd64.gz",
    ),
    description="Run a command as root in the dom0 of a new Xen host.",
    example="xen-lab -- xl info",
    describe=describe,
    add_options=add_options,
    boot_timeout=240.0,
)


def main(arguments: list[str]) -> int:
    """Do what the command line says, and return the exit code."""
    return program.main(LAB, arguments)
