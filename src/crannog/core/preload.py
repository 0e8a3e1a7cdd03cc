"""Disposables that are started before they are needed: which there are, and what is to be done about it. Pure.

A *pool* is what one disposable template (an AppVM) has ready. Each of its VMs goes through

    warming -> ready -> claimed -> spent

and may skip what lies between: one that is claimed while it still starts is not paused first, and any may end at any
time. Nothing leads back, so that no VM is handed out twice. Who carries this out says what has happened, and when; what
is to be done follows from `Reserve.next_steps`. Times are seconds of any clock that never goes back.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

RETRY_FIRST, RETRY_MOST = 5.0, 300.0
"""Seconds after a start that failed: twice as long after each further one, so that a broken template costs little."""


class Stage(StrEnum):
    """Where a VM of a pool is in its life."""

    WARMING = "warming"
    """It starts, and nobody has asked for it yet."""
    READY = "ready"
    """Its agent has answered; its processors are stopped."""
    CLAIMED = "claimed"
    """It was handed out."""
    SPENT = "spent"
    """It has ended, or is to end."""


EDGES = {
    Stage.WARMING: frozenset({Stage.READY, Stage.CLAIMED, Stage.SPENT}),
    Stage.READY: frozenset({Stage.CLAIMED, Stage.SPENT}),
    Stage.CLAIMED: frozenset({Stage.SPENT}),
    Stage.SPENT: frozenset(),
}
"""What each stage may be followed by."""


@dataclass(frozen=True)
class Wish:
    """What is asked for a pool: how many VMs, and what they are made from."""

    size: int
    delay: float
    """Seconds after which what was claimed is replaced; infinite: it is not."""
    recipe: str
    cost: int = 0
    """MiB of the host's memory that one of its VMs is promised."""
    is_blocked: bool = False
    """Its template cannot be started from now, so that none is added."""


@dataclass
class Member:
    """One VM of a pool. `recipe` is what it was made from; `number` counts all that were ever begun."""

    uuid: str
    pool: str
    recipe: str
    number: int
    stage: Stage = Stage.WARMING
    was_ready: bool = False
    """It waited, paused, when it was claimed."""

    def move(self, stage: Stage) -> None:
        """Go on to another stage; raises ValueError for one that cannot follow."""
        if stage not in EDGES[self.stage]:
            raise ValueError(f"{self.uuid} is {self.stage} and cannot become {stage}")
        self.stage = stage


@dataclass(frozen=True)
class Warm:
    """Start one more VM for a pool."""

    pool: str
    reason: str


@dataclass(frozen=True)
class Discard:
    """End a VM that nobody has claimed."""

    uuid: str
    reason: str


Step = Warm | Discard


@dataclass
class _Pool:
    """What is remembered of a pool beside its VMs."""

    wish: Wish
    not_before: float = 0.0
    failures: int = 0


@dataclass(frozen=True)
class Host:
    """What the host allows now: `headroom` is memory in MiB that nobody was promised, None where that is not known.

    `threshold` is what of it must stay free. `is_busy`: another VM is being started, and comes first.
    """

    headroom: int | None = None
    threshold: int = 0
    is_busy: bool = False

    @property
    def is_short(self) -> bool:
        """Whether VMs that nobody has asked for take what others need."""
        return self.headroom is not None and self.headroom < self.threshold

    def has_room(self, cost: int) -> bool:
        """Tell whether one more VM of that cost leaves enough."""
        return self.headroom is None or self.headroom - cost >= self.threshold


@dataclass
class Reserve:
    """All pools, by the UUID of their template, with their VMs by UUID."""

    members: dict[str, Member] = field(default_factory=dict)
    _pools: dict[str, _Pool] = field(default_factory=dict)
    _count: int = 0

    # -- what has happened

    def wish(self, wishes: Mapping[str, Wish]) -> None:
        """Take over what is asked for now; a pool that is not among it is to be empty."""
        for uuid in self._pools.keys() - wishes.keys():
            del self._pools[uuid]
        for uuid, wish in wishes.items():
            pool = self._pools.setdefault(uuid, _Pool(wish))
            if (pool.wish.recipe, pool.wish.size, pool.wish.delay) != (wish.recipe, wish.size, wish.delay):
                # What has failed may work now, and who asks for more does not mean later.
                self.renew(uuid)
            pool.wish = wish

    def renew(self, uuid: str) -> None:
        """Fill a pool as if nothing of it had been claimed, nor had failed: that is asked for now, if once more."""
        pool = self._pools.get(uuid)
        if pool:
            pool.not_before, pool.failures = 0.0, 0

    def add(self, pool: str, uuid: str, recipe: str, stage: Stage = Stage.WARMING) -> Member:
        """Note a new VM that starts, or with another stage one that a former daemon has left."""
        self._count += 1
        member = self.members[uuid] = Member(uuid, pool, recipe, self._count)
        if stage is not Stage.WARMING:
            member.move(stage)
        return member

    def note_ready(self, uuid: str) -> bool:
        """Note that a VM's agent has answered; return whether it is to wait, paused, until somebody claims it."""
        member = self.members.get(uuid)
        if member is None or member.stage is not Stage.WARMING:
            return False
        member.move(Stage.READY)
        if member.pool in self._pools:
            self._pools[member.pool].failures = 0
        return True

    def claim(self, pool: str, now: float) -> Member | None:
        """Hand out the VM that was begun first, one that is ready before one that still starts; None without any.

        What was made from something else than the next one would be is not handed out.
        """
        wish = self._pools[pool].wish if pool in self._pools else None
        fitting = [m for m in self._of(pool) if wish and m.recipe == wish.recipe]
        chosen = min(fitting, key=lambda m: (m.stage is not Stage.READY, m.number), default=None)
        if chosen:
            self.take(chosen.uuid, now)
        return chosen

    def take(self, uuid: str, now: float) -> None:
        """Hand out this VM; raises ValueError when it was handed out, or has ended."""
        member = self.members[uuid]
        member.was_ready = member.stage is Stage.READY
        member.move(Stage.CLAIMED)
        pool = self._pools.get(member.pool)
        if pool:
            pool.not_before = max(pool.not_before, now + pool.wish.delay)

    def spend(self, uuid: str) -> None:
        """Note that a VM has ended, or is to end; from here on it is nobody's. One that is not known is no error."""
        member = self.members.pop(uuid, None)
        if member:
            member.move(Stage.SPENT)

    def note_failure(self, pool: str, now: float) -> None:
        """Note that a start for a pool has failed: the next one comes later."""
        one = self._pools.get(pool)
        if one:
            pause = min(RETRY_FIRST * 2**one.failures, RETRY_MOST)
            one.failures, one.not_before = min(one.failures + 1, 10), max(one.not_before, now + pause)

    # -- what is to be done

    def next_steps(self, now: float, host: Host) -> list[Step]:
        """Return what is to be done now: ends first, then at most one start."""
        ends = [Discard(m.uuid, reason) for m in self._unclaimed() if (reason := self._find_flaw(m))]
        ends += self._find_surplus({end.uuid for end in ends})
        if host.is_short and not ends:
            # One at a time: what it gives back is seen at the next look.
            last = max(self._unclaimed(), key=lambda m: (len(self._of(m.pool)), m.number), default=None)
            ends += [Discard(last.uuid, "memory is short")] if last else []
        return [*ends, *([] if ends else self._find_start(now, host))]

    def due(self, now: float) -> float | None:
        """Return the seconds after which there may be something to do although nothing has happened."""
        times = [pool.not_before - now for uuid, pool in self._pools.items() if self._gap(uuid) > 0]
        later = [seconds for seconds in times if 0 < seconds < math.inf]
        return min(later, default=None)

    def find_victims(self) -> list[str]:
        """Return the VMs that may be ended for one that somebody asks for, in the order in which they are to end."""
        return [m.uuid for m in sorted(self._unclaimed(), key=lambda m: (m.stage is Stage.WARMING, -m.number))]

    def unclaimed_of(self, pool: str) -> list[str]:
        """Return the VMs of a pool that nobody has claimed."""
        return [member.uuid for member in self._of(pool)]

    def ready_of(self, pool: str) -> list[str]:
        """Return those of them that are ready."""
        return [member.uuid for member in self._of(pool) if member.stage is Stage.READY]

    def _unclaimed(self) -> list[Member]:
        return [m for m in self.members.values() if m.stage in (Stage.WARMING, Stage.READY)]

    def _of(self, pool: str) -> list[Member]:
        return [member for member in self._unclaimed() if member.pool == pool]

    def _find_flaw(self, member: Member) -> str:
        """Return why a VM cannot be handed out; empty when it can."""
        pool = self._pools.get(member.pool)
        if pool is None or pool.wish.size <= 0:
            return "its template is to have none"
        return "" if member.recipe == pool.wish.recipe else "what it was made from has changed"

    def _find_surplus(self, gone: set[str]) -> list[Discard]:
        """Return the ends of those that are too many: what still starts before what is ready, the youngest first."""
        found = []
        for uuid, pool in self._pools.items():
            kept = [member for member in self._of(uuid) if member.uuid not in gone]
            kept.sort(key=lambda m: (m.stage is not Stage.READY, m.number))
            found += [Discard(m.uuid, "there are more than wanted") for m in kept[pool.wish.size :]]
        return found

    def _gap(self, uuid: str) -> int:
        return self._pools[uuid].wish.size - len(self._of(uuid))

    def _find_start(self, now: float, host: Host) -> list[Step]:
        """Return the start of the next VM: one at a time, the emptiest pool first, and never beside another start."""
        if host.is_busy or any(m.stage is Stage.WARMING for m in self.members.values()):
            return []
        may = [uuid for uuid, pool in self._pools.items() if self._may_start(uuid, pool, now, host)]
        if not may:
            return []
        emptiest = min(may, key=lambda uuid: len(self._of(uuid)) / self._pools[uuid].wish.size)
        return [Warm(emptiest, f"there are {len(self._of(emptiest))} of {self._pools[emptiest].wish.size}")]

    def _may_start(self, uuid: str, pool: _Pool, now: float, host: Host) -> bool:
        is_due = now >= pool.not_before and not pool.wish.is_blocked
        return is_due and self._gap(uuid) > 0 and host.has_room(pool.wish.cost)
