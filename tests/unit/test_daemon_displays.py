"""Displays of VMs as the daemon opens and closes them, on a host whose displays only keep what would be shown."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from crannog.adapters.display.headless import HeadlessDisplays
from crannog.core.announcement import AgentState, AgentStatus, Announcement
from crannog.core.displays import DisplayKind, DisplayNews, Shown
from crannog.core.events import Event
from crannog.core.handover import GuiMode
from crannog.core.startup import StartRequest
from crannog.core.vms import LocalVM
from crannog.daemon.displays import DisplayKeeper
from crannog.errors import (
    DisplayError,
    HypervisorError,
    StartError,
    ValueRefusedError,
    VMNotHaltedError,
    VMNotRunningError,
)
from tests.fakes import Inside, add_vm, build_inside

SCREEN, AGENT = DisplayKind.SCREEN, DisplayKind.AGENT


class Desk(HeadlessDisplays):
    """Displays that connect only when a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[DisplayKind] = []
        self.is_broken = False
        self.found: frozenset[DisplayKind] = frozenset()

    async def adopt(self, shown: Shown) -> frozenset[DisplayKind]:
        del shown
        return self.found

    async def open(self, kind: DisplayKind, shown: Shown) -> None:
        self.opened.append(kind)
        if self.is_broken:
            raise DisplayError("the display is broken on purpose")
        self.shown[shown.uuid, kind] = shown


class World:
    """A daemon's inside with one HVM."""

    def __init__(self, inside: Inside, desk: Desk) -> None:
        self.inside = inside
        self.desk = desk
        self.vm: LocalVM = add_vm(inside.registry, "StandaloneVM", "vm", mode="hvm")

    def open_now(self) -> set[DisplayKind]:
        return {kind for uuid, kind in self.desk.shown if uuid == self.vm.uuid}

    async def start(self) -> None:
        await self.inside.lifecycle.start(self.vm, StartRequest(wait=False))

    async def hand_over(self) -> None:
        """Start the VM, and have its agent display connected."""
        await self.start()
        self.announce()
        await self.until(SCREEN, AGENT)
        self.tell(AGENT, DisplayNews.CONNECTED)
        await self.until(AGENT)

    async def until(self, *kinds: DisplayKind) -> None:
        async with asyncio.timeout(5):
            while self.open_now() != set(kinds):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    def announce(self, *, gui: bool = True) -> None:
        """Have the agent come with a GUI agent, or without one."""
        announced = Announcement("1", "Linux", qrexec=True, gui=gui, default_user="")
        self.tell_status(AgentStatus(AgentState.READY, announced))

    def tell_status(self, status: AgentStatus) -> None:
        self.inside.agents.statuses[self.vm.uuid] = status
        for listener in self.inside.agents.listeners:
            listener(self.vm.uuid, status)

    def tell(self, kind: DisplayKind, news: DisplayNews) -> None:
        self.desk.tell(self.vm.uuid, kind, news)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    desk = Desk()
    with tempfile.TemporaryDirectory(prefix="cr-", dir="/tmp") as folder:
        world = World(build_inside(Path(folder), displays=desk), desk)
        await world.inside.pool.create(tuple(world.vm.volumes.values()))
        yield world
        if world.inside.machines.has_domain(world.vm.uuid):
            await world.inside.lifecycle.kill(world.vm)


async def test_an_hvm_has_its_screen_from_the_start_to_the_end(world: World) -> None:
    await world.start()
    await world.until(SCREEN)
    assert world.inside.hypervisor.specs[0].display_socket == world.inside.paths.screen_socket(world.vm.uuid)
    await world.inside.lifecycle.kill(world.vm)
    await world.until()


async def test_the_handover(world: World) -> None:
    await world.hand_over()
    assert world.desk.modes == {world.vm.uuid: GuiMode.SEAMLESS}
    world.tell(AGENT, DisplayNews.LOST)
    await world.until(SCREEN, AGENT)


async def test_an_agent_without_a_gui_agent_changes_nothing(world: World) -> None:
    await world.start()
    world.announce(gui=False)
    await asyncio.sleep(0.05)
    assert world.open_now() == {SCREEN}


async def test_tools_that_switch_their_gui_agent_off_get_the_screen_back(world: World) -> None:
    await world.hand_over()
    world.announce(gui=False)
    await world.until(SCREEN)


async def test_an_agent_that_goes_takes_its_display_with_it(world: World) -> None:
    await world.start()
    world.announce()
    await world.until(SCREEN, AGENT)
    world.tell_status(AgentStatus())
    await world.until(SCREEN)


async def test_an_agent_display_that_is_found_stays_until_something_is_heard_of_the_agent(world: World) -> None:
    await world.start()
    world.announce()
    await world.until(SCREEN, AGENT)
    later = DisplayKeeper(world.inside.lifecycle.world, world.inside.registry, world.inside.machines)
    world.inside.agents.statuses.clear()  # a daemon that has just begun knows of no agent
    world.desk.found = frozenset({SCREEN, AGENT})
    await later.adopt(world.vm)
    later.note_event(Event(world.vm.name, "property-set:memory"))
    await asyncio.sleep(0.05)
    assert world.open_now() == {SCREEN, AGENT}
    world.tell_status(AgentStatus())
    await world.until(SCREEN)


async def test_debug_mode_is_followed_while_the_vm_runs(world: World) -> None:
    await world.hand_over()
    world.inside.inventory.editor.set_property(world.vm, "debug", "True")
    await world.until(SCREEN, AGENT)
    world.inside.inventory.editor.reset_property(world.vm, "debug")
    await world.until(AGENT)


async def test_another_mode_is_told_while_the_vm_runs(world: World) -> None:
    await world.hand_over()
    world.inside.inventory.editor.set_feature(world.vm, "seamless-gui-mode", "")
    await asyncio.sleep(0.05)
    assert world.desk.modes == {world.vm.uuid: GuiMode.FULLSCREEN}


async def test_seamless_mode_needs_a_gui_agent(world: World) -> None:
    with pytest.raises(ValueRefusedError, match="vm cannot be shown in seamless mode: it has no GUI agent"):
        world.inside.inventory.editor.set_feature(world.vm, "seamless-gui-mode", "1")
    world.vm.features["gui"] = "1"
    world.inside.inventory.editor.set_feature(world.vm, "seamless-gui-mode", "1")


async def test_a_window_that_the_user_closes_opens_again_when_somebody_asks(world: World) -> None:
    await world.start()
    await world.until(SCREEN)
    world.tell(SCREEN, DisplayNews.CLOSED)
    await asyncio.sleep(0.5)
    assert world.open_now() == set()
    await world.inside.inventory.power.show(world.vm, {})
    await world.until(SCREEN)
    world.tell(SCREEN, DisplayNews.CLOSED)
    with pytest.raises(VMNotHaltedError):
        await world.start()
    await world.until(SCREEN)


async def test_a_display_that_cannot_be_opened_is_tried_again_and_the_vm_goes_on(world: World) -> None:
    world.desk.is_broken = True
    await world.start()
    await asyncio.sleep(0.05)
    assert world.desk.opened == [SCREEN]
    world.desk.is_broken = False
    await world.until(SCREEN)
    assert world.desk.opened == [SCREEN, SCREEN]


async def test_a_start_that_fails_leaves_no_display(world: World) -> None:
    world.inside.hypervisor.failing = {"create_paused"}
    with pytest.raises((StartError, HypervisorError)):
        await world.start()
    await world.until()
    assert world.desk.opened in ([], [SCREEN])


async def test_a_vm_that_is_not_shown_here(world: World) -> None:
    world.vm.set("guivm", None)
    await world.start()
    world.announce()
    await asyncio.sleep(0.05)
    assert world.open_now() == set()


async def test_a_host_without_a_desktop_says_so_and_starts_the_vm(world: World) -> None:
    world.desk._problem = "there is no desktop"
    stages = await world.inside.lifecycle.start(world.vm, StartRequest(wait=False))
    assert "displays ready (not shown: there is no desktop)" in [stage for stage, _ in stages]
    assert world.open_now() == set()
    with pytest.raises(DisplayError, match="vm cannot be shown: there is no desktop"):
        await world.inside.inventory.power.show(world.vm, {})


async def test_a_halted_vm_is_not_shown(world: World) -> None:
    with pytest.raises(VMNotRunningError, match="start it with 'qvm-start vm'"):
        await world.inside.inventory.power.show(world.vm, {})


async def test_a_display_that_is_none_of_this_host_is_refused(world: World) -> None:
    await world.start()
    with pytest.raises(DisplayError, match="not a display of this host"):
        await world.inside.inventory.power.show(world.vm, {"DISPLAY": "elsewhere:0"})


async def test_video_models(world: World) -> None:
    world.vm.features["video-model"] = "none"
    await world.start()
    assert not world.inside.hypervisor.specs[-1].has_display
    assert world.open_now() == set()
    await world.inside.lifecycle.kill(world.vm)
    world.vm.features["video-model"] = "cirrus"
    await world.start()
    assert world.inside.hypervisor.specs[-1].video_model == "cirrus"
    await world.inside.lifecycle.kill(world.vm)
    world.vm.features["video-model"] = "<evil/>"
    await world.start()
    spec = world.inside.hypervisor.specs[-1]
    assert (spec.video_model, len(spec.warnings)) == ("vga", 1)
