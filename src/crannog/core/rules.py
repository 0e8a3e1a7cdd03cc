"""The rules that hold between VMs, labels, pools and global properties, each a named check with its refusal.

A check raises ValueRefusedError or InUseError with one sentence, and changes nothing. It is called before a change, and
when a file is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from crannog.core.device_names import is_code, split_codes
from crannog.core.labels import BUILT_IN_NAMES, Label
from crannog.core.names import check_name
from crannog.core.preload_wishes import is_nobodys
from crannog.core.templates import can_be_template, may_use_template, template_refusal
from crannog.core.virt_modes import find_mode
from crannog.errors import InUseError, LabelInUseError, PoolInUseError, ProtocolError, ValueRefusedError

if TYPE_CHECKING:
    from crannog.core.registry import Registry
    from crannog.core.vms import LocalVM, QubeBase

LAYOUT = re.compile(r"[a-z0-9-]+\+[a-z0-9_-]*\+[^+\s]*", re.IGNORECASE)
_DISPOSABLE_USES = ("template", "default_dispvm", "management_dispvm")


def vm_name(vm: QubeBase, value: str) -> None:
    """A name is well-formed and not taken."""
    check_name(value)
    vm.registry.check_name_is_free(value)


def virt_mode(vm: LocalVM, value: str) -> None:
    """A mode exists, and fits the VM's template and the VMs whose template it is (B11, B12)."""
    find_mode(value)
    if vm.template and not may_use_template(type(vm), value, vm.template):
        raise ValueRefusedError(template_refusal(vm.name, type(vm), value, vm.template))
    for user in vm.registry.users_of_template(vm):
        mode = str(user.values.get("virt_mode", value))
        if not may_use_template(type(user), mode, vm, value):
            raise ValueRefusedError(
                f"{vm.name} is the template of {user.name}, and with virt_mode {value} it could not be; "
                f"give {user.name} another template first"
            )


def template(vm: LocalVM, value: QubeBase | None) -> None:
    """A template fits the VM's class and mode (B11, B12)."""
    mode = str(vm.values.get("virt_mode") or (value.get("virt_mode") if value and is_bootable(value) else ""))
    if value is None or not may_use_template(type(vm), mode, value):
        raise ValueRefusedError(template_refusal(vm.name, type(vm), mode, value))


def template_class(vm: QubeBase, value: QubeBase | None) -> None:
    """A template is of a class that can be one. Whether the modes fit is asked again at each start."""
    is_possible = value is not None and (
        can_be_template(type(vm), value) or (type(vm).is_disposable and value.klass == "AppVM")
    )
    if not is_possible:
        raise ValueRefusedError(template_refusal(vm.name, type(vm), "", value))


def is_bootable(vm: QubeBase) -> bool:
    """Tell whether a VM has a virt_mode of its own."""
    return "virt_mode" in vm.declared()


def kernel(holder: Any, value: str) -> None:  # noqa: ANN401 - a VM, or the registry
    """A kernel is in the pool linux-kernel; the empty name means none."""
    registry: Registry = getattr(holder, "registry", holder)
    if value and value not in registry.kernels:
        known = ", ".join(sorted(registry.kernels)) or "none yet; 'crannog template build' adds one"
        raise ValueRefusedError(f"there is no kernel '{value[:80]}' in pool linux-kernel (there: {known})")


def netvm(vm: LocalVM, value: LocalVM | None) -> None:
    """A netvm provides a network, and does not get its own from this VM, over any number of steps."""
    provider(vm, value)
    for name, upstream in _upstream(value, changing=vm):
        if upstream is vm:
            raise ValueRefusedError(
                f"{name} gets its network from {vm.name}, so {vm.name} cannot get its own from "
                f"{value.name if value else name}: networks have no loops"
            )


def _upstream(first: LocalVM | None, *, changing: LocalVM) -> Iterator[tuple[str, LocalVM]]:
    """Yield the VMs that lead from `first` to the network, each with the name of the one before."""
    seen: set[str] = set()
    name, vm = changing.name, first
    while vm is not None and vm.uuid not in seen:
        yield name, vm
        seen.add(vm.uuid)
        name, vm = vm.name, None if vm is changing else vm.netvm


def find_netvm_loop(vms: Iterable[LocalVM]) -> LocalVM | None:
    """Return a VM that is part of a loop of networks, or None. Each VM is looked at once."""
    done: set[str] = set()
    for vm in vms:
        path: set[str] = set()
        current: LocalVM | None = vm
        while current is not None and current.uuid not in done:
            if current.uuid in path:
                return current
            path.add(current.uuid)
            current = current.netvm
        done |= path
    return None


def provider(holder: object, value: Any) -> None:  # noqa: ANN401 - any VM that a user names
    """A netvm has `provides_network`."""
    del holder
    if value is not None and not ("provides_network" in value.declared() and value.get("provides_network")):
        raise ValueRefusedError(
            f"{value.name} provides no network; allow it with 'qvm-prefs {value.name} provides_network True', "
            f"or choose another VM"
        )


def provides_network(vm: LocalVM, value: bool) -> None:
    """A VM that others get their network from goes on providing it; one that starts to is no loop."""
    if value:
        return
    users = [other.name for other in vm.registry.local_vms() if other is not vm and other.netvm is vm]
    if vm.registry.values.get("default_netvm") is vm:
        users.append("global property default_netvm")
    if users:
        raise InUseError(f"{vm.name} provides the network of {', '.join(users[:5])}; give that another netvm first")


def guivm(vm: LocalVM, value: QubeBase | None) -> None:
    """The VM that shows another's windows is not shown by that one in turn."""
    _no_circle("guivm", vm, value)


def audiovm(vm: LocalVM, value: QubeBase | None) -> None:
    """The VM that plays another's sound is not played by that one in turn."""
    _no_circle("audiovm", vm, value)


def default_guivm(registry: Registry, value: QubeBase | None) -> None:
    """The same, for all VMs that follow the default."""
    _no_circle_by_default("guivm", registry, value)


def default_audiovm(registry: Registry, value: QubeBase | None) -> None:
    """The same, for all VMs that follow the default."""
    _no_circle_by_default("audiovm", registry, value)


def _no_circle(name: str, vm: LocalVM, value: QubeBase | None) -> None:
    seen: set[str] = set()
    current = value
    while current is not None and current.uuid not in seen:
        if current is vm:
            raise _circle(name, vm, value)
        seen.add(current.uuid)
        current = current.get(name) if name in current.declared() else None


def _no_circle_by_default(name: str, registry: Registry, value: QubeBase | None) -> None:
    for vm in registry.local_vms():
        if name in vm.values or vm is value:
            continue
        current, steps = value, 0
        while current is not None and steps < len(registry):
            if current is vm:
                raise _circle(name, vm, value)
            # Who follows the default is served by the new one; the new one itself by dom0.
            follows = current is not value and name in current.declared()
            current, steps = current.values.get(name, value if follows else None), steps + 1  # type: ignore[assignment]


def _circle(name: str, vm: LocalVM, value: QubeBase | None) -> ValueRefusedError:
    return ValueRefusedError(
        f"{value and value.name} cannot be the {name} of {vm.name}: {vm.name} would serve itself in the end"
    )


def disposable_template(holder: LocalVM | Registry, value: QubeBase | None) -> None:
    """What disposables are made from is an AppVM that allows it."""
    del holder
    if value is not None and not value.is_disposable_template():
        raise ValueRefusedError(
            f"{value.name} is no template for disposables; it must be an AppVM, and "
            f"'qvm-prefs {value.name} template_for_dispvms True' allows it"
        )


def template_for_dispvms(vm: LocalVM, value: bool) -> None:
    """An AppVM that disposables come from goes on allowing it."""
    if value:
        return
    users = [user for user in vm.registry.users_of(vm) if user[1] in _DISPOSABLE_USES]
    users = [user for user in users if not _is_nobodys(vm.registry.by_name(user[0]))]
    if users:
        raise InUseError(f"{vm.name} is the template for disposables of {show_users(users)}; change that first")


def _is_nobodys(vm: QubeBase | None) -> bool:
    """Tell whether a VM was started in advance: it ends by itself when it is not to be there any more."""
    return vm is not None and is_nobodys(vm)


def default_template(registry: Registry, value: QubeBase | None) -> None:
    """The default template can be one for some AppVM."""
    app = registry.find_class("AppVM")
    if value is not None and not (is_bootable(value) and may_use_template(app, str(value.get("virt_mode")), value)):
        raise ValueRefusedError(f"{value.name} is of class {value.klass} and cannot be the template of new VMs")


def default_pool(registry: Registry, value: str) -> None:
    """A pool exists."""
    if value not in registry.pools:
        raise ValueRefusedError(f"there is no pool '{value[:80]}' (there: {', '.join(registry.pools)})")


def keyboard_layout(_holder: object, value: str) -> None:
    """A keyboard layout is LAYOUT+VARIANT+OPTIONS (setxkbmap(1)), the last two possibly empty."""
    if not LAYOUT.fullmatch(value):
        raise ValueRefusedError(f"'{value[:80]}' is no keyboard layout; write LAYOUT+VARIANT+OPTIONS, such as us++")


def devices_denied(_holder: object, value: str) -> None:
    """The deny list is interface codes of seven characters, one after the other."""
    if not all(map(is_code, split_codes(value))):
        raise ValueRefusedError(f"'{value[:80]}' is no list of interface codes, such as u03****b******")


def new_vm(registry: Registry, vm: QubeBase) -> None:
    """A VM that was drafted refers to what is still there, and as the rules allow: time may have passed."""
    for name, value in vm.values.items():
        if value is not None and vm.find_property(name).kind.is_reference:
            registry.find_vm(f"uuid:{value.uuid}")  # type: ignore[attr-defined]
    registry.find_label(vm.label_name)
    if vm.is_template_based:
        template_class(vm, vm.template)
    if vm.is_disposable and vm.template and not vm.template.is_disposable_template():
        raise ValueRefusedError(template_refusal(vm.name, type(vm), "", vm.template))
    for name, check in (("netvm", netvm), ("guivm", guivm), ("audiovm", audiovm)):
        if name in vm.values:
            check(vm, vm.values[name])  # type: ignore[arg-type]


def removal(registry: Registry, vm: QubeBase) -> None:
    """A VM that anything refers to stays: template, netvm, any other property, device backend, global property."""
    if vm is registry.dom0:
        raise InUseError("dom0 cannot be removed")
    users = registry.users_of(vm)
    if users:
        raise InUseError(f"{vm.name} is in use by {show_users(users)}; change or remove that first")


def label_removal(registry: Registry, label: Label) -> None:
    """A built-in label stays, and one that a VM has."""
    if label.name in BUILT_IN_NAMES:
        raise ProtocolError(f"label '{label.name}' is built in and cannot be removed")
    users = [vm.name for vm in registry if vm.values.get("label") == label]
    if users:
        raise LabelInUseError(
            f"label '{label.name}' is in use by {', '.join(users[:5])}; give that another label first"
        )


def kernel_removal(registry: Registry, name: str) -> None:
    """A kernel that a VM names, or that is the default, stays."""
    users = [vm.name for vm in registry if vm.values.get("kernel") == name]
    if registry.values.get("default_kernel") == name:
        users.append("global property default_kernel")
    if users:
        raise InUseError(f"kernel '{name[:80]}' is in use by {', '.join(users[:5])}; choose another kernel there first")


def pool_removal(registry: Registry, name: str) -> None:
    """A pool with volumes in it stays, and one that is a default."""
    users = [vm.name for vm in registry if any(volume.pool == name for volume in vm.volumes.values())]
    users += [f"global property {key}" for key in registry.declared() if "pool" in key and registry.get(key) == name]
    if users:
        raise PoolInUseError(f"pool '{name[:80]}' is in use by {', '.join(users[:5])}; change or remove that first")


def show_users(users: Iterable[tuple[str, str]]) -> str:
    """Return who uses something, for a refusal: `NAME (property)`, or a global property."""
    return ", ".join(f"{name} ({prop})" if name else f"global property {prop}" for name, prop in users)
