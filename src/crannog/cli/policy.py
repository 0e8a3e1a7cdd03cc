"""crannog policy: who may call what, checked and explained; what was decided; and the program that asks the user."""

from __future__ import annotations

from importlib import import_module

from crannog.cli.actions import MANY, Actions, refuse_odd_options
from crannog.cli.options import COMMON, Command, Operand, Option
from crannog.cli.tool import run

# Importing typing would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from crannog.cli.options import Values

COMMAND = Command(
    "crannog policy",
    "Look after the policy, which says what VMs may call where.\n\n"
    "  check [FOLDER...]         say what is wrong or doubtful, with file and line; exit 2 when anything is wrong.\n"
    "                            FOLDERs are looked at instead of the administrator's, with the rules that Crannog\n"
    "                            brings after them\n"
    "  explain SERVICE[+ARGUMENT] SOURCE TARGET\n"
    "                            say what would be decided, and because of which rule\n"
    "  graph [SERVICE]           list who may call a service where; without SERVICE, each that rules name\n"
    "  test FILE...              compare decisions with those that files expect; exit 1 when any differs\n"
    "  log                       print what was decided, the latest last\n"
    "  agent                     ask the user, until interrupted: what a rule with 'ask' waits for\n\n"
    "explain, graph, test and check --vms learn of the VMs from crannogd, or from the store when it does not run.",
    Operand("action", "check|explain|graph|test|log|agent", "what to do"),
    Operand("words", "ARGUMENT", "folders, a call, a service, or files", "*"),
    Option("--vms", help="check: say as well which rules name VMs and tags that there are not"),
    Option("--dot", help="graph: in the language of Graphviz"),
    Option("--lines", "-n", metavar="N", help="log: print the last N decisions (default: 20)"),
    Option("--follow", "-f", help="log: go on with what is decided from now on, until interrupted"),
    Option("--json", help="log: a JSON object a line"),
    Option(
        "--command",
        metavar="PROGRAM",
        help="agent: have PROGRAM ask; it gets the question as JSON and prints 'allow:TARGET' or 'deny'",
    ),
    Option("--notify", help="agent: ask by notifications of the desktop, through notify-send"),
    Option("--timeout", metavar="SECONDS", help="agent: how long an answer is waited for (default: 60)"),
    *COMMON,
    examples=(
        "  crannog policy check\n  crannog policy check --vms draft/policy.d\n"
        "  crannog policy explain qubes.Filecopy work vault\n  crannog policy graph --dot qubes.OpenURL\n"
        "  crannog policy test policy-tests/desktop\n  crannog policy log -n 50 -f\n  crannog policy agent\n"
        "  crannog policy agent --notify --timeout 30"
    ),
)
ACTIONS = Actions(
    {
        "check": (0, MANY, "folders only"),
        "explain": (3, 3, "SERVICE[+ARGUMENT], SOURCE and TARGET"),
        "graph": (0, 1, "at most one SERVICE"),
        "test": (1, MANY, "the files with what is expected"),
        "log": (0, 0, "no argument"),
        "agent": (0, 0, "no argument"),
    },
    {},
)
_USERS = {
    "vms": ("check",),
    "dot": ("graph",),
    "lines": ("log",),
    "follow": ("log",),
    "json": ("log",),
    "command": ("agent",),
    "notify": ("agent",),
    "timeout": ("agent",),
}
_PLACES = {
    "check": "policy_checks:check",
    "explain": "policy_checks:show_explanation",
    "graph": "policy_checks:show_graph",
    "test": "policy_checks:run_files",
    "log": "policy_log:show_log",
    "agent": "policy_agent:serve",
}
"""Module below crannog.cli and the function in it that does an action; loaded when it is wanted."""


def _act(options: Values) -> int:
    action = ACTIONS.find(options.action, options.words)
    refuse_odd_options(action, options, _USERS)
    module, name = _PLACES[action].split(":")
    do: Callable[[Values], int] = getattr(import_module(f"crannog.cli.{module}"), name)
    return do(options)


def main(arguments: list[str]) -> int:
    """Run crannog policy."""
    return run(COMMAND, _act, arguments)
