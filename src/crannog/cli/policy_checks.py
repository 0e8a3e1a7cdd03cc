"""crannog policy check, explain, graph and test: what the policy on the disk says."""

from __future__ import annotations

from crannog.cli.policy import COMMAND
from crannog.cli.policy_system import find_system, load_policy
from crannog.cli.tool import complain, escape, say
from crannog.errors import NotFoundError, ProtocolError, StorageError, UsageError, ValueRefusedError

# Importing typing would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from crannog.cli.options import Values
    from crannog.policy.expectations import Report
    from crannog.policy.policy import Policy
    from crannog.policy.system import SystemInfo

NOT_MET = 1
"""Exit code of a test that was understood and in which something is decided otherwise than expected."""


def check(options: Values) -> int:
    """Print what is wrong and what is doubtful; raise ValueRefusedError when anything is wrong."""
    from crannog.policy.lint import lint

    policy = load_policy(options.words)
    _refuse_problems(policy)
    for finding in lint(policy, find_system() if options.vms else None):
        say(escape(f"warning: {finding}"))
    return 0


def _refuse_problems(policy: Policy) -> None:
    for problem in policy.problems:
        say(escape(f"error: {problem}"))
    if policy.problems:
        count = len(policy.problems)
        raise ValueRefusedError(
            f"the policy denies everything, as long as it has {count} error{'s' if count > 1 else ''}; "
            "put right what is listed above"
        )


def show_explanation(options: Values) -> int:
    """Print what a call would come to, and why."""
    from crannog.policy.decisions import Request
    from crannog.policy.explain import explain

    call, source, target = options.words
    service, argument = _parse_call(call)
    system = find_system()
    if system.find(source) is None:
        raise NotFoundError(f"there is no VM '{source[:80]}' that could call; qvm-ls lists the VMs that there are")
    text = str(explain(load_policy(), system, Request(service, argument, source, target)))
    say(escape(text, kept="\n").rstrip("\n"))
    return 0


def _parse_call(word: str) -> tuple[str, str]:
    from crannog.policy.answers import parse_call

    try:
        return parse_call(word)
    except ProtocolError as error:
        raise UsageError(f"'{word[:80]}' cannot be called: {error}") from None


def show_graph(options: Values) -> int:
    """Print who may call a service where, or each service that rules name."""
    policy, system = load_policy(), find_system()
    _refuse_problems(policy)
    calls = [_parse_call(word) for word in options.words] or [(service, "+") for service in _list_services(policy)]
    for service, argument in calls:
        _print_graph(policy, system, service, argument, is_dot=options.dot)
    return 0


def _list_services(policy: Policy) -> list[str]:
    """Return the services that rules name; after them `*`, for all others, if a rule is about any service."""
    from crannog.policy.rules import ANY

    is_about_all = any(rule.service == ANY for rule in policy.rules)
    return [*policy.services, *([ANY] if is_about_all else [])]


def _print_graph(policy: Policy, system: SystemInfo, service: str, argument: str, *, is_dot: bool) -> None:
    from crannog.policy.graph import format_dot, graph

    call = service + ("" if argument == "+" else argument)
    edges = graph(policy, system, service, argument)
    if is_dot:
        say(format_dot(edges, call).rstrip("\n"))
        return
    for edge in edges:
        say(f"{call} {edge}")


def run_files(options: Values) -> int:
    """Compare the policy with what files expect; print each difference, and a line a file."""
    policy, system = load_policy(), find_system()
    _refuse_problems(policy)
    reports = [_run_file(policy, system, path) for path in options.words]
    for report in reports:
        say(escape(str(report), kept="\n").rstrip("\n"))
    if any(report.problems for report in reports):
        raise ValueRefusedError("not all lines of the tests could be understood; put right what is listed above")
    if not all(report.is_met for report in reports):
        complain(COMMAND.program, "the policy decides otherwise than the tests expect; see the list")
        return NOT_MET
    return 0


def _run_file(policy: Policy, system: SystemInfo, path: str) -> Report:
    from crannog.policy.expectations import run_tests

    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {path}; name files of lines SERVICE SOURCE TARGET => DECISION") from None
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"{path} cannot be read: {error}") from error
    return run_tests(policy, system, text, path)
