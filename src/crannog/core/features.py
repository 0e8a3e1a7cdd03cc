"""Features: free names with text, own or found on the way (Admin API, section 6), and services among them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from crannog.core.kinds import MAX_TEXT
from crannog.errors import DeniedError, FeatureNotFoundError, ProtocolError

if TYPE_CHECKING:
    from crannog.core.vms import QubeBase

SERVICE = "service."
"""Features with this prefix are services: true runs one, empty stops it, absent leaves it to the VM."""

_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,255}")
GUARDED = frozenset(
    {
        "preload-dispvm",
        "preload-dispvm-completed",
        "preload-dispvm-in-progress",
        "restore-dispvm-seedling",
        "deferred-netvm-original",
    }
)


def find_feature(vm: QubeBase, name: str, *, via: str = "", with_admin: bool = False) -> str | None:
    """Return a feature's value, or None: the VM's own, else what is found on the way. The empty text means false.

    `via` is the property that leads on, `template` or `netvm`, step by step; `with_admin` asks dom0 last. The five
    look-ups of the API are the combinations: Get (), CheckWithTemplate (template), CheckWithNetvm (netvm),
    CheckWithAdminVM (with_admin), CheckWithTemplateAndAdminVM (both).
    """
    for holder in _walk(vm, via):
        if name in holder.features:
            return holder.features[name]
    return vm.registry.dom0.features.get(name) if with_admin else None


def _walk(vm: QubeBase, via: str) -> Iterator[QubeBase]:
    """Yield the VM and those that `via` leads to. The registry's rules forbid loops, a bound makes sure."""
    current: QubeBase | None = vm
    for _ in range(1000):
        if current is None:
            return
        yield current
        current = current.template if via == "template" else current.netvm if via == "netvm" else None


def check_feature(name: str, value: str) -> None:
    """Raise ProtocolError unless name and value can be a feature's."""
    if not _NAME.fullmatch(name):
        raise ProtocolError("the name of a feature holds letters, digits and . _ - only, at most 255 of them")
    if not (value.isascii() and value.isprintable()) or len(value) > MAX_TEXT:
        raise ProtocolError(f"the value of a feature must be printable ASCII of at most {MAX_TEXT} characters")


def check_feature_is_free(name: str) -> None:
    """Raise DeniedError for the features that Crannog keeps its own books in."""
    if name in GUARDED:
        raise DeniedError(f"feature '{name}' is kept by the system and cannot be changed by hand")


def require(vm: QubeBase, name: str, value: str | None) -> str:
    """Return the value of a look-up; raises FeatureNotFoundError when it found nothing."""
    if value is None:
        raise FeatureNotFoundError(f"{vm.name} has no feature '{name[:80]}'")
    return value
