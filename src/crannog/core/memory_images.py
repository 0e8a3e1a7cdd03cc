"""Memory images: a booted guest that is saved once, from which disposables of its template are restored. Pure.

An image is made by a *seedling*: a disposable that boots, is exercised, put to sleep by its agent, and saved with what
it has written to its disks. Whoever is restored from that is the same guest at first; its agent makes it one of its
own before it is handed out (`Renew`). An image is worth something as long as a cold start of a disposable of its
template would bring up the same machine on the same content: its key is compared before each use.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from crannog.core.features import find_feature
from crannog.core.plan import AwaitAgent, CreatePaused, Plan, PrepareVolume, Renew

if TYPE_CHECKING:
    from crannog.core.domain import DomainSpec, MemoryFiles
    from crannog.core.vms import QubeBase

FEATURE = "restore-dispvm"
"""Feature of a disposable template, or else of dom0: empty or 0, and no image of it is made or used."""
COLD_STARTS = 2
"""Cold starts of one template, with nothing changed between them, after which an image is worth its making."""
RETRY_FIRST, RETRY_MOST = 30.0, 3600.0
"""Seconds after an image could not be made: twice as long after each further time."""
RESTORE_TIMEOUT = 30
"""Seconds that a restored guest's agent has to answer: it was there already. After that a cold start is quicker."""
SPARE_DISK = 512 * 2**20
"""Bytes that stay free beside an image that is made."""

_NO_UUID = "00000000-0000-4000-8000-000000000000"
_NO_NAME = "disposable"


def may_restore(template: QubeBase) -> bool:
    """Tell whether the settings let disposables of a template be restored; they do unless somebody forbids it."""
    return find_feature(template, FEATURE, with_admin=True) not in ("", "0")


def without_names(spec: DomainSpec, own: frozenset[str]) -> DomainSpec:
    """Return the specification as that of any disposable of its template; `own` are the paths of its volumes."""
    words = spec.kernelopts.replace(spec.uuid.replace("-", ""), _NO_UUID.replace("-", ""))
    words = words.replace(f"crannog.name={spec.name}", f"crannog.name={_NO_NAME}")
    return replace(
        spec,
        uuid=_NO_UUID,
        name=_NO_NAME,
        kernelopts=words,
        disks=tuple(replace(disk, path=f"/{disk.target}") if disk.path in own else disk for disk in spec.disks),
        channels=tuple(replace(channel, path="/channel") for channel in spec.channels),
        console_log="/console",
        display_socket="/screen" if spec.display_socket else "",
        memory_files=None,
        warnings=(),
    )


def spec_of(plan: Plan) -> DomainSpec:
    """Return the domain that a plan creates."""
    return next(step.spec for step in plan if isinstance(step, CreatePaused))


def make_key(recipe: str, machine: str) -> str:
    """Return the key of an image: what it is made from, and the machine that goes on from it."""
    return hashlib.sha256(f"{recipe}\0{machine}".encode()).hexdigest()


def with_memory(plan: Plan, files: MemoryFiles) -> Plan:
    """Return the plan of a cold start with the guest's memory in a file: so it can be saved, or be what was saved."""
    return tuple(
        replace(step, spec=replace(step.spec, memory_files=files)) if isinstance(step, CreatePaused) else step
        for step in plan
    )


def restored(plan: Plan, files: MemoryFiles, layers: Mapping[str, str], timeout: int) -> Plan:
    """Return the plan of a cold start as one that restores: `layers` are the saved files of the volumes, by name.

    It waits for the agent in any case: nobody gets a guest that is not one of its own yet.
    """
    steps = [
        replace(step, copy_of=layers[step.volume.name]) if isinstance(step, PrepareVolume) else step
        for step in with_memory(plan, files)
        if not isinstance(step, AwaitAgent)
    ]
    spec, patience = spec_of(plan), min(timeout, RESTORE_TIMEOUT)
    return (
        *steps,
        AwaitAgent(spec.uuid, spec.name, patience, spec.console_log),
        Renew(spec.uuid, spec.name, max(timeout, RESTORE_TIMEOUT)),
    )


@dataclass
class _Record:
    """What is remembered of a template: all of it is about one recipe."""

    recipe: str
    colds: int = 0
    failures: int = 0
    not_before: float = 0.0
    is_hopeless: bool = False


@dataclass(frozen=True)
class Prospect:
    """A disposable template of which an image could be made. Its pool wants `wanted` VMs and has `ready`."""

    uuid: str
    recipe: str
    wanted: int = 0
    ready: int = 0
    cost: int = 0
    """MiB of the host's memory that the seedling is promised."""
    is_blocked: bool = False


@dataclass(frozen=True)
class Sow:
    """Make a memory image of a disposable template, from which its next VMs are restored."""

    pool: str


@dataclass
class Nursery:
    """Decides when images are made. Times are seconds of any clock that never goes back."""

    _records: dict[str, _Record] = field(default_factory=dict)

    def _record(self, uuid: str, recipe: str) -> _Record:
        record = self._records.get(uuid)
        if record is None or record.recipe != recipe:
            record = self._records[uuid] = _Record(recipe)
        return record

    def note_cold(self, uuid: str, recipe: str) -> None:
        """Note that a disposable of a template was started cold."""
        self._record(uuid, recipe).colds += 1

    def note_failure(self, uuid: str, recipe: str, now: float) -> None:
        """Note that an image could not be made, or was of no use: the next one comes later."""
        record = self._record(uuid, recipe)
        pause = min(RETRY_FIRST * 2**record.failures, RETRY_MOST)
        record.failures, record.not_before = min(record.failures + 1, 10), now + pause

    def give_up(self, uuid: str, recipe: str) -> None:
        """Note that there can be no image of what the template is now."""
        self._record(uuid, recipe).is_hopeless = True

    def forget(self, known: frozenset[str]) -> None:
        """Forget templates that are not among those."""
        self._records = {uuid: record for uuid, record in self._records.items() if uuid in known}

    def has_seen_any(self) -> bool:
        """Tell whether there was any start that an image could have made quicker."""
        return bool(self._records)

    def is_due(self, prospect: Prospect, now: float) -> bool:
        """Tell whether an image is worth its making now, of a template that has none.

        A pool gets its first VM by a cold start, as somebody may wait for it, and the image before all others.
        """
        record = self._record(prospect.uuid, prospect.recipe)
        if record.is_hopeless or now < record.not_before or prospect.is_blocked:
            return False
        return record.colds >= COLD_STARTS or (prospect.wanted > 0 and prospect.ready > 0)

    def due(self, now: float) -> float | None:
        """Return the seconds after which there may be something to do although nothing has happened."""
        times = [record.not_before - now for record in self._records.values() if not record.is_hopeless]
        return min((seconds for seconds in times if seconds > 0), default=None)
