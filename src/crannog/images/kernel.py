"""Kernels that the host gives to its pv guests: an ELF kernel and a small initramfs."""

import dataclasses
import shutil

from crannog.errors import StorageError
from crannog.images.cache import ImageCache, compute_key, write_json
from crannog.images.initramfs import describe_initramfs, make_initramfs
from crannog.images.kernelparts import KernelParts, provide_parts
from crannog.images.recipe import Recipe, find_recipe
from crannog.images.tools import Report
from crannog.images.vmlinux import extract_vmlinux

KERNELOPTS = "root=/dev/vda rw console=ttyS0 quiet no_timer_check cryptomgr.notests"
"""Kernel command line of a pv guest. The self-tests of the kernel's ciphers would cost 0.3 s of a start under TCG."""

_VERSION = 2
"""Raised whenever this module makes something else of the same input."""


@dataclasses.dataclass(frozen=True)
class KernelImage:
    """A kernel in the cache: the folder `path` holds vmlinux, initramfs and kernel.json."""

    path: str
    release: str


def build_kernel(
    cache_dir: str,
    report: Report,
    *,
    recipe: Recipe | str = "debian-12",
    refresh: bool = False,
) -> KernelImage:
    """Return a recipe's kernel from the cache below `cache_dir`, after building it if it is not there.

    `report` is told each stage in words. `refresh` fetches the newest package. Raises NotFoundError for an unknown
    recipe, StorageError with one sentence for whatever fails.
    """
    cache = ImageCache(cache_dir, report)
    parts = provide_parts(cache, find_recipe(recipe), refresh=refresh)
    key = compute_key([_VERSION, KERNELOPTS, parts.identity, describe_initramfs()])

    def build(folder: str) -> None:
        extracted = _unpack_kernel(parts, f"{folder}/vmlinux", report)
        make_initramfs(parts, f"{folder}/initramfs")
        facts = {
            "release": parts.release,
            "version": parts.version,
            "format": "elf" if extracted else "bzimage",
            "kernelopts": KERNELOPTS,
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
