"""Template compatibility, asked of the class and not of an instance (design.md, B11 and B12).

A create dialog asks it for every template while the VM does not exist yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crannog.core.virt_modes import find_mode

if TYPE_CHECKING:
    from crannog.core.vms import QubeBase
    from crannog.core.volumes import Volume


def may_use_template(cls: type[QubeBase], virt_mode: str, template: QubeBase, template_mode: str = "") -> bool:
    """Tell whether a VM of this class and mode may start from `template`'s root.

    A TemplateVM serves VMs of its own mode family: what boots by itself serves those that boot by themselves, what
    needs the host's kernel those that get one. Any HVM that is not itself template-based serves HVMs (B12). A DispVM
    starts from an AppVM that allows it. `template_mode` asks what would be if the template had that mode.
    """
    if not can_be_template(cls, template):
        return False
    its_mode = find_mode(template_mode or str(template.get("virt_mode")))
    if find_mode(virt_mode).boot is not its_mode.boot:
        return False
    return template.klass != "StandaloneVM" or not its_mode.has_host_kernel()


def can_be_template(cls: type[QubeBase], template: QubeBase) -> bool:
    """Tell whether VMs of this class can start from that VM at all, whatever the modes.

    The AdminVM, a RemoteVM, and VMs without a root of their own are no templates; but disposables come from AppVMs.
    """
    if cls.is_disposable:
        return template.is_disposable_template()
    return cls.is_template_based and not template.is_template_based and "virt_mode" in template.declared()


def origin(vm: QubeBase, name: str) -> tuple[QubeBase, Volume]:
    """Return the volume that really holds what a VM's volume shows, with its owner: over any steps of templates."""
    volume = vm.volumes[name]
    while volume.snap_on_start and vm.template and name in vm.template.volumes:
        vm = vm.template
        volume = vm.volumes[name]
    return vm, volume


def template_refusal(name: str, cls: type[QubeBase], virt_mode: str, template: QubeBase | None) -> str:
    """Return the sentence that says why that template cannot be used."""
    kind = f"{'an' if cls.klass.startswith('A') else 'a'} {cls.klass}"
    if not cls.is_template_based:
        return f"{name}: {kind} has no template"
    if template is None:
        return f"{name}: {kind} needs a template; name one with --template"
    if cls.is_disposable and not template.is_disposable_template():
        may_be = "template_for_dispvms" in template.declared()
        hint = f"allow it with 'qvm-prefs {template.name} template_for_dispvms True', or " if may_be else ""
        return f"{name}: {kind} starts from an AppVM that allows it, which {template.name} is not; {hint}choose another"
    if not can_be_template(cls, template):
        return f"{name}: {template.name} is of class {template.klass} and cannot be a template"
    mode = template.get("virt_mode")
    if template.klass == "StandaloneVM" and find_mode(mode).has_host_kernel():
        return f"{name}: {template.name} is a StandaloneVM of virt_mode {mode}; only an HVM can be a template then"
    return (
        f"{name}: template {template.name} is made for virt_mode {mode}, not {virt_mode}; "
        f"choose another template or virt_mode"
    )
