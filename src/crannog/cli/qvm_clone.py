"""qvm-clone: make a VM with the settings and data of another."""

from crannog.cli.connect import OFFLINE, open_client
from crannog.cli.options import COMMON, Command, Operand, Option, Values
from crannog.cli.qvm_create import CLASSES, refuse_odd_class
from crannog.cli.tool import end, refuse_odd_word, run
from crannog.errors import UsageError

COMMAND = Command(
    "qvm-clone",
    "Make a VM with all settings, notes and data of a halted one. The new VM is halted then.",
    Operand("source", "SRC", "the VM to clone"),
    Operand("name", "NAME", "name of the new VM"),
    Option("--class", "-C", metavar="CLASS", help=f"class of the new VM, if another: {', '.join(CLASSES)}"),
    *COMMON,
    OFFLINE,
    examples="  qvm-clone work work-2\n  qvm-clone --class StandaloneVM debian-12 other",
)


def _clone(options: Values) -> None:
    klass = getattr(options, "class")
    if klass:
        refuse_odd_class(klass)
    if options.source == "dom0":
        raise UsageError("dom0 is this host itself and cannot be cloned; only VMs can")
    refuse_odd_word("the name of a VM", options.name)
    open_client(COMMAND.program, options).text("crannog.vm.Clone", options.source, klass, options.name)


def main() -> None:
    """Run qvm-clone."""
    end(run(COMMAND, _clone))
