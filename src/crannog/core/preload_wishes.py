"""What the settings say of disposables that are started before they are needed (Admin API, features preload-dispvm-*).

`preload-dispvm-max` is how many a disposable template has ready. dom0's, if it is set, counts for the system's
default_dispvm in place of that one's own. `preload-dispvm-delay`, of the template or else of dom0, is how many seconds
after one was handed out the next one is started; a negative one means none. `preload-dispvm-threshold`, of dom0, is how
many MiB of memory must stay free.
"""

from __future__ import annotations

import hashlib
import math
import re
from typing import TYPE_CHECKING

from crannog.core.features import GUARDED, find_feature
from crannog.core.templates import origin
from crannog.errors import ValueRefusedError

if TYPE_CHECKING:
    from crannog.core.vms import QubeBase

MAX, DELAY, THRESHOLD = "preload-dispvm-max", "preload-dispvm-delay", "preload-dispvm-threshold"
NAMES, IN_PROGRESS, COMPLETED = "preload-dispvm", "preload-dispvm-in-progress", "preload-dispvm-completed"
"""Features in which the system keeps its books: of a template, the names of what it has ready; of each of these VMs,
that it still starts, or that it is ready and what it was made from."""
SEEDLING = "restore-dispvm-seedling"
"""Feature in which the system notes that a disposable is there to be saved (core.memory_images)."""
INTERNAL = "internal"
"""Feature of VMs that menus do not show: those that nobody has claimed are nobody's yet."""
DEFAULT_DELAY = 3.0
SIZE_MOST, THRESHOLD_MOST, DELAY_MOST = 100, 2**24, 86400.0

_NUMBER = re.compile(r"[0-9]{1,8}")
_SECONDS = re.compile(r"-?[0-9]{1,6}(\.[0-9]{1,6})?")
_BOOKS = GUARDED | {
    MAX,
    DELAY,
    THRESHOLD,
    "restore-dispvm",
    "updates-available",
    "last-update",
    "last-updates-check",
    "qubes-agent-version",
}
"""Features that say nothing of how a VM starts."""


def check_wish(name: str, value: str) -> None:
    """Raise ValueRefusedError for a value that one of the three features cannot have; the empty one means none."""
    if not value or name not in (MAX, DELAY, THRESHOLD):
        return
    if name == DELAY:
        if not _SECONDS.fullmatch(value) or float(value) > DELAY_MOST:
            raise ValueRefusedError(f"feature '{name}' takes seconds up to {DELAY_MOST:.0f}, not '{value[:40]}'")
        return
    most = SIZE_MOST if name == MAX else THRESHOLD_MOST
    if not _NUMBER.fullmatch(value) or int(value) > most:
        raise ValueRefusedError(f"feature '{name}' takes a number from 0 to {most}, not '{value[:40]}'")


def _number(text: str | None, most: int) -> int:
    """Return what a feature says; one that was written past our checks, into the file, counts as none."""
    return min(int(text), most) if text and _NUMBER.fullmatch(text) else 0


def wanted_size(template: QubeBase) -> int:
    """Return how many VMs a disposable template is to have ready."""
    registry = template.registry
    if not template.is_disposable_template():
        return 0
    common = registry.dom0.features.get(MAX)
    is_default = registry.get("default_dispvm") is template
    return _number(common if is_default and common is not None else template.features.get(MAX), SIZE_MOST)


def wanted_delay(template: QubeBase) -> float:
    """Return the seconds after which what was handed out is replaced; infinite: it is not."""
    text = find_feature(template, DELAY, with_admin=True)
    if not text or not _SECONDS.fullmatch(text):
        return DEFAULT_DELAY if text is None else 0.0
    return math.inf if text.startswith("-") else float(text)


def wanted_threshold(dom0: QubeBase) -> int:
    """Return how many MiB of memory must stay free."""
    return _number(dom0.features.get(THRESHOLD), THRESHOLD_MOST)


def is_preloaded(vm: QubeBase) -> bool:
    """Tell whether a VM was started in advance, and nobody has claimed it yet."""
    return vm.is_disposable and (IN_PROGRESS in vm.features or COMPLETED in vm.features)


def is_nobodys(vm: QubeBase) -> bool:
    """Tell whether a VM is there in advance: to be claimed, or to be saved, which nobody ever gets."""
    return is_preloaded(vm) or (vm.is_disposable and SEEDLING in vm.features)


def describe_recipe(template: QubeBase, *more: str) -> str:
    """Return a short text that is the same for as long as a new disposable of that template would be the same.

    It covers the settings of the template, and of those that it starts from; `more` is what only the caller knows:
    what is on the disks, the files of the kernel.
    """
    parts = list(more)
    holder: QubeBase | None = template
    while holder:
        declared = holder.declared()
        parts += [f"{name}={text}" for name, text in holder.describe_all() if not declared[name].is_readonly]
        parts += [f"{name}:{value}" for name, value in sorted(holder.features.items()) if name not in _BOOKS]
        parts += [repr(origin(holder, name)[1]) for name in sorted(holder.volumes)]
        holder = holder.template
    parts += [*sorted(template.tags), *map(repr, template.devices)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
