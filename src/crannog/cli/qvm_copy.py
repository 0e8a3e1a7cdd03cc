"""qvm-copy-to-vm and qvm-move-to-vm: files of this host to a VM, by its service qubes.Filecopy.

What sends them is the program that guests use as well (crannog/guest/qfile.py), in a process of its own. A VM's answer
is hostile: that program believes nothing of it but one number.
"""

from __future__ import annotations

import os
import sys

from crannog.cli.options import QUIET, VERBOSE, Command, Operand, Option
from crannog.cli.tool import complain, end, refuse_host, run
from crannog.client.connection import Client
from crannog.errors import RpcError, UsageError

# Importing typing would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from crannog.cli.options import Values

_OPERANDS = (
    Operand("vm", "VM", "the VM that gets them; it is started if it is halted"),
    Operand("files", "FILE", "files and folders, with all that is in them", "*"),
)
_OPTIONS = (
    Option("--without-progress", help="show no progress on a terminal"),
    Option("--no-autostart", help="do not start a halted VM; fail"),
    VERBOSE,
    QUIET,
)
COPY = Command(
    "qvm-copy-to-vm",
    "Copy files to a VM, where they are in QubesIncoming/dom0 of its user. What is there already is not replaced.",
    *_OPERANDS,
    *_OPTIONS,
    examples="  qvm-copy-to-vm work thesis.pdf\n  qvm-copy-to-vm work pictures letters",
)
MOVE = Command(
    "qvm-move-to-vm",
    "Copy files to a VM, and delete them here when it has confirmed that it has all of them.",
    *_OPERANDS,
    *_OPTIONS,
    examples="  qvm-move-to-vm work downloads",
)
SERVICE, UNUSUAL = "qubes.Filecopy+", "qubes.Filecopy+allow-unsafe-characters"


def _copy(options: Values) -> int:
    return _send(COPY, options)


def _move(options: Values) -> int:
    return _send(MOVE, options)


def _send(command: Command, options: Values) -> int:
    from crannog.guest.qvm_copy import Contents, Trouble

    refuse_host(options.vm)
    if not options.files:
        raise UsageError("there is no file to copy; name some after the VM")
    try:
        contents = Contents(options.files)
    except Trouble as trouble:
        raise UsageError(str(trouble)) from None
    except OSError as error:
        raise UsageError(f"'{error.filename}' cannot be read: {error.strerror}") from None
    code = _pass(options, SERVICE if contents.is_plain() else UNUSUAL, contents.size())
    if code == 0 and command is MOVE:
        for path in contents.remove():
            complain(command.program, f"{path} was copied and stays here: it has changed, or cannot be deleted")
            code = 1
    return code


def _pass(options: Values, service: str, size: int) -> int:
    """Have the files sent and the VM's answer taken; return 0 when the VM has all of them."""
    import subprocess

    from crannog.cli.qvm_run import reach
    from crannog.cli.terminal import Filters
    from crannog.client.rpc import run_command
    from crannog.guest import qvm_copy

    socket = reach(Client(), options.vm, may_start=not options.no_autostart)
    data, theirs = os.pipe()
    answer, ours = os.pipe()
    shown = {} if options.without_progress else {"FILECOPY_TOTAL_SIZE": str(size)}
    sender = subprocess.Popen(
        [sys.executable, "-IS", qvm_copy.QFILE, "send", *options.files],
        stdin=answer,
        stdout=theirs,
        env={**os.environ, **shown},
    )
    os.close(answer)
    os.close(theirs)
    try:
        with Filters() as filters:  # what the VM complains of could do anything to a terminal
            code = run_command(socket, "DEFAULT", f"QUBESRPC {service} dom0", data, ours, filters.open(2, ""))
    finally:
        os.close(ours)
        os.close(data)
        sent = sender.wait()
    if code == 127:
        raise RpcError(f"{options.vm} has no service qubes.Filecopy; install the guest tools in it (docs/guest.md)")
    return sent or code


def main() -> None:
    """Run qvm-copy-to-vm."""
    end(run(COPY, _copy))


def main_move() -> None:
    """Run qvm-move-to-vm."""
    end(run(MOVE, _move))
