"""Pools as values: where volumes live, and by which driver (Admin API, section 6)."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from crannog.core.kinds import BOOL, INT
from crannog.errors import NotYetError, ValueRefusedError

DEFAULT_POOL = "vm-pool"
KERNEL_POOL = "linux-kernel"
DIR_PATH = "dir_path"
REVISIONS_TO_KEEP = "revisions_to_keep"
EPHEMERAL_VOLATILE = "ephemeral_volatile"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class PoolOption:
    """An option that a driver has. `check` returns a text as it is kept; it raises ValueRefusedError or NotYetError."""

    name: str
    check: Callable[[str], str]
    default: str = ""
    is_changeable: bool = False
    """It can be changed of a pool that is there."""


@dataclass(frozen=True)
class PoolConfig:
    """One pool. `options` are the driver's, as pairs in their order."""

    name: str
    driver: str
    options: tuple[tuple[str, str], ...] = ()

    def option(self, name: str) -> str:
        """Return an option's value, or its default; empty when it has neither."""
        return dict(self.options).get(name, DEFAULTS.get(name, ""))

    def with_option(self, name: str, value: str) -> "PoolConfig":
        """Return this pool with an option set."""
        return replace(self, options=tuple({**dict(self.options), name: value}.items()))

    @property
    def revisions_to_keep(self) -> int:
        """How many revisions the root of a new TemplateVM keeps here. What a file says may be no number."""
        text = self.option(REVISIONS_TO_KEEP)
        return int(text) if text.removeprefix("-").isdecimal() else int(DEFAULTS[REVISIONS_TO_KEEP])


BUILT_IN_POOLS = (PoolConfig(DEFAULT_POOL, "qcow2"), PoolConfig(KERNEL_POOL, "linux-kernel"))
"""The pools that every home has."""


def is_pool_name(name: str) -> bool:
    """Tell whether a pool may be called so: the name is a folder's as well."""
    return _NAME.fullmatch(name) is not None


def new_pool(name: str, driver: str, options: Mapping[str, str], known: Iterable[PoolOption]) -> PoolConfig:
    """Return a pool as a user wants it, of a driver that has the `known` options.

    Raises ValueRefusedError or NotYetError for a name, an option or a value that cannot be.
    """
    checks = {option.name: option.check for option in known}
    for key in options:
        if key not in checks:
            raise ValueRefusedError(f"driver {driver} has no option '{key[:80]}'; its options are {', '.join(checks)}")
    if not is_pool_name(name):
        raise ValueRefusedError(f"'{name[:80]}' cannot be the name of a pool; use letters, digits and _ . -")
    return PoolConfig(name, driver, tuple((key, checks[key](value)) for key, value in options.items()))


def check_revisions(number: int) -> int:
    """Return a number of revisions to keep; raises ValueRefusedError. -1 and 0 both mean: written in place."""
    if number < -1:
        raise ValueRefusedError(f"{number} cannot be a number of revisions to keep; use -1 or more")
    return number


def check_ephemeral(*, value: bool) -> bool:
    """Return whether what is written shall be unreadable after a stop; raises NotYetError if so."""
    if value:
        raise NotYetError("volumes whose content is encrypted with a key that is forgotten cannot be made yet")
    return value


def _parse_folder(text: str) -> str:
    is_plain = text.isprintable() and len(text) < 1024
    if not text.startswith("/") or not is_plain or any(part in (".", "..") for part in text.split("/")):
        raise ValueRefusedError(f"dir_path '{text[:80]}' is not an absolute path")
    return "/" + "/".join(filter(None, text.split("/")))


FOLDER = PoolOption(DIR_PATH, _parse_folder)
REVISIONS = PoolOption(
    REVISIONS_TO_KEEP, lambda text: str(check_revisions(INT.parse(text))), default="1", is_changeable=True
)
EPHEMERAL = PoolOption(
    EPHEMERAL_VOLATILE, lambda text: str(check_ephemeral(value=BOOL.parse(text))), default="False", is_changeable=True
)
DEFAULTS = {option.name: option.default for option in (REVISIONS, EPHEMERAL)}
"""What the options mean that are no driver's own, where nobody set them."""
