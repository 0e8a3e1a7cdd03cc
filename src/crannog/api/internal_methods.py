"""What trusted parts of the system ask on their own socket, and what guests' services tell (Admin API, section 1)."""

import json

from crannog.api.table import Access, Call, Destination, Presence, as_local, method
from crannog.core.vms import QubeBase
from crannog.errors import ProtocolError


@method("internal.GetSystemInfo", Destination.ADMIN)
def get_system_info(call: Call) -> str:
    """Return what policy needs to know of all VMs, as JSON."""
    return json.dumps({"domains": {vm.name: _describe(vm) for vm in call.backend.registry}})


def _describe(vm: QubeBase) -> dict[str, object]:
    declared = vm.declared()

    def get(name: str) -> object:
        """Return a property's value, a VM's by its name; None for what is empty or not declared."""
        value = vm.get(name) if name in declared else None
        return value.name if isinstance(value, QubeBase) else value or None

    return {
        "internal": vm.features.get("internal"),
        "tags": sorted(vm.tags),
        "type": vm.klass,
        "template_for_dispvms": vm.is_disposable_template(),
        "default_dispvm": get("default_dispvm"),
        "icon": get("icon"),
        "label": vm.get("label").color,
        "guivm": get("guivm"),
        "relayvm": get("relayvm"),
        "transport_rpc": get("transport_rpc"),
        "power_state": vm.power_state,
        "uuid": vm.uuid,
    }


@method("qubes.NotifyUpdates", Destination.ADMIN, payload=Presence.REQUIRED, access=Access.WRITE)
def notify_updates(call: Call) -> None:
    """Keep how many updates the calling VM has: the payload is a number, at most 63 characters with white space."""
    untrusted_count = call.payload.strip() if len(call.payload) <= 63 else b""
    if not untrusted_count.isdigit():
        raise ProtocolError("the payload is not a number of updates")
    _note_updates(call, int(untrusted_count))


def _note_updates(call: Call, count: int) -> None:
    """Keep the feature where the updates are installed: in the VM itself, or, as a hint, in its halted template.

    A template-based VM without updates says nothing of its template, and a running template speaks for itself. What a
    disposable starts from has a template in turn: that one it is.
    """
    found = "1" if count else ""
    vm: QubeBase | None = call.source
    while vm is not None and vm.is_template_based:
        vm = vm.template
    if vm is None or (vm is not call.source and (not found or vm.power_state != "Halted")):
        return
    if vm.features.get("updates-available", "") != found:
        call.backend.editor.set_features(vm, {"updates-available": found})


@method("qubes.NotifyTools", Destination.ADMIN, payload=Presence.OPTIONAL, access=Access.WRITE)
async def notify_tools(call: Call) -> None:
    """Take over what the tools in the calling VM say they are."""
    await call.backend.power.announce(as_local(call.source))


@method("qubes.FeaturesRequest", Destination.ADMIN, payload=Presence.OPTIONAL, access=Access.WRITE)
async def request_features(call: Call) -> None:
    """Take over the features that the calling VM asks for in its guest DB."""
    await call.backend.power.take_features(as_local(call.source))
