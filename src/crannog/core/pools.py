"""Pools as values: where volumes live, and by which driver (Admin API, section 6)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from crannog.core.kinds import BOOL, INT
from crannog.errors import NotYetError, ValueRefusedError

DEFAULT_POOL = "vm-pool"
KERNEL_POOL = "linux-kernel"
DIR_PATH = "dir_path"
REVISIONS_TO_KEEP = "revisions_to_keep"
EPHEMERAL_VOLATILE = "ephemeral_volatile"
DEFAULTS = {REVISIONS_TO_KEEP: "1", EPHEMERAL_VOLATILE: "False"}

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


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


def new_pool(name: str, driver: str, options: Mapping[str, str]) -> PoolConfig:
    """Return a pool as a user wants it; raises ValueRefusedError or NotYetError for a name or value that cannot be."""
    if not is_pool_name(name):
        raise ValueRefusedError(f"'{name[:80]}' cannot be the name of a pool; use letters, digits and _ . -")
    return PoolConfig(name, driver, tuple((key, parse_option(key, value)) for key, value in options.items()))


def parse_option(name: str, text: str) -> str:
    """Return an option's value as it is kept; raises ValueRefusedError or NotYetError."""
    if name == DIR_PATH:
        return _parse_folder(text)
    if name == REVISIONS_TO_KEEP:
        return str(check_revisions(INT.parse(text)))
    if name == EPHEMERAL_VOLATILE:
        return str(check_ephemeral(value=BOOL.parse(text)))
    return text


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
