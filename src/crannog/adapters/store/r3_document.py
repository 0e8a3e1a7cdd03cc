"""The registry file of Qubes R1 to R3, turned into the R4 format, which `r4_reader` then reads and checks.

In R3 VMs are elements with attributes, and refer to each other by number (qid). What has no place in R4 is left out,
and a sentence says so; what is broken is refused.
"""

import re
from typing import Any, cast
from uuid import UUID, uuid5

from lxml import etree

from crannog.adapters.store.r3_vm import NONE, Draft, R3Class, listed, refusal
from crannog.adapters.store.xml_document import line_of
from crannog.core.devices import BACKEND, PORT
from crannog.core.pools import DEFAULT_POOL, KERNEL_POOL
from crannog.core.vms import ADMIN_NAME, CLASSES
from crannog.core.volumes import DEFAULT_SIZES, KERNEL

ROOT = "QubesVmCollection"

_NAMESPACE = UUID("0d5f7c1e-52c9-4c0f-9e53-7f7b1a6d2c48")
"""For the UUIDs of VMs whose file has none: the same at each reading."""

_MAX_LINE = 2**16 - 1
"""Highest line that an element made by hand can carry."""

_QID = re.compile(r"[0-9]{1,10}")
_ADMIN, _DISPOSABLE = "QubesAdminVm", "QubesDisposableVm"
_CLASSES = {
    _ADMIN: R3Class(),
    "QubesTemplateVm": R3Class(is_template=True),
    "QubesTemplateHVm": R3Class(virt_mode="hvm", is_template=True),
    "QubesAppVm": R3Class(),
    "QubesHVm": R3Class(virt_mode="hvm"),
    "QubesNetVm": R3Class(provides_network=True),
    "QubesProxyVm": R3Class(provides_network=True, is_proxy=True),
}
_GLOBAL_REFERENCES = ("default_template", "default_netvm", "updatevm", "clockvm")
_GLOBAL = (*_GLOBAL_REFERENCES, "default_fw_netvm", "default_kernel")
_NOT_IN_THE_FILE = (
    "firewall rules and the images of disks are not in qubes.xml and have to be brought over separately; "
    "the volumes of all VMs are empty until images are imported"
)


def convert(root: etree._Element) -> tuple[etree._Element, list[str]]:
    """Return the document in R4 form, and a sentence for each thing that could not be mapped.

    Elements have the line numbers of what they are made from. Raises StorageError with line and reason for a VM without
    a usable qid or name, for references that lead nowhere, and for services and PCI devices that cannot be read.
    """
    return _Conversion(root).run()


class _Conversion:
    """One document on its way. `_names` has all VMs by qid; references are only followed when it is complete."""

    def __init__(self, root: etree._Element) -> None:
        self._root = root
        self._remarks: list[str] = []
        self._sources: dict[int, etree._Element] = {}
        self._names: dict[int, str] = {}
        self._templates: set[int] = set()
        self._left_out: set[int] = set()

    def run(self) -> tuple[etree._Element, list[str]]:
        """Return what `convert` returns."""
        self._find_vms()
        line = line_of(self._root)
        result = etree.Element("qubes")
        _set_line(result, line)
        self._write_globals(_child(result, "properties", line, {}))
        domains = _child(result, "domains", line, {})
        if 0 not in self._sources:
            _child(domains, "domain", line, {"id": "domain-0", "class": "AdminVM"})
        for qid, source in self._sources.items():
            self._convert_vm(domains, qid, source)
        if set(self._sources) - {0}:
            self._remarks.append(_NOT_IN_THE_FILE)
        return result, self._remarks

    def _find_vms(self) -> None:
        unknown: list[str] = []
        for element in self._root.iterchildren(etree.Element):
            tag = str(element.tag)
            if tag in _CLASSES:
                self._take_vm(element, self._qid(element))
            elif tag == _DISPOSABLE or element.get("qid") is not None:
                self._leave_out(element)
            else:
                unknown.append(f"<{tag}>")
        unknown += [str(name) for name in self._root.attrib if name not in _GLOBAL]
        if unknown:
            self._remarks.append(
                f"the file has parts that mean nothing today, and that are left out: {listed(unknown)}"
            )
        if 0 not in self._left_out:
            self._names[0] = ADMIN_NAME

    def _qid(self, element: etree._Element) -> int:
        """Return the number of a VM that no other VM has; raises StorageError."""
        text, who = element.get("qid", ""), _who(element)
        if not _QID.fullmatch(text):
            raise refusal(element, f"{who}its qid {text[:80]!r} is no number" if text else f"{who}it has no qid")
        qid = int(text)
        if qid in self._names or qid in self._left_out:
            raise refusal(element, f"{who}its qid {qid} is that of another VM too")
        if (qid == 0) != (element.tag == _ADMIN) and element.tag in _CLASSES:
            raise refusal(element, f"{who}its qid is {qid}, but 0 is the number of dom0 and of nothing else")
        return qid

    def _take_vm(self, element: etree._Element, qid: int) -> None:
        name = ADMIN_NAME if element.tag == _ADMIN else element.get("name", "")
        if name in NONE:
            raise refusal(element, f"the VM with qid {qid} has no name")
        self._sources[qid], self._names[qid] = element, name
        if _CLASSES[str(element.tag)].is_template:
            self._templates.add(qid)

    def _leave_out(self, element: etree._Element) -> None:
        self._left_out.add(self._qid(element))
        if element.tag == _DISPOSABLE:
            reason = "disposables were only there while they ran"
        else:
            reason = f"VMs of class {str(element.tag)[:80]!r} are not known to this version"
        self._remarks.append(f"VM {element.get('name', '')[:80]!r} is left out: {reason}")

    def _follow(self, element: etree._Element, attribute: str, *, is_template: bool = False) -> str:
        """Return the name of the VM that an attribute refers to, empty for none; raises StorageError."""
        text = element.get(attribute, "")
        if text in NONE:
            return ""
        qid = int(text) if _QID.fullmatch(text) else -1
        if qid in self._names and (qid in self._templates or not is_template):
            return self._names[qid]
        if qid in self._names:
            reason = "which is not a template"
        else:
            reason = "which cannot be taken over" if qid in self._left_out else "which is not there"
        who = "" if element is self._root else _who(element)
        raise refusal(element, f"{who}{attribute} refers to the VM with qid {text[:80]!r}, {reason}")

    def _write_globals(self, properties: etree._Element) -> None:
        root = self._root
        values = {"default_template": self._follow(root, "default_template", is_template=True)}
        values |= {name: self._follow(root, name) for name in _GLOBAL_REFERENCES[1:]}
        self._follow(root, "default_fw_netvm")  # used where VMs have it, and never dangling
        kernel = root.get("default_kernel", "")
        values["default_kernel"] = "" if kernel in NONE else kernel
        for name, text in values.items():
            if root.get(name) is not None:
                _child(properties, "property", line_of(root), {"name": name}, text)

    def _convert_vm(self, domains: etree._Element, qid: int, source: etree._Element) -> None:
        kind, template = _CLASSES[str(source.tag)], self._follow(source, "template_qid", is_template=True)
        netvm, of_disposables = self._follow(source, "netvm_qid"), self._follow(source, "dispvm_netvm")
        klass = "TemplateVM" if kind.is_template else "AppVM" if template else "StandaloneVM"
        draft = Draft(source, self._names[qid], "AdminVM" if qid == 0 else klass, self._remarks)
        _set_label(draft)
        if qid:
            _set_identity(draft, qid, kind)
            _set_template(draft, template)
            self._set_network(draft, kind, netvm)
            _report_disposables(draft, of_disposables)
        draft.take_over(kind)
        _write_vm(domains, draft, qid)

    def _set_network(self, draft: Draft, kind: R3Class, netvm: str) -> None:
        """Set what the VM gives to others, and what it gets its network from where R4 would find another default."""
        if kind.provides_network:
            draft.properties["provides_network"] = "True"
        if kind.provides_network and not kind.is_proxy:
            draft.properties["netvm"] = ""
            if netvm:
                draft.remark(f"its netvm {netvm[:80]!r} is left out: it is a NetVM, which had its network by itself")
        elif not draft.is_default("netvm"):
            draft.properties["netvm"] = netvm
        elif kind.is_proxy and self._root.get("default_fw_netvm") is None:
            draft.remark("it has no netvm now: it had the default for ProxyVMs, which the file does not name")
        elif kind.is_proxy:
            draft.properties["netvm"] = self._follow(self._root, "default_fw_netvm")
        elif kind.is_template and self._follow(self._root, "default_netvm"):
            draft.remark("it has no netvm now, as the default netvm is not for templates; its own netvm can be set")


def _who(element: etree._Element) -> str:
    return f"VM {element.get('name', '')[:80]!r}: "


def _set_label(draft: Draft) -> None:
    label = draft.get("label")
    if label not in NONE:
        draft.properties["label"] = label
    elif draft.klass != "AdminVM":
        draft.properties["label"] = "red"
        draft.remark("it has no label, and gets the label red")


def _set_identity(draft: Draft, qid: int, kind: R3Class) -> None:
    uuid = _uuid_of(draft, qid)
    draft.properties.update(name=draft.name, qid=str(qid), uuid=uuid, virt_mode=kind.virt_mode)
    if draft.klass != "AppVM" and kind.virt_mode == "pv":
        draft.features.update(qrexec="1", gui="1")  # the agents were always there


def _set_template(draft: Draft, template: str) -> None:
    if draft.klass == "AppVM":
        draft.properties["template"] = template
    elif template:
        draft.remark(f"its template {template[:80]!r} is left out: it is a template itself")


def _report_disposables(draft: Draft, netvm: str) -> None:
    if not draft.is_default("dispvm_netvm"):
        its = f"got their network from {netvm[:80]!r}" if netvm else "had no network"
        draft.remark(f"the disposables that it started {its}; a VM has no such setting today")


def _uuid_of(draft: Draft, qid: int) -> str:
    """Return a VM's UUID in its usual form, or one that follows from number and name; raises StorageError."""
    text = draft.get("uuid")
    if text in NONE:
        return str(uuid5(_NAMESPACE, f"{qid} {draft.name}"))
    try:
        return str(UUID(text))
    except ValueError as error:
        raise draft.refusal(f"its UUID {text[:80]!r} is none") from error


def _write_vm(domains: etree._Element, draft: Draft, qid: int) -> None:
    line = line_of(draft.source)
    domain = _child(domains, "domain", line, {"id": f"domain-{qid}", "class": draft.klass})
    for tag, parent_tag, values in (
        ("property", "properties", draft.properties),
        ("feature", "features", draft.features),
    ):
        parent = _child(domain, parent_tag, line, {})
        for name, text in values.items():
            _child(parent, tag, line, {"name": name}, text)
    if draft.pci:
        devices = _child(domain, "devices", line, {"class": "pci"})
    for port in draft.pci:
        device = _child(devices, "device", line, {BACKEND: ADMIN_NAME, PORT: port})
        if draft.get("pci_strictreset") == "False":
            _child(device, "option", line, {"name": "no-strict-reset"}, "True")
    volumes = _child(domain, "volume-config", line, {})
    for name in CLASSES[draft.klass].VOLUME_RULES:
        _child(volumes, "volume", line, _volume(draft, name))


def _volume(draft: Draft, name: str) -> dict[str, str]:
    """Return the attributes of a volume, as a new VM of that class has it."""
    rule = CLASSES[draft.klass].VOLUME_RULES[name]
    is_hosts = name == KERNEL
    return {
        "name": name, "pool": KERNEL_POOL if is_hosts else DEFAULT_POOL,
        "vid": "" if is_hosts else f"{draft.name}-{draft.properties['uuid'][:8]}/{name}",
        "size": str(DEFAULT_SIZES[name]),
        "revisions_to_keep": str(rule.revisions_to_keep), "rw": str(rule.rw),
        "snap_on_start": str(rule.snap_on_start), "save_on_stop": str(rule.save_on_stop),
    }  # fmt: skip


def _child(parent: etree._Element, tag: str, line: int, values: dict[str, str], text: str = "") -> etree._Element:
    """Add an element that reports `line` as its own, and return it."""
    element = etree.SubElement(parent, tag, values)
    _set_line(element, line)
    element.text = text or None
    return element


def _set_line(element: etree._Element, line: int) -> None:
    cast(Any, element).sourceline = line if line <= _MAX_LINE else 0
