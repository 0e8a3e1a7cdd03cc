"""The programs in an initramfs, from the distribution's packages: busybox, and dmsetup with the libraries it loads."""

import dataclasses
import glob
import hashlib
import os
import shutil

from crannog.errors import StorageError
from crannog.images.cache import ImageCache, compute_key, read_json, write_json
from crannog.images.packages import make_tree
from crannog.images.recipe import Recipe
from crannog.images.tools import run_tool

_VERSION = 1
"""Raised whenever this module makes something else of the same input."""

_PACKAGES = ("busybox-static", "dmsetup")
_LOADER = "ld-linux-x86-64.so.2"
_LOADER_PATH = f"lib64/{_LOADER}"
"""Where programs for x86-64 look for it (System V ABI, AMD64 supplement, 5.2.1)."""


@dataclasses.dataclass(frozen=True)
class BootTools:
    """The folder `path` holds a static busybox and `layers`, a tree with dmsetup; `identity` names their content."""

    path: str
    identity: str

    @property
    def busybox(self) -> str:
        """The program that is all others of an initramfs."""
        return f"{self.path}/busybox"

    @property
    def layers(self) -> str:
        """The tree of what puts layers over a root."""
        return f"{self.path}/layers"


def provide_tools(cache: ImageCache, recipe: Recipe, *, refresh: bool = False) -> BootTools:
    """Return the programs from the recipe's distribution, from the cache or newly fetched.

    Raises StorageError with one sentence for whatever fails.
    """
    key = compute_key([_VERSION, recipe.suite, recipe.architecture, _PACKAGES, recipe.mirror])

    def build(folder: str) -> None:
        _fetch(folder, recipe, cache)

    path = cache.provide(f"boot-tools-{recipe.name}", key, build, refresh=refresh)
    return BootTools(path, compute_key([key, read_json(f"{path}/tools.json")]))


def _fetch(folder: str, recipe: Recipe, cache: ImageCache) -> None:
    tar, tree = f"{folder}/packages.tar", f"{folder}/tree"
    make_tree(recipe, "extract", _PACKAGES, [], tar, cache.report)
    os.mkdir(tree)
    # As in kernelsource: no device nodes.
    run_tool(["tar", "-C", tree, "--exclude=./dev/*", "-xf", tar], "taking packages apart")
    shutil.copy(_find(tree, "busybox"), f"{folder}/busybox")
    _copy_with_libraries(tree, _find(tree, "dmsetup"), f"{folder}/layers")
    shutil.rmtree(tree)
    os.unlink(tar)
    write_json(f"{folder}/tools.json", _digest_all(folder))


def _find(tree: str, name: str) -> str:
    """Return where a file that is no link is in the tree: some distributions have all programs below usr/."""
    found = [path for path in glob.glob(f"{tree}/**/{name}", recursive=True) if not os.path.islink(path)]
    programs = [path for path in found if os.path.isfile(path) and os.access(path, os.X_OK)]
    if not programs:
        raise StorageError(f"the packages {' and '.join(_PACKAGES)} hold no program {name}")
    return min(programs, key=len)


def _copy_with_libraries(tree: str, program: str, target: str) -> None:
    """Copy a program to target/sbin, its loader to where it is looked for, its libraries to target/lib."""
    loader = _find(tree, _LOADER)
    for folder in ("sbin", "lib", "lib64"):
        os.makedirs(f"{target}/{folder}")
    shutil.copy(program, f"{target}/sbin")
    shutil.copy(loader, f"{target}/{_LOADER_PATH}")
    for library in _list_libraries(tree, loader, program):
        shutil.copy(library, f"{target}/lib")


def _list_libraries(tree: str, loader: str, program: str) -> list[str]:
    """Ask the loader itself which files it would load, as ldd(1) does; raises StorageError when one is missing."""
    folders = {os.path.dirname(path) for path in glob.glob(f"{tree}/**/lib*.so*", recursive=True)}
    lines: list[str] = []
    command = [loader, "--library-path", ":".join(sorted(folders)), "--list", program]
    run_tool(command, "asking for the libraries of dmsetup", on_line=lines.append)
    places = [line.partition(" => ")[2].split(" ")[0] for line in lines if " => " in line]
    libraries = [place for place in places if os.path.basename(place) != _LOADER]
    strange = [line for line in lines if "not found" in line] or [p for p in libraries if not p.startswith(f"{tree}/")]
    if strange:
        raise StorageError(f"the packages {' and '.join(_PACKAGES)} do not hold all libraries of dmsetup: {strange[0]}")
    return libraries


def _digest_all(folder: str) -> dict[str, str]:
    digests = {}
    for parent, _, names in os.walk(folder):
        for path in [os.path.join(parent, name) for name in names]:
            with open(path, "rb") as file:
                digests[os.path.relpath(path, folder)] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests
