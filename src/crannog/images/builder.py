"""Template images: root disks of pv and hvm VMs, made from packages without loop device, mount or VM."""

import dataclasses
import os
from typing import Any

from crannog.errors import StorageError, ValueRefusedError
from crannog.images.basetree import BaseTree, provide_base
from crannog.images.boottools import BootTools, provide_tools
from crannog.images.cache import ImageCache, compute_key, read_json, write_json
from crannog.images.digest import digest_sparse
from crannog.images.disk import RootDisk, disk_for
from crannog.images.guestfiles import GuestFile, list_guest_files, write_tar
from crannog.images.initramfs import describe_initramfs, make_initramfs
from crannog.images.kernelparts import KernelParts, provide_parts
from crannog.images.kernelsource import RecipeSource
from crannog.images.recipe import Recipe, find_recipe
from crannog.images.tools import Report, owner_prefix, run_tool, stage

DEFAULT_SIZE = 10 * 2**30
MIN_SIZE = 512 * 2**20
MAX_SIZE = 2 * 2**40
"""Largest disk that an MBR partition table can describe."""

_VERSION = 3
"""Raised whenever this module makes something else of the same input."""


@dataclasses.dataclass(frozen=True)
class TemplateImage:
    """A template in the cache: the folder `path` holds root.img and manifest.json."""

    path: str
    manifest: dict[str, Any]

    @property
    def root_img(self) -> str:
        """The raw, sparse root disk."""
        return f"{self.path}/root.img"


def build_template(
    recipe: Recipe | str,
    virt_mode: str,
    cache_dir: str,
    report: Report,
    *,
    agent_path: str,
    size: int = DEFAULT_SIZE,
    refresh: bool = False,
) -> TemplateImage:
    """Return a recipe's root image for `virt_mode` from the cache, after building it if it is not there.

    `size` is the disk's virtual size in bytes; it costs no space. `agent_path` is the guest agent's program. `refresh`
    fetches the newest packages. A recipe from find_recipe(name, mirror) has another package mirror. `report` is told
    each stage in words. Raises ValueRefusedError for a virt_mode or size that cannot be, NotFoundError for an
    unknown recipe, StorageError with one sentence for whatever fails.
    """
    chosen = find_recipe(recipe)
    disk = disk_for(virt_mode)
    if not MIN_SIZE <= size <= MAX_SIZE or size % 2**20:
        raise ValueRefusedError(f"a root disk of {size} bytes is not whole MiB from 512 MiB to 2 TiB")
    agent = _read_agent(agent_path)
    cache = ImageCache(cache_dir, report)
    tools = provide_tools(cache, chosen, refresh=refresh)
    parts = provide_parts(cache, RecipeSource(chosen), tools, refresh=refresh)
    base = provide_base(cache, chosen, refresh=refresh)
    files = list_guest_files(chosen.name, agent, has_gui=chosen.has_gui) + disk.list_files()
    initramfs = describe_initramfs(tools) if disk.has_own_kernel else []
    content = [initramfs, [dataclasses.astuple(file) for file in files]]
    key = compute_key([_VERSION, size, disk.describe(), parts.identity, base.identity, content])

    def build(folder: str) -> None:
        with stage(report, f"{chosen.name}: making the {virt_mode} root image"):
            boot = _list_boot_files(folder, parts, tools) if disk.has_own_kernel else []
            _assemble(folder, base, parts, files + boot, disk, size)
            write_json(f"{folder}/manifest.json", _make_manifest(folder, chosen, disk, parts, base))

    path = cache.provide(f"{chosen.name}-{virt_mode}", key, build)
    return TemplateImage(path, read_json(f"{path}/manifest.json"))


def _read_agent(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise StorageError(f"the guest agent {path} cannot be read: {error.strerror}") from error


def _assemble(
    folder: str, base: BaseTree, parts: KernelParts, files: list[GuestFile], disk: RootDisk, size: int
) -> None:
    tree, own, image = f"{folder}/tree", f"{folder}/own.tar", f"{folder}/root.img"
    os.mkdir(tree, 0o755)
    write_tar(files, own)
    for tar in (base.tar, f"{parts.path}/modules.tar", own):
        _unpack(tar, tree)
    os.unlink(own)
    with open(image, "wb") as file:
        file.truncate(size)
    disk.write(tree, image)
    run_tool([*owner_prefix(), "rm", "-rf", tree], "removing the temporary tree")


def _unpack(tar: str, tree: str) -> None:
    # /dev is a devtmpfs in the guest, and an ordinary user cannot make device nodes. The links /sbin etc. stay.
    options = ["--numeric-owner", "--same-permissions", "--keep-directory-symlink", "--exclude=./dev/*"]
    run_tool([*owner_prefix(), "tar", "-C", tree, *options, "-xf", tar], "unpacking the root file system")


def _list_boot_files(folder: str, parts: KernelParts, tools: BootTools) -> list[GuestFile]:
    """Return kernel and initramfs of a guest that boots by itself; its root is written on the host."""
    initramfs = f"{folder}/initramfs"
    make_initramfs(parts, tools, initramfs, has_layers=False)
    found = []
    for name, path in (("vmlinuz", f"{parts.path}/vmlinuz"), ("initramfs", initramfs)):
        with open(path, "rb") as file:
            found.append(GuestFile(f"boot/{name}", content=file.read()))
    os.unlink(initramfs)
    return found


def _make_manifest(
    folder: str, recipe: Recipe, disk: RootDisk, parts: KernelParts, base: BaseTree
) -> dict[str, object]:
    image = f"{folder}/root.img"
    facts = os.stat(image)
    return {
        "name": f"{recipe.name}-{disk.virt_mode}",
        "distribution": recipe.distribution,
        "virt_mode": disk.virt_mode,
        "size": facts.st_size,
        "used": facts.st_blocks * 512,
        "digest": digest_sparse(image),
        "packages": base.packages,
        "kernel": "" if disk.has_own_kernel else parts.release,
        "features": {
            "os": "Linux",
            "os-distribution": recipe.distribution,
            "os-version": recipe.version,
            "qrexec": "1",
            **({"gui": "1"} if recipe.has_gui else {}),
            "virtio-disk": "1",
        },
        "default_user": recipe.default_user,
    }
