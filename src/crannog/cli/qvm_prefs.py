"""qvm-prefs: show and change the properties of a VM."""

from crannog.cli.options import Command, Operand, Values
from crannog.cli.prefs import OPTIONS, act, arguments_of
from crannog.cli.tool import end, run

COMMAND = Command(
    "qvm-prefs",
    "Show the properties of a VM, or show or change one.",
    Operand("vm", "VM", "the VM"),
    Operand("name", "PROPERTY", "the property; all are listed without it", "?"),
    Operand("value", "VALUE", "its new value; '' or none means no VM", "?"),
    *OPTIONS,
    examples=(
        "  qvm-prefs work\n  qvm-prefs work memory 600\n  qvm-prefs work netvm none\n"
        "  qvm-prefs --default work memory\n  qvm-prefs --set work kernelopts '-v'\n"
        "  qvm-prefs --offline --hide-default work"
    ),
)


def _act(options: Values) -> None:
    act(COMMAND.program, options, "admin.vm.property", options.vm)


def main() -> None:
    """Run qvm-prefs."""
    end(run(COMMAND, _act, arguments_of(COMMAND)))
