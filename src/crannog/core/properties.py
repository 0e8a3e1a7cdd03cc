"""Declared, typed properties: what each is, how it is defaulted, and who holds the values.

A holder is what has properties: a VM, or the registry for the global ones. The text form of a value is its kind's
(core.kinds).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from crannog.core.kinds import Kind
from crannog.errors import PropertyNotFoundError, PropertyRefusedError, ValueRefusedError

STAGE_SETTINGS, STAGE_REFERENCES = 2, 4
"""Load stages (Admin API, section 6): what stands alone, and what depends on other VMs. Lists are in this order."""


@dataclass(frozen=True)
class Property:
    """One declared property.

    `default` computes the value of a holder that has none of its own; without it the property is unset then.
    `check` gets the holder and the new value, raises ValueRefusedError or InUseError when it may not be, and
    returns nothing. `normalise` turns what a user wrote into the form that is kept, or raises ValueRefusedError.
    """

    name: str
    kind: Kind
    help: str
    default: Callable[[Any], object] | None = None
    check: Callable[[Any, Any], None] | None = None
    normalise: Callable[[Any], object] | None = None
    is_readonly: bool = False
    is_write_once: bool = False
    """It can be given a value while it has none, and never changed after."""
    needs_halted: bool = False
    is_cloned: bool = True
    """A clone of the VM gets the same value."""
    stage: int = STAGE_SETTINGS


def collect(*groups: tuple[Property, ...]) -> dict[str, Property]:
    """Return the properties by name, later groups before earlier ones, in the order in which they are listed."""
    by_name = {declared.name: declared for group in groups for declared in group}
    return {declared.name: declared for declared in sorted(by_name.values(), key=lambda p: (p.stage, p.name))}


@dataclass(eq=False)
class Holder:
    """Something with properties. `values` holds only what was set; everything else is computed."""

    values: dict[str, object] = field(default_factory=dict)
    foreign: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """What its part of the file says that this version does not know: XML by the place it stands in."""

    DECLARED: ClassVar[dict[str, Property]] = {}

    def state(self) -> dict[str, object]:
        """Return all that can change of the holder, to go back to with `restore`."""
        return {key: value.copy() if isinstance(value, dict | set) else value for key, value in vars(self).items()}

    def restore(self, state: dict[str, object]) -> None:
        """Be again as in `state`."""
        vars(self).update(state)

    @classmethod
    def declared(cls) -> dict[str, Property]:
        """Return all properties that holders of this class have, by load stage and name."""
        return cls.DECLARED

    def title(self) -> str:
        """Return how messages call this holder."""
        raise NotImplementedError

    def find_property(self, name: str) -> Property:
        """Return the declaration of `name` or raise PropertyNotFoundError."""
        try:
            return self.DECLARED[name]
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

    def describe(self, name: str) -> str:
        """Return a property as the Admin API shows it: `default=... type=... VALUE`."""
        return _describe(self, self.find_property(name))

    def describe_all(self) -> list[tuple[str, str]]:
        """Return all properties, each with what `describe` says of it, by load stage and name."""
        return [(name, _describe(self, declared)) for name, declared in self.DECLARED.items()]

    def check_settable(self, declared: Property, value: object) -> None:
        """Raise what refuses to give the property that value."""
        if declared.is_readonly:
            raise PropertyRefusedError(f"property '{declared.name}' of {self.title()} is read-only")
        if declared.is_write_once and declared.name in self.values:
            raise PropertyRefusedError(f"property '{declared.name}' of {self.title()} was set once and stays as it is")
        if declared.check:
            declared.check(self, value)

    def set(self, name: str, value: object) -> None:
        """Give a property a value; raises ValueRefusedError when it is read-only or the check refuses."""
        declared = self.find_property(name)
        if declared.normalise:
            value = declared.normalise(value)
        self.check_settable(declared, value)
        self.values[name] = value

    def reset(self, name: str) -> None:
        """Take away a property's own value, so that the default counts again."""
        declared = self.find_property(name)
        is_bound = declared.is_readonly or declared.is_write_once
        if (is_bound or declared.default is None) and (name in self.values or declared.is_readonly):
            raise PropertyRefusedError(f"property '{name}' of {self.title()} has no default to go back to")
        if declared.check:
            declared.check(self, self.default(name))
        self.values.pop(name, None)


def _describe(holder: Holder, declared: Property) -> str:
    kind, name = declared.kind, declared.name
    if name in holder.values:
        return f"default=False type={kind.name} {kind.format(holder.values[name])}"
    value = declared.default(holder) if declared.default else None
    return f"default=True type={kind.name} {kind.format(value)}"


def check_range(low: int, high: int, unit: str) -> Callable[[Any, int | None], None]:
    """Return a check that a number is from `low` to `high`; None, the default of some properties, passes."""

    def check(_holder: object, value: int | None) -> None:
        if value is not None and not low <= value <= high:
            raise ValueRefusedError(f"{value} is out of range: {low} to {high} {unit}")

    return check
