"""How a tree becomes a root disk: one class a virt_mode, found by disk_for()."""

import os
from typing import ClassVar, Protocol

from crannog.errors import ValueRefusedError
from crannog.images.bootloader import PARTITION_START, install_grub, write_partition_table
from crannog.images.guestfiles import GuestFile, data_path, read_file
from crannog.images.tools import owner_prefix, run_tool


class RootDisk(Protocol):
    """One way to lay out a root disk."""

    virt_mode: ClassVar[str]
    has_own_kernel: ClassVar[bool]

    def describe(self) -> list[object]:
        """Return what decides the layout, for cache keys."""
        ...

    def list_files(self) -> list[GuestFile]:
        """Return the files that this layout needs in the tree."""
        ...

    def write(self, tree: str, image: str) -> None:
        """Write the tree to the sparse file `image`, which has its full size already."""
        ...


class PvDisk:
    """The file system on the whole disk: the host brings the kernel."""

    virt_mode: ClassVar[str] = "pv"
    has_own_kernel: ClassVar[bool] = False

    def describe(self) -> list[object]:
        """Return what decides the layout, for cache keys."""
        return [self.virt_mode, read_file("mke2fs.conf")]

    def list_files(self) -> list[GuestFile]:
        """Return no files: everything that boots the VM is on the host."""
        return []

    def write(self, tree: str, image: str) -> None:
        """Write the tree to the sparse file `image`, which has its full size already."""
        make_filesystem(tree, image)


class HvmDisk:
    """A partition table, a boot loader, and the file system with its own kernel in the one partition."""

    virt_mode: ClassVar[str] = "hvm"
    has_own_kernel: ClassVar[bool] = True

    def describe(self) -> list[object]:
        """Return what decides the layout, for cache keys."""
        names = ("mke2fs.conf", "grub-early.cfg", "grub.cfg")
        return [self.virt_mode, *(read_file(name) for name in names)]

    def list_files(self) -> list[GuestFile]:
        """Return the boot loader's configuration."""
        return [
            GuestFile("boot/grub", 0o755),
            GuestFile("boot/grub/grub.cfg", content=read_file("grub.cfg")),
        ]

    def write(self, tree: str, image: str) -> None:
        """Write the tree to the sparse file `image`, which has its full size already."""
        write_partition_table(image)
        make_filesystem(tree, image, offset=PARTITION_START)
        install_grub(image)


_DISKS: dict[str, RootDisk] = {disk.virt_mode: disk for disk in (PvDisk(), HvmDisk())}


def disk_for(virt_mode: str) -> RootDisk:
    """Return the layout for a virt_mode; ValueRefusedError, which lists the known ones, if there is none."""
    if virt_mode not in _DISKS:
        raise ValueRefusedError(f"no template is built for virt_mode '{virt_mode}': known are {', '.join(_DISKS)}")
    return _DISKS[virt_mode]


def make_filesystem(tree: str, image: str, *options: str, label: str = "root", offset: int = 0) -> None:
    """Fill the sparse file `image`, from byte `offset` on, with an ext4 file system that holds the folder `tree`."""
    kib = (os.path.getsize(image) - offset) // 1024
    command = ["mke2fs", "-q", "-F", "-t", "ext4", "-L", label, "-E", f"offset={offset},root_owner=0:0", *options]
    environment = {"MKE2FS_CONFIG": data_path("mke2fs.conf")}
    # The tree's files belong to other users, also when this user is not root.
    run_tool(
        [*owner_prefix(), *command, "-d", tree, image, f"{kib}k"],
        f"making the {label} file system",
        environment=environment,
    )
