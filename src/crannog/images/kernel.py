"""Kernels that the host gives to its pv guests: an ELF kernel, a small initramfs, and its modules as a disk."""

import dataclasses
import os
import shutil

from crannog.errors import StorageError
from crannog.images.boottools import provide_tools
from crannog.images.cache import ImageCache, compute_key, write_json
from crannog.images.initramfs import describe_initramfs, make_initramfs
from crannog.images.kernelparts import KernelParts, provide_parts
from crannog.images.kernelsource import KernelSource, RecipeSource
from crannog.images.modulesimage import make_modules_image
from crannog.images.recipe import Recipe, find_recipe
from crannog.images.tools import Report
from crannog.images.vmlinux import extract_vmlinux

KERNELOPTS = "root=/dev/vda rw console=ttyS0 quiet no_timer_check cryptomgr.notests"
"""Kernel command line of a pv guest. The self-tests of the kernel's ciphers would cost 0.3 s of a start under TCG."""

_VERSION = 4
"""Raised whenever this module makes something else of the same input."""

_NAME_DIGITS = 8


@dataclasses.dataclass(frozen=True)
class KernelImage:
    """A kernel in the cache: the folder `path` holds vmlinux, initramfs, modules.img and kernel.json."""

    path: str
    release: str

    @property
    def name(self) -> str:
        """What it is called in pool linux-kernel: each build has its own name, as VMs may use older ones."""
        return f"{self.release}-{os.path.basename(self.path).rpartition('-')[2][:_NAME_DIGITS]}"


def build_kernel(
    cache_dir: str,
    report: Report,
    *,
    recipe: Recipe | str = "debian-12",
    source: KernelSource | None = None,
    has_all_modules: bool = False,
    refresh: bool = False,
) -> KernelImage:
    """Return a kernel from the cache below `cache_dir`, after building it if it is not there.

    It is the recipe's own kernel, or that of another `source`; the other programs of the initramfs are the recipe's.
    `report` is told each stage in words. `refresh` fetches the newest packages. For `has_all_modules` see
    provide_parts. Raises NotFoundError for an unknown recipe or a source that is not there, StorageError with one
    sentence for whatever fails.
    """
    cache = ImageCache(cache_dir, report)
    chosen = find_recipe(recipe)
    tools = provide_tools(cache, chosen, refresh=refresh)
    its_source = source or RecipeSource(chosen)
    parts = provide_parts(cache, its_source, tools, has_all_modules=has_all_modules, refresh=refresh)
    key = compute_key([_VERSION, KERNELOPTS, parts.identity, describe_initramfs(tools)])

    def build(folder: str) -> None:
        extracted = _unpack_kernel(parts, f"{folder}/vmlinux", report)
        make_initramfs(parts, tools, f"{folder}/initramfs", has_layers=True)
        make_modules_image(parts, f"{folder}/modules.img")
        facts = {
            "release": parts.release,
            "version": parts.version,
            "format": "elf" if extracted else "bzimage",
            "kernelopts": KERNELOPTS,
            "layers": True,
        }
        write_json(f"{folder}/kernel.json", facts)

    return KernelImage(cache.provide("kernel-" + parts.release, key, build, refresh=refresh), parts.release)


def _unpack_kernel(parts: KernelParts, vmlinux: str, report: Report) -> bool:
    try:
        extract_vmlinux(f"{parts.path}/vmlinuz", vmlinux)
    except StorageError as error:
        report(f"the compressed kernel is used as it is, which boots 0.6 s slower: {error}")
        shutil.copyfile(f"{parts.path}/vmlinuz", vmlinux)
        return False
    return True
