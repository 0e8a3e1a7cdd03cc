"""crannog store: look after the file that holds all VMs and settings."""

from __future__ import annotations

from crannog.cli.options import Command, Operand, Option
from crannog.cli.tool import complain, run, say
from crannog.errors import UsageError

# Importing typing would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from crannog.cli.options import Values
    from crannog.offline.repair import Repair

COMMAND = Command(
    "crannog store",
    "Look after the store, the file that holds all VMs and settings.\n\n"
    "  history       list the present file and its former versions, the newest first\n"
    "  restore [N]   go back to version N, or to the newest one that can be read and differs from the file\n"
    "  check [FILE]  say whether the store's file, or FILE, can be read; exit 9 when not\n"
    "  import FILE   take all VMs and settings over from a qubes.xml of Qubes (R4, or R3 and older)\n\n"
    "Each change of a VM or setting makes a version; the last 50 are kept, and what restore or import replaces is\n"
    "one of them. Only settings come back: VMs whose volumes were deleted since do not get them back, and the data\n"
    "of VMs that are imported has to be brought over separately. crannogd must not run for restore and import.",
    Operand("action", "history|restore|check|import", "what to do"),
    Operand("what", "N|FILE", "the version to go back to, or the file to check or import", "?"),
    Option("--replace", help="import: although the store has VMs; they are in the store's history then"),
    Option("--dry-run", help="import: only say what would be taken over, and what not"),
    examples=(
        "  crannog store history\n  crannog store restore 17\n  crannog store check /media/backup/qubes.xml\n"
        "  crannog store import --dry-run /media/backup/qubes.xml"
    ),
)


def _history(repair: Repair, options: Values) -> None:
    if options.what is not None:
        raise UsageError("history takes no operand")
    for row in repair.history():
        say(f"{row.number or 'now':>8}  {row.written}  {row.size:6} KiB  {row.content}")


def _restore(repair: Repair, options: Values) -> None:
    number = options.what
    if number is not None and not (number.isascii() and number.isdigit() and len(number) < 19):
        raise UsageError(f"'{number}' is not the number of a version; 'crannog store history' lists them")
    say(repair.restore(None if number is None else int(number)))


def _check(repair: Repair, options: Values) -> None:
    for line in repair.check(_file(options)):
        say(line)


def _import(repair: Repair, options: Values) -> None:
    from crannog.offline.repair import count_vms

    path = _file(options)
    if not path:
        raise UsageError("name the file to import")
    document = repair.import_file(path, may_replace=options.replace, is_rehearsal=options.dry_run)
    for remark in document.remarks:
        complain(COMMAND.program, remark)
    say(f"{count_vms(document)} {'would be ' if options.dry_run else ''}taken over from {path}")


def _file(options: Values) -> str:
    if options.what == "":
        raise UsageError("the name of a file cannot be empty")
    return options.what or ""


_ACTIONS = {"history": _history, "restore": _restore, "check": _check, "import": _import}


def _act(options: Values) -> None:
    if options.action not in _ACTIONS:
        raise UsageError(f"'{options.action}' is none of {', '.join(_ACTIONS)}")
    if (options.replace or options.dry_run) and options.action != "import":
        raise UsageError("--replace and --dry-run are for import")
    from crannog.offline.repair import Repair

    _ACTIONS[options.action](Repair(), options)


def main(arguments: list[str]) -> int:
    """Run crannog store."""
    return run(COMMAND, _act, arguments)
