"""Addresses that follow from a VM's number and its netvm (Admin API, section 6, "Property sets")."""

from __future__ import annotations

from ipaddress import IPv6Address
from typing import TYPE_CHECKING

from crannog.core.features import find_feature

if TYPE_CHECKING:
    from crannog.core.vms import LocalVM

DNS = "10.139.1.1 10.139.1.2"
NETMASK = "255.255.255.255"
MAC = "00:16:3e:5e:6c:00"
"""The same in every VM but disposables: each is alone on its link, and its number is nothing that others need know."""
_DISPOSABLE_MAC = 0x00163E5E8000
"""The first address of disposables, of which two that run never share one: their numbers end it, 15 bits."""

_PREFIX6 = "fd09:24ef:4179:0:0:0"


_MOST = 256 * 254
"""The highest number that an address can be made of."""


def address(second: int, number: int) -> str | None:
    """Return 10.SECOND.x.y for a number from 0 on: no address ends in .0 or .255 but for the lowest numbers.

    There is none for a number that is too high.
    """
    if number > _MOST:
        return None
    if number < 255:
        return f"10.{second}.0.{number}"
    return f"10.{second}.{(number - 1) // 254}.{(number - 1) % 254 + 1}"


def is_networked(vm: LocalVM) -> bool:
    """Tell whether a VM has a network: it provides one, or has a netvm."""
    return bool(vm.get("provides_network") or vm.netvm is not None)


def default_mac(vm: LocalVM) -> str:
    """Return the MAC address: of a disposable one of its own."""
    if vm.dispid is None:
        return MAC
    digits = f"{_DISPOSABLE_MAC | (vm.dispid & 0x7FFF):012x}"
    return ":".join(digits[at : at + 2] for at in range(0, 12, 2))


def default_ip(vm: LocalVM) -> str | None:
    """Return the IPv4 address, from qid or dispid; None without a network."""
    if not is_networked(vm):
        return None
    return address(138, vm.dispid) if vm.dispid is not None else address(137, vm.qid)


def default_ip6(vm: LocalVM) -> str | None:
    """Return the IPv6 address; None unless a netvm, or the VM itself, has the feature `ipv6`."""
    number = vm.qid if vm.dispid is None else vm.dispid
    if not is_networked(vm) or not find_feature(vm, "ipv6", via="netvm") or number > _MOST:
        return None
    host = f"a8a:{vm.dispid:x}" if vm.dispid is not None else f"a89:{vm.qid:x}"
    return str(IPv6Address(f"{_PREFIX6}:{host}"))


def _faked(vm: LocalVM, feature: str, value: str | None) -> str | None:
    """Return what the feature says in place of the real value: for a VM that shall not know its own address."""
    return (vm.features.get(feature) or value) if is_networked(vm) else None


def visible_ip(vm: LocalVM) -> str | None:
    """Return the address that the VM itself sees."""
    return _faked(vm, "net.fake-ip", vm.get("ip"))


def visible_ip6(vm: LocalVM) -> str | None:
    """Return the IPv6 address that the VM itself sees."""
    value = vm.get("ip6")
    return str(value) if value else None


def visible_netmask(vm: LocalVM) -> str | None:
    """Return the netmask that the VM itself sees."""
    return _faked(vm, "net.fake-netmask", NETMASK)


def visible_gateway(vm: LocalVM) -> str | None:
    """Return the gateway that the VM itself sees: its netvm's."""
    return _faked(vm, "net.fake-gateway", vm.netvm.get("gateway") if vm.netvm else None) if vm.netvm else None


def visible_gateway6(vm: LocalVM) -> str | None:
    """Return the IPv6 gateway that the VM itself sees: its netvm's."""
    return vm.netvm.get("gateway6") if vm.netvm else None


def gateway(vm: LocalVM) -> str | None:
    """Return the address under which a VM serves the VMs that use it as netvm."""
    return vm.get("ip") if vm.get("provides_network") else None


def gateway6(vm: LocalVM) -> str | None:
    """Return the same for IPv6."""
    return vm.get("ip6") if vm.get("provides_network") else None


def dns(vm: LocalVM) -> str | None:
    """Return the name servers of a VM with a network, separated by a blank."""
    return DNS if is_networked(vm) else None
