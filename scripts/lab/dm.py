"""`scripts/dm-lab`: a machine whose kernel has device-mapper, for tests that need one."""

import argparse

from crannog.images.guestfiles import GuestFile
from crannog.images.recipe import Recipe
from lab import program
from lab.machine import MachineSpec
from lab.root import Blueprint, LabRoot, read_file

RECIPE = Recipe(
    name="dm-lab",
    distribution="debian",
    version="12",
    suite="bookworm",
    architecture="amd64",
    packages=(
        "btrfs-progs",
        "busybox-static",
        "dmsetup",
        "e2fsprogs",
        "fdisk",
        "iproute2",
        "kmod",
        # It has dm-snapshot, dm-thin-pool, btrfs, xfs and virtiofs, and boots in half the time of the other one.
        "linux-image-cloud-amd64",
        "lvm2",
        "mount",
        "procps",
        "psmisc",
        "python3",
        "qemu-utils",
        "thin-provisioning-tools",
        # Stands in for the packages that would make a large initramfs with each kernel.
        "tiny-initramfs",
        "udev",
        "usr-is-merged",
        "util-linux",
        "xfsprogs",
    ),
    kernel_package="linux-image-cloud-amd64",
)

# QEMU uses what it has translated of a program again only where that is at the same addresses: without norandmaps each
# start of a program takes three times as long.
_KERNEL_WORDS = "console=ttyS0 quiet panic=-1 no_timer_check cryptomgr.notests norandmaps CONSOLE=ttyS0"


def describe(root: LabRoot, options: argparse.Namespace, words: str) -> MachineSpec:
    """Return the machine."""
    return MachineSpec(root.kernel, root.initramfs, f"{_KERNEL_WORDS} {words}", root.disk, vcpus=options.vcpus)


LAB = program.Lab(
    Blueprint(RECIPE, files=(GuestFile("etc/lvm/lvm.conf", content=read_file("lvm.conf")),), start=read_file("dm")),
    description="Run a command as root in a new machine that has device-mapper.",
    example="dm-lab -- dmsetup targets",
    describe=describe,
)


def main(arguments: list[str]) -> int:
    """Do what the command line says, and return the exit code."""
    return program.main(LAB, arguments)
