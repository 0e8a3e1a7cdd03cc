"""`scripts/dm-lab`: a machine whose kernel has device-mapper, for tests that need one."""

import argparse
import contextlib
import os
import shlex
import signal
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from types import FrameType
from typing import IO

from crannog.cli.tool import complain
from crannog.config import Paths
from crannog.errors import CrannogError, HypervisorError, StorageError, UsageError
from crannog.images.cache import ImageCache
from crannog.images.recipe import Recipe
from lab.execution import Executor
from lab.machine import Machine, MachineSpec
from lab.root import LabRoot, provide_root
from lab.share import Share

PROGRAM = "dm-lab"
PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

RECIPE = Recipe(
    name=PROGRAM,
    distribution="debian",
    version="12",
    suite="bookworm",
    architecture="amd64",
    packages=(
        "btrfs-progs",
        "busybox-static",
        "dmsetup",
        "e2fsprogs",
        "fdisk",
        "iproute2",
        "kmod",
        # It has dm-snapshot, dm-thin-pool, btrfs, xfs and virtiofs, and boots in half the time of the other one.
        "linux-image-cloud-amd64",
        "lvm2",
        "mount",
        "procps",
        "psmisc",
        "python3",
        "qemu-utils",
        "thin-provisioning-tools",
        # Stands in for the packages that would make a large initramfs with each kernel.
        "tiny-initramfs",
        "udev",
        "usr-is-merged",
        "util-linux",
        "xfsprogs",
    ),
    kernel_package="linux-image-cloud-amd64",
)

# QEMU uses what it has translated of a program again only where that is at the same addresses: without norandmaps each
# start of a program takes three times as long.
_KERNEL_WORDS = "console=ttyS0 quiet panic=-1 no_timer_check cryptomgr.notests norandmaps"

DEFAULT_TIMEOUT = 300.0
BOOT_TIMEOUT = 120.0
"""Seconds. A boot takes four on two quiet cores."""
QUOTED_LINES = 60
"""A kernel that dies says that much."""
TIMED_OUT, TROUBLE, INTERRUPTED, BROKEN_PIPE = 124, 125, 130, 141
"""Exit codes, as timeout(1) and shells give them; whatever else comes is the command's own."""


class Stages:
    """How long each stage took."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Measure what is done in the context, also when it fails."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._seconds[name] = time.monotonic() - began

    def __str__(self) -> str:
        return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self._seconds.items())


def report(text: str) -> None:
    """Tell the user how far it is: on stderr, as stdout is the command's."""
    # The builders of images begin with the name of what they build, which is the same.
    print(f"{PROGRAM}: {text.removeprefix(PROGRAM + ': ')}", file=sys.stderr, flush=True)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the options; `command` is a list of words, empty for a shell."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        usage="%(prog)s [--timeout SECONDS] [--vcpus NUMBER] [-- COMMAND ...]",
        description="Run a command as root in a new machine that has device-mapper, in the project's folder, which is "
        "read-only there; /tmp has 15 GiB. Without a command: a shell on the machine's console.",
        epilog="Exit codes: the command's own; 124 after the time limit; 125 when the lab itself fails.",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        metavar="SECONDS",
        help=f"for boot and command together, {DEFAULT_TIMEOUT:.0f} by default, no limit for a shell; building the "
        "machine, which happens once, does not count",
    )
    parser.add_argument(
        "--vcpus",
        type=int,
        choices=range(1, 9),
        default=2,
        metavar="NUMBER",
        help="processors of the machine, 2 by default; 1 is best where several machines share two processors",
    )
    parser.add_argument("command", nargs="*", metavar="COMMAND", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def provide_machine(words: str, vcpus: int) -> MachineSpec:
    """Return the machine, built if need be; `words` are added to its kernel's command line.

    Raises StorageError when it cannot be built, or when its Python cannot use the project's environment.
    """
    root = provide_root(ImageCache(Paths().cache, report), RECIPE)
    check_python(root)
    own = f'{_KERNEL_WORDS} LAB={PROGRAM} "PROJECT={PROJECT}"'
    return MachineSpec(root.kernel, root.initramfs, f"{own} {words}".strip(), root.disk, vcpus=vcpus)


def check_python(root: LabRoot) -> None:
    """Raise StorageError unless .venv's interpreter is one that the machine has at the same path."""
    version = ".".join(root.packages["python3"].split(".")[:2])
    own = os.path.realpath(sys.executable)
    if own != f"/usr/bin/python{version}":
        raise StorageError(
            f"the lab has /usr/bin/python{version}, and .venv is made for {own}: make .venv with Debian 12's python3"
        )


def run_command(words: list[str], timeout: float, vcpus: int, stages: Stages) -> int:
    """Run a command in a new machine, and return its exit code. Raises CrannogError and TimeoutError."""
    with stages.time("image"):
        spec = provide_machine("", vcpus)
    deadline = time.monotonic() + timeout
    with contextlib.ExitStack() as stack:
        with stages.time("boot"):
            log = stack.enter_context(tempfile.TemporaryFile())
            stack.enter_context(quote_console(log))
            share = stack.enter_context(Share(PROJECT, log))
            machine = stack.enter_context(Machine(spec, share.link, log))
            executor = Executor(PROGRAM, machine.link, deadline)
            executor.await_agent(BOOT_TIMEOUT)
        with stages.time("command"):
            code = executor.run(f"cd {shlex.quote(PROJECT)} && exec {shlex.join(words)}")
        with stages.time("tear-down"):
            stack.close()
    return code


@contextlib.contextmanager
def quote_console(log: IO[bytes]) -> Iterator[None]:
    """Add the end of a machine's console to the error when the machine fails or takes too long."""
    try:
        yield
    except (HypervisorError, TimeoutError) as error:
        log.seek(0)
        lines = log.read().decode(errors="replace").splitlines()[-QUOTED_LINES:]
        quote = "\n".join(["; the end of its console:", *lines]) if any(lines) else "; its console is empty"
        raise type(error)(f"{error}{quote}") from error


def open_shell(timeout: float | None, vcpus: int) -> int:
    """Boot a machine with a shell on this terminal. Raises CrannogError and TimeoutError."""
    if not sys.stdin.isatty():
        raise UsageError("a shell needs a terminal: give a command, as in 'dm-lab -- dmsetup targets'")
    size = os.get_terminal_size(sys.stdin.fileno())
    spec = provide_machine(f"SHELL_SIZE={size.lines},{size.columns} TERM={os.environ.get('TERM', 'vt102')}", vcpus)
    with (
        keep_terminal(),
        tempfile.TemporaryFile() as log,
        Share(PROJECT, log) as share,
        Machine(spec, share.link, None) as machine,
    ):
        machine.wait(timeout)
    return 0


@contextlib.contextmanager
def keep_terminal() -> Iterator[None]:
    """Put the terminal back as it was: QEMU does so when it ends by itself, and not when it is killed."""
    attributes = termios.tcgetattr(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, attributes)


def end_on_signals() -> None:
    """Have SIGTERM and SIGHUP end this process as an exception does, so that it tidies up."""

    def leave(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)


def main(arguments: list[str]) -> int:
    """Do what the command line says, and return the exit code."""
    options = parse(arguments)
    end_on_signals()
    stages = Stages()
    try:
        if not options.command:
            return open_shell(options.timeout, options.vcpus)
        return run_command(options.command, options.timeout or DEFAULT_TIMEOUT, options.vcpus, stages)
    except TimeoutError as error:
        limit = options.timeout or DEFAULT_TIMEOUT
        complain(PROGRAM, f"the machine was ended after {limit:g} s, its time limit (--timeout){error}")
        return TIMED_OUT
    except CrannogError as error:
        complain(PROGRAM, str(error))
        return TROUBLE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return BROKEN_PIPE
    finally:
        if str(stages):
            report(str(stages))
