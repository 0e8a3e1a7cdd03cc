"""qvm-shutdown and qvm-kill: stop VMs."""

from __future__ import annotations

from crannog.cli.options import COMMON, Command, Operand, Option
from crannog.cli.selection import EXCLUDE, Row, select
from crannog.cli.shutdowns import Shutdowns, call_all
from crannog.cli.tool import end, run, say
from crannog.client.connection import Client
from crannog.errors import UsageError

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


def _is_active(row: Row) -> bool:
    return row.is_active


def _shutdown(options: Values) -> int:
    timeout = _find_timeout(options)
    client = Client()
    vms = select(client, options, "shut down", _is_active)
    if options.dry_run:
        for vm in vms:
            say(f"{vm} would be asked to shut down")
        return 0
    is_forced = options.force or (options.all and not options.wait)
    shutdowns = Shutdowns(client, SHUTDOWN.program, is_forced=is_forced, timeout=timeout)
    if options.wait:
        shutdowns.ask_and_wait(vms)
    else:
        shutdowns.ask(vms)
    return shutdowns.code


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
    return call_all(client, KILL.program, "admin.vm.Kill", vms)


def main_shutdown() -> None:
    """Run qvm-shutdown."""
    end(run(SHUTDOWN, _shutdown))


def main_kill() -> None:
    """Run qvm-kill."""
    end(run(KILL, _kill))
