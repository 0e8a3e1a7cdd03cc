"""Who may call a service where, for all VMs at once: as values, as text, and for Graphviz."""

from collections.abc import Iterable
from dataclasses import dataclass

from crannog.policy.decisions import Allow, Ask, Decision, Request
from crannog.policy.evaluator import evaluate
from crannog.policy.matching import list_targets
from crannog.policy.policy import Policy
from crannog.policy.rules import Action
from crannog.policy.system import SystemInfo
from crannog.policy.tokens import ADMIN, ADMIN_NAME, DEFAULT, DISPVM


@dataclass(frozen=True, slots=True, order=True)
class Edge:
    """A call that is allowed, or asked for. Where it ends can differ from what the caller asks for."""

    source: str
    target: str
    """Where the call ends."""
    action: Action
    asked: str
    """What the caller asks for."""

    def __str__(self) -> str:
        detour = f" (as {self.asked})" if self.asked != self.target else ""
        return f"{self.source} -> {self.target} {self.action}{detour}"


def graph(policy: Policy, system: SystemInfo, service: str, argument: str = "+") -> tuple[Edge, ...]:
    """Return the calls of a service that are not denied, by source. `argument` begins with `+`. dom0 calls unasked.

    Where the user can turn a call that names no target is drawn when there is no other way from source to target.
    """
    asked = [ADMIN_NAME if target == ADMIN else target.text for target in list_targets(system)]
    edges: dict[tuple[str, str], list[Edge]] = {}
    for vm in system:
        if vm.is_admin:
            continue
        for target in (*asked, DISPVM.text, DEFAULT.text):
            decision = evaluate(policy, system, Request(service, argument, vm.name, target))
            for edge in _draw(decision, target):
                known = edges.setdefault((edge.source, edge.target), [])
                if not known or target != DEFAULT.text or edge.action is Action.ALLOW:
                    known.append(edge)
    return tuple(sorted(edge for found in edges.values() for edge in found))


def _draw(decision: Decision, asked: str) -> list[Edge]:
    """Return the edges of a decision; there is none for what is denied."""
    source = decision.request.source
    if isinstance(decision, Allow):
        return [Edge(source, decision.target, Action.ALLOW, asked)]
    if not isinstance(decision, Ask):
        return []
    if decision.rule.redirect is not None or asked == DEFAULT.text:
        return [Edge(source, target, Action.ASK, asked) for target in decision.targets]
    return [Edge(source, asked, Action.ASK, asked)] if asked in decision.targets else []


def format_text(edges: Iterable[Edge]) -> str:
    """Return edges as text, one a line."""
    return "".join(f"{edge}\n" for edge in edges)


def format_dot(edges: Iterable[Edge], title: str) -> str:
    """Return edges in Graphviz's language: what is asked for is dashed."""
    styles = {Action.ALLOW: "solid", Action.ASK: "dashed"}
    lines = [f"digraph {_quote(title)} {{"]
    drawn = dict.fromkeys((edge.source, edge.target, edge.action) for edge in edges)
    lines += [f"  {_quote(source)} -> {_quote(target)} [style={styles[action]}];" for source, target, action in drawn]
    return "\n".join([*lines, "}", ""])


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
