"""The types of the Admin API (section 6, "Property types"): text to value, and back."""

import re
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Protocol

from crannog.core.labels import Label
from crannog.errors import ValueRefusedError

MAX_TEXT = 65536
"""Longest text of a value, in characters: no request on the wire can carry more."""

INT_MAX = 2**63 - 1
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_USER = re.compile(r"""[^-:'"\s][^:'"\s]{0,63}""")


class Lookup(Protocol):
    """What parsing needs of the registry."""

    def find_vm(self, name: str) -> Any:  # noqa: ANN401 - a VM; typed where VMs are known
        """Return the VM of that name or raise VMNotFoundError."""

    def find_label(self, name: str) -> Label:
        """Return the label of that name or raise LabelNotFoundError."""


class Kind:
    """A type: its name, and text to value and back."""

    name = ""
    is_reference = False
    """The value is a VM, by name."""

    def parse(self, text: str, lookup: Lookup | None = None) -> object:
        """Return the value that `text` means, or raise ValueRefusedError."""
        raise NotImplementedError

    def format(self, value: object) -> str:
        """Return the text of `value`; None is the empty text."""
        return "" if value is None else str(value)


class StrKind(Kind):
    """Text: printable ASCII."""

    name = "str"

    def parse(self, text: str, lookup: Lookup | None = None) -> str:
        """Return the text itself; only printable ASCII is taken."""
        del lookup
        if not text.isascii() or not text.isprintable():
            raise ValueRefusedError("the value must be printable ASCII")
        if len(text) > MAX_TEXT:
            raise ValueRefusedError(f"the value is {len(text)} characters long; at most {MAX_TEXT} can be kept")
        return text


class IntKind(Kind):
    """A whole number."""

    name = "int"

    def parse(self, text: str, lookup: Lookup | None = None) -> int:
        """Return the number; ASCII digits and a sign only."""
        del lookup
        digits = text.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) < 20) or int(digits) > INT_MAX:
            raise ValueRefusedError(f"'{text[:40]}' is not a whole number")
        return int(text)


class BoolKind(Kind):
    """True or False."""

    name = "bool"
    _VALUES = {
        "0": False, "no": False, "false": False, "off": False,
        "1": True, "yes": True, "true": True, "on": True,
    }  # fmt: skip

    def parse(self, text: str, lookup: Lookup | None = None) -> bool:
        """Return the truth of the words that the Admin API takes, in any case."""
        del lookup
        try:
            return self._VALUES[text.lower()]
        except KeyError:
            raise ValueRefusedError(f"'{text[:40]}' is neither True nor False") from None


class VMKind(Kind):
    """A reference to a VM, by name."""

    name = "vm"
    is_reference = True

    def parse(self, text: str, lookup: Lookup | None = None) -> object:
        """Return the VM; the empty text means none."""
        assert lookup is not None  # noqa: S101 - references are looked up somewhere
        return lookup.find_vm(text) if text else None


class LabelKind(Kind):
    """A reference to a label, by name."""

    name = "label"

    def parse(self, text: str, lookup: Lookup | None = None) -> Label:
        """Return the label."""
        assert lookup is not None  # noqa: S101
        return lookup.find_label(text)

    def format(self, value: object) -> str:
        """Return the label's name."""
        return value.name if isinstance(value, Label) else ""


STR, INT, BOOL, VM, LABEL = StrKind(), IntKind(), BoolKind(), VMKind(), LabelKind()


def parse_ip(text: str) -> str:
    """Return an IPv4 address in its usual form; raises ValueRefusedError."""
    try:
        return str(IPv4Address(text))
    except ValueError:
        raise ValueRefusedError(f"'{text[:40]}' is not an IPv4 address") from None


def parse_ip6(text: str) -> str:
    """Return an IPv6 address in its shortest form; raises ValueRefusedError."""
    try:
        return str(IPv6Address(text))
    except ValueError:
        raise ValueRefusedError(f"'{text[:40]}' is not an IPv6 address") from None


def parse_mac(text: str) -> str:
    """Return a unicast MAC address in lower case; raises ValueRefusedError."""
    mac = text.lower()
    if not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1:
        raise ValueRefusedError(f"'{text[:40]}' is not the MAC address of one interface, such as 00:16:3e:5e:6c:00")
    return mac


def parse_user(text: str) -> str:
    """Return a user name, or nothing; raises ValueRefusedError for what a shell or a log could misread."""
    if text and not _USER.fullmatch(text):
        raise ValueRefusedError(f"'{text[:80]}' is not a user name")
    return text
