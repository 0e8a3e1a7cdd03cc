"""The image that shows a kernel's modules to guests whose own root has none for it: /lib/modules/RELEASE, read-only."""

import os
import tarfile

from crannog.images.disk import make_filesystem
from crannog.images.kernelparts import KernelParts
from crannog.images.tools import owner_prefix, run_tool

_BLOCK = 4096
_SPARE = 4 * 2**20
"""Bytes for what a file system keeps beside the blocks of files; what it does not need is never written."""


def make_modules_image(parts: KernelParts, path: str) -> None:
    """Write the image to the file `path`. No root is needed; the guest never writes to it, so it has no journal."""
    tar, tree = f"{parts.path}/modules.tar", path + ".tree"
    os.mkdir(tree)
    run_tool([*owner_prefix(), "tar", "-C", tree, "--strip-components=4", "-xf", tar], "unpacking the modules")
    with open(path, "wb") as file:
        file.truncate(_measure(tar))
    make_filesystem(tree, path, "-O", "^has_journal", "-m", "0", label="modules")
    run_tool([*owner_prefix(), "rm", "-rf", tree], "removing the temporary tree")


def _measure(path: str) -> int:
    """Return the bytes that a file system for the content of a tar file has: an eighth more, and whole MiB."""
    with tarfile.open(path) as tar:
        used = sum(-(-member.size // _BLOCK) * _BLOCK + _BLOCK for member in tar)
    return (used * 9 // 8 + _SPARE) // 2**20 * 2**20
