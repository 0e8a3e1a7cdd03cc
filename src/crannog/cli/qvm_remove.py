"""qvm-remove: remove VMs with everything in them."""

from __future__ import annotations

import sys

from crannog.cli.connect import OFFLINE, open_client
from crannog.cli.options import COMMON, Command, Operand, Option
from crannog.cli.tool import end, for_each, run
from crannog.errors import UsageError

# Importing typing would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from crannog.cli.options import Values
    from crannog.cli.request import Caller

COMMAND = Command(
    "qvm-remove",
    "Remove halted VMs and all their data.",
    Operand("vms", "VM", "the VMs to remove", "*"),
    Option("--force", "-f", help="do not ask"),
    *COMMON,
    OFFLINE,
    examples="  qvm-remove work\n  qvm-remove --force one two",
)


def _remove(options: Values) -> int:
    if not options.vms:
        raise UsageError("name the VMs to remove; qvm-ls lists them")
    client = open_client(COMMAND.program, options)
    for vm in options.vms:
        client.call("admin.vm.List", vm)
    if not options.force and not _is_agreed(options.vms):
        return 1
    return for_each(COMMAND.program, options.vms, lambda vm: _remove_one(client, vm))


def _remove_one(client: Caller, vm: str) -> None:
    client.call("admin.vm.Remove", vm)


def _is_agreed(vms: list[str]) -> bool:
    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask on; add --force to remove without being asked")
    print(
        f"This deletes {', '.join(vms)} and all data in them. Go on? [y/N] ",
        end="",
        flush=True,
        file=sys.stderr,
    )
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def main() -> None:
    """Run qvm-remove."""
    end(run(COMMAND, _remove))
