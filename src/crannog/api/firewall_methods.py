"""Methods about the firewall rules of a VM (Admin API, sections 6 and 8)."""

from crannog.api.table import Access, Call, Destination, Presence, method
from crannog.core.firewall import format_rules


@method("admin.vm.firewall.Get", Destination.VM)
def get_rules(call: Call) -> str:
    """Return the VM's firewall rules that have not expired, a line each."""
    return format_rules(call.backend.firewall.rules(call.local_vm))


@method("admin.vm.firewall.Set", Destination.VM, payload=Presence.OPTIONAL, access=Access.WRITE)
def set_rules(call: Call) -> None:
    """Replace the VM's firewall rules by those of the payload, a line each; an empty payload leaves no rule."""
    call.backend.firewall.set_rules(call.local_vm, call.payload.decode("latin-1"))


@method("admin.vm.firewall.Reload", Destination.VM, access=Access.EXECUTE)
def reload_rules(call: Call) -> None:
    """Have the VM's firewall rules applied anew."""
    call.backend.firewall.reload(call.local_vm)
