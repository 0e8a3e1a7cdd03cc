"""What is doubtful in a policy that can be used: rules that never count, names that lead nowhere, doors left open."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from crannog.policy.policy import Policy
from crannog.policy.problems import Origin
from crannog.policy.rules import ANY, Action, Rule
from crannog.policy.system import ADMIN_CLASS, SystemInfo
from crannog.policy.tokens import ADMIN, UUID_PREFIX, Kind, Token

CLASSES = (ADMIN_CLASS, "TemplateVM", "AppVM", "StandaloneVM", "DispVM", "RemoteVM")
SHELLS = ("qubes.VMShell", "qubes.VMRootShell", "qubes.VMExec", "qubes.VMExecGUI")
"""Services that run whatever the caller says."""

_DISPOSABLES = (Kind.DISPVM, Kind.DISPVM_OF, Kind.DISPVM_TAG)


class Doubt(StrEnum):
    """What is doubtful. The words are stable: programs may rely on them."""

    UNREACHABLE = "unreachable"
    """An earlier rule matches all that this one would."""
    NEVER = "never-matches"
    """No call can match."""
    UNKNOWN = "unknown"
    """It names a VM, tag or class that there is not."""
    USELESS = "useless"
    """It, or one of its options, does not do what it seems to do."""
    DANGEROUS = "dangerous"
    """It gives more away than most who write it mean."""


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One doubtful rule."""

    origin: Origin
    doubt: Doubt
    message: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.doubt}: {self.message}"


def lint(policy: Policy, system: SystemInfo | None = None) -> tuple[Finding, ...]:
    """Return what is doubtful, by file and line. Without `system`, names are not looked at.

    A policy with problems has no rules to look at.
    """
    checks = [_find_unreachable, _each(_say_never), _each(_say_useless), _each(_say_dangerous)]
    found = {finding for check in checks for finding in check(policy.rules)}
    if system is not None:
        found |= set(_find_unknown(policy.rules, system))
    return tuple(sorted(found))


def _each(say: Callable[[Rule], tuple[Doubt, str] | None]) -> Callable[[Iterable[Rule]], Iterator[Finding]]:
    """Return a check that looks at each rule by itself."""

    def check(rules: Iterable[Rule]) -> Iterator[Finding]:
        for rule in rules:
            said = say(rule)
            if said is not None:
                yield Finding(rule.origin, *said)

    return check


def _find_unreachable(rules: Iterable[Rule]) -> Iterator[Finding]:
    """Yield the rules that an earlier one covers, whatever VMs there are.

    Few combinations of words cover a rule, so that each is looked up, however many rules came before.
    """
    seen: dict[tuple[str, str, str, str], Rule] = {}
    for rule in rules:
        covering = [seen[words] for words in _list_covering(rule) if words in seen]
        if covering and rule.origin.line:  # what follows from old files' being there was not written by anybody
            yield Finding(rule.origin, Doubt.UNREACHABLE, f"{covering[0].origin} matches all of it: {covering[0]}")
        seen.setdefault((rule.service, rule.argument, rule.source.text, rule.target.text), rule)


def _list_covering(rule: Rule) -> Iterator[tuple[str, str, str, str]]:
    for service in dict.fromkeys((rule.service, ANY)):
        for argument in dict.fromkeys((rule.argument, ANY)):
            for source in _list_wider(rule.source):
                for target in _list_wider(rule.target):
                    yield service, argument, source, target


def _list_wider(token: Token) -> dict[str, None]:
    """Return the texts of the tokens that fit wherever this one does."""
    is_any_vm = token.kind not in (Kind.ANY, Kind.ADMIN)
    return dict.fromkeys((token.text, ANY, Kind.ANYVM.text) if is_any_vm else (token.text, ANY))


def _say_never(rule: Rule) -> tuple[Doubt, str] | None:
    if rule.source.kind in (Kind.DISPVM_OF, Kind.DISPVM_TAG):
        return Doubt.NEVER, f"no caller is {rule.source}; a disposable that runs is named by its name, tags or class"
    if f"{Kind.TYPE.text}{ADMIN_CLASS}" in (rule.source.text, rule.target.text):
        return Doubt.NEVER, f"dom0 is not matched by its class; write {ADMIN}"
    if rule.source == ADMIN:
        return Doubt.NEVER, "policy is not asked for what dom0 calls"
    return None


def _say_useless(rule: Rule) -> tuple[Doubt, str] | None:
    if not rule.autostart and rule.reach.kind in _DISPOSABLES:
        return Doubt.USELESS, "autostart=no denies every new disposable"
    if rule.redirect is not None and rule.default_target not in (None, rule.redirect):
        return Doubt.USELESS, "default_target= does not count beside target="
    is_named = rule.source.kind in (Kind.NAME, Kind.UUID)
    if rule.action is Action.ALLOW and is_named and rule.reach == rule.source:
        return Doubt.USELESS, "a VM cannot call itself: this denies"
    return None


def _say_dangerous(rule: Rule) -> tuple[Doubt, str] | None:
    if rule.action is not Action.ALLOW or rule.source == ADMIN:
        return None
    if rule.service == ANY:
        return Doubt.DANGEROUS, f"{rule.source} may call every service there is; name the services"
    is_from_all = rule.source.kind in (Kind.ANY, Kind.ANYVM)
    if rule.reach.kind is Kind.ANY:
        return Doubt.DANGEROUS, "the target * is dom0, too; write @anyvm"
    if rule.reach == ADMIN and is_from_all and rule.service.startswith(("admin.", "policy.")):
        return Doubt.DANGEROUS, "every VM may administer the system; name the VMs that shall"
    if rule.reach == ADMIN and rule.service in SHELLS:
        return Doubt.DANGEROUS, f"{rule.source} may run commands in dom0"
    is_disposable = rule.reach.kind in _DISPOSABLES
    if rule.service in SHELLS and not is_disposable and (is_from_all or rule.reach.kind is Kind.ANYVM):
        return Doubt.DANGEROUS, "who may run commands in a VM owns it; name source and target"
    return None


def _find_unknown(rules: Iterable[Rule], system: SystemInfo) -> Iterator[Finding]:
    tags = system.tags()
    for rule in rules:
        for token in (rule.source, rule.target, rule.redirect, rule.default_target):
            message = _say_unknown(token, system, tags) if token is not None else None
            if message is not None:
                yield Finding(rule.origin, Doubt.UNKNOWN, message)


def _say_unknown(token: Token, system: SystemInfo, tags: frozenset[str]) -> str | None:
    if token.kind in (Kind.NAME, Kind.UUID) and system.find(token.text) is None:
        return f"there is no VM {token.value if token.kind is Kind.NAME else UUID_PREFIX + token.value}"
    if token.kind in (Kind.TAG, Kind.DISPVM_TAG) and token.value not in tags:
        return f"no VM has the tag {token.value}"
    if token.kind is Kind.TYPE and token.value not in CLASSES:
        return f"there is no class {token.value}; classes are {', '.join(CLASSES)}"
    if token.kind is Kind.DISPVM_OF:
        template = system.find(token.value)
        if template is None or not template.template_for_dispvms:
            return f"there is no VM {token.value} with template_for_dispvms"
    return None
