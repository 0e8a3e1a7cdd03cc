"""qvm-pause and qvm-unpause: hold VMs, and let them go on."""

from __future__ import annotations

from crannog.cli.options import COMMON, Command, Operand, Option
from crannog.cli.selection import EXCLUDE, select
from crannog.cli.tool import end, for_each, run
from crannog.client.connection import Client

# Importing typing would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from crannog.cli.options import Values

PAUSE = Command(
    "qvm-pause",
    "Hold VMs: they keep their memory and get no processor until qvm-unpause lets them go on.",
    Operand("vms", "VM", "the VMs to hold", "*"),
    Option("--all", help="all VMs that run"),
    EXCLUDE,
    Option("--suspend", "-S", help="ask the guest to sleep (S3) instead; qvm-unpause --resume wakes it"),
    *COMMON,
    examples="  qvm-pause work\n  qvm-pause --all --exclude sys-net",
)
UNPAUSE = Command(
    "qvm-unpause",
    "Let VMs that qvm-pause holds go on.",
    Operand("vms", "VM", "the VMs to let go on", "*"),
    Option("--all", help="all VMs that are held"),
    EXCLUDE,
    Option("--resume", help="wake VMs that sleep, because of 'qvm-pause --suspend' or of their own"),
    *COMMON,
    examples="  qvm-unpause work\n  qvm-unpause --all",
)


def _pause(options: Values) -> int:
    client, method = Client(), "admin.vm.Suspend" if options.suspend else "admin.vm.Pause"
    vms = select(client, options, "hold", lambda row: row.state == "Running")
    return _call_each(PAUSE, client, vms, method)


def _unpause(options: Values) -> int:
    client, method = Client(), "admin.vm.Resume" if options.resume else "admin.vm.Unpause"
    state = "Suspended" if options.resume else "Paused"
    vms = select(client, options, "let go on", lambda row: row.state == state)
    return _call_each(UNPAUSE, client, vms, method)


def _call_each(command: Command, client: Client, vms: list[str], method: str) -> int:
    def act(vm: str) -> None:
        client.call(method, vm)

    return for_each(command.program, vms, act)


def main() -> None:
    """Run qvm-pause."""
    end(run(PAUSE, _pause))


def main_unpause() -> None:
    """Run qvm-unpause."""
    end(run(UNPAUSE, _unpause))
