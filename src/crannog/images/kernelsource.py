"""Where a kernel comes from: a distribution's package, a package that is a file, or this host's own kernels."""

import hashlib
import os
import re
from typing import Protocol

from crannog.errors import NotFoundError, StorageError
from crannog.images.packages import make_tree
from crannog.images.recipe import Recipe
from crannog.images.tools import Report, run_tool

MODULES = "lib/modules"
_RELEASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+~-]*")


class KernelSource(Protocol):
    """One place from which a kernel and its modules can be had."""

    @property
    def name(self) -> str:
        """A name for the cache."""

    def describe(self) -> list[object]:
        """Return what decides the content, for cache keys; raises NotFoundError or StorageError if it is not there."""

    def unpack(self, tree: str, report: Report) -> None:
        """Put boot/vmlinuz-RELEASE and lib/modules/RELEASE below the empty folder `tree`; raises StorageError."""


class RecipeSource:
    """The kernel package of a recipe's distribution."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self.name = recipe.name

    def describe(self) -> list[object]:
        """Return the package, and where it is fetched from."""
        recipe = self._recipe
        return [recipe.suite, recipe.architecture, recipe.kernel_package, recipe.mirror]

    def unpack(self, tree: str, report: Report) -> None:
        """Fetch the newest version and take it apart."""
        tar = tree + ".tar"
        make_tree(self._recipe, "extract", [self._recipe.kernel_package], [], tar, report)
        # Device nodes and the like are of no use here, and an ordinary user could not make them.
        run_tool(["tar", "-C", tree, "--exclude=./dev/*", "-xf", tar], "taking the kernel package apart")
        os.unlink(tar)
        _move_modules(tree)


class FileSource:
    """A Debian package that is a file on this host."""

    name = "package"

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(path)

    def describe(self) -> list[object]:
        """Return the digest of the file."""
        return [_digest(self._path)]

    def unpack(self, tree: str, report: Report) -> None:
        """Take the package apart; none of its scripts is run."""
        report(f"taking {os.path.basename(self._path)} apart")
        run_tool(["dpkg-deb", "--extract", self._path, tree], f"taking {self._path} apart")
        _move_modules(tree)


class HostSource:
    """A kernel that is installed on this host, by its release as uname(1) says it."""

    name = "host"

    def __init__(self, release: str, root: str = "/") -> None:
        """`root` is the folder in which boot/ and lib/modules/ are."""
        self._release = release
        self._boot = os.path.join(root, "boot")
        self._vmlinuz = os.path.join(self._boot, f"vmlinuz-{release}")
        self._modules = os.path.join(root, MODULES, release)

    def describe(self) -> list[object]:
        """Return the digests of the kernel and of the list of its modules."""
        if not _RELEASE.fullmatch(self._release) or not os.path.exists(self._vmlinuz):
            raise NotFoundError(
                f"this host has no kernel '{self._release[:80]}' in {self._boot}: {self._list_others()}"
            )
        return [self._release, _digest(self._vmlinuz), _digest(f"{self._modules}/modules.dep")]

    def _list_others(self) -> str:
        names = sorted(os.listdir(self._boot)) if os.path.isdir(self._boot) else []
        found = [name.removeprefix("vmlinuz-") for name in names if name.startswith("vmlinuz-")]
        return f"it has {', '.join(found)}" if found else "it has none, name a package with --package"

    def unpack(self, tree: str, report: Report) -> None:
        """Copy kernel and modules."""
        report(f"copying kernel {self._release} of this host")
        for path, folder in ((self._vmlinuz, "boot"), (self._modules, MODULES)):
            os.makedirs(f"{tree}/{folder}")
            run_tool(["cp", "-R", "--reflink=auto", "--", path, f"{tree}/{folder}"], f"copying {path}")


def _digest(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error


def _move_modules(tree: str) -> None:
    """Put the modules where older packages have them."""
    merged = f"{tree}/usr/{MODULES}"
    if os.path.isdir(merged):
        os.makedirs(f"{tree}/lib", exist_ok=True)
        os.rename(merged, f"{tree}/{MODULES}")
