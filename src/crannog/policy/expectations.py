"""Tests of a policy: what it shall decide, one line a call.

The format::

    # SERVICE+ARGUMENT  SOURCE  TARGET  =>  allow|deny|ask  [target=TARGET]
    qubes.Filecopy      work    vault   =>  ask
    qubes.GetDate       work    dom0    =>  allow  target=dom0
    qubes.VMShell       work    @default  =>  deny

A service without `+` has no argument; `@default` is a call that names no target. `target=` is where an allowed call
ends, or, for `ask`, one of the targets to choose from. Lines that begin with `#` are comments.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from crannog.errors import ProtocolError
from crannog.policy.answers import parse_call
from crannog.policy.decisions import Allow, Ask, Decision, Request
from crannog.policy.evaluator import evaluate
from crannog.policy.explain import describe
from crannog.policy.policy import Policy
from crannog.policy.problems import Origin, PolicyRefusedError, Problem, shown
from crannog.policy.rules import Action
from crannog.policy.system import SystemInfo
from crannog.policy.tokens import ADMIN, ADMIN_NAME, Place, parse_token

_FORM = "write 'SERVICE+ARGUMENT SOURCE TARGET => allow|deny|ask [target=TARGET]'"


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a call shall come to. Without `target` any will do."""

    origin: Origin
    request: Request
    action: Action
    target: str | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """An expectation that the policy does not meet."""

    expectation: Expectation
    decision: Decision

    def __str__(self) -> str:
        wanted = f" target={self.expectation.target}" if self.expectation.target else ""
        return f"{self.expectation.origin}: {self.expectation.action}{wanted} was expected; {describe(self.decision)}"


@dataclass(frozen=True, slots=True)
class Report:
    """What became of a file of expectations."""

    count: int
    failures: tuple[Failure, ...]
    problems: tuple[Problem, ...]
    """Lines that cannot be understood; they have tested nothing."""

    @property
    def is_met(self) -> bool:
        """Tell whether all lines were understood, and all that they say is so."""
        return not self.failures and not self.problems

    def __str__(self) -> str:
        lines = [*map(str, self.problems), *map(str, self.failures)]
        lines.append(f"{self.count} expectations, {len(self.failures)} not met, {len(self.problems)} not understood")
        return "".join(f"{line}\n" for line in lines)


def run_tests(policy: Policy, system: SystemInfo, text: str, file: str = "tests") -> Report:
    """Return how a policy does by a text of expectations. Raises nothing."""
    parsed = list(parse_expectations(text, file))
    expectations = [entry for entry in parsed if isinstance(entry, Expectation)]
    decisions = [evaluate(policy, system, expectation.request) for expectation in expectations]
    pairs = zip(expectations, decisions, strict=True)
    failures = tuple(Failure(*pair) for pair in pairs if not _is_met(*pair))
    return Report(len(expectations), failures, tuple(entry for entry in parsed if isinstance(entry, Problem)))


def parse_expectations(text: str, file: str) -> Iterator[Expectation | Problem]:
    """Yield what the lines of a text say, a Problem for each that cannot be understood. Raises nothing."""
    for number, line in enumerate(text.split("\n"), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            yield _parse_line(words, Origin(file, number))
        except (PolicyRefusedError, ProtocolError) as error:
            yield Problem(Origin(file, number), str(error))


def _parse_line(words: list[str], origin: Origin) -> Expectation:
    if not 5 <= len(words) <= 6 or words[3] != "=>":
        raise PolicyRefusedError(f"the line is no expectation; {_FORM}")
    service, argument = parse_call(words[0])
    source = parse_token(words[1], Place.SOURCE)
    parse_token(words[2], Place.INTENDED)
    try:
        action = Action(words[4])
    except ValueError:
        raise PolicyRefusedError(f"{shown(words[4])} is no decision; {_FORM}") from None
    target = _parse_target(words[5], action) if len(words) == 6 else None
    return Expectation(origin, Request(service, argument, _show(source.text), words[2]), action, target)


def _parse_target(word: str, action: Action) -> str:
    key, _, value = word.partition("=")
    if key != "target" or action is Action.DENY:
        raise PolicyRefusedError(f"{shown(word)} cannot stand here; allow and ask may have target=")
    return _show(parse_token(value, Place.REDIRECT).text)


def _show(text: str) -> str:
    return ADMIN_NAME if text == ADMIN.text else text


def _is_met(expectation: Expectation, decision: Decision) -> bool:
    if isinstance(decision, Allow):
        return expectation.action is Action.ALLOW and expectation.target in (None, decision.target)
    if isinstance(decision, Ask):
        is_offered = expectation.target is None or expectation.target in decision.targets
        return expectation.action is Action.ASK and is_offered
    return expectation.action is Action.DENY
