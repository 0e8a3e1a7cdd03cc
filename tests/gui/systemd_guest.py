"""An ordinary Debian with systemd, made a guest by the packages of `make guest-deb` and by nothing else."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from crannog.config import Paths
from crannog.images.basetree import provide_base
from crannog.images.cache import ImageCache, compute_key
from crannog.images.disk import make_filesystem
from crannog.images.packages import make_tree
from crannog.images.recipe import RECIPES
from crannog.images.tools import owner_prefix, run_tool

TOP = Path(__file__).resolve().parents[2]
SIZE = 3 << 30
PACKAGES = ("dbus", "procps", "systemd-sysv", "udev")
"""Beside what the packages depend on."""


def build_packages(folder: Path) -> list[Path]:
    """Build the two packages; return their paths, the agent's first."""
    command = [sys.executable, str(TOP / "scripts/guest-deb"), str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=60)
    return [Path(line) for line in done.stdout.decode().split()]


def provide_image(packages: list[Path]) -> str:
    """Return a root disk on which dpkg has installed the packages, from the cache when nothing has changed.

    It is made of the tree that the template debian-12-gui is made of as well, which has what they depend on.
    """
    cache = ImageCache(Paths().cache, lambda text: print(text, file=sys.stderr))
    gui = RECIPES["debian-12-gui"]
    base = provide_base(cache, gui)
    digests = [hashlib.sha256(package.read_bytes()).hexdigest() for package in packages]
    key = compute_key([base.identity, digests, SIZE, PACKAGES, _list_options("", [])])

    def build(folder: str) -> None:
        tar, tree, image = f"{folder}/root.tar", f"{folder}/tree", f"{folder}/root.img"
        make_tree(gui, "custom", PACKAGES, _list_options(base.tar, packages), tar, cache.report)
        os.mkdir(tree, 0o755)
        words = ["tar", "-C", tree, "--numeric-owner", "--same-permissions", "--exclude=./dev/*", "-xf", tar]
        run_tool([*owner_prefix(), *words], "unpacking the root file system")
        with open(image, "wb") as file:
            file.truncate(SIZE)
        make_filesystem(tree, image)
        run_tool([*owner_prefix(), "rm", "-rf", tree, tar], "removing the temporary tree")

    return cache.provide("debian-12-systemd", key, build) + "/root.img"


def _list_options(base: str, packages: list[Path]) -> list[str]:
    """Return mmdebstrap's options: what it begins with, and what is done at the end, in the tree."""
    install = "DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends"
    inside = " ".join(f"/var/tmp/{package.name}" for package in packages)
    return [
        f'--setup-hook=tar -C "$1" --numeric-owner -xf {base}',
        f'--customize-hook=APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" {install} {" ".join(PACKAGES)}',
        *(f"--customize-hook=copy-in {package} /var/tmp" for package in packages),
        f'--customize-hook=chroot "$1" sh -ec "dpkg --install {inside}; rm {inside}"',
    ]
