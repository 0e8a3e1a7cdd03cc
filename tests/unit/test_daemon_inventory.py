"""What the daemon makes of an agent's announcement (B13), and VMs that are killed while they start."""

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from crannog.adapters.store import file
from crannog.core.announcement import AgentState, AgentStatus, Announcement
from crannog.core.startup import StartRequest
from crannog.core.vms import LocalVM
from crannog.errors import StartError, VMNotHaltedError
from tests.fakes import Inside, build_inside, template_and_app

ANNOUNCED = Announcement(version="1", os="Linux", qrexec=True, gui=False, default_user="anna")


@pytest.fixture
async def inside(tmp_path: Path) -> Inside:
    """Return a daemon's inside with a template and an AppVM that could start."""
    inside = build_inside(tmp_path)
    template, app = template_and_app(inside.registry)
    await inside.pool.create(tuple(template.volumes.values()))
    await inside.pool.create(tuple(app.volumes.values()))
    return inside


def announce(inside: Inside, vm: LocalVM, announced: Announcement | None = ANNOUNCED) -> None:
    for listener in inside.agents.listeners:
        listener(vm.uuid, AgentStatus(AgentState.READY, announced))


def vms(inside: Inside) -> tuple[LocalVM, LocalVM]:
    template, app = inside.registry.local_vms()
    return template, app


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - the states that are waited for have no event
            await asyncio.sleep(0.001)


async def test_an_announcement_is_kept_and_saved_and_inherited(inside: Inside) -> None:
    template, app = vms(inside)
    announce(inside, template)
    saved = inside.reloaded().find_vm("debian")
    assert (saved.feature("qrexec"), saved.feature("gui"), saved.feature("os")) == ("1", "", "Linux")
    assert saved.get("default_user") == app.get("default_user") == "anna"
    assert app.feature("qrexec") == "1"


async def test_what_an_appvm_announces_changes_nothing_in_its_template(inside: Inside) -> None:
    template, app = vms(inside)
    announce(inside, app)
    assert (template.features, template.get("default_user")) == ({}, "user")
    assert (app.feature("qrexec"), app.get("default_user")) == ("1", "anna")


async def test_known_news_are_not_saved_again(inside: Inside) -> None:
    template, app = vms(inside)
    announce(inside, template)
    path = Path(inside.paths.store)
    before = path.stat().st_ino
    announce(inside, template)
    announce(inside, app)
    announce(inside, app, None)
    assert path.stat().st_ino == before
    assert app.features == {}


async def test_an_announcement_that_cannot_be_saved_is_taken_back(
    inside: Inside, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    template, _ = vms(inside)
    monkeypatch.setattr(file, "write_whole", refuse)
    announce(inside, template)
    assert (template.features, template.get("default_user")) == ({}, "user")
    assert "debian: its announcement was not kept" in caplog.text


async def test_a_vm_that_is_killed_while_it_starts_is_halted_and_clean(inside: Inside) -> None:
    _, app = vms(inside)
    files = sorted(Path(inside.pool.folder).rglob("*.*"))
    starting = asyncio.ensure_future(inside.inventory.power.start(app, StartRequest(wait=True)))
    await until(lambda: bool(inside.hypervisor.domain_states) and app.power_state == "Transient")
    with pytest.raises(VMNotHaltedError, match="being started already"):
        await inside.inventory.power.start(app, StartRequest())
    await asyncio.gather(inside.inventory.power.kill(app), inside.inventory.power.kill(app))
    with pytest.raises(StartError, match="was killed while it started"):
        await starting
    assert app.power_state == "Halted"
    assert (inside.hypervisor.domain_states, inside.agents.running) == ({}, set())
    # What was used first now has a seal.
    assert [path for path in sorted(Path(inside.pool.folder).rglob("*.*")) if path.suffix != ".seal"] == files


async def test_a_start_goes_on_when_its_caller_goes_away(inside: Inside) -> None:
    _, app = vms(inside)
    caller = asyncio.ensure_future(inside.inventory.power.start(app, StartRequest()))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await until(lambda: app.power_state == "Running")
