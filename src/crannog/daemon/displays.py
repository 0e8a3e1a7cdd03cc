"""Showing VMs: one handover (core.handover) a VM that runs, fed with what happens, whose acts are carried out here."""

import asyncio
import logging
from collections.abc import Callable, Mapping

from crannog.core.announcement import AgentState, AgentStatus
from crannog.core.displays import DisplayKind, DisplayNews, describe_shown, has_screen, wishes_of
from crannog.core.events import Event
from crannog.core.handover import Act, Handover
from crannog.core.plan import OpenDisplays
from crannog.core.registry import Registry
from crannog.core.vms import LocalVM
from crannog.daemon.machines import Machines
from crannog.daemon.world import World
from crannog.display.session import Session
from crannog.errors import CrannogError, DisplayError, VMNotRunningError

log = logging.getLogger(__name__)

_OPENS = {Act.OPEN_SCREEN: DisplayKind.SCREEN, Act.START_AGENT: DisplayKind.AGENT}
_CLOSES = {Act.CLOSE_SCREEN: DisplayKind.SCREEN, Act.STOP_AGENT: DisplayKind.AGENT}
_KILLS = {Act.KILL_SCREEN: DisplayKind.SCREEN, Act.KILL_AGENT: DisplayKind.AGENT}
_FOLLOWED = ("property-set:", "property-reset:", "domain-feature-set:", "domain-feature-delete:")
"""Events after which a VM may have to be shown otherwise."""


class DisplayKeeper:
    """Opens and closes the displays of all VMs."""

    def __init__(self, world: World, registry: Registry, machines: Machines) -> None:
        self._displays = world.displays
        self._agents = world.agents
        self._registry = registry
        self._machines = machines
        self._handovers: dict[str, Handover] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._work: dict[str, asyncio.Task[None]] = {}
        """The last of the acts of a VM, each of which waits for the one before."""
        self._presumed: set[str] = set()
        """VMs that were adopted with an agent display, and of whose agent nothing was heard yet."""
        self._displays.listen(self._note_news)
        self._agents.listen(self._note_agent)

    async def begin(self, step: OpenDisplays) -> str:
        """Show a VM that is just starting; return why it is not, for a person to read."""
        vm = self._registry.find_uuid(step.uuid)
        problem = self._displays.describe_problem()
        if isinstance(vm, LocalVM) and not problem:
            self._start(vm, frozenset())
        return f"not shown: {problem}" if problem and isinstance(vm, LocalVM) and has_screen(vm) else ""

    async def abandon(self, step: OpenDisplays) -> None:
        """End the displays of a VM whose start failed."""
        self.end(step.uuid)

    async def adopt(self, vm: LocalVM) -> None:
        """Show a VM that runs already; what a former daemon has opened stays open."""
        if self._displays.describe_problem():
            return
        open_now = await self._displays.adopt(describe_shown(vm))
        if DisplayKind.AGENT in open_now:
            self._presumed.add(vm.uuid)
        self._start(vm, open_now)

    def end(self, uuid: str) -> None:
        """Close the displays of a VM that has ended."""
        self._presumed.discard(uuid)
        if uuid in self._handovers:
            self._do(uuid, self._handovers[uuid].end)

    async def show(self, vm: LocalVM, environment: Mapping[str, str]) -> None:
        """Open what the user closed of a VM.

        `environment` may name another X display, with DISPLAY and XAUTHORITY, where VMs are shown from now on. Raises
        VMNotRunningError, DisplayError.
        """
        if not self._machines.has_domain(vm.uuid):
            raise VMNotRunningError(
                f"{vm.name} cannot be shown: it is not running; start it with 'qvm-start {vm.name}'"
            )
        if environment:
            session = Session.find(environment)
            self._displays.move(session.name, session.authority)
        problem = self._displays.describe_problem()
        if problem:
            raise DisplayError(f"{vm.name} cannot be shown: {problem}")
        if vm.uuid not in self._handovers:
            self._start(vm, frozenset())
        self._do(vm.uuid, self._handovers[vm.uuid].show)

    def show_again(self, vm: LocalVM) -> None:
        """Open what the user closed of a VM, if it runs and has a display."""
        if vm.uuid in self._handovers and self._machines.has_domain(vm.uuid):
            self._do(vm.uuid, self._handovers[vm.uuid].show)

    def note_event(self, event: Event) -> None:
        """Follow the settings of VMs that run."""
        if event.name.startswith(_FOLLOWED):
            for uuid in list(self._handovers):
                self._update(uuid)

    def _start(self, vm: LocalVM, open_now: frozenset[DisplayKind]) -> None:
        wishes = wishes_of(vm, has_agent=self._has_agent(vm.uuid))
        handover = self._handovers.setdefault(vm.uuid, Handover(wishes, has_screen=has_screen(vm)))
        handover.wishes, handover.has_screen = wishes, has_screen(vm)
        screen, agent = DisplayKind.SCREEN in open_now, DisplayKind.AGENT in open_now
        self._do(vm.uuid, lambda now: handover.begin(now, has_open_screen=screen, has_agent_display=agent))

    def _has_agent(self, uuid: str) -> bool:
        status = self._agents.status(uuid)
        return uuid in self._presumed or (status is not None and status.agent is AgentState.READY)

    def _note_agent(self, uuid: str, status: AgentStatus) -> None:
        del status
        self._presumed.discard(uuid)
        # What it announced is taken over by another listener of the same news, perhaps after this one.
        asyncio.get_running_loop().call_soon(self._update, uuid)

    def _update(self, uuid: str) -> None:
        vm, handover = self._registry.find_uuid(uuid), self._handovers.get(uuid)
        if isinstance(vm, LocalVM) and handover:
            wishes = wishes_of(vm, has_agent=self._has_agent(uuid))
            if wishes != handover.wishes:
                self._do(uuid, lambda now: handover.change(now, wishes))

    def _note_news(self, uuid: str, kind: DisplayKind, news: DisplayNews) -> None:
        handover = self._handovers.get(uuid)
        if handover is None:
            return
        reactions = {
            (DisplayKind.SCREEN, DisplayNews.CLOSED): handover.dismiss,
            (DisplayKind.SCREEN, DisplayNews.ENDED): handover.note_screen_end,
            (DisplayKind.AGENT, DisplayNews.ENDED): handover.note_agent_end,
            (DisplayKind.AGENT, DisplayNews.CONNECTED): handover.note_connected,
            (DisplayKind.AGENT, DisplayNews.LOST): handover.note_lost,
            (DisplayKind.AGENT, DisplayNews.MODE_SENT): handover.note_mode_sent,
            (DisplayKind.AGENT, DisplayNews.MODE_FAILED): handover.note_mode_failed,
        }
        if (kind, news) in reactions:
            self._do(uuid, reactions[kind, news])

    def _do(self, uuid: str, note: Callable[[float], list[Act]]) -> None:
        """Tell a handover something, carry out what follows, and look again when it wants that."""
        loop = asyncio.get_running_loop()
        handover = self._handovers[uuid]
        for act in note(loop.time()):
            self._enqueue(uuid, act)
        timer = self._timers.pop(uuid, None)
        if timer:
            timer.cancel()
        if handover.is_over:
            del self._handovers[uuid]
        elif handover.due is not None:
            self._timers[uuid] = loop.call_at(handover.due, self._do, uuid, handover.tick)

    def _enqueue(self, uuid: str, act: Act) -> None:
        before = self._work.get(uuid)
        task = self._work[uuid] = asyncio.ensure_future(self._carry_out(uuid, act, before))
        task.add_done_callback(lambda done: self._work.pop(uuid) if self._work.get(uuid) is done else None)

    async def _carry_out(self, uuid: str, act: Act, before: "asyncio.Task[None] | None") -> None:
        if before:
            await asyncio.wait([before])
        vm = self._registry.find_uuid(uuid)
        try:
            if act in _OPENS and isinstance(vm, LocalVM):
                await self._displays.open(_OPENS[act], describe_shown(vm))
            elif act in _CLOSES:
                self._displays.close(_CLOSES[act], uuid)
            elif act in _KILLS:
                self._displays.kill(_KILLS[act], uuid)
            elif act is Act.SEND_MODE and uuid in self._handovers:
                self._displays.send_mode(uuid, self._handovers[uuid].wishes.mode)
        except CrannogError as error:
            log.error("%s", error)
            if act in _OPENS:
                self._note_news(uuid, _OPENS[act], DisplayNews.ENDED)
