"""Disks that boot themselves: a partition table, GRUB for BIOS, one ext4 partition."""

import os

from crannog.errors import StorageError
from crannog.images.guestfiles import data_path
from crannog.images.tools import run_tool

PARTITION_START = 2**20
"""Bytes before the partition: GRUB's core image lives there."""

_SECTOR = 512
_BOOT_CODE = 440
"""Bytes of the first sector before the disk's signature and partition table."""

_GRUB = "/usr/lib/grub/i386-pc"
_MODULES = ("biosdisk", "part_msdos", "ext2", "linux", "normal", "configfile", "serial", "terminal")


def write_partition_table(disk: str) -> None:
    """Give the disk one bootable Linux partition, from 1 MiB to its end."""
    table = f"label: dos\nstart={PARTITION_START // _SECTOR}, type=83, bootable\n"
    run_tool(["sfdisk", "--quiet", "--no-reread", disk], "writing a partition table", stdin=table.encode())


def install_grub(disk: str) -> None:
    """Write GRUB's boot sector and core image to the disk; its partition holds /boot/grub/grub.cfg.

    GRUB manual, "BIOS installation": boot.img loads the core image from the sectors that follow the first.
    Raises StorageError when GRUB's files are not installed.
    """
    try:
        with open(f"{_GRUB}/boot.img", "rb") as file:
            boot_code = file.read()[:_BOOT_CODE]
    except OSError as error:
        raise StorageError("making hvm images needs GRUB for BIOS: install the package grub-pc-bin") from error
    core = disk + ".core"
    command = [
        "grub-mkimage",
        "-O",
        "i386-pc",
        "-p",
        "(hd0,msdos1)/boot/grub",
        "-c",
        data_path("grub-early.cfg"),
    ]
    run_tool([*command, "-o", core, *_MODULES], "making GRUB's core image")
    with open(core, "rb") as file:
        core_image = file.read()
    os.unlink(core)
    if len(core_image) > PARTITION_START - _SECTOR:
        raise StorageError(f"GRUB's core image of {len(core_image)} bytes does not fit before the partition")
    with open(disk, "r+b") as target:
        target.write(boot_code)
        target.seek(_SECTOR)
        target.write(core_image)
