"""The parts of a VM in the R4 format: its identity, volumes, devices, and what is asked of its settings."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from uuid import UUID, uuid5

from lxml import etree

from crannog.adapters.store.xml_document import attributes_of
from crannog.core import rules
from crannog.core.devices import Assignment
from crannog.core.kinds import BOOL, INT
from crannog.core.properties import Holder
from crannog.core.registry import Registry
from crannog.core.virt_modes import find_mode
from crannog.core.vms import QubeBase
from crannog.core.volumes import KERNEL, Volume
from crannog.errors import StorageError

IDENTITY = ("name", "uuid", "qid")

_NAMESPACE = UUID("6d8b1f5e-9a53-4b0c-8f0e-2d1c7a9e4b60")
"""For the UUIDs of VMs whose file has none: the same at each reading."""

# Asked again when it matters: a kernel or pool may come back, a template's mode is compared at each start, and who may
# be a template for disposables is asked when one is made.
_NOT_ASKED = frozenset(
    {"name", "kernel", "default_kernel", "virt_mode", "template", "template_for_dispvms", "provides_network"}
    | {"guivm", "audiovm", "default_guivm", "default_audiovm"}
    | {"default_dispvm", "management_dispvm", "default_template", "default_pool", "default_pool_kernel"}
    | {"default_pool_private", "default_pool_root", "default_pool_volatile"}
)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_VOLUME_KEYS = frozenset({"name", "pool", "vid", "size", "rw", "snap_on_start", "save_on_stop", "revisions_to_keep"})


def identify(vm: QubeBase, ident: str) -> None:
    """Give a VM what makes it addressable. `ident` is its element's id.

    dom0 is the same always; another VM without a UUID gets one that follows from the rest. Raises StorageError.
    """
    values = vm.values
    if vm is vm.registry.dom0:
        fresh = Registry().dom0.values
        if any(values.setdefault(name, fresh[name]) != fresh[name] for name in IDENTITY):
            raise StorageError("dom0 cannot have another name, UUID or qid")
        return
    number = ident.removeprefix("domain-")
    if "qid" not in values and number.isascii() and number.isdigit():
        values["qid"] = int(number[:19])
    if "uuid" not in values:
        values["uuid"] = str(uuid5(_NAMESPACE, f"{values.get('qid')} {values.get('name')}"))
    if not _UUID.fullmatch(vm.uuid) or not 0 < int(str(values.get("qid", 0))) < 2**31:
        raise StorageError(f"VM '{values.get('name')}' has a malformed UUID or qid")


def checks_of(holder: Holder) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield what is to be asked of the settings that a file gives, each with the property that it is about.

    Each raises what the rules raise. Loops of networks are looked for in all VMs at once, by core.rules.
    """
    declared = holder.declared()
    for name, value in holder.values.items():
        check = rules.provider if name == "netvm" else declared[name].check
        if check and name not in _NOT_ASKED:
            yield name, partial(check, holder, value)
    if isinstance(holder, QubeBase):
        if "virt_mode" in holder.values:
            yield "virt_mode", partial(find_mode, str(holder.values["virt_mode"]))
        if holder.is_template_based:
            yield "template", partial(rules.template_class, holder, holder.template)


def read_assignment(devclass: str, element: etree._Element) -> Assignment:
    """Return a device assignment with all its attributes and options."""
    attributes = tuple(attributes_of(element).items())
    options = tuple((option.get("name", ""), option.text or "") for option in element)
    return Assignment(devclass, attributes, options)


def read_volume(element: etree._Element) -> Volume:
    """Return a volume. A flag that is not there is false, a number 0; attributes that are not known are kept."""
    get = element.get
    name, pool, vid = get("name", ""), get("pool", ""), get("vid", "")
    if not pool or not (vid or name == KERNEL):
        raise StorageError(f"volume '{name[:80]}' has no pool or no vid")
    size, revisions = INT.parse(get("size") or "0"), INT.parse(get("revisions_to_keep") or "0")
    if size < 0:
        raise StorageError(f"volume '{name[:80]}' has a negative size")
    rw, snap, save = _flag(get("rw")), _flag(get("snap_on_start")), _flag(get("save_on_stop"))
    extra: tuple[tuple[str, str], ...] = ()
    if not _VOLUME_KEYS.issuperset(element.attrib):
        extra = tuple((key, value) for key, value in attributes_of(element).items() if key not in _VOLUME_KEYS)
    return Volume(name, pool, vid, size, rw, snap, save, revisions, extra=extra)


def _flag(text: str | None) -> bool:
    return BOOL.parse(text) if text else False
