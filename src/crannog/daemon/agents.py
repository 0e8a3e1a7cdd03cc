"""Waiting for a guest's agent, and saying what happened instead when it does not come."""

import asyncio
import sys

from crannog.core.announcement import AgentStatus
from crannog.core.domain import DomainState
from crannog.core.plan import AwaitAgent
from crannog.daemon.machines import Machines
from crannog.daemon.waiting import first_of
from crannog.daemon.world import World
from crannog.errors import AgentTimeoutError, StartError


class AgentWatch:
    """Waits until agents answer."""

    def __init__(self, world: World, machines: Machines) -> None:
        self._world = world
        self._machines = machines
        self._ready: dict[str, asyncio.Event] = {}
        world.agents.listen(self._note_status)

    def _note_status(self, uuid: str, status: AgentStatus) -> None:
        if status.runs_commands and uuid in self._ready:
            self._ready[uuid].set()

    async def until_ready(self, step: AwaitAgent) -> None:
        """Return when the agent answers; raises AgentTimeoutError, or StartError when the VM ends before."""
        event = self._ready.setdefault(step.uuid, asyncio.Event())
        status = self._world.agents.status(step.uuid)
        if status and status.runs_commands:
            event.set()
        try:
            await first_of(step.timeout, event.wait(), self._machines.ended(step.uuid))
        finally:
            del self._ready[step.uuid]
        if not event.is_set():
            await self._explain(step)

    async def _explain(self, step: AwaitAgent) -> None:
        tail = await read_console_tail(step.console_log)
        if not self._machines.has_domain(step.uuid):
            raise StartError(f"it stopped by itself before its agent answered; {tail}")
        if self._machines.domain_state(step.uuid) is DomainState.STALLED:
            raise StartError("QEMU paused it, as a disk could not be written; free some space where its volumes are")
        raise AgentTimeoutError(
            f"its agent did not answer within {step.timeout} s; if the guest is just slow, raise "
            f"'qvm-prefs {step.name} qrexec_timeout'; if it has no agent, use 'qvm-start --no-wait {step.name}'; {tail}"
        )


async def read_console_tail(path: str) -> str:
    """Return the end of a guest's console as printable text.

    The bytes come from the guest, so a process of its own reads and cleans them.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "crannog.rpc.console",
        path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    output, _ = await process.communicate()
    text = output.decode("ascii", "replace").rstrip()
    return f"the end of its console ({path}):\n{text}" if text else f"its console ({path}) is empty"
