"""qubes.xml: the registry as a file, in the R4 format (design.md, section 5).

The text of each element is the property's text form; references go by name. A file that says something this version
does not know is refused with its line, never rewritten without it.
"""

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

from lxml import etree

from crannog.core.labels import Label
from crannog.core.properties import VM, Holder
from crannog.core.registry import DEFAULT_POOL, Registry
from crannog.core.vms import ADMIN_UUID, CLASSES, QubeBase
from crannog.core.volumes import Volume
from crannog.errors import CrannogError, StorageError

FORMAT_VERSION = "3.0"
T = TypeVar("T")

_PROPERTIES: dict[str, dict[str, Any]] = {"properties": {"property": {}}}
_DOMAIN = {**_PROPERTIES, "features": {"feature": {}}, "tags": {"tag": {}}, "volume-config": {"volume": {}}}
_ELEMENTS = {**_PROPERTIES, "labels": {"label": {}}, "domains": {"domain": _DOMAIN}}
"""Which elements stand in which."""

MAX_FILE_SIZE = 64 * 2**20

_VOLUME_TYPES: dict[str, Callable[[str], object]] = {
    "int": int,
    "bool": lambda text: text == "True",
    "str": str,
}
_VOLUME_FIELDS = {
    field.name: _VOLUME_TYPES[str(getattr(field.type, "__name__", field.type))] for field in fields(Volume)
}


def to_bytes(registry: Registry) -> bytes:
    """Return the registry as the bytes of a file."""
    root = etree.Element("qubes", version=FORMAT_VERSION)
    labels = etree.SubElement(root, "labels")
    for label in registry.labels.values():
        etree.SubElement(labels, "label", id=f"label-{label.index}", color=label.color).text = label.name
    _write_properties(root, registry)
    domains = etree.SubElement(root, "domains")
    for vm in sorted(registry, key=lambda vm: vm.qid):
        _write_vm(domains, vm)
    return etree.tostring(root, pretty_print=True, xml_declaration=True, encoding="utf-8")


def _write_properties(parent: etree._Element, holder: Holder) -> None:
    properties = etree.SubElement(parent, "properties")
    for name, declared in holder.declared().items():
        if name in holder.values:
            etree.SubElement(properties, "property", name=name).text = declared.kind.format(holder.values[name])


def _write_vm(parent: etree._Element, vm: QubeBase) -> None:
    element = etree.SubElement(parent, "domain", {"id": f"domain-{vm.qid}", "class": vm.klass})
    _write_properties(element, vm)
    features = etree.SubElement(element, "features")
    for name, value in vm.features.items():
        etree.SubElement(features, "feature", name=name).text = value
    tags = etree.SubElement(element, "tags")
    for tag in sorted(vm.tags):
        etree.SubElement(tags, "tag", name=tag)
    volumes = etree.SubElement(element, "volume-config")
    for volume in vm.volumes.values():
        values = {name: str(getattr(volume, name)) for name in _VOLUME_FIELDS if name != "source"}
        etree.SubElement(volumes, "volume", values)


def from_bytes(data: bytes, kernels: set[str]) -> Registry:
    """Return the registry that the bytes of a file describe; `kernels` are those that exist now.

    Raises StorageError that names the line and the reason.
    """
    if len(data) > MAX_FILE_SIZE:
        raise StorageError(f"it is larger than {MAX_FILE_SIZE // 2**20} MiB")
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, remove_comments=True)
    try:
        root = etree.fromstring(data, parser)
    except etree.XMLSyntaxError as error:
        raise StorageError(f"line {error.lineno or 0}: {error.msg}") from error
    if b"<!DOCTYPE" in data or root.tag != "qubes" or root.get("version") != FORMAT_VERSION:
        raise StorageError(f"line {root.sourceline}: not a <qubes version='{FORMAT_VERSION}'> document")
    return _read_registry(root, kernels)


def _read_registry(root: etree._Element, kernels: set[str]) -> Registry:
    registry = Registry()
    registry.kernels = kernels
    _check_children(root, _ELEMENTS)
    for element in root.iterfind("labels/label"):
        label = _at(element, partial(_read_label, element))
        registry.labels[label.name] = label
    domains = list(root.iterfind("domains/domain"))
    vms = [_at(element, partial(_read_vm, registry, element)) for element in domains]
    # References between VMs can point forward, so they are read when all VMs exist.
    for vm, element in zip(vms, domains, strict=True):
        _read_properties(registry, vm, element, wants_references=True)
    _read_properties(registry, registry, root, wants_references=False)
    _read_properties(registry, registry, root, wants_references=True)
    for vm, element in zip(vms, domains, strict=True):
        _at(element, partial(_check_vm, vm))
    _at(root, partial(_check_values, registry))
    return registry


def _check_vm(vm: QubeBase) -> None:
    if vm.klass == "AdminVM":
        if (vm.name, vm.uuid, vm.qid) != ("dom0", ADMIN_UUID, 0):
            raise StorageError("dom0 cannot have another name, UUID or qid")
    elif str(UUID(vm.uuid)) != vm.uuid or vm.qid < 1:
        raise StorageError(f"VM '{vm.name}' has a malformed UUID or qid")
    if vm.is_template_based and vm.template is None:
        raise StorageError(f"VM '{vm.name}' has no template")
    for volume in vm.volumes.values():
        if volume.pool != DEFAULT_POOL:
            raise StorageError(f"volume '{volume.vid}' is in pool '{volume.pool}', which does not exist")
    _check_values(vm)


def _check_values(holder: Holder) -> None:
    """Ask of what the file says what is asked of a user, but for the name, which is the VM's own by now.

    The template comes first, as a bad one would mislead the other checks. A kernel that is missing is no reason to
    refuse the file: the start of that VM says so.
    """
    for name in sorted(holder.values, key=lambda name: name != "template"):
        check = holder.find_property(name).check
        if check and name not in ("name", "kernel", "default_kernel"):
            check(holder, holder.values[name])


def _check_children(element: etree._Element, known: dict[str, dict[str, Any]]) -> None:
    """Refuse elements that this version does not know: they would be lost when the file is next written."""
    for child in element:
        if child.tag not in known:
            raise StorageError(f"line {child.sourceline}: <{child.tag}> is not known to this version")
        _check_children(child, known[str(child.tag)])


def _read_label(element: etree._Element) -> Label:
    return Label(int(element.get("id", "").removeprefix("label-")), element.text or "", element.get("color", ""))


def _at(element: etree._Element, read: Callable[[], T]) -> T:
    """Run `read`; whatever refuses in there gets the element's line."""
    try:
        return read()
    except (CrannogError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"line {element.sourceline}: {error}") from error


def _read_vm(registry: Registry, element: etree._Element) -> QubeBase:
    klass = element.get("class", "")
    if klass not in CLASSES:
        raise StorageError(f"VMs of class '{klass}' are not known to this version")
    if klass == "AdminVM":
        vm = registry.find_vm(f"uuid:{ADMIN_UUID}")
        _read_properties(registry, vm, element, wants_references=False)
    else:
        vm = CLASSES[klass](registry)
        _read_properties(registry, vm, element, wants_references=False)
        registry.adopt(vm)
    vm.features = {e.get("name", ""): e.text or "" for e in element.iterfind("features/feature")}
    vm.tags = {e.get("name", "") for e in element.iterfind("tags/tag")}
    vm.volumes = {e.get("name", ""): _read_volume(e) for e in element.iterfind("volume-config/volume")}
    return vm


def _read_volume(element: etree._Element) -> Volume:
    unknown = set(element.attrib) - set(_VOLUME_FIELDS)
    if unknown:
        raise StorageError(f"a volume has the unknown attribute '{min(map(str, unknown))}'")
    values = {str(name): _VOLUME_FIELDS[str(name)](str(text)) for name, text in element.attrib.items()}
    return Volume(**values)  # type: ignore[arg-type]


def _read_properties(registry: Registry, holder: Holder, parent: etree._Element, *, wants_references: bool) -> None:
    for element in parent.iterfind("properties/property"):
        declared = _at(element, partial(holder.find_property, element.get("name", "")))
        if declared.is_readonly and declared.name not in ("uuid", "qid"):
            raise StorageError(f"line {element.sourceline}: property '{declared.name}' is computed, never stored")
        if (declared.kind is VM) is wants_references:
            text = element.text or ""
            holder.values[declared.name] = _at(element, partial(declared.kind.parse, text, registry))
