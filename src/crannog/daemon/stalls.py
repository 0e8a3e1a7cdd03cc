"""VMs that QEMU paused because one of their disks could not be written: usually the host's disk is full.

Nothing is lost: QEMU repeats the write when the VM goes on, so it is let go on every few seconds until it can.
"""

import asyncio
import contextlib
import logging

from crannog.core.domain import DomainState
from crannog.core.registry import Registry
from crannog.daemon.machines import Machines
from crannog.errors import HypervisorError
from crannog.ports.hypervisor import Hypervisor

log = logging.getLogger(__name__)

RETRY_PAUSE = 3.0
"""Seconds between two tries."""


class StallWatch:
    """Lets stalled VMs go on."""

    def __init__(self, hypervisor: Hypervisor, registry: Registry, machines: Machines) -> None:
        self._hypervisor = hypervisor
        self._registry = registry
        self._machines = machines
        self._retries: dict[str, asyncio.Task[None]] = {}
        machines.on_stalled = self._note_stall

    def _note_stall(self, uuid: str) -> None:
        if uuid in self._retries:
            return
        vm = self._registry.find_uuid(uuid)
        log.warning("%s: paused by QEMU, as a disk cannot be written; it goes on when there is space", vm)
        task = asyncio.ensure_future(self._retry(uuid))
        self._retries[uuid] = task
        task.add_done_callback(lambda _task: self._retries.pop(uuid, None))

    async def _retry(self, uuid: str) -> None:
        while self._machines.domain_state(uuid) is DomainState.STALLED:
            await asyncio.sleep(RETRY_PAUSE)
            # It may have ended meanwhile; the next look at its state tells.
            with contextlib.suppress(HypervisorError):
                await self._hypervisor.resume(uuid)
            await asyncio.sleep(RETRY_PAUSE / 10)
