"""Whether a VM may be shut down now: a question to the model, like the checks of a start."""

from crannog.core.preload_wishes import is_nobodys
from crannog.core.vms import LocalVM
from crannog.errors import InUseError


def check_shutdown(vm: LocalVM, active: frozenset[str]) -> None:
    """Raise InUseError when VMs that are not halted get their network from this one; `active` are their UUIDs.

    Those that were started in advance are nobody's yet: their network is looked at when somebody claims them.
    """
    clients = [other for other in vm.registry.local_vms() if other.uuid in active and other.netvm is vm]
    users = [other.name for other in clients if not is_nobodys(other)]
    if users:
        raise InUseError(
            f"{vm.name} was not shut down: it is the netvm of {', '.join(users[:5])}; shut that down first, "
            f"or add --force"
        )
