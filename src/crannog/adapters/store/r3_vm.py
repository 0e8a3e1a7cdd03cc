"""One VM of a registry file of Qubes R1 to R3: what its attributes mean, as properties, features and devices of R4.

Which attribute means what is in the tables at the end. References to other VMs are followed in `r3_document`.
"""

import ast
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import cast

from lxml import etree

from crannog.adapters.store.xml_document import line_of
from crannog.core.features import SERVICE, check_feature
from crannog.core.pools import DEFAULT_POOL
from crannog.core.vms import LocalVM
from crannog.errors import ProtocolError, StorageError, ValueRefusedError

NONE = frozenset({"", "none", "None"})
"""How R3 wrote that there is no value."""

MAX_LITERAL = 2**16
"""Longest text in characters that is read as Python."""

_MAX_LISTED = 20
_PCI_ADDRESS = re.compile(r"[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_FEATURE_OF_SERVICE = {"qubes-update-check": "check-updates"}


@dataclass(frozen=True)
class R3Class:
    """What a class of R3 says of its VMs."""

    virt_mode: str = "pv"
    is_template: bool = False
    provides_network: bool = False
    is_proxy: bool = False
    """It gets its network from another VM, and by default not from the one that all others get it from."""


def refusal(element: etree._Element, reason: str) -> StorageError:
    """Return the error that says what is wrong with an element, and in which line it is."""
    return StorageError(f"line {line_of(element)}: {reason}")


def listed(names: Iterable[str]) -> str:
    """Return names of the file for a sentence: each once, sorted, not too many, and safe to show."""
    known = sorted(set(names))
    shown = ", ".join(repr(name[:80]) for name in known[:_MAX_LISTED])
    return shown if len(known) <= _MAX_LISTED else f"{shown} and {len(known) - _MAX_LISTED} more"


@dataclass(frozen=True)
class Draft:
    """A VM on its way from its element in the R3 file to an element of R4. `klass` is its class in R4."""

    source: etree._Element
    name: str
    klass: str
    remarks: list[str]
    properties: dict[str, str] = field(default_factory=dict)
    features: dict[str, str] = field(default_factory=dict)
    pci: list[str] = field(default_factory=list)

    def get(self, attribute: str) -> str:
        """Return an attribute, empty when there is none."""
        return self.source.get(attribute, "")

    def is_default(self, name: str) -> bool:
        """Tell whether the VM has no setting `name` of its own."""
        return self.source.get(f"uses_default_{name}", "True") == "True"

    def remark(self, sentence: str) -> None:
        """Say what could not be taken over, in one line."""
        sentence = "".join([char if char.isprintable() else " " for char in sentence])
        self.remarks.append(f"VM {self.name[:80]!r}: {sentence}")

    def refusal(self, reason: str) -> StorageError:
        """Return the error that says what is wrong with the VM."""
        return refusal(self.source, f"VM {self.name[:80]!r}: {reason}")

    def set_checked(self, name: str, text: str) -> None:
        """Set a property, or say why it cannot have that value today."""
        declared = LocalVM.declared()[name]
        try:
            value = declared.kind.parse(text)
            if declared.check:
                declared.check(None, value)
        except ValueRefusedError as error:
            self.remark(f"its {name} is left out: {error}")
        else:
            self.properties[name] = text

    def set_feature(self, name: str, value: str) -> None:
        """Set a feature, or say why there cannot be such a one."""
        try:
            check_feature(name, value)
        except ProtocolError as error:
            self.remark(f"feature {name[:80]!r} is left out: {error}")
        else:
            self.features[name] = value

    def take_over(self, kind: R3Class) -> None:
        """Give the VM what its attributes say. Raises StorageError for what cannot be read at all."""
        table = OF_DOM0 if self.klass == "AdminVM" else OF_HVM if kind.virt_mode == "hvm" else OF_PV
        values = {str(name): str(text) for name, text in self.source.attrib.items()}
        for name, text in values.items():
            if text.strip() not in NONE or name in _ALSO_NONE:
                table.get(name, _drop)(self, text)
        unknown = [name for name in values if name not in table]
        unknown += [f"<{element.tag}>" for element in self.source.iterchildren(etree.Element)]
        if unknown:
            self.remark(f"these mean nothing today and are left out: {listed(unknown)}")


def _read_literal(text: str) -> object:
    """Return what a Python literal means, None for anything else, however it is nested."""
    if len(text) > MAX_LITERAL:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python warns of odd escapes, on the terminal of whoever reads the file
            return cast(object, ast.literal_eval(text.strip()))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


Action = Callable[[Draft, str], None]
"""What is done with the text of an attribute."""


def _drop(_draft: Draft, _text: str) -> None:
    """Do nothing: the attribute has no meaning today, or is read together with another one."""


def _checked(name: str) -> Action:
    return lambda draft, text: draft.set_checked(name, text)


def _as_it_is(name: str) -> Action:
    return lambda draft, text: draft.properties.update({name: text})


def _unless_default(name: str) -> Action:
    def take(draft: Draft, text: str) -> None:
        if not draft.is_default(name):
            draft.properties[name] = "" if text in NONE else text

    return take


def _flag(feature: str) -> Action:
    return lambda draft, text: draft.set_feature(feature, "1" if text == "True" else "")


def _only_if(word: str, feature: str, value: str) -> Action:
    return lambda draft, text: draft.set_feature(feature, value) if text == word else None


def _take_services(draft: Draft, text: str) -> None:
    services = _read_literal(text)
    if not isinstance(services, dict) or not all(
        isinstance(name, str) and isinstance(is_on, bool) for name, is_on in services.items()
    ):
        raise draft.refusal("its services cannot be read: they are no dictionary of names with True or False")
    for name, is_on in services.items():
        draft.set_feature(_FEATURE_OF_SERVICE.get(name, SERVICE + name), "1" if is_on else "")


def _take_pci(draft: Draft, text: str) -> None:
    found = _read_literal(text) if text.lstrip().startswith("[") else text.split(",")
    parts = (
        [part.strip().lower() if isinstance(part, str) else "" for part in found] if isinstance(found, list) else [""]
    )
    if not all(_PCI_ADDRESS.fullmatch(part) for part in parts):
        raise draft.refusal("its pcidevs cannot be read: they are no list of addresses such as '00:1b.0'")
    draft.pci.extend(dict.fromkeys(part.replace(":", "_") for part in parts))


def _take_backup(draft: Draft, text: str) -> None:
    if text == "True":
        draft.set_feature("backup-content", "1")
        for part in ("path", "size"):
            if draft.get(f"backup_{part}"):
                draft.set_feature(f"backup-{part}", draft.get(f"backup_{part}"))


def _take_pool(draft: Draft, text: str) -> None:
    if text != "default":
        draft.remark(f"its disks were in pool {text[:80]!r}; they are in {DEFAULT_POOL} now")


def _take_drive(draft: Draft, text: str) -> None:
    draft.set_feature("drive", text)
    if "drive" in draft.features:
        draft.remark(f"its drive {text[:200]!r} is only kept in feature drive; 'qvm-start --cdrom' boots from an image")


def _take_timezone(draft: Draft, text: str) -> None:
    if text != "localtime":
        draft.set_feature("timezone", text)


def _take_seamless(draft: Draft, text: str) -> None:
    if text == "True" and draft.get("guiagent_installed") == "True":
        draft.set_feature("seamless-gui-mode", "1")
    elif text == "True":
        draft.remark("its seamless_gui_mode is left out: it has no GUI agent installed that could do it")


_FILES = (
    "dir_path", "conf_file", "firewall_conf", "kernels_dir",
    "root_img", "private_img", "volatile_img", "rootcow_img",
)  # fmt: skip
_REFERENCES = ("template_qid", "netvm_qid", "uses_default_netvm", "dispvm_netvm", "uses_default_dispvm_netvm")
_BESIDE = ("backup_path", "backup_size", "uses_default_kernel", "uses_default_kernelopts", "pci_strictreset")
_ALSO_NONE = frozenset({"kernel", "kernelopts"})
"""For which no value is one too."""

_DROPPED = ("qid", "name", "uuid", "label", "netid", "updateable", "type", *_FILES, *_REFERENCES, *_BESIDE)

_OF_ALL: dict[str, Action] = {
    **dict.fromkeys(_DROPPED, _drop),
    "include_in_backups": _checked("include_in_backups"),
    "backup_content": _take_backup,
}
_NUMBERS_AND_FLAGS = (
    "memory", "maxmem", "vcpus", "qrexec_timeout", "backup_timestamp", "debug", "autostart", "installed_by_rpm",
)  # fmt: skip

OF_PV: dict[str, Action] = {
    **_OF_ALL,
    **{name: _checked(name) for name in _NUMBERS_AND_FLAGS},
    **{name: _as_it_is(name) for name in ("default_user", "mac")},
    **{name: _unless_default(name) for name in ("kernel", "kernelopts")},
    "internal": _only_if("True", "internal", "1"),
    "pci_e820_host": _only_if("False", "pci-e820-host", ""),
    "services": _take_services,
    "pcidevs": _take_pci,
    "pool_name": _take_pool,
}
OF_HVM: dict[str, Action] = {
    **OF_PV,
    "maxmem": _drop,  # an HVM had its memory and no more
    "drive": _take_drive,
    "timezone": _take_timezone,
    "qrexec_installed": _flag("qrexec"),
    "guiagent_installed": _flag("gui"),
    "seamless_gui_mode": _take_seamless,
}
OF_DOM0: dict[str, Action] = {**dict.fromkeys(OF_HVM, _drop), **_OF_ALL}
"""dom0's memory, processors and services were never its registry's to say."""
