"""qvm-run: run a command in a VM."""

from __future__ import annotations

import os
import time

from crannog.cli.options import QUIET, VERBOSE, Command, Operand, Option
from crannog.cli.tool import complain, end, refuse_host, run
from crannog.client.connection import Client
from crannog.errors import CrannogError, RpcError, UsageError, VMNotHaltedError

# Importing typing and collections.abc would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from crannog.cli.options import Values
    from crannog.cli.terminal import Filters

PATIENCE = 10
"""Seconds in which the RPC process of a VM that is not halted must be there."""
COMMAND = Command(
    "qvm-run",
    "Run a command in a VM, with this terminal's input and output; end with its exit code.",
    Operand("vm", "VM", "the VM; it is started if it is halted"),
    Operand("command", "COMMAND", "the command, for the shell of the VM's user", "..."),
    Option("--user", "-u", metavar="USER", default="DEFAULT", help="user to run as (default: the VM's default_user)"),
    Option("--all", help="in all VMs that run, one after the other and without input; there is no VM to name then"),
    Option("--exclude", metavar="VM", is_repeated=True, help="leave this VM out of --all; may be repeated"),
    Option("--no-autostart", "--no-auto", "-n", help="do not start a halted VM; fail"),
    Option("--autostart", "--auto", "-a", help="accepted for those who are used to it: VMs are started anyway"),
    Option("--pass-io", "-p", help="accepted for those who are used to it: input and output are always passed"),
    Option(
        "--service", help="COMMAND is a service of the VM, with `+` and an argument if it takes one, not for a shell"
    ),
    Option("--no-stdin", help="give the command an empty standard input"),
    Option(
        "--filter-escape-chars",
        help="print '_' for what could control a terminal (default for output that goes to one)",
    ),
    Option(
        "--no-filter-escape-chars", help="print everything as it is; a VM can then do what it likes to the terminal"
    ),
    Option("--color-output", "--colour-output", metavar="N", help="ANSI colour of filtered output (default: 31, red)"),
    Option("--color-stderr", "--colour-stderr", metavar="N", help="the same for error output"),
    Option("--no-color-output", "--no-colour-output", help="do not colour output"),
    Option("--no-color-stderr", "--no-colour-stderr", help="do not colour error output"),
    Option("--gui", help="accepted for those who are used to it"),
    Option("--no-gui", "--nogui", help="accepted for those who are used to it"),
    Option(
        "--dispvm",
        metavar="TEMPLATE",
        otherwise="dom0",
        help="in a new disposable of this AppVM (without =TEMPLATE: of the system's default_dispvm), which goes when "
        "the command has ended; there is no VM to name then",
    ),
    VERBOSE,
    QUIET,
    examples=(
        "  qvm-run work -- uname -a\n  qvm-run --user root work 'apt-get update && apt-get upgrade'\n"
        "  qvm-run work 'cat > notes.txt' < notes.txt\n  qvm-run --all --exclude sys-net uptime\n"
        "  qvm-run --service work qubes.WaitForSession\n  qvm-run --dispvm -- uname -a\n"
        "  qvm-run --dispvm=untrusted 'cat > a.pdf && pdftotext a.pdf -' < a.pdf"
    ),
)


def _run(options: Values) -> int:
    _refuse_nonsense(options)
    if options.all:
        return _run_everywhere(Client(), options)
    if options.dispvm:
        return _run_in_disposable(Client(), options)
    if not options.command:
        raise UsageError("there is no command; write it after the VM's name")
    refuse_host(options.vm)
    return _run_one(Client(), options.vm, _command(options, options.command), options)


def _command(options: Values, words: list[str]) -> str:
    """Return what the agent is told; raises UsageError for what can be no service (qrexec protocol, section 3)."""
    if not options.service:
        return " ".join(words)
    name = words[0] if len(words) == 1 else ""
    if not name or name.startswith("+") or not all((c.isascii() and c.isalnum()) or c in "+._:@-" for c in name):
        given = " ".join(words)[:80]
        raise UsageError(f"'{given}' is no service; write one word, such as qubes.GetDate or qubes.VMExec+id")
    return f"QUBESRPC {name}{'' if '+' in name else '+'} dom0"


def _refuse_nonsense(options: Values) -> None:
    pairs = [("autostart", "no_autostart"), ("filter_escape_chars", "no_filter_escape_chars")]
    for first, second in (*pairs, ("dispvm", "all"), ("dispvm", "no_autostart")):
        if getattr(options, first) and getattr(options, second):
            raise UsageError(f"--{first.replace('_', '-')} and --{second.replace('_', '-')} exclude each other")
    if options.exclude and not options.all:
        raise UsageError("--exclude leaves VMs out of --all; without --all, just name another VM")
    for key in ("color_output", "color_stderr"):
        text = getattr(options, key)
        if text and not (text.isascii() and text.replace(";", "").isdigit()):
            raise UsageError(f"--{key.replace('_', '-')} takes the number of an ANSI colour, as 31, not '{text[:80]}'")


def _run_in_disposable(client: Client, options: Values) -> int:
    """Run the command in a disposable that is there for it alone. The exit code does not wait for its end."""
    from crannog.client.leases import create_leased

    command = _command(options, [options.vm, *options.command])  # without the name of a VM, the first word is its
    lease = create_leased(client, options.dispvm)
    try:
        return _run_one(client, lease.vm, command, options)
    finally:
        lease.close()


def _run_one(client: Client, vm: str, command: str, options: Values) -> int:
    """Run the command in one VM and return its exit code."""
    from crannog.client.rpc import run_command

    socket = reach(client, vm, may_start=not options.no_autostart)
    stdin = _find_input(vm, socket, options)
    if not _is_filtered(options, 1) and not _is_filtered(options, 2):
        return run_command(socket, options.user, command, stdin, 1, 2)
    from crannog.cli.terminal import Filters

    with Filters() as filters:
        stdout, stderr = (_find_output(filters, options, file) for file in (1, 2))
        return run_command(socket, options.user, command, stdin, stdout, stderr)


def _find_input(vm: str, socket: str, options: Values) -> int:
    """Return what the command reads. QEMU's guest agent wants all of that beforehand, and a terminal's never ends."""
    is_left_out = options.no_stdin or options.all
    if not is_left_out and os.isatty(0):
        from crannog.client.rpc import HANDSHAKE_TIMEOUT, read_status

        is_left_out = read_status(socket, HANDSHAKE_TIMEOUT)["agent"] == "fallback"
        if is_left_out and not options.quiet:
            complain(
                COMMAND.program, f"{vm} has QEMU's guest agent alone: the command gets no input from this terminal"
            )
    return os.open(os.devnull, os.O_RDONLY) if is_left_out else 0


def _is_filtered(options: Values, file: int) -> bool:
    """Tell whether what a VM writes is made harmless first: on a terminal it could do anything (design, section 1)."""
    if options.no_filter_escape_chars:
        return False
    return options.filter_escape_chars or os.isatty(file)


def _find_output(filters: Filters, options: Values, file: int) -> int:
    """Return where the command's output goes instead of `file`."""
    if not _is_filtered(options, file):
        return file
    name = "output" if file == 1 else "stderr"
    is_coloured = os.isatty(file) and not getattr(options, f"no_color_{name}")
    return filters.open(file, (getattr(options, f"color_{name}") or "31") if is_coloured else "")


def _run_everywhere(client: Client, options: Values) -> int:
    """Run the command in all VMs that run; return the first code that is not 0."""
    from crannog.cli.selection import list_vms, refuse_unknown
    from crannog.client.rpc import is_served

    # Without the name of a VM, the first word belongs to the command.
    command = _command(options, [options.vm, *options.command])
    rows = list_vms(client)
    refuse_unknown(options.exclude, {row.name for row in rows})
    code = 0
    for row in rows:
        if row.state == "Running" and row.name not in options.exclude:
            try:
                if not is_served(client.paths.rpc_socket(row.name)):
                    raise RpcError("it has no agent that could run the command")
                found = _run_one(client, row.name, command, options)
            except CrannogError as error:
                complain(COMMAND.program, f"{row.name}: {error}")
                found = error.exit_code
            code = code or found
    return code


def reach(client: Client, vm: str, *, may_start: bool) -> str:
    """Return the socket of a VM's RPC process, which is started with the VM if that may be."""
    from crannog.client.rpc import is_served

    socket = client.paths.rpc_socket(vm)
    if not is_served(socket):
        _start(client, vm, lambda: is_served(socket), may_start=may_start)
    return socket


def _start(client: Client, vm: str, is_served: Callable[[], bool], *, may_start: bool) -> None:
    """Start the VM unless told not to. Where somebody else is starting it, its RPC process is there in a moment."""
    if not may_start:
        state = client.text("admin.vm.CurrentState", vm).rpartition("=")[2]
        raise UsageError(f"{vm} is {state} and has no agent; start it with 'qvm-start --wait {vm}'")
    try:
        client.text("crannog.vm.Start", vm, "wait")
    except VMNotHaltedError:
        deadline = time.monotonic() + PATIENCE
        while not is_served() and time.monotonic() < deadline:
            time.sleep(0.02)


def main() -> None:
    """Run qvm-run."""
    end(run(COMMAND, _run))
