"""What a lab machine boots: a root disk with a distribution's packages, its kernel, and a small initramfs.

All of it is in the cache of images, under a key that follows from the packages and from the files of this folder.
The initramfs is not that of Crannog's own guests: a lab must come up when what it is there to test does not.
"""

import dataclasses
import glob
import gzip
import os
import shutil

from crannog.errors import StorageError
from crannog.images.basetree import BaseTree, provide_base
from crannog.images.cache import ImageCache, compute_key, remove_tree
from crannog.images.disk import disk_for
from crannog.images.guestfiles import GuestFile, write_tar
from crannog.images.modules import Dependencies, read_dependencies
from crannog.images.recipe import Recipe
from crannog.images.tools import owner_prefix, run_tool, stage
from crannog.images.vmlinux import extract_vmlinux

DISK_SIZE = 16 * 2**30
"""Bytes of the root disk, which is also where tests make their files. It is sparse."""

LIBRARY = "usr/lib/lab"
DRIVERS = ("virtio_pci", "virtio_blk", "virtio_console", "virtio-rng")
"""What any kernel needs as modules before it sees its root; the rest is loaded when it is asked for."""
_FOLDERS = ("bin", "dev", "drivers", "proc", "root", "sys")
_FILES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "files")
_VERSION = 2
"""Raised whenever this module makes something else of the same input."""


@dataclasses.dataclass(frozen=True)
class Blueprint:
    """What one lab's machine is made of. The recipe's packages include its kernel."""

    recipe: Recipe
    start: bytes
    """A piece of shell that PID 1 reads when the project is mounted, and before it takes commands."""
    files: tuple[GuestFile, ...] = ()
    drivers: tuple[str, ...] = DRIVERS
    """The modules that the initramfs loads, each with what it needs."""
    hypervisor: str = ""
    """The packed ELF file below /boot that boots the kernel."""


@dataclasses.dataclass(frozen=True)
class LabRoot:
    """A built machine in the cache, and the packages in it (name -> version)."""

    path: str
    packages: dict[str, str]

    @property
    def kernel(self) -> str:
        """The ELF kernel, which QEMU enters at once."""
        return f"{self.path}/vmlinux"

    @property
    def initramfs(self) -> str:
        """The initramfs for it."""
        return f"{self.path}/initramfs"

    @property
    def disk(self) -> str:
        """The raw root disk. Many machines use it at the same time; none may write to it."""
        return f"{self.path}/root.img"


def provide_root(cache: ImageCache, blueprint: Blueprint) -> LabRoot:
    """Return a lab's machine from the cache, after building it if it is not there.

    Raises StorageError with one sentence for whatever fails.
    """
    recipe = blueprint.recipe
    base = provide_base(cache, recipe)
    files = _list_files(blueprint)
    content = [
        [dataclasses.astuple(file) for file in files],
        read_file("boot"),
        blueprint.hypervisor,
        blueprint.drivers,
        DISK_SIZE,
    ]
    key = compute_key([_VERSION, base.identity, disk_for("pv").describe(), content])

    def build(folder: str) -> None:
        with stage(cache.report, f"{recipe.name}: making the root disk"):
            _assemble(folder, base, files, blueprint)

    return LabRoot(cache.provide(recipe.name, key, build), base.packages)


def read_file(name: str) -> bytes:
    """Return the content of a file that labs put into their machines."""
    with open(os.path.join(_FILES, name), "rb") as file:
        return file.read()


def _list_files(blueprint: Blueprint) -> list[GuestFile]:
    name = blueprint.recipe.name.encode()
    profile = read_file("profile.sh").replace(b"@LAB@", name)
    return [
        GuestFile(LIBRARY, 0o755),
        GuestFile(f"{LIBRARY}/init", 0o755, read_file("init")),
        GuestFile(f"{LIBRARY}/start", content=blueprint.start),
        GuestFile("etc/profile.d/lab.sh", content=profile),
        GuestFile("etc/hosts", content=b"127.0.0.1 localhost " + name + b"\n"),
        *blueprint.files,
    ]


def _assemble(folder: str, base: BaseTree, files: list[GuestFile], blueprint: Blueprint) -> None:
    tree, own = f"{folder}/tree", f"{folder}/own.tar"
    os.mkdir(tree, 0o755)
    write_tar(files, own)
    for tar in (base.tar, own):
        options = ["--numeric-owner", "--same-permissions", "--keep-directory-symlink", "--exclude=./dev/*"]
        run_tool([*owner_prefix(), "tar", "-C", tree, *options, "-xf", tar], "unpacking the machine's packages")
    os.unlink(own)
    release = _find_kernel(tree)
    extract_vmlinux(f"{tree}/boot/vmlinuz-{release}", f"{folder}/vmlinux")
    if blueprint.hypervisor:
        with gzip.open(f"{tree}/boot/{blueprint.hypervisor}") as packed, open(f"{folder}/xen", "wb") as file:
            shutil.copyfileobj(packed, file)
    _make_initramfs(tree, release, blueprint.drivers, f"{folder}/initramfs")
    with open(f"{folder}/root.img", "wb") as file:
        file.truncate(DISK_SIZE)
    disk_for("pv").write(tree, f"{folder}/root.img")
    remove_tree(tree)


def _find_kernel(tree: str) -> str:
    found = glob.glob(f"{tree}/boot/vmlinuz-*")
    if len(found) != 1:
        raise StorageError(f"the lab's packages hold {len(found)} kernels instead of one: name one kernel package")
    return os.path.basename(found[0]).removeprefix("vmlinuz-")


def _make_initramfs(tree: str, release: str, drivers: tuple[str, ...], path: str) -> None:
    staging, modules = path + ".tree", f"{tree}/usr/lib/modules/{release}"
    for folder in _FOLDERS:
        os.makedirs(f"{staging}/{folder}")
    shutil.copy(f"{tree}/usr/bin/busybox", f"{staging}/bin/busybox")
    for number, module in enumerate(order_drivers(drivers, read_dependencies(f"{modules}/modules.dep"))):
        shutil.copy(f"{modules}/{module}", f"{staging}/drivers/{number:02}-{os.path.basename(module)}")
    with open(f"{staging}/init", "wb") as file:
        file.write(read_file("boot"))
    os.chmod(f"{staging}/init", 0o755)  # noqa: S103 (it is a program)
    _pack(staging, path)
    shutil.rmtree(staging)


def order_drivers(wanted: tuple[str, ...], dependencies: Dependencies) -> list[str]:
    """Return the paths of the modules `wanted` and of what they need, each after all that it needs.

    Raises StorageError when the kernel has no such module; what is built in is nothing to ask for here.
    """
    paths = {os.path.basename(path).removesuffix(".ko"): path for path in dependencies}
    missing = [name for name in wanted if name not in paths]
    if missing:
        raise StorageError(f"the lab's kernel has no module {missing[0]}: choose another kernel package")
    ordered: list[str] = []
    for name in wanted:
        # modules.dep(5): what a module needs stands in the reverse of the order of loading.
        for path in (*reversed(dependencies[paths[name]]), paths[name]):
            if path not in ordered:
                ordered.append(path)
    return ordered


def _pack(tree: str, path: str) -> None:
    names = sorted(glob.glob("**", root_dir=tree, recursive=True))
    command = ["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0", "-D", tree, "-F", path]
    run_tool(command, "packing the lab's initramfs", stdin="\n".join(names).encode())
