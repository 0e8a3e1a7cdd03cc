"""Who calls, and what is meant by a target (qrexec specification, section 5, "Semantics")."""

from dataclasses import dataclass

from crannog.errors import DeniedError
from crannog.policy.decisions import Request
from crannog.policy.problems import PolicyRefusedError, shown
from crannog.policy.system import RUNNING, SystemInfo, VMInfo
from crannog.policy.tokens import ADMIN, ADMIN_NAME, DEFAULT, Kind, Place, Token, parse_token, token


@dataclass(frozen=True, slots=True)
class Situation:
    """A request that has been understood: who calls, and what is meant by the target."""

    request: Request
    system: SystemInfo
    caller: VMInfo
    source: VMInfo
    """Whom the rules are asked for: the caller, or the RemoteVM that it speaks for."""
    target: Token
    """dom0, `@default`, `@dispvm`, or a VM or disposable by name, which is there."""
    requested_target: str
    """The target as the caller named it."""

    @property
    def policy_source(self) -> str:
        """The RemoteVM that rules are asked for, if the caller speaks for one."""
        return self.source.name if self.source is not self.caller else ""


def understand(system: SystemInfo, request: Request) -> Situation:
    """Return who calls and what is meant; raises DeniedError with the reason why nobody can be called."""
    caller = _find_caller(system, request)
    source = _find_source(system, request, caller)
    try:
        asked = parse_token(request.target, Place.INTENDED) if request.target else DEFAULT
    except PolicyRefusedError as error:
        raise DeniedError(f"the target cannot be asked for: {error}") from None
    if asked.kind is Kind.DISPVM_OF:
        template = _find_template(system, asked)
        return Situation(request, system, caller, source, token(Kind.DISPVM_OF, template.name), asked.text)
    if asked.kind in (Kind.NAME, Kind.UUID):
        vm = system.find(asked.text)
        if vm is None:
            return Situation(request, system, caller, source, DEFAULT, DEFAULT.text)  # as if no VM had been named
        return Situation(request, system, caller, source, _name(vm), asked.text)
    return Situation(request, system, caller, source, asked, asked.text)


def _find_caller(system: SystemInfo, request: Request) -> VMInfo:
    caller = system.find(request.source)
    if caller is None:
        raise DeniedError(f"there is no VM {shown(request.source)} that could call")
    return caller


def _find_source(system: SystemInfo, request: Request, caller: VMInfo) -> VMInfo:
    if not request.requested_source or request.requested_source == caller.name:
        return caller
    remote = system.find(request.requested_source)
    if remote is None or not remote.is_remote or system.find(remote.relayvm) is not caller:
        raise DeniedError(f"{caller.name} is not the relay of a RemoteVM {shown(request.requested_source)}")
    return remote


def _find_template(system: SystemInfo, disposable: Token) -> VMInfo:
    template = system.find(disposable.value)
    if template is None or not template.template_for_dispvms:
        raise DeniedError(f"there is no VM {shown(disposable.value)} that disposables can be made from")
    return template


def _name(vm: VMInfo) -> Token:
    return ADMIN if vm.is_admin else token(Kind.NAME, vm.name)


def resolve(situation: Situation, wanted: Token) -> Token:
    """Return the VM or disposable, by name, that a target leads to; raises DeniedError."""
    if wanted.kind is Kind.DEFAULT:
        raise DeniedError("neither the caller nor the rule names a target that is there")
    if wanted.kind is Kind.DISPVM:
        if situation.source.default_dispvm is None:
            raise DeniedError(f"{situation.source.name} has no default_dispvm that a disposable could be made from")
        wanted = token(Kind.DISPVM_OF, situation.source.default_dispvm)
    if wanted.kind is Kind.DISPVM_OF:
        return token(Kind.DISPVM_OF, _find_template(situation.system, wanted).name)
    return _name(vm_of(situation.system, wanted))


_DOM0 = VMInfo(ADMIN_NAME, "", "AdminVM", power_state=RUNNING)


def vm_of(system: SystemInfo, target: Token) -> VMInfo:
    """Return the VM that is named, or that a disposable is made from; raises DeniedError."""
    if target.kind is Kind.ADMIN:
        return _DOM0
    vm = system.find(target.value if target.kind is Kind.DISPVM_OF else target.text)
    if vm is None:
        raise DeniedError(f"the rule leads to {target}, which does not exist")
    return vm
