"""What guests' tools say of themselves, as the daemon keeps it: how often a guest may have that changed."""

import asyncio
import logging
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from crannog.core.announcement import AgentState, AgentStatus, Announcement
from crannog.core.vms import LocalVM
from crannog.daemon.announcements import CHANGES_BURST, Announcements
from crannog.daemon.world import World
from crannog.errors import RpcError
from tests.fakes import Inside, add_vm, build_inside


@pytest.fixture
async def inside() -> AsyncIterator[Inside]:
    with tempfile.TemporaryDirectory(prefix="cr-", dir="/tmp") as folder:
        yield build_inside(Path(folder))


@pytest.fixture
def vm(inside: Inside) -> LocalVM:
    return add_vm(inside.registry, "StandaloneVM", "vm", mode="hvm")


def say(inside: Inside, vm: LocalVM, *, gui: bool) -> None:
    announced = Announcement("1", "Linux", qrexec=True, gui=gui, default_user="")
    status = AgentStatus(AgentState.READY, announced)
    inside.agents.statuses[vm.uuid] = status
    for listener in inside.agents.listeners:
        listener(vm.uuid, status)


async def test_the_last_word_of_a_guest_that_talks_too_much_is_kept_later(
    inside: Inside, vm: LocalVM, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    saves: list[dict[str, str]] = []
    keep = inside.inventory.editor.set_features

    def count(vm: LocalVM, features: dict[str, str]) -> None:
        saves.append(features)
        keep(vm, features)

    monkeypatch.setattr(inside.inventory.editor, "set_features", count)
    with caplog.at_level(logging.WARNING):
        for number in range(1001):
            say(inside, vm, gui=bool(number % 2))
    assert len(saves) == CHANGES_BURST
    assert sum("too often" in record.message for record in caplog.records) == 1
    say(inside, vm, gui=True)
    say(inside, vm, gui=False)
    say(inside, vm, gui=True)
    async with asyncio.timeout(30):
        while vm.feature("gui") != "1":  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert len(saves) <= CHANGES_BURST + 10


async def ask(inside: Inside, listener: Announcements, vm: LocalVM, value: bytes) -> None:
    inside.agents.entries = {"/features-request/supported-service.x": value}
    await listener.take_features(vm)


async def test_requests_for_features_are_counted_too(inside: Inside, vm: LocalVM) -> None:
    listener = Announcements(
        cast("World", SimpleNamespace(agents=inside.agents)), inside.registry, inside.inventory.editor
    )
    for number in range(CHANGES_BURST):
        await ask(inside, listener, vm, b"0" if number % 2 else b"1")
    assert not vm.feature("supported-service.x")
    with pytest.raises(RpcError, match="the tools in vm say something else too often"):
        await ask(inside, listener, vm, b"1")
    assert not vm.feature("supported-service.x")
    other = add_vm(inside.registry, "StandaloneVM", "other", mode="hvm")
    await ask(inside, listener, other, b"1")
    assert other.feature("supported-service.x") == "1"


async def test_what_changes_nothing_is_not_counted(inside: Inside, vm: LocalVM) -> None:
    for _ in range(CHANGES_BURST * 10):
        say(inside, vm, gui=True)
    say(inside, vm, gui=False)
    assert vm.feature("gui") == ""
