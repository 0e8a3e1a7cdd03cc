"""Merges what a user wants of a VM's domain into what we made of it (docs/libvirt.md, "Overrides").

The rules: attributes of `domain`, `os`, `features`, `cpu`, `devices`, `qemu:override` and of either `commandline`
override ours, their children are merged.
A child that is the same as one of ours is put in its place, whole; others are added. Children are the same when they
have the same tag and, for those that a machine has several of, the same key. Who the VM is and how much memory it has
is the registry's to say.
"""

from copy import deepcopy

from crannog.adapters.libvirt.xml.elements import Element
from crannog.adapters.libvirt.xml.override_file import refusal

_QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"
_XEN = "{http://libvirt.org/schemas/domain/xen/1.0}"
_COMMAND_LINES = frozenset({f"{_QEMU}commandline", f"{_XEN}commandline"})
_MERGED = frozenset({"os", "features", "cpu", "devices", f"{_QEMU}override", *_COMMAND_LINES})
_FIXED = {
    "name": "qvm-prefs VM name",
    "uuid": "",
    "memory": "qvm-prefs VM memory",
    "currentMemory": "qvm-prefs VM memory",
    "maxMemory": "qvm-prefs VM maxmem",
}
"""Children of `domain` that an override cannot have, and what changes them."""

_KEYS = {
    "devices/disk": ("target/@dev",),
    "devices/interface": ("mac/@address",),
    "devices/channel": ("target/@name",),
    "devices/serial": ("target/@port",),
    "devices/console": ("target/@type", "target/@port"),
    "devices/controller": ("@type", "@index"),
    "devices/filesystem": ("target/@dir",),
    "devices/graphics": ("@type",),
    "devices/input": ("@type", "@bus"),
    "os/boot": ("@dev",),
    "cpu/feature": ("@name",),
    f"{_QEMU}override/{_QEMU}device": ("@alias",),
}
"""What tells one of several from the others, as paths from the element."""

_OPTIONAL = frozenset({"@index", "target/@type", "@bus"})
"""Parts of keys that an element may lack; libvirt fills them in."""

_ADDED = frozenset(
    f"devices/{tag}" for tag in ("hostdev", "redirdev", "parallel", "sound", "smartcard", "shmem", "memory", "video")
) | {
    "seclabel",
    f"{_QEMU}commandline/{_QEMU}arg",
    f"{_QEMU}commandline/{_QEMU}env",
    f"{_XEN}commandline/{_XEN}arg",
}
"""What a machine can have several of with nothing to tell them apart: always added."""


def merge_override(domain: Element, override: Element, path: str) -> None:
    """Change `domain` as `override`, read from the file `path`, says. Raises HypervisorError with file and line."""
    for child in override:
        if child.tag in _FIXED:
            remedy = _FIXED[child.tag]
            hint = f"; use '{remedy}'" if remedy else ""
            raise refusal(path, child.sourceline, f"<{child.tag}> cannot be overridden{hint}")
    _merge(domain, override, "", path)


def _merge(ours: Element, theirs: Element, place: str, path: str) -> None:
    ours.attrib.update(theirs.attrib)
    for child in theirs:
        where = f"{place}{child.tag}"
        former = None if where in _ADDED else _find_same(ours, child, where, path)
        if former is None:
            ours.append(deepcopy(child))
        elif where in _MERGED:
            _merge(former, child, f"{where}/", path)
        else:
            new = deepcopy(child)
            new.tail = former.tail
            ours.replace(former, new)


def _find_same(ours: Element, child: Element, where: str, path: str) -> Element | None:
    key = _key(child, where)
    for part, value in zip(_KEYS.get(where, ()), key, strict=True):
        if value is None and part not in _OPTIONAL:
            raise refusal(path, child.sourceline, f"<{child.tag}> has no {part}, which says which one it is; add it")
    return next((former for former in ours if former.tag == child.tag and _key(former, where) == key), None)


def _key(element: Element, where: str) -> tuple[str | None, ...]:
    return tuple(_value(element, part) for part in _KEYS.get(where, ()))


def _value(element: Element, part: str) -> str | None:
    below, _, attribute = part.rpartition("@")
    holder = element.find(below.rstrip("/")) if below else element
    return None if holder is None else holder.get(attribute)
