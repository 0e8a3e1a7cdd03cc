"""Writing qubes.xml in the R4 format (design.md, section 5).

A VM is written anew when it has changed, else as it was: most changes touch one VM, of thousands perhaps. What is
compared is the VM itself, not a mark that somebody could forget to set.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from html import escape

from crannog.core.devices import Assignment
from crannog.core.properties import Holder
from crannog.core.registry import Registry
from crannog.core.vms import QubeBase
from crannog.core.volumes import Volume

FORMAT_VERSION = "3.0"
_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that no XML 1.0 document can hold, not even escaped (section 2.2 of its specification)."""

_NEEDS_ESCAPE = re.compile("[&<>\r]")
_RETURN = str.maketrans({"\r": "&#13;"})
"""A bare carriage return would be read back as a line feed."""

_BLANKS = str.maketrans({"\t": "&#9;", "\n": "&#10;", "\r": "&#13;"})
"""In an attribute these would all be read back as blanks (XML 1.0, section 3.3.3)."""

_SHORT = 40
_XML = "http://www.w3.org/XML/1998/namespace"
_FLAGS = ("rw", "save_on_stop", "snap_on_start")
_FIXED = frozenset({"name", "uuid", "qid"})


@dataclass(frozen=True)
class _Written:
    """A VM as it was when it was written, and the bytes."""

    values: dict[str, object]
    names: dict[str, str]
    features: dict[str, str]
    tags: set[str]
    volumes: dict[str, Volume]
    devices: tuple[Assignment, ...]
    foreign: dict[str, tuple[str, ...]]
    data: bytes

    def is_current(self, vm: QubeBase) -> bool:
        """Tell whether the VM would be written the same again. Features are compared in their order."""
        return (
            self.values == vm.values
            and self.names == _names_in(vm)
            and self.features == vm.features
            and list(self.features) == list(vm.features)
            and self.tags == vm.tags
            and self.volumes == vm.volumes
            and self.devices == vm.devices
            and self.foreign == vm.foreign
        )


class R4Writer:
    """Writes one registry again and again."""

    def __init__(self) -> None:
        self._written: dict[str, _Written] = {}

    def to_bytes(self, registry: Registry) -> bytes:
        """Return the registry as the bytes of a file. Raises ValueError for text that XML cannot hold."""
        labels = [
            _filled(registry, "label", label.name, {"id": f"label-{label.index}", "color": label.color}, label.name)
            for label in registry.labels.values()
        ]
        pools = [
            _with_inside(
                f"<pool{_attributes({'name': pool.name, 'driver': pool.driver, **dict(pool.options)})}",
                "pool",
                registry.foreign.get(f"pool:{pool.name}", ()),
            )
            for pool in registry.pools.values()
        ]
        attributes = _attributes({"version": FORMAT_VERSION, **_foreign_attributes(registry)})
        head = ["<?xml version='1.0' encoding='utf-8'?>", f"<qubes{attributes}>"]
        for tag, children in (("labels", labels), ("pools", pools), ("properties", _properties(registry))):
            head += [line[4:] for line in _container(registry, tag, children)]
        domains = _attributes(_foreign_attributes(registry, "@domains"))
        head += [f"  <domains{domains}>", *[f"    {text}" for text in registry.foreign.get("domains", ())]]
        tail = ["  </domains>", *[f"  {text}" for text in registry.foreign.get("", ())], "</qubes>\n"]
        return b"".join([_encode("\n".join([*head, ""])), *self._vms(registry), _encode("\n".join(tail))])

    def learn(self, registry: Registry, texts: Mapping[str, bytes]) -> None:
        """Take over VMs as a document has them, by UUID: what is not changed need not be written anew."""
        for uuid, text in texts.items():
            vm = registry.find_uuid(uuid)
            if vm is not None:
                self._written[uuid] = _remember(vm, b"    " + text + b"\n")

    def _vms(self, registry: Registry) -> Iterable[bytes]:
        vms = sorted(registry, key=lambda vm: vm.qid)
        written = self._written
        self._written = {}
        for vm in vms:
            known = written.get(vm.uuid)
            if known is None or not known.is_current(vm):
                known = _write(vm)
            self._written[vm.uuid] = known
            yield known.data


def _names_in(vm: QubeBase) -> dict[str, str]:
    """Return the names that the VM's references are written as: a VM that is renamed changes those that name it."""
    return {name: value.name for name, value in vm.values.items() if isinstance(value, QubeBase)}


def _write(vm: QubeBase) -> _Written:
    lines: list[str] = []
    attributes = {"id": f"domain-{vm.qid}", "class": vm.klass, **_foreign_attributes(vm)}
    lines.append(f"    <domain{_attributes(attributes)}>")
    lines += _container(vm, "properties", _properties(vm))
    lines += _container(vm, "features", [_leaf(vm, "feature", n, v) for n, v in vm.features.items()])
    lines += _devices(vm)
    lines += _container(vm, "tags", [_leaf(vm, "tag", tag) for tag in sorted(vm.tags)])
    lines += _container(vm, "volume-config", [_volume(vm, volume) for volume in vm.volumes.values()])
    lines += [f"      {text}" for text in vm.foreign.get("", ())]
    lines.append("    </domain>\n")
    return _remember(vm, _encode("\n".join(lines)))


def _remember(vm: QubeBase, data: bytes) -> _Written:
    settings = dict(vm.values), _names_in(vm), dict(vm.features), set(vm.tags), dict(vm.volumes)
    return _Written(*settings, vm.devices, dict(vm.foreign), data)


def _encode(text: str) -> bytes:
    found = _ILLEGAL.search(text)
    if found:
        raise ValueError(f"character U+{ord(found[0]):04X} cannot be written to XML")
    return text.encode("utf-8")


def _quote(value: str) -> str:
    return f'"{escape(value).translate(_BLANKS)}"'


# The same few names and values come again and again, and escaping costs more than everything else here.
_quoted = lru_cache(maxsize=4096)(_quote)


def _attributes(values: Mapping[str, str]) -> str:
    text = "".join([f" {name}={_quoted(value)}" for name, value in values.items()])
    return _qualified(values) if "{" in text else text


def _qualified(values: Mapping[str, str]) -> str:
    """Return attributes of which some may be of namespaces, as `{URI}NAME`; prefixes are declared where they stand."""
    prefixes = {_XML: "xml"}
    declared = ""
    text = ""
    for name, value in values.items():
        if name.startswith("{"):
            uri, _, local = name[1:].partition("}")
            if uri not in prefixes:
                prefixes[uri] = f"n{len(prefixes)}"
                declared += f" xmlns:{prefixes[uri]}={_quote(uri)}"
            name = f"{prefixes[uri]}:{local}"  # noqa: PLW2901
        text += f" {name}={_quote(value)}"
    return declared + text


def _leaf(holder: Holder, tag: str, name: str, text: str = "") -> str:
    """Return an element with a name, a text, and what is not known of it: attributes, and what stands in it."""
    if not holder.foreign:
        return _named(tag, name, text)
    return _filled(holder, tag, name, {"name": name}, text)


def _filled(holder: Holder, tag: str, name: str, attributes: Mapping[str, str], text: str) -> str:
    opened = f"<{tag}{_attributes({**attributes, **_foreign_attributes(holder, f'@{tag}:{name}')})}"
    inside = "".join(holder.foreign.get(f"{tag}:{name}", ()))
    return f"{opened}>{_escape(text)}{inside}</{tag}>" if inside else _close(opened, tag, text)


def _element(tag: str, attributes: Mapping[str, str], text: str = "") -> str:
    return _close(f"<{tag}{_attributes(attributes)}", tag, text)


def _named(tag: str, name: str, text: str = "") -> str:
    """Return an element whose only attribute is its name. Short ones are remembered: most come again in other VMs."""
    return _remembered(tag, name, text) if len(text) <= _SHORT else _make_named(tag, name, text)


def _make_named(tag: str, name: str, text: str) -> str:
    return _close(f"<{tag} name={_quote(name)}", tag, text)


_remembered = lru_cache(maxsize=8192)(_make_named)


def _close(opened: str, tag: str, text: str) -> str:
    if not text:
        return opened + "/>"
    return f"{opened}>{_escape(text)}</{tag}>"


def _escape(text: str) -> str:
    return escape(text, quote=False).translate(_RETURN) if _NEEDS_ESCAPE.search(text) else text


def _container(holder: Holder, tag: str, children: Iterable[str], attributes: str = "") -> list[str]:
    """Return the lines of an element that stands in a domain, what is not known of it last."""
    inside = [*children, *holder.foreign.get(tag, ())]
    if holder.foreign:
        attributes += _attributes(_foreign_attributes(holder, f"@{tag}"))
    if not inside:
        return [f"      <{tag}{attributes}/>"]
    return [f"      <{tag}{attributes}>", *[f"        {child}" for child in inside], f"      </{tag}>"]


def _properties(holder: Holder) -> list[str]:
    """Return the properties that were set, dom0's without its fixed ones: Qubes would not read them."""
    values = holder.values
    skipped = _FIXED if isinstance(holder, QubeBase) and holder is holder.registry.dom0 else ()
    return [
        _leaf(holder, "property", name, declared.kind.format(values[name]))
        for name, declared in holder.declared().items()
        if name in values and name not in skipped
    ]


def _devices(vm: QubeBase) -> list[str]:
    lines: list[str] = []
    for devclass in dict.fromkeys(device.devclass for device in vm.devices):
        devices = [_device(device) for device in vm.devices if device.devclass == devclass]
        lines += _container(vm, "devices", devices, f" class={_quote(devclass)}")
    return lines


def _device(device: Assignment) -> str:
    options = "".join([_named("option", name, value) for name, value in device.options])
    attributes = _attributes(dict(device.attributes))
    return f"<device{attributes}>{options}</device>" if options else f"<device{attributes}/>"


def _volume(vm: QubeBase, volume: Volume) -> str:
    inside = vm.foreign.get(f"volume:{volume.name}", ()) if vm.foreign else ()
    return _with_inside(_open_volume(volume), "volume", inside)


@lru_cache(maxsize=4096)
def _open_volume(volume: Volume) -> str:
    """Return a volume's opening as Qubes writes it: flags only where they are true. Volumes change seldom."""
    flags = "".join([f' {name}="True"' for name in _FLAGS if getattr(volume, name)])
    return (
        f"<volume name={_quoted(volume.name)} pool={_quoted(volume.pool)} vid={_quote(volume.vid)}"
        f' size="{volume.size}" revisions_to_keep="{volume.revisions_to_keep}"{flags}'
        f"{_attributes(dict(volume.extra)) if volume.extra else ''}"
    )


def _with_inside(opened: str, tag: str, inside: Iterable[str]) -> str:
    text = "".join(inside)
    return f"{opened}>{text}</{tag}>" if text else f"{opened}/>"


def _foreign_attributes(holder: Holder, key: str = "@") -> dict[str, str]:
    found = holder.foreign.get(key)
    return {name: value for name, _, value in (pair.partition("\0") for pair in found)} if found else {}
