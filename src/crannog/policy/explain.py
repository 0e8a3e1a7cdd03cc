"""Why a request is decided as it is: the rules that were tried, and why each did not match."""

from dataclasses import dataclass

from crannog.errors import DeniedError
from crannog.policy.decisions import Allow, Ask, Decision, Deny, Request
from crannog.policy.evaluator import evaluate
from crannog.policy.matching import target_texts, vm_texts
from crannog.policy.policy import Policy
from crannog.policy.problems import shown
from crannog.policy.rules import ANY, Rule
from crannog.policy.situation import Situation, understand
from crannog.policy.system import SystemInfo


@dataclass(frozen=True, slots=True)
class Step:
    """A rule that was tried. `reason` says why it did not match; it is empty for the one that did."""

    rule: Rule
    reason: str

    @property
    def is_match(self) -> bool:
        """Tell whether the rule matched."""
        return not self.reason

    def __str__(self) -> str:
        return f"{self.rule.origin}: {self.rule}\n    {self.reason or 'matches'}"


@dataclass(frozen=True, slots=True)
class Explanation:
    """A decision, and how it came about. `steps` ends with the rule that matched, if one did."""

    decision: Decision
    steps: tuple[Step, ...]
    others: int
    """Rules that are about other services and were not tried."""

    def __str__(self) -> str:
        request = self.decision.request
        target = shown(request.target) if request.target else "no target"
        head = f"{shown(request.call)} from {shown(request.source)} to {target}"
        lines = [head, *map(str, self.steps), f"{self.others} rules are about other services", describe(self.decision)]
        return "".join(f"{line}\n" for line in lines)


def explain(policy: Policy, system: SystemInfo, request: Request) -> Explanation:
    """Return the decision about a request with its reasons. Raises nothing."""
    decision = evaluate(policy, system, request)
    tried = policy.rules_for(request.service)
    others = len(policy.rules) - len(tried)
    try:
        situation = understand(system, request)
    except DeniedError:
        return Explanation(decision, (), others)
    steps = []
    for rule in tried:
        steps.append(Step(rule, _say_why_not(rule, situation)))
        if steps[-1].is_match:
            break
    return Explanation(decision, tuple(steps), others)


def _say_why_not(rule: Rule, situation: Situation) -> str:
    """Return why a rule about the service does not match, or nothing when it does."""
    request, source = situation.request, situation.source
    if rule.argument not in (request.argument, ANY):
        return f"the argument is {shown(request.argument)}, not {rule.argument}"
    if rule.source.text not in vm_texts(source):
        return f"the source {source.name} is not {rule.source}"
    if rule.target.text not in target_texts(situation.target, source, situation.system):
        meant = situation.requested_target
        if meant == situation.request.target:
            return f"the target {meant} is not {rule.target}"
        named = shown(request.target) if request.target else "that was not named"
        return f"the target {named} counts as {meant}, which is not {rule.target}"
    return ""


def describe(decision: Decision) -> str:
    """Return a decision as one line."""
    if isinstance(decision, Deny):
        return f"deny: {decision.reason}"
    if isinstance(decision, Ask):
        chosen = f", {decision.default_target} chosen beforehand" if decision.default_target else ""
        return f"ask: {decision.origin}: {', '.join(decision.targets)}{chosen}"
    return f"allow: {decision.origin}: {_describe_allow(decision)}"


def _describe_allow(allow: Allow) -> str:
    parts = [f"to {allow.target}"]
    if allow.service:
        parts.append(f"as {allow.service}")
    if allow.user:
        parts.append(f"by user {allow.user}")
    if not allow.autostart:
        parts.append("without starting it")
    return " ".join(parts)
