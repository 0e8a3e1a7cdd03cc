"""The power state of every VM: what the hypervisor tells, and what the daemon is doing to it right now."""

import asyncio
from collections.abc import Callable
from weakref import WeakValueDictionary

from crannog.core.domain import DomainInfo, DomainState

_POWER_STATES = {
    DomainState.RUNNING: "Running",
    DomainState.PAUSED: "Paused",
    DomainState.STALLED: "Paused",
    DomainState.SUSPENDED: "Suspended",
    DomainState.DYING: "Dying",
    DomainState.CRASHED: "Crashed",
}


class Machines:
    """Power states by UUID, in the words of the Admin API (section 9); a VM that is not here is Halted."""

    def __init__(self) -> None:
        self._states: dict[str, DomainState] = {}
        self._xids: dict[str, int] = {}
        self._stubdoms: dict[str, int] = {}
        """Numbers of stub domains that were asked for: a domain has one from its creation on, or never."""
        self.find_stubdom: Callable[[int], int] = lambda _xid: -1
        """Tells the number of a domain's stub domain by that of the domain; -1: it has none."""
        self._doing: dict[str, str] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.busy: dict[str, str] = {}
        """What goes on with VMs that cannot start meanwhile, by UUID."""
        self._waiting: dict[tuple[str, DomainState], set[asyncio.Future[None]]] = {}
        self.on_change: Callable[[str, DomainState, DomainState], None] = lambda _uuid, _before, _after: None
        """Called with each new state of a domain, and the one before; before the more special calls below."""
        self.on_ended: Callable[[str], None] = lambda _uuid: None
        self.on_stalled: Callable[[str], None] = lambda _uuid: None
        """Called when the hypervisor pauses a VM because a disk could not be written."""

    def lock(self, uuid: str) -> asyncio.Lock:
        """Return the lock that whoever changes the power state of that VM must hold."""
        return self._locks.setdefault(uuid, asyncio.Lock())

    def begin(self, uuid: str, doing: str) -> None:
        """Note that the daemon is starting (`Transient`) or stopping (`Halting`) the VM."""
        self._doing[uuid] = doing

    def finish(self, uuid: str) -> None:
        """Note that the daemon has finished what it was doing to the VM."""
        self._doing.pop(uuid, None)

    def note(self, info: DomainInfo) -> None:
        """Take over what a bulk list or a creation says of a domain."""
        self._xids[info.uuid] = info.xid
        self.change(info.uuid, info.state)

    def learn_xid(self, uuid: str, xid: int) -> None:
        """Take over the number of a domain whose state is known; what is said of one that has ended is not kept."""
        if uuid in self._states:
            self._xids[uuid] = xid

    def change(self, uuid: str, state: DomainState) -> None:
        """Take over an event of the hypervisor. The end of a domain that is not there is no news."""
        before = self.domain_state(uuid)
        if state is DomainState.ABSENT:
            self._forget(uuid)
        else:
            self._states[uuid] = state
        for future in self._waiting.pop((uuid, state), set()):
            if not future.done():
                future.set_result(None)
        if before is not state:
            self.on_change(uuid, before, state)
        if state is DomainState.STALLED:
            self.on_stalled(uuid)
        elif state is DomainState.ABSENT and before is not state:
            self.on_ended(uuid)

    def _forget(self, uuid: str) -> None:
        self._states.pop(uuid, None)
        self._xids.pop(uuid, None)
        self._stubdoms.pop(uuid, None)

    def has_domain(self, uuid: str) -> bool:
        """Tell whether the VM has a domain now."""
        return uuid in self._states

    def domain_state(self, uuid: str) -> DomainState:
        """Return the state of the VM's domain."""
        return self._states.get(uuid, DomainState.ABSENT)

    def power_state(self, uuid: str) -> str:
        """Return the power state in the Admin API's words."""
        doing = self._doing.get(uuid)
        state = self._states.get(uuid)
        if doing == "Transient" or state is None:
            return doing or "Halted"
        if doing and state is DomainState.RUNNING:
            return doing
        return _POWER_STATES[state]

    def active_states(self) -> dict[str, str]:
        """Return the power states of all VMs that are not halted, by UUID."""
        return {uuid: self.power_state(uuid) for uuid in self.active()}

    def xid(self, uuid: str) -> int:
        """Return the hypervisor's number of the VM's domain, -1 when it has none."""
        return self._xids.get(uuid, -1)

    def stubdom_xid(self, uuid: str) -> int:
        """Return the number of the stub domain of the VM's domain; -1 when it has none, or neither (design.md, B4)."""
        xid = self.xid(uuid)
        if xid >= 0 and uuid not in self._stubdoms:
            self._stubdoms[uuid] = self.find_stubdom(xid)
        return self._stubdoms.get(uuid, -1)

    def active(self) -> frozenset[str]:
        """Return the UUIDs of all VMs that are not halted."""
        return frozenset(self._states) | frozenset(self._doing)

    def serving(self) -> frozenset[str]:
        """Return the UUIDs of the VMs that others can rely on: they run, and neither start nor end just now."""
        passing = ("Transient", "Halting", "Dying")
        return frozenset(uuid for uuid, state in self.active_states().items() if state not in passing)

    async def ended(self, uuid: str) -> None:
        """Return when the VM has no domain any more; at once if it has none."""
        await self.reached(uuid, DomainState.ABSENT)

    async def reached(self, uuid: str, state: DomainState) -> None:
        """Return when the VM's domain is in that state; at once if it is."""
        if self.domain_state(uuid) is state:
            return
        future = asyncio.get_running_loop().create_future()
        key = uuid, state
        self._waiting.setdefault(key, set()).add(future)
        try:
            await future
        finally:
            self._waiting.get(key, set()).discard(future)
            if not self._waiting.get(key, True):
                del self._waiting[key]
