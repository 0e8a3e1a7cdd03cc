"""A policy: all rules in the order in which they count, found by service; or the reasons why it denies everything."""

from collections.abc import Iterable

from crannog.policy.problems import Problem
from crannog.policy.rules import ANY, Rule

_MAX_REMEMBERED = 1000
"""Most services whose rules are kept merged: callers choose what they ask for, and must not fill our memory."""


class Policy:
    """Rules, first match first. It never changes; with a problem it has no rules, so that nothing can be allowed."""

    __slots__ = ("_for_all", "_merged", "_named", "problems", "rules")

    def __init__(self, rules: Iterable[Rule], problems: Iterable[Problem] = ()) -> None:
        self.problems = tuple(problems)
        self.rules = () if self.problems else tuple(rules)
        self._named = dict.fromkeys(rule.service for rule in self.rules if rule.service != ANY)
        self._for_all = tuple(rule for rule in self.rules if rule.service == ANY)
        self._merged: dict[str, tuple[Rule, ...]] = {}

    @property
    def is_usable(self) -> bool:
        """Tell whether the policy has no problem; otherwise it denies everything."""
        return not self.problems

    @property
    def services(self) -> tuple[str, ...]:
        """The services that rules name, in the order of the rules."""
        return tuple(self._named)

    def rules_for(self, service: str) -> tuple[Rule, ...]:
        """Return the rules that are about a service, those for any service among them, first match first."""
        if service not in self._named:
            return self._for_all
        found = self._merged.get(service)
        if found is None:
            found = tuple(rule for rule in self.rules if rule.service in (service, ANY))
            if len(self._merged) >= _MAX_REMEMBERED:
                self._merged.clear()
            self._merged[service] = found
        return found
