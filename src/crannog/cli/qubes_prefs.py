"""qubes-prefs: show and change the global properties."""

from crannog.cli.options import Command, Operand, Values
from crannog.cli.prefs import OPTIONS, act, arguments_of
from crannog.cli.tool import end, run

COMMAND = Command(
    "qubes-prefs",
    "Show the global properties, which count for all VMs, or show or change one.",
    Operand("name", "PROPERTY", "the property; all are listed without it", "?"),
    Operand("value", "VALUE", "its new value; '' or none means no VM", "?"),
    *OPTIONS,
    examples=(
        "  qubes-prefs\n  qubes-prefs default_template debian-12\n  qubes-prefs default_netvm none\n"
        "  qubes-prefs --default default_template"
    ),
)


def _act(options: Values) -> None:
    act(COMMAND.program, options, "admin.property")


def main() -> None:
    """Run qubes-prefs."""
    end(run(COMMAND, _act, arguments_of(COMMAND)))
