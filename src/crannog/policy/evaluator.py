"""The decision about a call: the first rule that matches, and what it comes to (qrexec specification, section 5)."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import takewhile

from crannog.errors import DeniedError
from crannog.policy.decisions import Allow, Ask, Decision, Deny, Request
from crannog.policy.matching import find_rule, list_targets, select_rules, target_texts
from crannog.policy.policy import Policy
from crannog.policy.problems import shown
from crannog.policy.rules import Action, Rule
from crannog.policy.situation import Situation, resolve, understand, vm_of
from crannog.policy.system import RUNNING, SystemInfo, VMInfo
from crannog.policy.tokens import ADMIN, ADMIN_NAME, DEFAULT, DISPVM, UUID_PREFIX, Kind, Token, token


def evaluate(policy: Policy, system: SystemInfo, request: Request) -> Decision:
    """Return the decision about a request. Raises nothing: what cannot be understood is denied.

    A request with `assume_yes` is never answered by Ask.
    """
    if policy.problems:
        first = policy.problems[0]
        return Deny(request, f"the policy has {len(policy.problems)} problems and denies everything; first: {first}")
    try:
        situation = understand(system, request)
    except DeniedError as error:
        return Deny(request, str(error))
    rules = select_rules(policy, request.service, request.argument, situation.source)
    rule = find_rule(rules, target_texts(situation.target, situation.source, system))
    if rule is None:
        return Deny(request, "no rule of the policy matches")
    try:
        return _apply(situation, rule, rules)
    except DeniedError as error:
        return Deny(request, f"{rule.origin}: {error}", rule)


def _apply(situation: Situation, rule: Rule, rules: list[Rule]) -> Decision:
    """Return what the rule that matched comes to; raises DeniedError when it leads nowhere."""
    if rule.action is Action.DENY:
        return Deny(situation.request, f"{rule.origin}: denied by the policy", rule, rule.notify)
    if rule.action is Action.ALLOW:
        return _allow(situation, rule, rule.redirect or situation.target)
    ask = _ask(situation, rule, rules)
    return _assume_yes(situation, ask) if situation.request.assume_yes else ask


def _allow(situation: Situation, rule: Rule, wanted: Token) -> Allow:
    target = resolve(situation, wanted)
    is_disposable = target.kind is Kind.DISPVM_OF
    vm = vm_of(situation.system, target)
    relay = _check_reachable(situation, vm) if not is_disposable else None
    _check_running(rule, relay or vm, is_disposable)
    named, request = relay or vm, situation.request
    prefix = Kind.DISPVM_OF.text if is_disposable else ""
    return Allow(
        request,
        rule,
        target=prefix + named.name,
        target_uuid="" if named.is_admin else f"{prefix}{UUID_PREFIX}{named.uuid}",
        requested_target=situation.requested_target,
        user=rule.user,
        notify=rule.notify,
        autostart=rule.autostart,
        service=f"{vm.transport_rpc}+{vm.name}+{request.call}" if relay else "",
        policy_source=situation.policy_source,
    )


def _check_reachable(situation: Situation, vm: VMInfo) -> VMInfo | None:
    """Return the relay that a call to a RemoteVM goes through, None for other VMs; raises DeniedError."""
    if vm.name == situation.caller.name:
        raise DeniedError("a VM cannot call itself")
    if not vm.is_remote:
        return None
    relay = situation.system.find(vm.relayvm)
    if relay is None or not vm.transport_rpc:
        raise DeniedError(f"the RemoteVM {vm.name} has no relayvm or no transport_rpc; set both")
    if relay is situation.caller:
        raise DeniedError(f"{relay.name} is itself the relay of {vm.name} and cannot call it through itself")
    return relay


def _check_running(rule: Rule, vm: VMInfo, is_disposable: bool) -> None:
    if not rule.autostart and (is_disposable or vm.power_state != RUNNING):
        raise DeniedError("the rule has autostart=no, and its target does not run")


def _ask(situation: Situation, rule: Rule, rules: list[Rule]) -> Ask:
    targets = _list_choices(situation, rule, rules)
    if not targets:
        raise DeniedError("the user would be asked, but there is no target to choose from")
    return Ask(
        situation.request,
        rule,
        targets,
        default_target=_choose_default(situation, rule, targets),
        requested_target=situation.requested_target,
        user=rule.user,
        notify=rule.notify,
        autostart=rule.autostart,
        policy_source=situation.policy_source,
    )


def _list_choices(situation: Situation, rule: Rule, rules: list[Rule]) -> tuple[str, ...]:
    """Return what the user may choose from: the rule's redirect, or wherever calls of the service may end."""
    wanted = [rule.redirect] if rule.redirect is not None else _list_open(situation, rules)
    found = []
    for target in wanted:
        try:
            found.append(_reach(situation, rule, target))
        except DeniedError:
            continue  # cannot be called just now, whatever the rules say
    return tuple(dict.fromkeys(found))


def _list_open(situation: Situation, rules: list[Rule]) -> Iterator[Token]:
    """Yield where the caller's calls may end, whatever target they name: of that it could have named any other."""
    for target in (*list_targets(situation.system), DISPVM, DEFAULT):
        rule = find_rule(rules, target_texts(target, situation.source, situation.system))
        if rule is None or rule.action is Action.DENY:
            continue
        if rule.redirect is None:
            yield target
        elif not _is_denied_before(situation, rules, rule):
            yield rule.redirect


def _is_denied_before(situation: Situation, rules: list[Rule], redirecting: Rule) -> bool:
    """Tell whether a rule before the redirecting one denies calls to where that one leads: it was meant to count."""
    try:
        target = resolve(situation, redirecting.reach)
    except DeniedError:
        return True
    texts = target_texts(target, situation.source, situation.system)
    earlier = takewhile(lambda rule: rule is not redirecting, rules)
    return any(rule.action is Action.DENY and rule.target.text in texts for rule in earlier)


def _reach(situation: Situation, rule: Rule, target: Token) -> str:
    """Return the name of what a target leads to, as the user is shown it; raises DeniedError."""
    _allow(situation, rule, target)
    return _show(resolve(situation, target))


def _show(target: Token) -> str:
    return ADMIN_NAME if target.kind is Kind.ADMIN else target.text


def _read_choice(target: str) -> Token:
    """Return the target that was shown so; it is one of ours, so that it need not be checked."""
    if target == ADMIN_NAME:
        return ADMIN
    prefix = Kind.DISPVM_OF.text
    is_disposable = target.startswith(prefix)
    return token(Kind.DISPVM_OF if is_disposable else Kind.NAME, target.removeprefix(prefix))


def _choose_default(situation: Situation, rule: Rule, targets: tuple[str, ...]) -> str | None:
    if rule.default_target is None:
        return None
    try:
        wanted = _show(resolve(situation, rule.default_target))
    except DeniedError:
        return None
    return wanted if wanted in targets else None


def _assume_yes(situation: Situation, ask: Ask) -> Allow:
    """Return what the user would get who says yes to the target that was asked for."""
    if ask.rule.redirect is not None:
        return _answer(situation, ask, ask.targets[0])
    if situation.target.kind is not Kind.DEFAULT:
        return _answer(situation, ask, _show(resolve(situation, situation.target)))
    if ask.default_target is None:
        raise DeniedError("the user would have to choose a target")
    return _answer(situation, ask, ask.default_target)


def _answer(situation: Situation, ask: Ask, target: str) -> Allow:
    if target not in ask.targets:
        raise DeniedError(f"{shown(target)} is not among the targets that can be chosen")
    return _allow(situation, ask.rule, _read_choice(target))


def confirm(system: SystemInfo, ask: Ask, target: str | None) -> Allow | Deny:
    """Return what follows from the user's answer: a target of those that were offered, or None for no.

    `system` is how the VMs are now: what has gone or stopped since the question was asked is not called.
    """
    if target is None:
        return Deny(ask.request, f"{ask.origin}: the user said no", ask.rule, ask.notify)
    try:
        situation = replace(understand(system, ask.request), requested_target=ask.requested_target)
        return _answer(situation, ask, target)
    except DeniedError as error:
        return Deny(ask.request, f"{ask.origin}: {error}", ask.rule)
