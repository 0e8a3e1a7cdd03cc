"""A kernel package taken apart: what kernels, initramfs and images are made from."""

import dataclasses
import glob
import os
import shutil

from crannog.errors import StorageError
from crannog.images.cache import ImageCache, compute_key, read_json, write_json
from crannog.images.modules import KEPT, choose_for_images, read_dependencies
from crannog.images.packages import make_tree
from crannog.images.recipe import Recipe
from crannog.images.tools import run_tool
from crannog.images.vmlinux import read_banner

_VERSION = 1
"""Raised whenever this module makes something else of the same input."""


@dataclasses.dataclass(frozen=True)
class KernelParts:
    """The folder `path` holds vmlinuz, a static busybox, and modules.tar: lib/modules/<release>, ready to use."""

    path: str
    release: str
    version: str
    identity: str


def provide_parts(cache: ImageCache, recipe: Recipe, *, refresh: bool = False) -> KernelParts:
    """Return the parts of the recipe's kernel package, from the cache or newly fetched.

    Raises StorageError with one sentence for whatever fails.
    """
    source = [recipe.suite, recipe.architecture, recipe.kernel_package, recipe.mirror]
    key = compute_key([_VERSION, source, KEPT])

    def build(folder: str) -> None:
        _fetch(folder, recipe, cache)

    path = cache.provide(f"kernel-parts-{recipe.name}", key, build, refresh=refresh)
    facts = read_json(f"{path}/parts.json")
    return KernelParts(path, facts["release"], facts["version"], compute_key([key, facts]))


def _fetch(folder: str, recipe: Recipe, cache: ImageCache) -> None:
    tar, tree = f"{folder}/packages.tar", f"{folder}/tree"
    make_tree(recipe, "extract", [recipe.kernel_package, "busybox-static"], [], tar, cache.report)
    os.mkdir(tree)
    wanted = ["./boot/vmlinuz-*", "./lib/modules/*", "./bin/busybox"]
    run_tool(["tar", "-C", tree, "-xf", tar, "--wildcards", *wanted], "taking the kernel package apart")
    found = glob.glob(f"{tree}/boot/vmlinuz-*")
    if len(found) != 1:
        raise StorageError(f"the package {recipe.kernel_package} holds {len(found)} kernels instead of one")
    release = os.path.basename(found[0]).removeprefix("vmlinuz-")
    shutil.copyfile(found[0], f"{folder}/vmlinuz")
    shutil.copy(f"{tree}/bin/busybox", f"{folder}/busybox")
    _prune_modules(f"{folder}/busybox", tree, release)
    owner = ["--owner=0", "--group=0", "--numeric-owner", "--sort=name"]
    # Below usr/, because /lib is a link in the images.
    path = ["-C", tree, "--transform=s,^lib,usr/lib,", f"lib/modules/{release}"]
    run_tool(["tar", *owner, "-cf", f"{folder}/modules.tar", *path], "packing the kernel's modules")
    shutil.rmtree(tree)
    os.unlink(tar)
    write_json(f"{folder}/parts.json", {"release": release, "version": read_banner(f"{folder}/vmlinuz")})


def _prune_modules(busybox: str, tree: str, release: str) -> None:
    index = [busybox, "depmod", "-b", tree, release]
    folder = f"{tree}/lib/modules/{release}"
    run_tool(index, "indexing the kernel's modules")
    kept = choose_for_images(read_dependencies(f"{folder}/modules.dep"))
    for parent, _, names in os.walk(f"{folder}/kernel"):
        for name in names:
            path = os.path.join(parent, name)
            if os.path.relpath(path, folder) not in kept:
                os.unlink(path)
    run_tool(["find", f"{folder}/kernel", "-type", "d", "-empty", "-delete"], "removing empty module folders")
    run_tool(index, "indexing the kernel's modules")
