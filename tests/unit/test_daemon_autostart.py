"""VMs that start with the host: once after each boot, in order, and none of their failures stops anybody."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from crannog.core.vms import LocalVM
from crannog.daemon import autostart as autostart_module
from crannog.daemon.autostart import Autostart
from crannog.errors import StartError
from tests.fakes import DomainInfo, DomainState
from tests.unit.life_world import Gate, Life, failing, living

BOOT, NEXT_BOOT = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"


@pytest.fixture
async def life() -> AsyncIterator[Life]:
    async with living() as life:
        yield life


def mark(life: Life) -> Path:
    return Path(life.inside.paths.run, "autostarted")


def begin(life: Life, boot: str = BOOT) -> Autostart:
    """Do what a daemon does when it starts."""
    autostart = Autostart(life.inside.lifecycle, str(mark(life)), boot)
    autostart.begin()
    return autostart


async def finish(autostart: Autostart) -> None:
    if autostart._work:
        await asyncio.wait_for(asyncio.shield(autostart._work), 10)


async def wanted(life: Life, *names: str) -> list[LocalVM]:
    vms = await life.add(*names)
    for vm in vms:
        vm.set("netvm", None)
        vm.set("autostart", True)
    return vms


def running(life: Life) -> list[str]:
    return sorted(info.name for info in life.inside.hypervisor.domain_states.values())


async def test_only_those_that_shall(life: Life) -> None:
    life.work.set("autostart", True)
    await life.add("other")
    await finish(begin(life))
    assert running(life) == ["work"]
    assert mark(life).read_text() == BOOT + "\n"


async def test_netvms_come_first_and_once(life: Life) -> None:
    vms = await life.add("mail", "fw", "net")
    for vm in vms:
        vm.set("autostart", True)
    await finish(begin(life))
    assert [spec.name for spec in life.inside.hypervisor.specs] == ["net", "fw", "mail"]


async def test_once_after_each_boot(life: Life) -> None:
    """A tool that starts the daemon again must not start what its user has shut down."""
    life.work.set("autostart", True)
    await finish(begin(life))
    await life.power.shutdown(life.work, force=False, wait=True)
    await finish(begin(life))
    assert running(life) == []
    await finish(begin(life, NEXT_BOOT))
    assert running(life) == ["work"]


async def test_a_vm_that_was_chosen_later_waits_for_the_next_boot(life: Life) -> None:
    await finish(begin(life))
    life.work.set("autostart", True)
    await finish(begin(life))
    assert running(life) == []


@pytest.mark.parametrize("content", ["", "something else\n", "\xff\xfe", BOOT[:-1]])
async def test_a_mark_that_says_nothing_is_none(life: Life, content: str) -> None:
    life.work.set("autostart", True)
    mark(life).write_bytes(content.encode("latin-1"))
    await finish(begin(life))
    assert running(life) == ["work"]
    assert mark(life).read_text() == BOOT + "\n"


async def test_adopted_vms_are_left_as_they_are(life: Life, caplog: pytest.LogCaptureFixture) -> None:
    life.work.set("autostart", True)
    life.inside.machines.note(DomainInfo(life.work.uuid, "work", DomainState.PAUSED, 1))
    await finish(begin(life))
    assert life.inside.hypervisor.specs == []
    assert "ERROR" not in caplog.text


async def test_a_failure_stops_nobody(
    life: Life, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one, two, three = await wanted(life, "one", "two", "three")
    one.set("kernel", "")
    ensure = life.inside.lifecycle.ensure_runs

    async def break_two(vm: LocalVM) -> None:
        if vm is two:
            raise ZeroDivisionError("a bug")
        await ensure(vm)

    monkeypatch.setattr(life.inside.lifecycle, "ensure_runs", break_two)
    await finish(begin(life))
    assert running(life) == ["three"]
    assert three.power_state == "Running"
    assert "one: was not started with the host: one has no kernel" in caplog.text
    assert "two: was not started with the host" in caplog.text


async def test_no_more_than_some_at_the_same_time(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    await wanted(life, *(f"vm{number}" for number in range(7)))
    going, most = 0, 0
    start = life.inside.pool.start

    async def count(volume: object) -> None:
        nonlocal going, most
        going, most = going + 1, max(most, going + 1)
        await asyncio.sleep(0.005)
        going -= 1
        await start(volume)  # type: ignore[arg-type]

    monkeypatch.setattr(life.inside.pool, "start", count)
    await finish(begin(life))
    assert len(running(life)) == 7
    assert 1 < most <= autostart_module.AT_ONCE


async def test_many_clients_that_wait_for_one_netvm_do_not_lock_it_out(life: Life) -> None:
    """All slots are taken by clients; their netvm itself does not start with the host."""
    (net,) = await life.add("net")
    net.set("provides_network", True)
    for vm in await wanted(life, *(f"vm{number}" for number in range(6))):
        vm.set("netvm", net)
    await finish(begin(life))
    assert len(running(life)) == 7
    assert [spec.name for spec in life.inside.hypervisor.specs].count("net") == 1


async def test_a_vm_that_is_removed_or_changed_while_it_waits(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autostart_module, "AT_ONCE", 1)
    _first, second, third, _fourth = await wanted(life, "first", "second", "third", "fourth")
    gate = Gate(life.inside.hypervisor.resume)
    monkeypatch.setattr(life.inside.hypervisor, "resume", gate)
    autostart = begin(life)
    await gate.reached.wait()
    await life.inside.inventory.population.remove(second)
    third.set("autostart", False)
    gate.opened.set()
    await finish(autostart)
    assert running(life) == ["first", "fourth"]


async def test_a_daemon_that_ends_begins_no_more(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autostart_module, "AT_ONCE", 1)
    await wanted(life, "first", "second")
    gate = Gate(life.inside.hypervisor.resume)
    monkeypatch.setattr(life.inside.hypervisor, "resume", gate)
    autostart = begin(life)
    await gate.reached.wait()
    await autostart.abandon()
    await life.inside.lifecycle.abandon_starts()
    assert [spec.name for spec in life.inside.hypervisor.specs] == ["first"]
    await life.is_gone()
    await autostart.abandon()


async def test_a_daemon_that_dies_in_between_starts_nothing_twice(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    life.work.set("autostart", True)
    monkeypatch.setattr(life.inside.lifecycle, "ensure_runs", failing(StartError("no")))
    begin(life)
    assert mark(life).exists()  # before the first start has begun
    await life.settle()


async def test_a_host_that_does_not_tell_when_it_was_booted(life: Life, caplog: pytest.LogCaptureFixture) -> None:
    await finish(begin(life, ""))
    assert caplog.text == ""
    life.work.set("autostart", True)
    await finish(begin(life, ""))
    assert (running(life), mark(life).exists()) == ([], False)
    assert "work not started: this host does not tell when it was booted" in caplog.text


async def test_a_mark_that_cannot_be_written(life: Life, caplog: pytest.LogCaptureFixture) -> None:
    """Without it each start of the daemon would be the first one."""
    Path(f"{mark(life)}.new").mkdir()
    life.work.set("autostart", True)
    await finish(begin(life))
    assert running(life) == []
    assert "work not started: " in caplog.text
    assert "autostarted cannot be written: Is a directory" in caplog.text
