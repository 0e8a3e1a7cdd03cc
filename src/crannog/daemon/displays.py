"""Showing VMs: one handover (core.handover) a VM that runs, fed with what happens, whose acts are carried out here."""

import asyncio
import logging
from collections.abc import Callable, Mapping

from crannog.core.announcement import AgentState, AgentStatus
from crannog.core.displays import DisplayKind, DisplayNews, Shown, describe_shown
from crannog.core.events import Event
from crannog.core.handover import Act, Handover
from crannog.core.plan import OpenDisplays
from crannog.core.registry import Registry
from crannog.core.vms import LocalVM
from crannog.daemon.machines import Machines
from crannog.daemon.showing import Showing
from crannog.daemon.world import World
from crannog.display.session import Session
from crannog.errors import CrannogError, DisplayError, VMNotRunningError

log = logging.getLogger(__name__)

_OPENS = {Act.OPEN_SCREEN: DisplayKind.SCREEN, Act.START_AGENT: DisplayKind.AGENT}
_CLOSES = {Act.CLOSE_SCREEN: DisplayKind.SCREEN, Act.STOP_AGENT: DisplayKind.AGENT}
_KILLS = {Act.KILL_SCREEN: DisplayKind.SCREEN, Act.KILL_AGENT: DisplayKind.AGENT}
_OF_MANY = ("property-set:", "property-reset:", "domain-feature-set:", "domain-feature-delete:")
"""Events after which VMs may have to be shown otherwise: also others than the one that they are of."""
_OF_ONE = ("domain-",)
"""Events after which the VM that they are of may be in another state."""
PARTS_PAUSE = 30.0
"""Seconds between looks for programs that are missing, while a VM is not shown for want of them: no process is started
for that."""


class DisplayKeeper:
    """Opens and closes the displays of all VMs, and has them look as the VMs do."""

    def __init__(self, world: World, registry: Registry, machines: Machines) -> None:
        self._displays = world.displays
        self._agents = world.agents
        self._registry = registry
        self._machines = machines
        self._showing = Showing(world.displays)
        self._handovers: dict[str, Handover] = {}
        self._looks: dict[str, Shown] = {}
        """What was said last of the VMs that are shown."""
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._retry: asyncio.TimerHandle | None = None
        self._work: dict[str, asyncio.Task[None]] = {}
        """The last of the acts of a VM, each of which waits for the one before."""
        self._stale: set[str] = set()
        """VMs whose settings or state may have changed since the last look at them."""
        self._presumed: set[str] = set()
        """VMs that were adopted with an agent display, and of whose agent nothing was heard yet."""
        self._displays.listen(self._note_news)
        self._agents.listen(self._note_agent)

    async def begin(self, step: OpenDisplays) -> str:
        """Show a VM that is just starting; return what of it is not shown and why, for a person to read."""
        vm = self._registry.find_uuid(step.uuid)
        if not isinstance(vm, LocalVM):
            return ""
        self._start(vm, frozenset())
        reason = self._showing.explain(vm)
        return f"not shown: {reason}" if reason else ""

    async def abandon(self, step: OpenDisplays) -> None:
        """End the displays of a VM whose start failed."""
        self.end(step.uuid)

    async def adopt(self, vm: LocalVM) -> None:
        """Show a VM that runs already; what a former daemon has opened stays open."""
        open_now = await self._displays.adopt(describe_shown(vm))
        if DisplayKind.AGENT in open_now:
            self._presumed.add(vm.uuid)
        self._start(vm, open_now)

    def end(self, uuid: str) -> None:
        """Close the displays of a VM that has ended."""
        self._presumed.discard(uuid)
        self._showing.forget(uuid)
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
        if vm.uuid not in self._handovers:
            self._start(vm, frozenset())
        self._look_again()
        reason = self._showing.refuse(vm)
        if reason:
            raise DisplayError(f"{vm.name} cannot be shown: {reason}")
        self._do(vm.uuid, self._handovers[vm.uuid].show)

    def show_again(self, vm: LocalVM) -> None:
        """Open what the user closed of a VM, if it runs and has a display."""
        if vm.uuid in self._handovers and self._machines.has_domain(vm.uuid):
            self._look_again()
            if not self._showing.refuse(vm):
                self._do(vm.uuid, self._handovers[vm.uuid].show)

    def note_event(self, event: Event) -> None:
        """Follow the settings and states of VMs that run."""
        if event.name.startswith(_OF_MANY):
            self._mark(set(self._handovers))
        elif event.name.startswith(_OF_ONE):
            vm = self._registry.by_name(event.subject)
            self._mark({vm.uuid} if vm else set())

    def _mark(self, uuids: set[str]) -> None:
        """Look at VMs soon: what an event tells of may be going on still, and more events may follow it."""
        if not self._stale and uuids & self._handovers.keys():
            asyncio.get_running_loop().call_soon(self._refresh)
        self._stale |= uuids & self._handovers.keys()

    def _refresh(self) -> None:
        self._showing.look()
        while self._stale:
            self._update(self._stale.pop())
        self._wait_for_parts()

    def _look_again(self) -> None:
        """Show what could not be shown so far, if that is possible now."""
        if self._retry:
            self._retry.cancel()
            self._retry = None
        self._stale |= self._showing.unmet & self._handovers.keys()
        self._refresh()

    def _wait_for_parts(self) -> None:
        """Look now and then whether what is missing was installed, as long as that keeps a VM from being shown."""
        if self._showing.unmet and self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(PARTS_PAUSE, self._look_again)

    def _start(self, vm: LocalVM, open_now: frozenset[DisplayKind]) -> None:
        self._showing.open |= {(vm.uuid, kind) for kind in open_now}
        self._showing.look()
        wishes, can_show_screen = self._showing.choose(vm, has_agent=self._has_agent(vm.uuid))
        handover = self._handovers.setdefault(vm.uuid, Handover(wishes, has_screen=can_show_screen))
        handover.wishes, handover.has_screen = wishes, can_show_screen
        screen, agent = DisplayKind.SCREEN in open_now, DisplayKind.AGENT in open_now
        self._do(vm.uuid, lambda now: handover.begin(now, has_open_screen=screen, has_agent_display=agent))
        self._dress(vm)
        self._wait_for_parts()

    def _has_agent(self, uuid: str) -> bool:
        status = self._agents.status(uuid)
        return uuid in self._presumed or (status is not None and status.agent is AgentState.READY)

    def _note_agent(self, uuid: str, status: AgentStatus) -> None:
        del status
        self._presumed.discard(uuid)
        self._mark(
            {uuid}
        )  # what it announced is taken over by another listener of the same news, perhaps after this one

    def _update(self, uuid: str) -> None:
        """Have a VM shown as its settings say now."""
        vm, handover = self._registry.find_uuid(uuid), self._handovers.get(uuid)
        if isinstance(vm, LocalVM) and handover:
            wishes, has_screen = self._showing.choose(vm, has_agent=self._has_agent(uuid))
            if (wishes, has_screen) != (handover.wishes, handover.has_screen):
                self._do(uuid, lambda now: handover.change(now, wishes, has_screen=has_screen))
            self._dress(vm)

    def _dress(self, vm: LocalVM) -> None:
        """Have the open displays of a VM say what it is now."""
        shown = describe_shown(vm)
        if vm.uuid in self._handovers and self._looks.get(vm.uuid) != shown:
            self._looks[vm.uuid] = shown
            self._displays.dress(shown)

    def _note_news(self, uuid: str, kind: DisplayKind, news: DisplayNews) -> None:
        if news is DisplayNews.ENDED:
            self._showing.open.discard((uuid, kind))
            self._mark({uuid})  # what was missing meanwhile counts from now on
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
            self._looks.pop(uuid, None)
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
                await self._open(_OPENS[act], vm)
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

    async def _open(self, kind: DisplayKind, vm: LocalVM) -> None:
        shown = describe_shown(vm)
        self._showing.open.add((vm.uuid, kind))
        await self._displays.open(kind, shown)
        if shown != describe_shown(vm):  # it has changed while nobody listened
            self._displays.dress(describe_shown(vm))
