"""qvm-firewall: show and change what a VM may send into the network."""

from __future__ import annotations

import time

from crannog.cli.actions import refuse_odd_options
from crannog.cli.connect import OFFLINE, open_client
from crannog.cli.options import COMMON, Command, Operand, Option
from crannog.cli.qvm_firewall_rules import (
    DEFAULT,
    GET,
    HOSTS,
    is_same,
    parse_rules,
    print_rule,
    print_rules,
    read_rule,
    show_time,
)
from crannog.cli.server_text import fetch, print_table
from crannog.cli.tool import end, escape, run, say
from crannog.errors import NotFoundError, UsageError, ValueRefusedError

# Importing typing would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from crannog.cli.options import Values
    from crannog.cli.qvm_firewall_rules import Rule
    from crannog.cli.request import Caller

COMMAND = Command(
    "qvm-firewall",
    "Show the rules for what a VM may send into the network, or change them. The first rule that fits decides; what "
    "fits none is dropped.",
    Operand("vm", "VM", "the VM"),
    Operand(
        "action",
        "ACTION",
        "list (also ls, l; the default); add (a) RULE, as the last one; del (d) RULE, or with --rule-no; reset: allow "
        "everything again",
        "?",
    ),
    Operand(
        "words",
        "RULE",
        "accept or drop, and what has to fit: an address, network or host name, tcp, udp or icmp, a port or range of "
        "ports, dns; or action=, dsthost=, proto=, dstports=, icmptype=, specialtarget=, expire= (seconds since 1970, "
        "or +SECONDS), comment=",
        "*",
    ),
    Option("--before", metavar="NUMBER", help="add: before the rule with this number"),
    Option("--rule-no", metavar="NUMBER", help="del: the rule with this number"),
    Option("--raw", help="list: the rules as the API has them, which add takes too"),
    Option("--reload", "-r", help="have the rules put into force again, changed or not"),
    OFFLINE,
    *COMMON,
    examples=(
        "  qvm-firewall work\n  qvm-firewall work add accept tcp example.org 443\n"
        "  qvm-firewall work add --before 0 drop 10.0.0.0/8\n"
        "  qvm-firewall work add action=accept specialtarget=dns expire=+3600 'comment=for an hour'\n"
        "  qvm-firewall work del --rule-no 2\n  qvm-firewall work reset"
    ),
)
ALIASES = {"ls": "list", "l": "list", "a": "add", "d": "del", "remove": "del", "rm": "del"}
ACTIONS = ("list", "add", "del", "reset")
MAX_RULES = 65000
"""Longest list in bytes that can be set: a request holds 64 KiB, its header included."""
_HEADING = ("NO", "ACTION", "HOST", "PROTOCOL", "PORT(S)", "SPECIAL TARGET", "ICMP TYPE", "EXPIRE", "COMMENT")


def _act(options: Values) -> None:
    action = _find_action(options)
    wanted = read_rule(options.words, time.time()) if options.words else None
    number = _find_number(options)
    firewall = Firewall(open_client(COMMAND.program, options), options.vm)
    if action == "list" and (options.action or not options.reload):
        _list(firewall.rules(), is_raw=options.raw)
    elif action == "add" and wanted:
        firewall.add(wanted, number)
    elif action == "del":
        firewall.remove(wanted, number)
    elif action == "reset":
        firewall.set(parse_rules(DEFAULT))
    if options.reload:
        firewall.reload()


def _find_action(options: Values) -> str:
    """Return what to do; raises UsageError for a command line that contradicts itself."""
    if options.vm == "dom0":
        raise UsageError("dom0 is this host itself and has no firewall of its own; only VMs have")
    word = options.action or "list"
    action = ALIASES.get(word, word)
    if action not in ACTIONS:
        raise UsageError(f"'{word}' is none of {', '.join(ACTIONS)}; the VM comes before it")
    refuse_odd_options(action, options, {"before": ("add",), "rule_no": ("del",), "raw": ("list",)})
    _refuse_odd_rule(action, options)
    return action


def _refuse_odd_rule(action: str, options: Values) -> None:
    if action in ("list", "reset") and options.words:
        raise UsageError(f"'{action}' takes no rule")
    if action == "add" and not options.words:
        raise UsageError("say which rule to add, as in 'accept tcp example.org 443'")
    if action == "del" and bool(options.words) == bool(options.rule_no):
        raise UsageError("say which rule to delete, either by --rule-no or by the rule itself")


def _find_number(options: Values) -> int | None:
    """Return the number of a rule on the command line, None when there is none."""
    text = options.before or options.rule_no
    if not text:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 6:
        raise UsageError(f"'{text}' is not the number of a rule; 'qvm-firewall {options.vm} list' shows the numbers")
    return int(text)


class Firewall:
    """The rules of one VM. A change reads the whole list and writes it again: the API has nothing smaller."""

    def __init__(self, client: Caller, vm: str) -> None:
        self._client = client
        self._vm = vm

    def rules(self) -> list[Rule]:
        """Return the rules that are in force, in their order."""
        return parse_rules(fetch(self._client, GET, self._vm))

    def set(self, rules: list[Rule]) -> None:
        """Make these the rules of the VM."""
        text = print_rules(rules)
        if len(text) > MAX_RULES:
            raise ValueRefusedError(
                f"the rules of {self._vm} stay as they are: the new ones are longer than {MAX_RULES} bytes"
            )
        fetch(self._client, "admin.vm.firewall.Set", self._vm, payload=text)

    def reload(self) -> None:
        """Have the rules put into force again."""
        fetch(self._client, "admin.vm.firewall.Reload", self._vm)

    def add(self, rule: Rule, before: int | None) -> None:
        """Add a rule before the one with that number, or as the last one."""
        rules = self.rules()
        if before is not None:
            self._refuse_odd_number(before, rules)
        rules.insert(len(rules) if before is None else before, rule)
        self.set(rules)

    def remove(self, wanted: Rule | None, number: int | None) -> None:
        """Remove the rule with that number, or the first one that is like `wanted`."""
        rules = self.rules()
        if wanted is not None:
            number = next((number for number, rule in enumerate(rules) if is_same(wanted, rule)), None)
        if number is None:
            raise NotFoundError(
                f"{self._vm} has no rule '{print_rule(wanted or {})}'; 'qvm-firewall {self._vm} list' shows its rules"
            )
        self._refuse_odd_number(number, rules)
        del rules[number]
        self.set(rules)

    def _refuse_odd_number(self, number: int, rules: list[Rule]) -> None:
        if number >= len(rules):
            has = f"rules 0 to {len(rules) - 1}" if rules else "no rules"
            raise NotFoundError(f"{self._vm} has no rule {number}; it has {has}")


def _list(rules: list[Rule], *, is_raw: bool) -> None:
    if is_raw:
        for rule in rules:
            say(escape(print_rule(rule)))
        return
    print_table([_HEADING, *(_row(number, rule) for number, rule in enumerate(rules))])


def _row(number: int, rule: Rule) -> list[str]:
    host = next((rule[key] for key in HOSTS if key in rule), "-")
    first, _, last = rule.get("dstports", "-").partition("-")
    ports = first if first == last else rule.get("dstports", "-")
    expire = show_time(rule["expire"]) if "expire" in rule else "-"
    parts = [rule.get(key, "-") for key in ("specialtarget", "icmptype")]
    return [str(number), rule["action"], host, rule.get("proto", "-"), ports or "-", *parts, expire,
            rule.get("comment", "-")]  # fmt: skip


def main() -> None:
    """Run qvm-firewall."""
    end(run(COMMAND, _act))
