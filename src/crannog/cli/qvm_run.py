"""qvm-run: run a command in a VM."""

from __future__ import annotations

import os
import time

from crannog.cli.options import Command, Operand, Option, Values
from crannog.cli.tool import end, refuse_host, run
from crannog.client.connection import Client
from crannog.errors import UsageError, VMNotHaltedError

# Importing typing and collections.abc would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 10
"""Seconds in which the RPC process of a VM that is not halted must be there."""
COMMAND = Command(
    "qvm-run",
    "Run a command in a VM, with this terminal's input and output; end with its exit code.",
    Operand("vm", "VM", "the VM; it is started if it is halted"),
    Operand("command", "COMMAND", "the command, for the shell of the VM's user", "..."),
    Option("--user", "-u", metavar="USER", default="DEFAULT", help="user to run as (default: the VM's default_user)"),
    Option("--no-autostart", "-n", help="do not start a halted VM; fail"),
    Option("--pass-io", "-p", help="accepted for those who are used to it: input and output are always passed"),
    Option("--no-stdin", help="give the command an empty standard input"),
    examples=(
        "  qvm-run work -- uname -a\n  qvm-run --user root work 'apt-get update && apt-get upgrade'\n"
        "  qvm-run work 'cat > notes.txt' < notes.txt"
    ),
)


def _run(options: Values) -> int:
    if not options.command:
        raise UsageError("there is no command; write it after the VM's name")
    refuse_host(options.vm)
    client = Client()
    socket = client.paths.rpc_socket(options.vm)
    from crannog.client.rpc import is_served, run_command

    if not is_served(socket):
        _start(client, options, lambda: is_served(socket))
    stdin = os.open(os.devnull, os.O_RDONLY) if options.no_stdin else 0
    return run_command(socket, options.user, " ".join(options.command), stdin, 1, 2)


def _start(client: Client, options: Values, is_served: Callable[[], bool]) -> None:
    """Start the VM unless told not to. Where somebody else is starting it, its RPC process is there in a moment."""
    if options.no_autostart:
        state = client.text("admin.vm.CurrentState", options.vm).rpartition("=")[2]
        raise UsageError(f"{options.vm} is {state} and has no agent; start it with 'qvm-start --wait {options.vm}'")
    try:
        client.text("crannog.vm.Start", options.vm, "wait")
    except VMNotHaltedError:
        deadline = time.monotonic() + PATIENCE
        while not is_served() and time.monotonic() < deadline:
            time.sleep(0.02)


def main() -> None:
    """Run qvm-run."""
    end(run(COMMAND, _run))
