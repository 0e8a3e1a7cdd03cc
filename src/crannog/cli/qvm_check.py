"""qvm-check: tell by the exit code whether VMs exist, and are what they are asked to be."""

from __future__ import annotations

from crannog.cli.connect import OFFLINE, open_client
from crannog.cli.options import Command, Operand, Option
from crannog.cli.selection import EXCLUDE, refuse_contradictions, refuse_unknown
from crannog.cli.tool import complain, end, run, say

# Importing typing would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from crannog.cli.options import Values

COMMAND = Command(
    "qvm-check",
    "Exit with 0 if all the VMs exist and are all that the options ask, else with 1.",
    Operand("vms", "VM", "the VMs to look at", "*"),
    Option("--running", help="are they running? One that is paused, starts or halts runs, too"),
    Option("--paused", help="are they paused?"),
    Option("--template", help="are they TemplateVMs?"),
    Option("--networked", help="have they a netvm, or do they provide the network themselves?"),
    Option("--all", help="look at all VMs but dom0"),
    EXCLUDE,
    Option("--quiet", "-q", help="print nothing; the exit code says it"),
    Option("--verbose", "-v", help="accepted for those who are used to it: each VM is told anyway"),
    OFFLINE,
    examples="  qvm-check -q --running work && qvm-shutdown --wait work\n  qvm-check --networked work bank",
)
COLUMNS = ("name", "klass", "state", "netvm", "provides_network")
NO = 1


def _is_running(row: dict[str, str]) -> bool:
    return row["state"] not in ("Halted", "NA")


def _is_paused(row: dict[str, str]) -> bool:
    return row["state"] == "Paused"


def _is_template(row: dict[str, str]) -> bool:
    return row["klass"] == "TemplateVM"


def _is_networked(row: dict[str, str]) -> bool:
    return row["netvm"] not in ("", "-") or row["provides_network"] == "True"


CHECKS = {
    "running": (_is_running, "is running", "is not running"),
    "paused": (_is_paused, "is paused", "is not paused"),
    "template": (_is_template, "is a template", "is no template"),
    "networked": (_is_networked, "has a network", "has no network"),
}


def _check(options: Values) -> int:
    refuse_contradictions(options, "look at")
    text = open_client(COMMAND.program, options).text("crannog.vm.Table", "dom0", "+".join(COLUMNS))
    table = [dict(zip(COLUMNS, line.split("\t"), strict=True)) for line in text.splitlines()]
    rows = {row["name"]: row for row in table}
    refuse_unknown(options.exclude, set(rows))
    vms = options.vms or [name for name in rows if name != "dom0" and name not in options.exclude]
    # All are looked at and told, also after the first that fails.
    answers = [_check_one(vm, rows.get(vm), options) for vm in dict.fromkeys(vms)]
    return 0 if all(answers) else NO


def _check_one(vm: str, row: dict[str, str] | None, options: Values) -> bool:
    if row is None:
        return _tell(options, f"there is no VM '{vm[:80]}'; qvm-ls lists the VMs that there are", is_so=False)
    chosen = [check for key, check in CHECKS.items() if getattr(options, key)]
    wrong = [negative for is_so, _, negative in chosen if not is_so(row)]
    if wrong:
        return _tell(options, f"{vm} {' and '.join(wrong)}", is_so=False)
    return _tell(options, f"{vm} {' and '.join(positive for _, positive, _ in chosen) or 'exists'}", is_so=True)


def _tell(options: Values, sentence: str, *, is_so: bool) -> bool:
    if options.quiet:
        return is_so
    if is_so:
        say(sentence)
    else:
        complain(COMMAND.program, sentence)
    return is_so


def main() -> None:
    """Run qvm-check."""
    end(run(COMMAND, _check))
