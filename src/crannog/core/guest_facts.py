"""What a VM may know of itself: the entries that the host writes to its guest DB (QubesDB's names).

Names and values are those that the agents of Qubes read: qubes-core-agent-linux, in its scripts below /usr/lib/qubes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crannog.core.features import SERVICE
from crannog.core.network import DNS, visible_gateway, visible_ip, visible_netmask

if TYPE_CHECKING:
    from crannog.core.vms import LocalVM

_UPDATEABLE = frozenset({"TemplateVM", "StandaloneVM"})
_KEPT = {"AppVM": "rw-only", "DispVM": "none"}
"""What stays of what a VM writes: `rw-only` the private volume, `full` all, `none` nothing."""


def list_guest_facts(vm: LocalVM, *, timezone: str, seed: str) -> dict[str, str]:
    """Return the entries as a VM that starts now gets them, by their paths.

    `timezone` is a name such as Europe/Berlin, empty where the host's is not known; `seed` is random text, base64.
    """
    facts = {
        "/name": vm.name,
        "/type": vm.klass,
        "/qubes-vm-type": _role(vm),
        "/qubes-vm-updateable": str(vm.klass in _UPDATEABLE),
        "/qubes-vm-persistence": _KEPT.get(vm.klass, "full"),
        "/qubes-base-template": vm.template.name if vm.template else "",
        "/qubes-debug-mode": str(int(bool(vm.get("debug")))),
        "/default-user": str(vm.get("default_user")),
        "/qubes-timezone": timezone,
        "/qubes-random-seed": seed,
        "/keyboard-layout": str(vm.get("keyboard_layout")),
    }
    facts = {path: value for path, value in facts.items() if value}
    return facts | _list_services(vm) | _list_network(vm)


def _role(vm: LocalVM) -> str:
    """Return what QubesDB calls a VM's type: by what it does rather than by its class."""
    if vm.get("provides_network"):
        return "NetVM" if vm.netvm is None else "ProxyVM"
    return vm.klass


def _list_services(vm: LocalVM) -> dict[str, str]:
    """Return the services that the VM's own features name, as `1` or `0`: a template's are no concern of its VMs."""
    found = {name.removeprefix(SERVICE): value for name, value in vm.features.items() if name.startswith(SERVICE)}
    return {f"/qubes-service/{name}": str(int(bool(value))) for name, value in sorted(found.items())}


def _list_network(vm: LocalVM) -> dict[str, str]:
    address = visible_ip(vm)
    if vm.netvm is None or not address:
        return {}
    primary, secondary = DNS.split()
    facts = {
        "/qubes-mac": str(vm.get("mac")),
        "/qubes-ip": address,
        "/qubes-netmask": visible_netmask(vm) or "",
        "/qubes-gateway": visible_gateway(vm) or "",
        "/qubes-primary-dns": primary,
        "/qubes-secondary-dns": secondary,
    }
    return {path: value for path, value in facts.items() if value}
