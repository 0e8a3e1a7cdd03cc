"""The initramfs: busybox, a few scripts, and the drivers that stand between the kernel and its root.

One for kernels that the host gives can put a second layer over a root (guest/layers.sh); one for a guest that boots by
itself lacks the programs for it, because its root is written on the host.
"""

import os
import shutil
import tarfile

from crannog.images.boottools import BootTools
from crannog.images.guestfiles import read_file, read_layers
from crannog.images.kernelparts import KernelParts
from crannog.images.modules import (
    DRIVERS_AT_BOOT,
    DRIVERS_FOR_LAYERS,
    DRIVERS_FOR_XEN,
    choose_for_boot,
    read_dependencies,
)
from crannog.images.tools import run_tool

_FOLDERS = ("bin", "dev", "proc", "sys", "newroot")
_APPLETS = (
    *("cat", "chroot", "mkdir", "mkswap", "modprobe", "mount", "poweroff", "sh", "sleep", "swapon", "switch_root"),
)
"""What the scripts call. Others who read layers.sh have programs of these names, so here they have them as well."""


def describe_initramfs(tools: BootTools) -> list[object]:
    """Return what decides the content of an initramfs beside the kernel, for cache keys."""
    scripts = [read_file("initramfs-init"), read_layers()]
    return [DRIVERS_AT_BOOT, DRIVERS_FOR_LAYERS, DRIVERS_FOR_XEN, _APPLETS, *scripts, tools.identity]


def make_initramfs(parts: KernelParts, tools: BootTools, path: str, *, has_layers: bool) -> None:
    """Write the initramfs to the file `path`, as an uncompressed cpio: unpacking would cost more than loading."""
    tree = path + ".tree"
    for folder in _FOLDERS:
        os.makedirs(f"{tree}/{folder}")
    shutil.copy(tools.busybox, f"{tree}/bin/busybox")
    for applet in _APPLETS:
        os.symlink("busybox", f"{tree}/bin/{applet}")
    _write(f"{tree}/init", read_file("initramfs-init"))
    os.makedirs(f"{tree}/lib/crannog")
    _write(f"{tree}/lib/crannog/layers.sh", read_layers())
    if has_layers:
        shutil.copytree(tools.layers, tree, dirs_exist_ok=True)
    _copy_drivers(parts, f"{tree}/lib/modules", DRIVERS_FOR_LAYERS if has_layers else ())
    _pack(tree, path)
    shutil.rmtree(tree)


def _write(path: str, script: bytes) -> None:
    with open(path, "wb") as file:
        file.write(script)
    os.chmod(path, 0o755)  # noqa: S103 (it is a program)


def _copy_drivers(parts: KernelParts, target: str, on_demand: tuple[str, ...]) -> None:
    source = f"usr/lib/modules/{parts.release}"
    folder = f"{target}/{parts.release}"
    os.makedirs(folder)
    with tarfile.open(f"{parts.path}/modules.tar") as tar:
        _extract(tar, f"{source}/modules.dep", f"{folder}/modules.dep")
        dependencies = read_dependencies(f"{folder}/modules.dep")
        drivers = choose_for_boot(dependencies, (*DRIVERS_AT_BOOT, *DRIVERS_FOR_XEN, *on_demand))
        for driver in drivers:
            os.makedirs(os.path.dirname(f"{folder}/{driver}"), exist_ok=True)
            _extract(tar, f"{source}/{driver}", f"{folder}/{driver}")
    with open(f"{folder}/modules.dep", "w", encoding="utf-8") as file:
        file.writelines(f"{driver}: {' '.join(dependencies[driver])}\n" for driver in sorted(drivers))
    with open(f"{target}/wanted", "w", encoding="utf-8") as file:
        # modprobe -a stops at the first name without a module: a driver that is built into the kernel.
        found = {os.path.basename(driver) for driver in drivers}
        file.write(" ".join(name for name in DRIVERS_AT_BOOT if name + ".ko" in found) + "\n")


def _extract(tar: tarfile.TarFile, member: str, path: str) -> None:
    source = tar.extractfile(member)
    assert source is not None  # noqa: S101 (modules.tar holds plain files only at these names)
    with source, open(path, "wb") as file:
        shutil.copyfileobj(source, file)


def _pack(tree: str, path: str) -> None:
    names = sorted(
        os.path.relpath(os.path.join(parent, name), tree)
        for parent, folders, files in os.walk(tree)
        for name in (*folders, *files)
    )
    listing = "\n".join(names).encode()
    command = ["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0", "--reproducible", "-D", tree, "-F", path]
    run_tool(command, "packing the initramfs", stdin=listing)
