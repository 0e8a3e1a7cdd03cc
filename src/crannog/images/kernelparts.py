"""A kernel package taken apart: what kernels, initramfs and images are made from."""

import dataclasses
import glob
import os
import shutil

from crannog.errors import StorageError
from crannog.images.boottools import BootTools
from crannog.images.cache import ImageCache, compute_key, read_json, write_json
from crannog.images.kernelsource import MODULES, KernelSource
from crannog.images.modules import KEPT, choose_for_images, read_dependencies
from crannog.images.tools import run_tool
from crannog.images.vmlinux import read_banner

_VERSION = 2
"""Raised whenever this module makes something else of the same input."""

_COMPRESSIONS = ((".xz", ("xz", "-d", "-q")), (".zst", ("zstd", "-d", "-q", "--rm")), (".gz", ("gzip", "-d", "-q")))
"""How distributions compress modules. Here they are not: the initramfs has no program for it, and loads faster."""


@dataclasses.dataclass(frozen=True)
class KernelParts:
    """The folder `path` holds vmlinuz, and modules.tar: usr/lib/modules/<release>, ready to use."""

    path: str
    release: str
    version: str
    identity: str


def provide_parts(
    cache: ImageCache, source: KernelSource, tools: BootTools, *, has_all_modules: bool = False, refresh: bool = False
) -> KernelParts:
    """Return the parts of a kernel, from the cache or newly fetched.

    Without `has_all_modules`, modules for hardware that no guest of this hypervisor has are left out. Raises
    NotFoundError or StorageError with one sentence for whatever fails.
    """
    key = compute_key([_VERSION, source.describe(), has_all_modules or KEPT])

    def build(folder: str) -> None:
        _fetch(folder, source, tools, cache, has_all_modules=has_all_modules)

    path = cache.provide(f"kernel-parts-{source.name}", key, build, refresh=refresh)
    facts = read_json(f"{path}/parts.json")
    return KernelParts(path, facts["release"], facts["version"], compute_key([key, facts]))


def _fetch(folder: str, source: KernelSource, tools: BootTools, cache: ImageCache, *, has_all_modules: bool) -> None:
    tree = f"{folder}/tree"
    os.mkdir(tree)
    source.unpack(tree, cache.report)
    release = _find_release(tree)
    shutil.copyfile(f"{tree}/boot/vmlinuz-{release}", f"{folder}/vmlinuz")
    _unpack_modules(tree)
    _index(tools, tree, release)
    if not has_all_modules:
        _prune_modules(f"{tree}/{MODULES}/{release}")
        _index(tools, tree, release)
    owner = ["--owner=0", "--group=0", "--numeric-owner", "--sort=name"]
    # Below usr/, because /lib is a link in the images. The links lead to what the kernel was compiled from.
    links = [f"--exclude={MODULES}/{release}/{link}" for link in ("build", "source")]
    path = ["-C", tree, "--transform=s,^lib,usr/lib,", "--anchored", *links, f"{MODULES}/{release}"]
    run_tool(["tar", *owner, "-cf", f"{folder}/modules.tar", *path], "packing the kernel's modules")
    shutil.rmtree(tree)
    write_json(f"{folder}/parts.json", {"release": release, "version": read_banner(f"{folder}/vmlinuz")})


def _find_release(tree: str) -> str:
    found = glob.glob(f"{tree}/boot/vmlinuz-*")
    if len(found) != 1:
        raise StorageError(f"the package holds {len(found)} kernels (boot/vmlinuz-RELEASE) instead of one")
    release = os.path.basename(found[0]).removeprefix("vmlinuz-")
    if not os.path.isdir(f"{tree}/{MODULES}/{release}"):
        raise StorageError(f"the package of kernel {release} holds no modules for it")
    return release


def _unpack_modules(tree: str) -> None:
    for suffix, command in _COMPRESSIONS:
        packed = glob.glob(f"{tree}/{MODULES}/**/*.ko{suffix}", recursive=True)
        if packed:
            run_tool(
                ["xargs", "-0", *command, "--"], "unpacking the kernel's modules", stdin="\0".join(packed).encode()
            )


def _index(tools: BootTools, tree: str, release: str) -> None:
    run_tool([tools.busybox, "depmod", "-b", tree, release], "indexing the kernel's modules")


def _prune_modules(folder: str) -> None:
    kept = choose_for_images(read_dependencies(f"{folder}/modules.dep"))
    for parent, _, names in os.walk(f"{folder}/kernel"):
        for name in names:
            path = os.path.join(parent, name)
            if os.path.relpath(path, folder) not in kept:
                os.unlink(path)
    run_tool(["find", f"{folder}/kernel", "-type", "d", "-empty", "-delete"], "removing empty module folders")
