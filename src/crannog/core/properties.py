"""Declared, typed properties: how a value is parsed, checked, shown and defaulted.

A property's text form is that of the Admin API, section 6, "Property types". A holder is what has properties: a
VM, or the registry for the global ones.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from crannog.core.labels import Label
from crannog.errors import PropertyNotFoundError, ValueRefusedError


class Lookup(Protocol):
    """What parsing needs of the registry."""

    def find_vm(self, name: str) -> Any:  # noqa: ANN401 - a VM; typed where VMs are known
        """Return the VM of that name or raise VMNotFoundError."""

    def find_label(self, name: str) -> Label:
        """Return the label of that name or raise NotFoundError."""


class Kind:
    """A type of the Admin API: its name, and text to value and back."""

    name = ""

    def parse(self, text: str, lookup: Lookup) -> object:
        """Return the value that `text` means, or raise ValueRefusedError."""
        raise NotImplementedError

    def format(self, value: object) -> str:
        """Return the text of `value`; None is the empty text."""
        return "" if value is None else str(value)


class StrKind(Kind):
    """Text."""

    name = "str"

    def parse(self, text: str, lookup: Lookup) -> str:
        """Return the text itself; only printable ASCII is taken."""
        del lookup
        if not (text.isascii() and (text.isprintable() or not text)):
            raise ValueRefusedError("the value must be printable ASCII")
        return text


class IntKind(Kind):
    """A whole number."""

    name = "int"

    def parse(self, text: str, lookup: Lookup) -> int:
        """Return the number; ASCII digits and a sign only."""
        del lookup
        digits = text.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
            raise ValueRefusedError(f"'{text[:40]}' is not a whole number")
        return int(text)


class BoolKind(Kind):
    """True or False."""

    name = "bool"
    _VALUES = {
        "0": False, "no": False, "false": False, "off": False,
        "1": True, "yes": True, "true": True, "on": True,
    }  # fmt: skip

    def parse(self, text: str, lookup: Lookup) -> bool:
        """Return the truth of the words that the Admin API takes, in any case."""
        del lookup
        try:
            return self._VALUES[text.lower()]
        except KeyError:
            raise ValueRefusedError(f"'{text[:40]}' is neither True nor False") from None


class VMKind(Kind):
    """A reference to a VM, by name."""

    name = "vm"

    def parse(self, text: str, lookup: Lookup) -> object:
        """Return the VM; the empty text means none."""
        return lookup.find_vm(text) if text else None


class LabelKind(Kind):
    """A reference to a label, by name."""

    name = "label"

    def parse(self, text: str, lookup: Lookup) -> Label:
        """Return the label."""
        return lookup.find_label(text)

    def format(self, value: object) -> str:
        """Return the label's name."""
        return value.name if isinstance(value, Label) else ""


def check_range(low: int, high: int, unit: str) -> Callable[[Any, int], None]:
    """Return a check that a number is from `low` to `high`."""

    def check(_holder: object, value: int) -> None:
        if not low <= value <= high:
            raise ValueRefusedError(f"{value} is out of range: {low} to {high} {unit}")

    return check


STR, INT, BOOL, VM, LABEL = StrKind(), IntKind(), BoolKind(), VMKind(), LabelKind()


@dataclass(frozen=True)
class Property:
    """One declared property.

    `default` computes the value of a holder that has none of its own; without it the property is unset then.
    `check` gets the holder and the new value and raises ValueRefusedError.
    """

    name: str
    kind: Kind
    help: str
    default: Callable[[Any], object] | None = None
    check: Callable[[Any, Any], None] | None = None
    is_readonly: bool = False
    needs_halted: bool = False


@dataclass
class Holder:
    """Something with properties. `values` holds only what was set; everything else is computed."""

    values: dict[str, object] = field(default_factory=dict)

    @classmethod
    def declared(cls) -> dict[str, Property]:
        """Return all properties that holders of this class have."""
        raise NotImplementedError

    def title(self) -> str:
        """Return how messages call this holder."""
        raise NotImplementedError

    def find_property(self, name: str) -> Property:
        """Return the declaration of `name` or raise PropertyNotFoundError."""
        try:
            return self.declared()[name]
        except KeyError:
            raise PropertyNotFoundError(
                f"{self.title()} has no property '{name[:80]}'; the properties are listed by the command without a name"
            ) from None

    def get(self, name: str) -> Any:  # noqa: ANN401 - the declared kind tells the type
        """Return the value of a property: set or default; None when it has neither."""
        if name in self.values:
            return self.values[name]
        return self.default(name)

    def default(self, name: str) -> Any:  # noqa: ANN401
        """Return the default of a property; None when it has none."""
        compute = self.find_property(name).default
        return compute(self) if compute else None

    def is_default(self, name: str) -> bool:
        """Tell whether the property has no value of its own."""
        return name not in self.values

    def set(self, name: str, value: object) -> None:
        """Give a property a value; raises ValueRefusedError when it is read-only or the check refuses."""
        declared = self.find_property(name)
        if declared.is_readonly:
            raise ValueRefusedError(f"property '{name}' of {self.title()} is read-only")
        if declared.check:
            declared.check(self, value)
        self.values[name] = value

    def reset(self, name: str) -> None:
        """Take away a property's own value, so that the default counts again."""
        declared = self.find_property(name)
        if declared.is_readonly or (declared.default is None and name in self.values):
            raise ValueRefusedError(f"property '{name}' of {self.title()} has no default to go back to")
        if declared.check:
            declared.check(self, self.default(name))
        self.values.pop(name, None)
