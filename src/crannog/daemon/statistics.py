"""Statistics of running VMs, measured only while somebody follows them (Admin API, section 9, vm-stats)."""

import asyncio
import dataclasses
import logging
from collections.abc import Callable

from crannog.core.domain import DomainStats
from crannog.core.events import Event, Listener
from crannog.core.registry import Registry
from crannog.errors import HypervisorError
from crannog.ports.hypervisor import Hypervisor

log = logging.getLogger(__name__)


class StatsFeed:
    """One measurement for all who follow, every `stats_interval` seconds."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        registry: Registry,
        stubdom_memory: Callable[[int], int] = lambda _xid: 0,
    ) -> None:
        """`stubdom_memory` tells how much memory a stub domain has, in KiB, by its number."""
        self._stubdom_memory = stubdom_memory
        self._hypervisor = hypervisor
        self._registry = registry
        self._listeners: list[Listener] = []
        self._task: asyncio.Task[None] | None = None
        self._before: dict[str, DomainStats] = {}

    def follow(self, listener: Listener) -> Callable[[], None]:
        """Have `listener` called with event vm-stats of each running VM; return what ends that."""
        self._listeners.append(listener)
        if self._task is None:
            self._task = asyncio.ensure_future(self._measure())

        def leave() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)
            if not self._listeners and self._task:
                self._task.cancel()
                self._task = None

        return leave

    async def _measure(self) -> None:
        self._before = {}
        while True:
            try:
                found = await self._hypervisor.statistics()
            except HypervisorError as error:
                log.warning("statistics: %s", error)
                found = []
            told = self._describe_all(found)
            for listener in tuple(self._listeners):
                _tell(listener, told)
            await asyncio.sleep(int(self._registry.get("stats_interval")))

    def _describe_all(self, found: list[DomainStats]) -> list[Event]:
        told = []
        for stats in found:
            vm = self._registry.find_uuid(stats.uuid)
            if vm is not None:
                told.append(describe(vm.name, self._with_stubdom(stats), self._usage(stats)))
        self._before = {stats.uuid: stats for stats in found}
        return told

    def _with_stubdom(self, stats: DomainStats) -> DomainStats:
        """Count the memory of the domain that a VM's device model runs in as the VM's."""
        xid = self._registry.runtime.stubdom_xid(stats.uuid)
        memory = self._stubdom_memory(xid) if xid > 0 else 0
        return dataclasses.replace(stats, memory=stats.memory + memory, memory_max=stats.memory_max + memory)

    def _usage(self, stats: DomainStats) -> int:
        """Return how much of its processors a VM used since the last look, in percent; 0 at the first look.

        An emulator works beside the processors that it emulates, for disks and screens, so that all its time may be
        more than theirs: such a VM is busy all the time, which is what who draws a bar of 100 wants to know.
        """
        before = self._before.get(stats.uuid, stats)
        passed, used = stats.measured_at - before.measured_at, stats.cpu_time - before.cpu_time
        if passed <= 0 or used < 0:
            return 0
        return min(round(100 * used / passed / 10**9 / max(stats.vcpus, 1)), 100)


def _tell(listener: Listener, told: list[Event]) -> None:
    """Tell one listener. One that fails is logged: the others must hear of it, and of what comes after."""
    try:
        for event in told:
            listener(event)
    except Exception:
        log.exception("a listener failed at statistics")


def describe(vm: str, stats: DomainStats, usage: int) -> Event:
    """Return event vm-stats of one VM: memory in KiB, `cpu_time` in ms, `cpu_usage` in percent.

    What a guest uses of its memory it tells nobody: it counts as using all.
    """
    return Event(
        vm,
        "vm-stats",
        {
            "memory_kb": str(stats.memory),
            "memory_assigned_total": str(stats.memory_max),
            "memory_assigned_usable": str(stats.memory),
            "memory_with_swap_used": str(stats.memory),
            "cpu_time": str(stats.cpu_time // 10**6),
            "cpu_usage": str(usage),
            "online_vcpus": str(stats.vcpus),
        },
    )
