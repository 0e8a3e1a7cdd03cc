"""Asking guests to shut down, and what is told of it when they do not."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from crannog.core import events
from crannog.core.domain import DomainState
from crannog.core.stopping import check_shutdown
from crannog.core.vms import LocalVM
from crannog.daemon.machines import Machines
from crannog.daemon.news import News
from crannog.daemon.pausing import check_running
from crannog.daemon.steps import Steps
from crannog.daemon.world import Tell, World
from crannog.errors import CrannogError, ShutdownTimeoutError, StateError

log = logging.getLogger(__name__)

Shutdown = tuple["asyncio.Task[None]", "asyncio.Task[bool]"]
"""Done when the guest was asked to shut down; and when it has ended (True) or its time was over (False)."""


class Shutdowns:
    """Shuts VMs down; `starts` are the starts that go on, by UUID."""

    def __init__(
        self,
        world: World,
        machines: Machines,
        steps: Steps,
        news: News,
        starts: Mapping[str, asyncio.Task[Any]],
        tell: Tell,
    ) -> None:
        self._world = world
        self._machines = machines
        self._steps = steps
        self._news = news
        self._starts = starts
        self._tell = tell
        self._going: dict[str, Shutdown] = {}

    async def shutdown(self, vm: LocalVM, *, force: bool, wait: bool) -> None:
        """Ask the guest to shut down: its agent, or else its power button.

        With `wait`, return when it is halted; raises ShutdownTimeoutError when that takes longer than the VM's
        shutdown_timeout (it goes on running). Raises VMNotRunningError for a halted VM, and, without `force`,
        InUseError when running VMs get their network from it; HypervisorError when it cannot even be asked.
        """
        check_running(vm, self._machines)
        asked, ended = self._going.get(vm.uuid) or self._ask_to_end(vm, force=force)
        await asyncio.shield(asked)
        if wait and not await asyncio.shield(ended):
            raise ShutdownTimeoutError(
                f"{vm.name} did not shut down within {vm.get('shutdown_timeout')} s and still runs; "
                f"try again, or end it with 'qvm-kill {vm.name}'"
            )

    def _ask_to_end(self, vm: LocalVM, *, force: bool) -> Shutdown:
        self._tell(events.shutdown_asked(vm.name, force=force))
        try:
            self._check_can_end(vm)
            if not force:
                check_shutdown(vm, self._machines.active())
        except CrannogError as error:
            self._tell(events.shutdown_failed(vm.name, str(error)))
            raise
        if vm.uuid not in self._steps.starting:
            self._machines.begin(vm.uuid, "Halting")
        asked = asyncio.ensure_future(self._press(vm))
        ended = asyncio.ensure_future(self._shut_down(vm, asked))
        ended.add_done_callback(lambda _task: self._finish_shutdown(vm, ended))
        self._going[vm.uuid] = asked, ended
        return asked, ended

    async def over(self, uuid: str) -> None:
        """Return when a shutdown that goes on, if any, has ended in one way or the other."""
        if uuid in self._going:
            await asyncio.wait([self._going[uuid][1]])

    async def _press(self, vm: LocalVM) -> None:
        if not await self._world.agents.power_off(vm.uuid):
            await self._world.hypervisor.press_power_button(vm.uuid)

    def _check_can_end(self, vm: LocalVM) -> None:
        state = self._machines.domain_state(vm.uuid)
        if state is DomainState.STALLED:
            raise StateError(
                f"{vm.name} cannot shut down: it is paused, because a disk could not be written; free some space, "
                f"or end it with 'qvm-kill {vm.name}'"
            )
        if state in (DomainState.PAUSED, DomainState.SUSPENDED):
            raise StateError(
                f"{vm.name} cannot shut down while it is paused: let it go on with 'qvm-unpause {vm.name}', or end it "
                f"with 'qvm-kill {vm.name}'"
            )

    async def _shut_down(self, vm: LocalVM, asked: "asyncio.Task[None]") -> bool:
        try:
            await asked
            async with asyncio.timeout(int(vm.get("shutdown_timeout"))):
                await self._machines.ended(vm.uuid)
        except TimeoutError:
            self._tell_refusal(vm, f"it did not end within {vm.get('shutdown_timeout')} s")
            return False
        except BaseException as error:
            self._tell_refusal(vm, describe_failure(error))
            raise
        self._finish_halting(vm)
        if vm.uuid in self._starts:
            await asyncio.wait([self._starts[vm.uuid]])  # it cleans up after itself
        await self._news.settled(vm.uuid)
        return True

    def _tell_refusal(self, vm: LocalVM, reason: str) -> None:
        self._finish_halting(vm)
        self._tell(events.shutdown_failed(vm.name, reason))

    def _finish_halting(self, vm: LocalVM) -> None:
        """Show the VM as what it is again; one that still starts is shown as that all the time."""
        if vm.uuid not in self._steps.starting:
            self._machines.finish(vm.uuid)

    def _finish_shutdown(self, vm: LocalVM, task: "asyncio.Task[bool]") -> None:
        self._going.pop(vm.uuid, None)
        if not task.cancelled() and task.exception():
            log.error("%s: its shutdown failed: %s", vm.name, task.exception())


def describe_failure(error: BaseException) -> str:
    """Return why something failed, as readers of events are told it."""
    if isinstance(error, CrannogError):
        return str(error)
    return "it was killed" if isinstance(error, asyncio.CancelledError) else "crannogd failed; its log says where"
