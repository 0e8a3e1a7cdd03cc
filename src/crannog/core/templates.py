"""Template compatibility, asked of the class and not of an instance (design.md, B11 and B12).

A create dialog asks it for every template while the VM does not exist yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crannog.core.vms import QubeBase


def may_use_template(cls: type[QubeBase], virt_mode: str, template: QubeBase, template_mode: str = "") -> bool:
    """Tell whether a VM of this class and mode may start from `template`'s root.

    A TemplateVM serves VMs of its own mode family: what boots by itself serves those that boot by themselves, what
    needs the host's kernel those that get one. Any HVM that is not itself template-based serves HVMs (B12).
    `template_mode` asks what would be if the template had that mode.
    """
    from crannog.core.virt_modes import find_mode

    if not cls.is_template_based or template.is_template_based or "virt_mode" not in template.declared():
        return False  # the AdminVM, a RemoteVM and VMs without a root of their own are no templates
    its_mode = find_mode(template_mode or str(template.get("virt_mode")))
    if find_mode(virt_mode).boot is not its_mode.boot:
        return False
    return template.klass == "TemplateVM" or not its_mode.has_host_kernel()


def template_refusal(name: str, cls: type[QubeBase], virt_mode: str, template: QubeBase | None) -> str:
    """Return the sentence that says why that template cannot be used."""
    if not cls.is_template_based:
        return f"{name}: a {cls.klass} has no template"
    if template is None:
        return f"{name}: a {cls.klass} needs a template; name one with --template"
    if template.is_template_based or "virt_mode" not in template.declared():
        return f"{name}: {template.name} is of class {template.klass} and cannot be a template"
    return (
        f"{name}: template {template.name} is made for virt_mode {template.get('virt_mode')}, not {virt_mode}; "
        f"choose another template or virt_mode"
    )
