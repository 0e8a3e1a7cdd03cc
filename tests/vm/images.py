"""The images that the tests' guests start from; `python -m tests.vm.images` builds those that are not in the cache yet.

A first build takes minutes on a busy machine: it comes before the tests, whose tools have time limits.
"""

import dataclasses
import sys

from crannog.config import Paths
from crannog.errors import CrannogError
from crannog.guest import agent
from crannog.images.basetree import provide_base
from crannog.images.builder import build_template
from crannog.images.cache import ImageCache
from crannog.images.kernel import build_kernel
from crannog.images.recipe import RECIPES

TEMPLATES = ("debian-12", "debian-12-gui")
PLAIN = RECIPES["debian-12"]
FOREIGN = dataclasses.replace(PLAIN, name="debian-12-qga", packages=(*PLAIN.packages, "qemu-guest-agent"))
"""A Debian with QEMU's guest agent."""


def report(text: str) -> None:
    """Print what is being done, at once."""
    print(text, flush=True)


def build_all(cache: str) -> None:
    """Build what is missing in the cache. Raises StorageError for whatever fails."""
    for recipe in TEMPLATES:
        for mode in ("pv", "hvm"):
            build_template(recipe, mode, cache, report, agent_path=str(agent.__file__))
    build_kernel(cache, report, recipe=PLAIN)
    provide_base(ImageCache(cache, report), FOREIGN)


def main() -> int:
    """Build all; return the exit code."""
    try:
        build_all(Paths().cache)
    except CrannogError as error:
        print(f"images of the tests: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
