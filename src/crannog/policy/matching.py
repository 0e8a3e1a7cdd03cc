"""Which tokens of rules fit which VMs.

For a VM, or a target, the texts of all tokens that fit it are a small set; a rule matches when its own are in the sets
of the call. That makes a decision a few set look-ups a rule, and the meaning of every token stands here alone.
"""

from collections.abc import Iterable, Iterator

from crannog.policy.policy import Policy
from crannog.policy.rules import ANY, Rule
from crannog.policy.system import SystemInfo, VMInfo
from crannog.policy.tokens import ADMIN, UUID_PREFIX, Kind, Token, token

_TO_ALL = frozenset({Kind.ANY.text})
_TO_ANY_VM = frozenset({Kind.ANY.text, Kind.ANYVM.text})


def vm_texts(vm: VMInfo) -> frozenset[str]:
    """Return the tokens that fit a VM, as the source or as the target.

    dom0 is named by `@adminvm` and `*` alone: neither its tags nor its class make a rule about other VMs open to it.
    """
    if vm.is_admin:
        return _TO_ALL | {ADMIN.text}
    tags = (Kind.TAG.text + tag for tag in vm.tags)
    return _TO_ANY_VM.union((vm.name, UUID_PREFIX + vm.uuid, Kind.TYPE.text + vm.klass), tags)


def target_texts(target: Token, caller: VMInfo, system: SystemInfo) -> frozenset[str]:
    """Return the tokens that fit a target: dom0, `@default`, `@dispvm`, or a VM or disposable that is there."""
    if target.kind is Kind.ADMIN:
        return _TO_ALL | {ADMIN.text}
    if target.kind is Kind.NAME:
        vm = system.find(target.value)
        return vm_texts(vm) if vm else frozenset()
    template = None
    if target.kind is Kind.DISPVM:
        template = caller.default_dispvm
    elif target.kind is Kind.DISPVM_OF:
        template = target.value
    return _TO_ANY_VM | {target.text} | _disposable_texts(system.find(template))


def _disposable_texts(template: VMInfo | None) -> frozenset[str]:
    """Return the tokens that fit a new disposable because of what it is made from. `@dispvm` is not among them."""
    if template is None:
        return frozenset()
    texts = {Kind.DISPVM_OF.text + template.name, f"{Kind.DISPVM_OF.text}{UUID_PREFIX}{template.uuid}"}
    if template.template_for_dispvms:
        texts.update(Kind.DISPVM_TAG.text + tag for tag in template.tags)
    return frozenset(texts)


def select_rules(policy: Policy, service: str, argument: str, source: VMInfo) -> list[Rule]:
    """Return the rules that match all but the target, first match first."""
    texts = vm_texts(source)
    return [
        rule
        for rule in policy.rules_for(service)
        if rule.source.text in texts and (rule.argument == argument or rule.argument == ANY)  # noqa: PLR1714
    ]


def find_rule(rules: Iterable[Rule], texts: frozenset[str]) -> Rule | None:
    """Return the first rule whose target fits."""
    return next((rule for rule in rules if rule.target.text in texts), None)


def list_targets(system: SystemInfo) -> Iterator[Token]:
    """Yield every target that can be called: VMs by name, disposables, and dom0."""
    vms = sorted((vm for vm in system if not vm.is_admin), key=lambda vm: vm.name)
    yield from (token(Kind.NAME, vm.name) for vm in vms)
    yield from (token(Kind.DISPVM_OF, vm.name) for vm in vms if vm.template_for_dispvms)
    yield ADMIN
