"""Trees of Debian packages, made by mmdebstrap(1)."""

import time
from collections.abc import Sequence

from crannog.images.recipe import Recipe
from crannog.images.tools import Report, owner_prefix, run_tool

# How mmdebstrap's own messages begin, and what a human is told instead.
_PROGRESS = {
    "I: running apt-get update": "reading the package lists",
    "I: downloading packages": "downloading packages",
    "I: extracting archives": "unpacking",
    "I: installing essential": "installing the essential packages",
    "I: installing remaining": "installing the other packages",
    "I: creating tarball": "packing the tree",
}


def make_tree(
    recipe: Recipe, variant: str, packages: Sequence[str], options: Sequence[str], tar: str, report: Report
) -> None:
    """Write a tar file of `packages` and what they depend on; `variant` and `options` as in mmdebstrap(1).

    Raises StorageError with mmdebstrap's own words.
    """
    # mmdebstrap makes the user namespace itself; asking here gives the clearer error.
    mode = "unshare" if owner_prefix() else "root"
    command = [
        "mmdebstrap",
        f"--mode={mode}",
        f"--variant={variant}",
        f"--architectures={recipe.architecture}",
        "--format=tar",
        "--skip=output/mknod",
        *options,
        f"--include={','.join(packages)}",
        recipe.suite,
        tar,
        *([recipe.mirror] if recipe.mirror else []),
    ]
    run_tool(command, f"fetching packages for {recipe.name}", on_line=_Condenser(recipe.name, report))


class _Condenser:
    """Turns mmdebstrap's messages into a few lines, each with the seconds since the start."""

    def __init__(self, name: str, report: Report) -> None:
        self.name = name
        self.report = report
        self.started = time.monotonic()

    def __call__(self, line: str) -> None:
        for beginning, text in _PROGRESS.items():
            if line.startswith(beginning):
                self.report(f"{self.name}: {text} ({time.monotonic() - self.started:.0f} s)")
