"""What properties are when nobody has set them: constants, computed, or found at the template or globally."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from crannog.core.features import find_feature

if TYPE_CHECKING:
    from crannog.core.vms import LocalVM, QubeBase

MEMORY = 400
"""MiB."""
VCPUS = 2
LINUX_GROWTH = 10
"""A Linux guest cannot grow beyond about ten times the memory that it booted with: its page tables are sized then."""
MAXMEM = 4000
"""MiB, for guests that are not known to be Linux."""
KEYBOARD = "us++"
MAX_MEMORY = 2**24
"""MiB."""
_BALANCER = "service.meminfo-writer"

Compute = Callable[["QubeBase"], object]


def constant(value: object) -> Callable[[object], object]:
    """Return a default that is the same for everybody."""
    return lambda _holder: value


def inherited(name: str, fallback: Callable[[LocalVM], object]) -> Callable[[LocalVM], object]:
    """Return a default that is the template's value, where there is a template."""

    def compute(vm: LocalVM) -> object:
        template = vm.template
        return template.get(name) if template else fallback(vm)

    return compute


def from_global(name: str) -> Callable[[QubeBase], object]:
    """Return a default that is a global property's value."""
    return lambda vm: vm.registry.get(name)


def virt_mode(vm: LocalVM) -> object:
    """Return the template's mode, else pvh; but a VM of its own that is given PCI devices needs a full machine."""
    if vm.template:
        return vm.template.get("virt_mode")
    return "hvm" if any(device.devclass == "pci" for device in vm.devices) else "pvh"


def kernel(vm: LocalVM) -> object:
    """Return the template's kernel, else the global one; none for a VM that boots by itself."""
    if not vm.mode.has_host_kernel():
        return ""
    return vm.template.get("kernel") if vm.template else vm.registry.get("default_kernel")


def is_balanced(vm: LocalVM) -> bool:
    """Tell whether the VM's memory may be balanced: its service decides, else its mode; never with PCI devices."""
    if any(device.devclass == "pci" for device in vm.devices):
        return False
    wish = find_feature(vm, _BALANCER, via="template")
    return vm.mode.is_balanced if wish is None else bool(wish)


def maxmem(vm: LocalVM) -> object:
    """Return the most memory in MiB. Without balancing it is `memory`, decided before the host is asked (B5)."""
    memory = int(vm.get("memory"))
    if not is_balanced(vm):
        return memory
    template = vm.template
    while template and template.is_default("maxmem"):
        template = template.template
    if template:
        return max(memory, template.get("maxmem"))
    most = memory * LINUX_GROWTH if find_feature(vm, "os", via="template") == "Linux" else MAXMEM
    host = vm.registry.host.memory // 2
    return max(memory, min(most, host, MAX_MEMORY) if host else min(most, MAX_MEMORY))


def netvm(vm: LocalVM) -> object:
    """Return the global default; none for a VM that provides a network itself."""
    return None if vm.get("provides_network") else vm.registry.get("default_netvm")


def served_by(name: str) -> Callable[[LocalVM], object]:
    """Return the default of `guivm` or `audiovm`: the global one; dom0 for the very VM that serves the others."""

    def compute(vm: LocalVM) -> object:
        server = vm.registry.get(f"default_{name}")
        return vm.registry.dom0 if server is vm else server

    return compute


def keyboard_layout(vm: LocalVM) -> object:
    """Return the layout of the VM that shows this one's windows, over any steps."""
    seen, shower = {vm.uuid}, vm.get("guivm")
    while shower is not None and shower.uuid not in seen and "keyboard_layout" in shower.declared():
        if "keyboard_layout" in shower.values or "guivm" not in shower.declared():
            return shower.get("keyboard_layout")
        seen.add(shower.uuid)
        shower = shower.get("guivm")
    return KEYBOARD


def bootmode(vm: LocalVM) -> object:
    """Return what the template wants for VMs that start from it."""
    template = vm.template
    has_wish = template is not None and "appvm_default_bootmode" in template.declared()
    return template.get("appvm_default_bootmode") if template is not None and has_wish else "default"


def icon(vm: QubeBase) -> str:
    """Return the icon's name: class and label, but for VMs that serve others."""
    prefix = "servicevm" if vm.is_template_based and vm.feature("servicevm") else vm.klass.lower()
    return f"{prefix}-{vm.label_name}"
