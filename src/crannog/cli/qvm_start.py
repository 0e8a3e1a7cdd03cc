"""qvm-start: start VMs."""

import os

from crannog.cli.options import QUIET, Command, Operand, Option, Values
from crannog.cli.selection import EXCLUDE, select
from crannog.cli.tool import end, for_each, run, say
from crannog.client.connection import Client
from crannog.errors import UsageError, VMNotHaltedError

_KINDS = {"cdrom": "cdrom", "hddisk": "hd"}

COMMAND = Command(
    "qvm-start",
    "Start VMs. Returns when the guest's agent answers, if the VM is known to have one.",
    Operand("vms", "VM", "the VMs to start, in this order", "*"),
    Option(
        "--wait",
        help="wait for the agent in any case; without one the start fails after the VM's qrexec_timeout",
    ),
    Option("--no-wait", help="return as soon as the VM runs"),
    Option("--cdrom", metavar="[dom0:]IMAGE", help="boot from this CD image"),
    Option("--hddisk", metavar="[dom0:]IMAGE", help="boot from this raw disk image, which the VM writes to"),
    Option(
        "--drive",
        metavar="{cdrom|hd}:[dom0:]IMAGE",
        help="the same in one word; a VM with a kernel from the host gets the image as one more disk",
    ),
    Option("--allow-device", help="the image may be a block device of this host; for root only"),
    Option("--all", help="all VMs that are halted"),
    EXCLUDE,
    Option("--skip-if-running", help="a VM that runs already is no error"),
    Option("--no-guid", help="accepted for those who are used to it: no display is opened here"),
    Option("--dry-run", help="print the steps and do nothing"),
    Option("--verbose", "-v", help="print how long each stage took"),
    QUIET,
    examples="  qvm-start work\n  qvm-start -v --wait work desk\n  qvm-start --cdrom /srv/install.iso other-os\n"
    "  qvm-start --drive hd:/srv/rescue.img work\n"
    "  qvm-start --all --exclude debian-12",
)


def _start(options: Values) -> int:
    if options.wait and options.no_wait:
        raise UsageError("--wait and --no-wait exclude each other")
    words = [word for word in ("wait", "dry-run", "allow-device") if getattr(options, word.replace("-", "_"))]
    argument = "+".join([*words, *(["nowait"] if options.no_wait else [])])
    drive = _find_drive(options)
    client = Client()
    vms = select(client, options, "start", lambda row: row.state == "Halted")
    return for_each(COMMAND.program, vms, lambda vm: _start_one(client, vm, argument, drive, options))


def _find_drive(options: Values) -> str:
    """Return the image to boot from as the daemon wants it named, empty for none."""
    given = [name for name in ("cdrom", "hddisk", "drive") if getattr(options, name)]
    if options.allow_device and os.geteuid():
        raise UsageError("--allow-device is for root: a guest may damage what the device holds")
    if not given:
        return ""
    if len(given) > 1:
        raise UsageError(f"--{given[0]} and --{given[1]} exclude each other; a VM is started with one image")
    if options.all:
        raise UsageError(f"--{given[0]} is for VMs that are named, not for --all")
    return _name_drive(given[0], getattr(options, given[0]), may_be_device=options.allow_device)


def _name_drive(option: str, text: str, *, may_be_device: bool) -> str:
    from crannog.core.drives import strip_host

    kind, separator, image = text.partition(":") if option == "drive" else (_KINDS[option], ":", text)
    if not separator or kind not in _KINDS.values():
        raise UsageError(f"--drive takes cdrom:IMAGE or hd:IMAGE, not '{text[:80]}'")
    path = os.path.abspath(strip_host(image))
    if not os.path.isfile(path) and not (may_be_device and os.path.exists(path)):
        raise UsageError(f"the image {path} is not a file; give the path of an image on this host")
    return f"{kind}:{path}"


def _start_one(client: Client, vm: str, argument: str, drive: str, options: Values) -> None:
    try:
        reply = client.text("crannog.vm.Start", vm, argument, drive)
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
