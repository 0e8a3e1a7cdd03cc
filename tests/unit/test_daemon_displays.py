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
        self.missing: dict[DisplayKind, str] = {}
        self.found: frozenset[DisplayKind] = frozenset()

    async def adopt(self, shown: Shown) -> frozenset[DisplayKind]:
        del shown
        return self.found

    def describe_problem(self, kind: DisplayKind) -> str:
        return self.missing.get(kind) or super().describe_problem(kind)

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
        async with asyncio.timeout(30):
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


async def begin(world: World) -> str:
    """Start the VM; return what is said of its displays."""
    stages = await world.inside.lifecycle.start(world.vm, StartRequest(wait=False))
    return next(stage for stage, _ in stages if stage.startswith("displays ready"))


async def test_a_vm_that_is_shown_nowhere(world: World) -> None:
    world.vm.set("guivm", None)
    reason = "its guivm is none; 'qvm-prefs vm guivm dom0' has it shown here"
    assert await begin(world) == f"displays ready (not shown: {reason})"
    world.announce()
    await asyncio.sleep(0.05)
    with pytest.raises(DisplayError, match=f"vm cannot be shown: {reason}"):
        await world.inside.inventory.power.show(world.vm, {})
    assert world.open_now() == set()


async def test_a_vm_that_another_vm_shows(world: World) -> None:
    add_vm(world.inside.registry, "StandaloneVM", "sys-gui")
    world.vm.set("guivm", world.inside.registry.by_name("sys-gui"))
    reason = "its guivm is sys-gui, and of all VMs dom0 alone can show others yet"
    assert (await begin(world)).startswith(f"displays ready (not shown: {reason}; ")
    with pytest.raises(DisplayError, match=reason):
        await world.inside.inventory.power.show(world.vm, {})
    assert world.open_now() == set()
    world.inside.inventory.editor.set_property(world.vm, "guivm", "dom0")
    await world.until(SCREEN)
    await world.inside.inventory.power.show(world.vm, {})


async def test_a_vm_that_has_nothing_to_show(world: World) -> None:
    world.vm.features["video-model"] = "none"
    assert await begin(world) == "displays ready"
    with pytest.raises(DisplayError, match="vm cannot be shown: it has neither an emulated screen nor a GUI agent"):
        await world.inside.inventory.power.show(world.vm, {})


NO_XPRA = "windows of VMs cannot be shown: install xpra"


async def test_without_the_programs_for_windows_the_screen_stays(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crannog.daemon.displays.PARTS_PAUSE", 0.05)
    world.desk.missing[AGENT] = NO_XPRA
    world.vm.features["gui"] = "1"
    assert await begin(world) == f"displays ready (not shown: {NO_XPRA})"
    world.announce()
    await asyncio.sleep(0.3)
    assert world.desk.opened == [SCREEN], "nothing is started in vain"
    assert [record.getMessage() for record in caplog.records if "xpra" in record.getMessage()] == [
        f"vm is not shown as it should be: {NO_XPRA}"
    ]
    await world.inside.inventory.power.show(world.vm, {})
    assert world.open_now() == {SCREEN}
    world.desk.missing.clear()  # somebody installs them
    await world.until(SCREEN, AGENT)


async def test_who_asks_has_missing_programs_looked_for_at_once(world: World) -> None:
    world.desk.missing = dict.fromkeys(DisplayKind, "VMs cannot be shown: install all of it")
    await world.start()
    with pytest.raises(DisplayError, match="install all of it"):
        await world.inside.inventory.power.show(world.vm, {})
    world.desk.missing.clear()
    await world.inside.inventory.power.show(world.vm, {})
    await world.until(SCREEN)


async def test_without_the_programs_for_screens_windows_are_shown(world: World) -> None:
    world.desk.missing[SCREEN] = "screens of VMs cannot be shown: install it"
    await world.start()
    world.announce()
    await world.until(AGENT)


async def test_what_is_open_stays_open_whatever_is_missing_now(world: World) -> None:
    await world.hand_over()
    world.desk.missing[AGENT] = NO_XPRA
    world.inside.inventory.editor.set_property(world.vm, "debug", "True")
    await world.until(SCREEN, AGENT)
    world.desk.close(AGENT, world.vm.uuid)
    await world.until(SCREEN)
    await asyncio.sleep(0.5)
    assert world.desk.opened == [SCREEN, AGENT, SCREEN], "it is not started again, as it could not be"


async def looks(world: World, *expected: str) -> None:
    """Expect that soon all open displays have that colour and state."""
    async with asyncio.timeout(30):
        while {(shown.colour, shown.state) for shown in world.desk.shown.values()} != {expected}:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_displays_look_as_the_vm_does(world: World) -> None:
    red, blue = "#cc0000", "#3465a4"
    lifecycle, editor = world.inside.lifecycle, world.inside.inventory.editor
    await world.hand_over()
    editor.set_property(world.vm, "debug", "True")
    await world.until(SCREEN, AGENT)
    await looks(world, red, "debug")
    editor.set_property(world.vm, "label", "blue")
    await looks(world, blue, "debug")
    await lifecycle.pausing.pause(world.vm)
    await looks(world, blue, "debug, paused")
    await lifecycle.pausing.unpause(world.vm)
    editor.reset_property(world.vm, "debug")
    await world.until(AGENT)
    await looks(world, blue, "")


async def test_a_vm_that_shuts_down_and_does_not_says_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ignore(_uuid: str) -> None:
        """Do what a guest does that does not listen to its power button."""

    monkeypatch.setattr(world.inside.hypervisor, "press_power_button", ignore)
    await world.start()
    await world.until(SCREEN)
    await looks(world, "#cc0000", "")
    world.vm.set("shutdown_timeout", 1)
    await world.inside.lifecycle.shutdowns.shutdown(world.vm, force=False, wait=False)
    await looks(world, "#cc0000", "shutting down")
    await looks(world, "#cc0000", "")


async def test_a_vm_that_starts_says_so(world: World) -> None:
    world.vm.features["qrexec"] = "1"
    start = asyncio.ensure_future(world.inside.lifecycle.start(world.vm, StartRequest(wait=True)))
    await world.until(SCREEN)
    await looks(world, "#cc0000", "starting")
    world.announce(gui=False)
    await start
    await looks(world, "#cc0000", "")


async def test_a_look_that_changes_while_a_display_opens(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = world.desk.open

    async def open_slowly(kind: DisplayKind, shown: Shown) -> None:
        world.inside.inventory.editor.set_property(world.vm, "label", "blue")
        await asyncio.sleep(0.1)
        await opened(kind, shown)

    monkeypatch.setattr(world.desk, "open", open_slowly)
    await world.start()
    await world.until(SCREEN)
    await looks(world, "#3465a4", "")


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
