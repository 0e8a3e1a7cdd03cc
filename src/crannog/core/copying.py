"""What a clone, and a disposable, takes over from the VM it is made from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crannog.core.features import GUARDED
from crannog.core.tags import CREATED_BY, FOLLOWING

if TYPE_CHECKING:
    from crannog.core.vms import QubeBase

_NOT_COPIED = (CREATED_BY, *FOLLOWING.values())
_INHERITED = (
    "virt_mode", "bootmode", "kernel", "kernelopts", "memory", "maxmem", "vcpus", "default_user", "qrexec_timeout",
    "shutdown_timeout", "management_dispvm",
)  # fmt: skip
"""Properties whose default is the template's value."""


def copy_settings(source: QubeBase, target: QubeBase) -> None:
    """Give `target` the settings of `source` that a clone gets and its class has: properties, features, tags, devices.

    The values are valid where they come from. Tags that say who made a VM, or follow from properties, are not copied.
    """
    declared = target.declared()
    for name, value in source.values.items():
        known = declared.get(name)
        if known and known.is_cloned and not known.is_readonly and name != "template":
            target.values[name] = value
    target.features.update({name: value for name, value in source.features.items() if name not in GUARDED})
    target.tags.update(tag for tag in source.tags if not tag.startswith(_NOT_COPIED))
    target.devices = source.devices


def keep_inherited(source: QubeBase, target: QubeBase) -> None:
    """Make the target's own what `source` has from its template, which the target will not have."""
    template = source.template
    while template:
        for name, value in template.features.items():
            if name not in GUARDED:
                target.features.setdefault(name, value)
        template = template.template
    for name in _INHERITED:
        if name in target.declared() and source.is_default(name) and source.get(name) != target.get(name):
            target.values[name] = source.get(name)
