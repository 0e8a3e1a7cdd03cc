"""Which VMs a tool acts on: those that are named, or --all of a kind but for those to --exclude."""

from __future__ import annotations

from crannog.cli.options import Option
from crannog.errors import UsageError, VMNotFoundError

# Importing typing and collections.abc would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from crannog.cli.options import Values
    from crannog.cli.request import Caller

EXCLUDE = Option("--exclude", metavar="VM", is_repeated=True, help="leave this VM out of --all; may be repeated")
_NO_MACHINE = ("AdminVM", "RemoteVM")


class Row:
    """What admin.vm.List tells of a VM."""

    def __init__(self, line: str) -> None:
        self.name, *words = line.split(" ")
        facts = dict(word.split("=", 1) for word in words)
        self.klass = facts.get("class", "")
        self.state = facts.get("state", "")

    @property
    def is_active(self) -> bool:
        """Tell whether the VM is anything but halted."""
        return self.state not in ("Halted", "NA")


def list_vms(client: Caller) -> list[Row]:
    """Return the VMs of this host: neither dom0, which cannot be told to do anything, nor those of other hosts."""
    rows = [Row(line) for line in client.text("admin.vm.List", "dom0").splitlines()]
    return [row for row in rows if row.klass not in _NO_MACHINE]


def select(client: Caller, options: Values, verb: str, is_meant: Callable[[Row], bool]) -> list[str]:
    """Return the names of the VMs to `verb`, each once; with --all, of those for which `is_meant` is true.

    Raises UsageError for a command line that says nothing or two things, VMNotFoundError for an excluded VM that
    does not exist: a slip of the pen there must not hit the VM that was to be spared.
    """
    refuse_contradictions(options, verb)
    if not options.all:
        return list(dict.fromkeys(options.vms))
    rows = list_vms(client)
    refuse_unknown(options.exclude, {row.name for row in rows})
    return [row.name for row in rows if is_meant(row) and row.name not in options.exclude]


def refuse_contradictions(options: Values, verb: str) -> None:
    """Raise UsageError unless the command line either names VMs or says --all."""
    if bool(options.vms) == options.all:
        raise UsageError(f"name the VMs to {verb}, or say --all" + (", but not both" if options.vms else ""))
    if options.exclude and not options.all:
        raise UsageError("--exclude leaves VMs out of --all; without --all, just do not name them")


def refuse_unknown(names: list[str], known: set[str]) -> None:
    """Raise VMNotFoundError when one of the names is not among the known ones."""
    for name in names:
        if name not in known and name != "dom0":
            raise VMNotFoundError(f"there is no VM '{name[:80]}' to exclude; qvm-ls lists the VMs that there are")
