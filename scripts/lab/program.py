"""What the labs' scripts have in common: options, stages and their times, running a command or a shell, exit codes."""

import argparse
import contextlib
import dataclasses
import os
import shlex
import signal
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import IO

from crannog.cli.tool import complain
from crannog.config import Paths
from crannog.errors import CrannogError, HypervisorError, StorageError, UsageError
from crannog.images.cache import ImageCache
from lab.execution import Executor
from lab.machine import Machine, MachineSpec
from lab.root import Blueprint, LabRoot, provide_root
from lab.share import Share

PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

QUOTED_LINES = 60
"""A kernel that dies says that much."""
TIMED_OUT, TROUBLE, INTERRUPTED, BROKEN_PIPE = 124, 125, 130, 141
"""Exit codes, as timeout(1) and shells give them; whatever else comes is the command's own."""


@dataclasses.dataclass(frozen=True)
class Lab:
    """One lab: `describe` makes the machine's spec of its root, the options and further words for its kernel."""

    blueprint: Blueprint
    description: str
    example: str
    """A command that shows what the lab is for."""
    describe: Callable[[LabRoot, argparse.Namespace, str], MachineSpec]
    add_options: Callable[[argparse.ArgumentParser], None] = lambda _parser: None
    timeout: float = 300.0
    """Seconds for boot and command, where the user says nothing."""
    boot_timeout: float = 120.0
    """Seconds until the machine takes commands; a boot takes a small part of them."""

    @property
    def name(self) -> str:
        """What the script is called."""
        return self.blueprint.recipe.name


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


def _parse(lab: Lab, arguments: list[str]) -> argparse.Namespace:
    """Return the options; `command` is a list of words, empty for a shell."""
    parser = argparse.ArgumentParser(
        prog=lab.name,
        usage="%(prog)s [options] [-- COMMAND ...]",
        description=f"{lab.description} The command runs in the project's folder, which is read-only there; /tmp has "
        "15 GiB. Without a command: a shell on the machine's console.",
        epilog="Exit codes: the command's own; 124 after the time limit; 125 when the lab itself fails.",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        metavar="SECONDS",
        help=f"for boot and command together, {lab.timeout:.0f} by default, no limit for a shell; building the "
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
    lab.add_options(parser)
    parser.add_argument("command", nargs="*", metavar="COMMAND", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


class Run:
    """One run of a lab's script."""

    def __init__(self, lab: Lab, options: argparse.Namespace) -> None:
        self.lab = lab
        self.options = options
        self.stages = Stages()

    def report(self, text: str) -> None:
        """Tell the user how far it is: on stderr, as stdout is the command's."""
        # The builders of images begin with the name of what they build, which is the same.
        print(f"{self.lab.name}: {text.removeprefix(self.lab.name + ': ')}", file=sys.stderr, flush=True)

    def go(self) -> int:
        """Run the command or the shell, and return the exit code. Raises CrannogError and TimeoutError."""
        if not self.options.command:
            return self._open_shell()
        return self._run_command()

    def _provide_machine(self, words: str) -> MachineSpec:
        """Return the machine, built if need be; `words` are added to its kernel's command line.

        Raises StorageError when it cannot be built, or when its Python cannot use the project's environment.
        """
        root = provide_root(ImageCache(Paths().cache, self.report), self.lab.blueprint)
        check_python(root)
        own = f'LAB={self.lab.name} "PROJECT={PROJECT}" {words}'
        return self.lab.describe(root, self.options, own.strip())

    def _run_command(self) -> int:
        with self.stages.time("image"):
            spec = self._provide_machine("")
        deadline = time.monotonic() + (self.options.timeout or self.lab.timeout)
        with contextlib.ExitStack() as stack:
            with self.stages.time("boot"):
                log = stack.enter_context(tempfile.TemporaryFile())
                stack.enter_context(quote_console(log))
                machine = self._start(stack, spec, log, log)
                executor = Executor(self.lab.name, machine.link, deadline, is_woken=bool(spec.hypervisor))
                executor.await_agent(self.lab.boot_timeout)
            with self.stages.time("command"):
                code = executor.run(f"cd {shlex.quote(PROJECT)} && exec {shlex.join(self.options.command)}")
            with self.stages.time("tear-down"):
                stack.close()
        return code

    @staticmethod
    def _start(stack: contextlib.ExitStack, spec: MachineSpec, log: IO[bytes], console: IO[bytes] | None) -> Machine:
        folders = {"project": PROJECT, **spec.folders}
        shares = {tag: stack.enter_context(Share(folder, log)).link for tag, folder in folders.items()}
        return stack.enter_context(Machine(spec, shares, console))

    def _open_shell(self) -> int:
        if not sys.stdin.isatty():
            raise UsageError(f"a shell needs a terminal: give a command, as in '{self.lab.example}'")
        size = os.get_terminal_size(sys.stdin.fileno())
        terminal = os.environ.get("TERM", "vt102")
        spec = self._provide_machine(f"SHELL_SIZE={size.lines},{size.columns} TERM={terminal}")
        with contextlib.ExitStack() as stack:
            stack.enter_context(keep_terminal())
            log = stack.enter_context(tempfile.TemporaryFile())
            self._start(stack, spec, log, None).wait(self.options.timeout)
        return 0


def check_python(root: LabRoot) -> None:
    """Raise StorageError unless .venv's interpreter is one that the machine has at the same path."""
    version = ".".join(root.packages["python3"].split(".")[:2])
    own = os.path.realpath(sys.executable)
    if own != f"/usr/bin/python{version}":
        raise StorageError(
            f"the lab has /usr/bin/python{version}, and .venv is made for {own}: make .venv with Debian 12's python3"
        )


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


@contextlib.contextmanager
def keep_terminal() -> Iterator[None]:
    """Put the terminal back as it was: QEMU does so when it ends by itself, and not when it is killed."""
    attributes = termios.tcgetattr(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, attributes)


def _end_on_signals() -> None:
    """Have SIGTERM and SIGHUP end this process as an exception does, so that it tidies up."""

    def leave(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)


def main(lab: Lab, arguments: list[str]) -> int:
    """Do what the command line says, and return the exit code."""
    options = _parse(lab, arguments)
    _end_on_signals()
    run = Run(lab, options)
    try:
        return run.go()
    except TimeoutError as error:
        limit = options.timeout or lab.timeout
        complain(lab.name, f"the machine was ended after {limit:g} s, its time limit (--timeout){error}")
        return TIMED_OUT
    except CrannogError as error:
        complain(lab.name, str(error))
        return TROUBLE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return BROKEN_PIPE
    finally:
        if str(run.stages):
            run.report(str(run.stages))
