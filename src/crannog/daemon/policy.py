"""The policy that counts now, and what it has to know of the VMs."""

import logging
from collections.abc import Iterable, Iterator

from crannog.adapters.policy.files import PolicyFiles
from crannog.core.preload_wishes import is_nobodys
from crannog.core.registry import Registry
from crannog.core.vms import QubeBase
from crannog.policy.decisions import Allow, Decision, Request
from crannog.policy.evaluator import evaluate
from crannog.policy.loader import DEFAULTS, load
from crannog.policy.policy import Policy
from crannog.policy.system import SystemInfo, VMInfo
from crannog.policy.tokens import UUID_PREFIX

log = logging.getLogger(__name__)


class RegistrySystem(SystemInfo):
    """The VMs of a registry as policy sees them. Only those that a decision is about are looked at.

    Disposables that were started in advance and are nobody's yet can be called by nobody: they are not there.
    """

    __slots__ = ("_registry",)

    def __init__(self, registry: Registry) -> None:
        super().__init__(())
        self._registry = registry

    def __iter__(self) -> Iterator[VMInfo]:
        return (describe(vm) for vm in self._registry if not is_nobodys(vm))

    def __len__(self) -> int:
        return sum(not is_nobodys(vm) for vm in self._registry)

    def find(self, name: str | None) -> VMInfo | None:
        """Return the VM of a name or of `uuid:UUID`; None when there is none."""
        if not name:
            return None
        is_uuid = name.startswith(UUID_PREFIX)
        by_uuid = self._registry.find_uuid(name.removeprefix(UUID_PREFIX)) if is_uuid else None
        vm = by_uuid if is_uuid else self._registry.by_name(name)
        return describe(vm) if vm and not is_nobodys(vm) else None


def describe(vm: QubeBase) -> VMInfo:
    """Return what policy knows of a VM."""
    declared = vm.declared()

    def get(name: str) -> str | None:
        value = vm.get(name) if name in declared else None
        return value.name if isinstance(value, QubeBase) else str(value) if value else None

    return VMInfo(
        name=vm.name,
        uuid=vm.uuid,
        klass=vm.klass,
        tags=frozenset(vm.tags),
        power_state=vm.power_state,
        template_for_dispvms=vm.is_disposable_template(),
        default_dispvm=get("default_dispvm"),
        guivm=get("guivm"),
        relayvm=get("relayvm"),
        transport_rpc=get("transport_rpc"),
        icon=get("icon"),
        label=vm.label_name,
        is_internal=bool(vm.features.get("internal")),
    )


class PolicyKeeper:
    """Reads the policy, anew whenever a file of it has changed."""

    def __init__(self, registry: Registry, folders: Iterable[str]) -> None:
        """`folders` are those of the administrator; the policy that Crannog brings comes after them."""
        self.system = RegistrySystem(registry)
        self._folders = (*folders, DEFAULTS)
        self._files = PolicyFiles()
        self._policy = Policy(())

    @property
    def policy(self) -> Policy:
        """The policy as the files are now."""
        if not self._files.is_current():
            self._files = PolicyFiles()
            self._policy = load(self._files, self._folders)
            for problem in self._policy.problems:
                log.error("policy: everything is denied because of %s", problem)
        return self._policy

    def decide(self, request: Request) -> Decision:
        """Return the decision about a call."""
        return evaluate(self.policy, self.system, request)

    def permits(self, source: QubeBase, method: str, argument: str, vm: QubeBase) -> bool:
        """Tell whether a VM may call a method of the Admin API on another VM, now and without a question."""
        request = Request(method, f"+{argument}", source.name, vm.name, just_evaluate=True)
        return isinstance(self.decide(request), Allow)
