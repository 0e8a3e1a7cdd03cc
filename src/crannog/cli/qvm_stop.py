"""qvm-shutdown and qvm-kill: stop VMs."""

import contextlib

from crannog.cli.options import Command, Operand, Option, Values
from crannog.cli.tool import end, for_each, run
from crannog.client.connection import Client
from crannog.errors import UsageError, VMNotRunningError

SHUTDOWN = Command(
    "qvm-shutdown",
    "Ask VMs to shut down.",
    Operand("vms", "VM", "the VMs to shut down", "*"),
    Option("--wait", help="return when they are halted"),
    Option("--all", help="all VMs that run"),
    Option("--force", help="do not check whether others depend on them"),
    examples="  qvm-shutdown --wait work\n  qvm-shutdown --all --wait",
)
KILL = Command(
    "qvm-kill",
    "End VMs at once, as if their power was cut.",
    Operand("vms", "VM", "the VMs to end", "*"),
    examples="  qvm-kill work",
)


def _running(client: Client) -> list[str]:
    rows = [line.split(" ") for line in client.text("admin.vm.List").splitlines()]
    return [row[0] for row in rows if row[1] != "class=AdminVM" and row[2] != "state=Halted"]


def _shutdown(options: Values) -> int:
    client = Client()
    vms = _running(client) if options.all else options.vms
    if not vms and not options.all:
        raise UsageError("name the VMs to shut down, or say --all")
    force = ["force"] if options.force else []
    # All are asked before any is waited for, so that they shut down at the same time.
    code = (
        for_each(SHUTDOWN.program, vms, lambda vm: _ask(client, vm, force)) if len(vms) > 1 or not options.wait else 0
    )
    if options.wait:
        action = _ask if len(vms) == 1 else _await_halt
        code = code or for_each(SHUTDOWN.program, vms, lambda vm: action(client, vm, [*force, "wait"]))
    return code


def _ask(client: Client, vm: str, words: list[str]) -> None:
    client.call("admin.vm.Shutdown", vm, "+".join(words))


def _await_halt(client: Client, vm: str, words: list[str]) -> None:
    """Wait for a VM that was asked before; it may have halted meanwhile."""
    with contextlib.suppress(VMNotRunningError):
        _ask(client, vm, words)


def _kill(options: Values) -> int:
    if not options.vms:
        raise UsageError("name the VMs to end; qvm-ls --running lists them")
    client = Client()
    return for_each(KILL.program, options.vms, lambda vm: _kill_one(client, vm))


def _kill_one(client: Client, vm: str) -> None:
    client.call("admin.vm.Kill", vm)


def main_shutdown() -> None:
    """Run qvm-shutdown."""
    end(run(SHUTDOWN, _shutdown))


def main_kill() -> None:
    """Run qvm-kill."""
    end(run(KILL, _kill))
