"""qvm-shutdown and qvm-kill: stop VMs."""

from __future__ import annotations

import time

from crannog.cli.options import COMMON, Command, Operand, Option
from crannog.cli.selection import EXCLUDE, Row, list_vms, select
from crannog.cli.tool import complain, end, for_each, refuse_host, run, say
from crannog.client.connection import Client
from crannog.errors import CrannogError, InUseError, UsageError, VMNotRunningError

# Importing typing would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from crannog.cli.options import Values

SHUTDOWN = Command(
    "qvm-shutdown",
    "Ask VMs to shut down.",
    Operand("vms", "VM", "the VMs to shut down", "*"),
    Option("--wait", help="return when they are halted; those that others need are asked when the others are halted"),
    Option("--timeout", metavar="SECONDS", help="with --wait: kill those that are not halted after that time"),
    Option("--all", help="all VMs that run; without --wait, also those that others need"),
    EXCLUDE,
    Option("--force", help="do not check whether others depend on them"),
    Option("--dry-run", help="print whom it would ask, and do nothing"),
    *COMMON,
    examples=(
        "  qvm-shutdown --wait work\n  qvm-shutdown --all --wait --timeout 60\n  qvm-shutdown --all --exclude sys-net"
    ),
)
KILL = Command(
    "qvm-kill",
    "End VMs at once, as if their power was cut.",
    Operand("vms", "VM", "the VMs to end", "*"),
    Option("--all", help="all VMs that are not halted"),
    EXCLUDE,
    *COMMON,
    examples="  qvm-kill work\n  qvm-kill --all --exclude sys-net",
)
PAUSE = 0.1
"""Seconds between two looks at who is halted by now."""


def _is_active(row: Row) -> bool:
    return row.is_active


class Shutdown:
    """One run of qvm-shutdown. `code` is the exit code of the first failure."""

    def __init__(self, client: Client, *, is_forced: bool, timeout: float | None) -> None:
        self._client = client
        self._words = ["force"] if is_forced else []
        self._timeout = timeout
        self.code = 0

    def ask(self, vms: list[str]) -> tuple[list[str], dict[str, InUseError]]:
        """Ask VMs to shut down; return those that will, and why others are needed yet. Tell the other failures."""
        asked, needed = [], {}
        for vm in vms:
            try:
                refuse_host(vm)
                self._call(vm)
            except InUseError as error:
                needed[vm] = error
            except CrannogError as error:
                self.tell(error)
            else:
                asked.append(vm)
        return asked, needed

    def _call(self, vm: str, *more: str) -> None:
        self._client.call("admin.vm.Shutdown", vm, "+".join([*self._words, *more]))

    def tell(self, error: CrannogError) -> None:
        """Tell a failure and remember its code."""
        complain(SHUTDOWN.program, str(error))
        self.code = self.code or error.exit_code

    def ask_and_wait(self, vms: list[str]) -> None:
        """Ask VMs to shut down and wait until they have; then ask those that they had needed, round by round."""
        while vms:
            # All of a round are asked before any is waited for, so that they shut down at the same time.
            asked, needed = self.ask(vms)
            if not asked:
                for error in needed.values():
                    self.tell(error)
                return
            if self._timeout is None:
                self._await_halts(asked)
            else:
                self._await_or_kill(asked, time.monotonic() + self._timeout)
            vms = list(needed)

    def _await_halts(self, vms: list[str]) -> None:
        """Wait for VMs as long as the daemon does: each has a shutdown_timeout."""
        for vm in vms:
            try:
                self._call(vm, "wait")
            except VMNotRunningError:
                continue  # it has halted since it was asked
            except CrannogError as error:
                self.tell(error)

    def _await_or_kill(self, vms: list[str], deadline: float) -> None:
        while active := [row.name for row in list_vms(self._client) if row.is_active and row.name in vms]:
            if time.monotonic() >= deadline:
                break
            time.sleep(PAUSE)
        for vm in active:
            try:
                self._client.call("admin.vm.Kill", vm)
            except VMNotRunningError:
                continue  # it made it at the last moment
            except CrannogError as error:
                self.tell(error)
            else:
                complain(SHUTDOWN.program, f"{vm} did not shut down within {self._timeout:g} s and was killed")


def _shutdown(options: Values) -> int:
    timeout = _find_timeout(options)
    client = Client()
    vms = select(client, options, "shut down", _is_active)
    if options.dry_run:
        for vm in vms:
            say(f"{vm} would be asked to shut down")
        return 0
    shutdown = Shutdown(client, is_forced=options.force or (options.all and not options.wait), timeout=timeout)
    if options.wait:
        shutdown.ask_and_wait(vms)
    else:
        for error in shutdown.ask(vms)[1].values():
            shutdown.tell(error)
    return shutdown.code


def _find_timeout(options: Values) -> float | None:
    text = options.timeout
    if not text:
        return None
    if not options.wait:
        raise UsageError("--timeout says how long --wait waits; give both, or neither")
    if not (text.isascii() and text.isdigit()) or len(text) > 6:
        raise UsageError(f"--timeout takes a number of seconds, not '{text[:80]}'")
    return float(text)


def _kill(options: Values) -> int:
    client = Client()
    vms = select(client, options, "end", _is_active)
    return for_each(KILL.program, vms, lambda vm: _kill_one(client, vm))


def _kill_one(client: Client, vm: str) -> None:
    client.call("admin.vm.Kill", vm)


def main_shutdown() -> None:
    """Run qvm-shutdown."""
    end(run(SHUTDOWN, _shutdown))


def main_kill() -> None:
    """Run qvm-kill."""
    end(run(KILL, _kill))
