"""crannog doctor: what this host can do and what is missing, in sentences."""

import os
import shutil

from crannog.cli.options import Command, Values
from crannog.cli.tool import run, say
from crannog.client.connection import Client
from crannog.config import Paths
from crannog.errors import CrannogError

COMMAND = Command(
    "crannog doctor", "Say what this host can do and what is missing. Exits 1 when something needed is missing."
)

# Program, Debian package, what it is for, whether the main job needs it.
PROGRAMS = (
    ("qemu-system-x86_64", "qemu-system-x86", "run VMs", True),
    ("qemu-img", "qemu-utils", "make the layers of volumes", True),
    ("mmdebstrap", "mmdebstrap", "build templates", False),
    ("mke2fs", "e2fsprogs", "build templates", False),
)
LOW_SPACE = 2 * 2**30


def _examine(_options: Values) -> int:
    paths = Paths()
    say(f"State is kept in {paths.home}, built images in {paths.cache}.")
    findings = [_check_program(*program) for program in PROGRAMS] + [_check_space(paths)]
    is_well = all(findings)
    try:
        for sentence in Client(paths).text("crannog.Diagnose").splitlines():
            say(sentence)
    except CrannogError as error:
        say(f"MISSING: the daemon cannot work: {error}")
        return 1
    say("Everything that is needed is there." if is_well else "Something that is needed is missing: see above.")
    return 0 if is_well else 1


def _check_program(program: str, package: str, purpose: str, is_needed: bool) -> bool:
    path = shutil.which(program)
    if path:
        say(f"{program} is there to {purpose} ({path}).")
        return True
    say(f"MISSING: {program}, to {purpose}: apt-get install {package}")
    return not is_needed


def _check_space(paths: Paths) -> bool:
    folder = paths.home
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    free = shutil.disk_usage(folder).free
    is_enough = free >= LOW_SPACE
    mark, advice = ("", "") if is_enough else ("MISSING: ", ": free some")
    say(f"{mark}{free / 2**30:.1f} GiB are free where state is kept{advice}.")
    return is_enough


def main(arguments: list[str]) -> int:
    """Run crannog doctor."""
    return run(COMMAND, _examine, arguments)
