"""qvm-start: start VMs."""

import os

from crannog.cli.options import QUIET, Command, Operand, Option, Values
from crannog.cli.selection import EXCLUDE, select
from crannog.cli.tool import end, for_each, run, say
from crannog.client.connection import Client
from crannog.errors import UsageError, VMNotHaltedError

COMMAND = Command(
    "qvm-start",
    "Start VMs. Returns when the guest's agent answers, if the VM is known to have one.",
    Operand("vms", "VM", "the VMs to start, in this order", "*"),
    Option(
        "--wait",
        help="wait for the agent in any case; without one the start fails after the VM's qrexec_timeout",
    ),
    Option("--no-wait", help="return as soon as the VM runs"),
    Option("--cdrom", metavar="[dom0:]IMAGE", help="boot an HVM from this CD image"),
    Option("--all", help="all VMs that are halted"),
    EXCLUDE,
    Option("--skip-if-running", help="a VM that runs already is no error"),
    Option("--no-guid", help="accepted for those who are used to it: no display is opened here"),
    Option("--dry-run", help="print the steps and do nothing"),
    Option("--verbose", "-v", help="print how long each stage took"),
    QUIET,
    examples="  qvm-start work\n  qvm-start -v --wait work desk\n  qvm-start --cdrom /srv/install.iso other-os\n"
    "  qvm-start --all --exclude debian-12",
)


def _start(options: Values) -> int:
    if options.wait and options.no_wait:
        raise UsageError("--wait and --no-wait exclude each other")
    if options.cdrom and options.all:
        raise UsageError("--cdrom is for VMs that are named, not for --all")
    words = [word for word in ("wait", "dry-run") if getattr(options, word.replace("-", "_"))]
    argument = "+".join([*words, *(["nowait"] if options.no_wait else [])])
    cdrom = _image(options.cdrom) if options.cdrom else ""
    client = Client()
    vms = select(client, options, "start", lambda row: row.state == "Halted")
    return for_each(COMMAND.program, vms, lambda vm: _start_one(client, vm, argument, cdrom, options))


def _image(text: str) -> str:
    path = os.path.abspath(text.removeprefix("dom0:"))
    if not os.path.isfile(path):
        raise UsageError(f"the CD image {path} is not a file; give the path of an image on this host")
    return path


def _start_one(client: Client, vm: str, argument: str, cdrom: str, options: Values) -> None:
    try:
        reply = client.text("crannog.vm.Start", vm, argument, cdrom)
    except VMNotHaltedError:
        if not options.skip_if_running:
            raise
        return
    if options.dry_run:
        say(reply.rstrip())
    elif options.verbose:
        _print_stages(vm, [line.split("\t") for line in reply.splitlines()])


def _print_stages(vm: str, stages: list[list[str]]) -> None:
    for seconds, stage in stages:
        say(f"{vm}: {1000 * float(seconds):7.0f} ms  {stage}")
    say(f"{vm}: {sum(1000 * float(seconds) for seconds, _ in stages):7.0f} ms  in all")


def main() -> None:
    """Run qvm-start."""
    end(run(COMMAND, _start))
