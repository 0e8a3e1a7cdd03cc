"""Events: facts about changes, delivered after the change is saved (Admin API, section 9).

The sequences are those that clients know; the names in the past or with `pre-` are theirs.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from crannog.core.properties import Holder, Property


@dataclass(frozen=True)
class Event:
    """One event. `subject` is a VM's name, empty for the whole system; values are text."""

    subject: str
    name: str
    arguments: dict[str, str] = field(default_factory=dict)


Listener = Callable[[Event], None]


def subject_of(holder: Holder) -> str:
    """Return the subject of a holder's events: global properties have none."""
    return getattr(holder, "name", "")


def property_set(holder: Holder, name: str, new: Any, old: Any, *, has_old: bool = True) -> list[Event]:  # noqa: ANN401
    """Return what is told when a property gets a value, or another default."""
    subject = subject_of(holder)
    arguments = {"name": name, "newvalue": str(new)} | ({"oldvalue": str(old)} if has_old else {})
    return [Event(subject, f"property-{when}:{name}", arguments) for when in ("pre-set", "set")] + _icon(subject, name)


def property_reset(holder: Holder, declared: Property, old: Any) -> list[Event]:  # noqa: ANN401
    """Return what is told when a property goes back to its default."""
    subject, name = subject_of(holder), declared.name
    arguments = {"name": name, "oldvalue": str(old)}
    whens = ("pre-reset", "pre-del", "reset", "del")
    return [Event(subject, f"property-{when}:{name}", arguments) for when in whens] + _icon(subject, name)


def _icon(subject: str, name: str) -> list[Event]:
    """Return what is told besides when a label changes: the icon follows it."""
    return [Event(subject, "property-reset:icon", {"name": "icon"})] if name == "label" else []


def vm_renamed(old: str, new: str) -> list[Event]:
    """Return what is told after a VM's new name, so that lists by name are right: one has gone, one has come."""
    return [Event("", "domain-delete", {"vm": old}), Event("", "domain-add", {"vm": new})]


def feature_set(vm: str, name: str, value: str, old: str | None) -> list[Event]:
    """Return what is told when a feature gets a value."""
    arguments = {"feature": name, "value": value} | ({} if old is None else {"oldvalue": old})
    return [Event(vm, f"domain-feature-{when}:{name}", arguments) for when in ("pre-set", "set")]


def feature_removed(vm: str, name: str) -> list[Event]:
    """Return what is told when a feature is removed."""
    return [Event(vm, f"domain-feature-{when}:{name}", {"feature": name}) for when in ("pre-delete", "delete")]


def tags_changed(vm: str, before: set[str], after: set[str]) -> list[Event]:
    """Return what is told when a VM's tags change."""
    gone = [Event(vm, f"domain-tag-delete:{tag}", {"tag": tag}) for tag in sorted(before - after)]
    return gone + [Event(vm, f"domain-tag-add:{tag}", {"tag": tag}) for tag in sorted(after - before)]


def vm_created(vm: str, tags: set[str]) -> list[Event]:
    """Return what is told of a new VM."""
    return [Event("", "domain-add", {"vm": vm}), *tags_changed(vm, set(), tags), Event(vm, "domain-create-on-disk")]


def vm_removed(vm: str) -> list[Event]:
    """Return what is told of a VM that is gone."""
    return [Event("", f"domain-{when}", {"vm": vm}) for when in ("pre-delete", "delete")]


def volumes_removed(vm: str) -> list[Event]:
    """Return what is told when the volumes of a removed VM are gone as well."""
    return [Event(vm, "domain-remove-from-disk")]


def start_began(vm: str, guid: str, memory: int) -> list[Event]:
    """Return what is told when a VM begins to start; `memory` is in bytes."""
    return [Event(vm, "domain-pre-start", {"start_guid": guid, "mem_required": str(memory)})]


def domain_spawned(vm: str, guid: str, *, is_done: bool) -> list[Event]:
    """Return what is told before and after a VM's domain is created."""
    return [Event(vm, "domain-spawn" if is_done else "domain-pre-spawn", {"start_guid": guid})]


def started(vm: str, guid: str = "") -> list[Event]:
    """Return what is told when a VM runs. One that was started behind our back has no number of its start."""
    return [Event(vm, "domain-start", {"start_guid": guid})]


def start_failed(vm: str, reason: str) -> list[Event]:
    """Return what is told when a VM could not be started."""
    return [Event(vm, "domain-start-failed", {"reason": reason})]


def shutdown_asked(vm: str, *, force: bool) -> list[Event]:
    """Return what is told before a VM is asked to shut down."""
    return [Event(vm, "domain-pre-shutdown", {"force": str(force)})]


def shutdown_failed(vm: str, reason: str) -> list[Event]:
    """Return what is told when a VM does not shut down."""
    return [Event(vm, "domain-shutdown-failed", {"reason": reason})]


def plain(vm: str, name: str) -> list[Event]:
    """Return an event that says nothing but its name, such as `domain-paused`."""
    return [Event(vm, name)]


def preload_began(template: str, reason: str) -> list[Event]:
    """Return what is told when a disposable is started in advance."""
    return [Event(template, "domain-preload-dispvm-start", {"reason": reason})]


def preload_used(template: str, vm: str, delay: float) -> list[Event]:
    """Return what is told when one was claimed; `delay` is the seconds after which it is replaced."""
    reset = Event(vm, "property-reset:is_preload", {"name": "is_preload"})
    return [reset, Event(template, "domain-preload-dispvm-used", {"dispvm": vm, "delay": f"{delay:g}"})]


def pool_added(pool: str) -> list[Event]:
    """Return what is told of a new pool."""
    return [Event("", "pool-add", {"pool": pool})]


def pool_removed(pool: str) -> list[Event]:
    """Return what is told of a pool that is gone."""
    return [Event("", f"pool-{when}", {"pool": pool}) for when in ("pre-delete", "delete")]


def import_began(vm: str, volume: str, size: int) -> list[Event]:
    """Return what is told when a volume is about to get new content of `size` bytes."""
    return [Event(vm, "domain-volume-import-begin", {"volume": volume, "size": str(size)})]


def import_ended(vm: str, volume: str, *, success: bool) -> list[Event]:
    """Return what is told when that is over."""
    return [Event(vm, "domain-volume-import-end", {"volume": volume, "success": str(success)})]
