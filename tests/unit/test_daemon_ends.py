"""Every way in which a VM can end, or come, and what is told of it; what a former daemon left."""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from crannog.core.startup import StartRequest
from crannog.core.vms import LocalVM
from crannog.core.volumes import Volume
from crannog.daemon.adoption import Adoption
from crannog.editing.population import NewVM
from crannog.errors import (
    CrannogError,
    HypervisorError,
    InUseError,
    ShutdownTimeoutError,
    StartError,
    StateError,
    StorageError,
    VMNotRunningError,
)
from tests.fakes import DomainInfo, DomainState
from tests.unit.api_world import until
from tests.unit.life_world import (
    ENDED,
    QUIETLY,
    RESUMED,
    Gate,
    Life,
    begin,
    failing,
    living,
    soon,
)


@pytest.fixture
async def life() -> AsyncIterator[Life]:
    async with living() as life:
        yield life


# -- shutdowns


async def test_a_shutdown(life: Life) -> None:
    await life.run()
    await life.power.shutdown(life.work, force=False, wait=True)
    assert life.told == ["work domain-pre-shutdown force=False", *ENDED]
    await life.is_gone()


async def test_a_shutdown_that_is_not_waited_for(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    await life.run()
    gate = Gate(life.inside.hypervisor.press_power_button)
    monkeypatch.setattr(life.inside.hypervisor, "press_power_button", gate)
    asking = begin(life.power.shutdown(life.work, force=True, wait=False))
    await gate.reached.wait()
    assert (life.told, life.work.power_state) == (["work domain-pre-shutdown force=True"], "Halting")
    gate.opened.set()
    await soon(asking)
    await life.settle()
    assert life.told == ["work domain-pre-shutdown force=True", *ENDED]
    await life.is_gone()


async def test_a_guest_whose_agent_is_asked(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    async def power_off(_uuid: str) -> bool:
        life.hear(DomainState.ABSENT)
        return True

    await life.run()
    monkeypatch.setattr(life.inside.agents, "power_off", power_off)
    monkeypatch.setattr(life.inside.hypervisor, "press_power_button", failing(HypervisorError("not asked")))
    await soon(life.power.shutdown(life.work, force=False, wait=True))
    assert life.told == ["work domain-pre-shutdown force=False", *ENDED]


async def test_a_shutdown_of_a_netvm_in_use(life: Life) -> None:
    editor = life.inside.inventory.editor
    net = life.vm("debian")
    editor.set_property(net, "provides_network", "True")
    editor.set_property(life.work, "netvm", "debian")
    await life.run(net)
    await life.run()
    words = "^debian was not shut down: it is the netvm of work; shut that down first, or add --force$"
    with pytest.raises(InUseError, match=words) as caught:
        await life.power.shutdown(net, force=False, wait=True)
    assert life.told == [
        "debian domain-pre-shutdown force=False",
        f"debian domain-shutdown-failed reason={caught.value}",
    ]
    assert net.power_state == "Running"
    life.told.clear()
    await life.power.shutdown(net, force=True, wait=True)
    stopped = ["debian domain-stopped", "debian domain-shutdown"]
    assert life.told == ["debian domain-pre-shutdown force=True", *stopped]
    await life.run(net)
    await life.power.kill(life.work)
    life.told.clear()
    await life.power.shutdown(net, force=False, wait=True)
    assert life.told == ["debian domain-pre-shutdown force=False", *stopped]


async def test_a_shutdown_that_takes_too_long(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ignore(_uuid: str) -> None:
        return

    await life.run()
    life.work.values["shutdown_timeout"] = 1
    with monkeypatch.context() as patch:
        patch.setattr(life.inside.hypervisor, "press_power_button", ignore)
        first = begin(life.power.shutdown(life.work, force=False, wait=True))
        await life.power.shutdown(life.work, force=False, wait=False)
        for caller in (first, begin(life.power.shutdown(life.work, force=False, wait=True))):
            with pytest.raises(ShutdownTimeoutError, match="work did not shut down within 1 s and still runs"):
                await soon(caller)
    assert life.work.power_state == "Running"
    assert life.told == [
        "work domain-pre-shutdown force=False",
        "work domain-shutdown-failed reason=it did not end within 1 s",
    ]
    life.told.clear()
    await life.power.shutdown(life.work, force=False, wait=True)
    assert life.told == ["work domain-pre-shutdown force=False", *ENDED]
    await life.is_gone()


@pytest.mark.parametrize("wait", [True, False])
async def test_a_shutdown_that_the_hypervisor_refuses(
    life: Life, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, wait: bool
) -> None:
    """Its caller hears of it, and so do those who show it as Halting."""
    caplog.set_level(logging.INFO)
    await life.run()
    monkeypatch.setattr(life.inside.hypervisor, "press_power_button", failing(HypervisorError("no button")))
    asked = await soon(asyncio.gather(life.power.shutdown(life.work, force=False, wait=wait), return_exceptions=True))
    assert [str(error) for error in asked] == ["no button"]
    await life.settle()
    assert life.work.power_state == "Running"
    assert life.told == ["work domain-pre-shutdown force=False", "work domain-shutdown-failed reason=no button"]
    assert life.problems == []


async def test_a_paused_vm_is_not_shut_down(life: Life) -> None:
    await life.run()
    await life.power.pause(life.work)
    life.told.clear()
    with pytest.raises(StateError, match="cannot shut down while it is paused") as caught:
        await life.power.shutdown(life.work, force=False, wait=False)
    assert life.told == [
        "work domain-pre-shutdown force=False",
        f"work domain-shutdown-failed reason={caught.value}",
    ]
    assert life.work.power_state == "Paused"


async def test_a_halted_vm_is_not_shut_down(life: Life) -> None:
    with pytest.raises(VMNotRunningError):
        await life.power.shutdown(life.work, force=False, wait=False)
    assert life.told == []


async def test_two_kills_at_once(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    await life.run()
    gate = Gate(life.inside.hypervisor.destroy)
    monkeypatch.setattr(life.inside.hypervisor, "destroy", gate)
    kills = [begin(life.power.kill(life.work)) for _ in range(2)]
    await gate.reached.wait()
    gate.opened.set()
    await soon(asyncio.gather(*kills))
    assert life.told == ENDED
    await life.is_gone()


async def test_a_shutdown_and_a_kill_at_once(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    await life.run()
    gate = Gate(life.inside.hypervisor.press_power_button)
    monkeypatch.setattr(life.inside.hypervisor, "press_power_button", gate)
    stopping = begin(life.power.shutdown(life.work, force=False, wait=True))
    await gate.reached.wait()
    await life.power.kill(life.work)
    gate.opened.set()
    await soon(stopping)
    assert life.told == ["work domain-pre-shutdown force=False", *ENDED]
    await life.is_gone()


async def test_a_shutdown_of_a_vm_that_still_starts(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waited for the end can do the next thing at once."""
    starting = begin(life.power.start(life.work, StartRequest(wait=True)))
    await until(lambda: life.told[-1:] == RESUMED[-1:])
    gate = Gate(life.inside.agents.stop)
    monkeypatch.setattr(life.inside.agents, "stop", gate)
    stopping = begin(life.power.shutdown(life.work, force=False, wait=True))
    await gate.reached.wait()
    await asyncio.sleep(0.02)
    assert not stopping.done()
    gate.opened.set()
    await soon(stopping)
    await life.power.start(life.work, QUIETLY)
    with pytest.raises(StartError, match="stopped by itself"):
        await starting


async def test_who_waited_for_an_end_can_start_at_once(life: Life) -> None:
    await life.run()
    await life.power.kill(life.work)
    await life.run()
    await life.power.shutdown(life.work, force=False, wait=True)
    await life.run()


# -- what nobody asked for


SETTLED = ["settled root", "settled private", "settled volatile"]


@pytest.fixture
def settled(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the settling of a volume told as well."""
    stop = life.inside.pool.stop

    async def note_stop(volume: Volume) -> None:
        await stop(volume)
        life.told.append(f"settled {volume.vid.split('/')[1]}")

    monkeypatch.setattr(life.inside.pool, "stop", note_stop)


@pytest.mark.usefixtures("settled")
async def test_a_vm_that_ends_by_itself(life: Life) -> None:
    await life.run()
    life.hear(DomainState.ABSENT)
    assert (life.told, life.work.power_state) == (["work domain-stopped"], "Halted")
    await life.settle()
    assert life.told == ["work domain-stopped", *SETTLED, "work domain-shutdown"]
    await life.is_gone()


@pytest.mark.usefixtures("settled")
async def test_an_end_that_is_told_twice_is_one_end(life: Life) -> None:
    await life.run()
    life.hear(DomainState.ABSENT)
    life.hear(DomainState.ABSENT)
    await life.settle()
    life.hear(DomainState.ABSENT)
    await life.settle()
    assert life.told == ["work domain-stopped", *SETTLED, "work domain-shutdown"]


@pytest.mark.usefixtures("settled")
async def test_a_vm_that_runs_again_before_it_was_cleaned_up(life: Life) -> None:
    """Its volumes are in use: what is to be settled is settled after its next end."""
    await life.run()
    life.hear(DomainState.ABSENT)
    life.hear(DomainState.RUNNING)
    await life.settle()
    assert life.told == ["work domain-stopped", "work domain-start start_guid="]
    assert (life.work.power_state, life.inside.agents.running) == ("Running", {life.work.uuid})
    life.told.clear()
    await life.power.kill(life.work)
    assert life.told == ["work domain-stopped", *SETTLED, "work domain-shutdown"]
    await life.is_gone()


async def test_what_served_a_vm_ends_with_it(life: Life) -> None:
    channel = Path(life.inside.paths.channel_socket(life.work.uuid))
    await life.run()
    channel.touch()
    assert life.inside.agents.running == {life.work.uuid}
    life.hear(DomainState.ABSENT)
    await life.is_gone()
    assert not channel.exists()


async def test_volumes_that_cannot_be_settled_hold_up_nothing(
    life: Life, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await life.run()
    with monkeypatch.context() as patch:
        patch.setattr(life.inside.pool, "stop", failing(StorageError("no such disk")))
        life.hear(DomainState.ABSENT)
        await life.settle()
    assert life.told == ENDED
    assert caplog.text.count("work: no such disk") == 3


async def test_a_dying_vm(life: Life) -> None:
    await life.run()
    life.hear(DomainState.DYING)
    assert (life.told, life.work.power_state) == ([], "Dying")
    life.hear(DomainState.ABSENT)
    await life.settle()
    assert life.told == ENDED


async def test_a_vm_that_is_started_behind_our_back(life: Life) -> None:
    life.hear(DomainState.RUNNING)
    life.hear(DomainState.RUNNING)
    assert life.work.power_state == "Running"
    await life.settle()
    assert life.told == ["work domain-start start_guid="]
    assert life.inside.agents.running == {life.work.uuid}
    assert life.inside.machines.xid(life.work.uuid) == 42
    await life.power.kill(life.work)
    assert life.told == ["work domain-start start_guid=", *ENDED]
    await life.is_gone()
    life.told.clear()
    life.hear(DomainState.RUNNING)
    await life.settle()
    assert life.told == ["work domain-start start_guid="]


async def test_a_vm_that_is_created_paused_behind_our_back(life: Life) -> None:
    life.hear(DomainState.PAUSED)
    await life.settle()
    assert (life.told, life.work.power_state) == (["work domain-start start_guid=", "work domain-paused"], "Paused")
    life.hear(DomainState.RUNNING)
    assert life.told[2:] == ["work domain-unpaused"]


async def test_news_that_come_at_once_are_told_in_their_order(life: Life) -> None:
    """The news of a start by others are these two, and they can come in the same moment."""
    life.hear(DomainState.PAUSED)
    life.hear(DomainState.RUNNING)
    await life.settle()
    assert life.told == ["work domain-start start_guid=", "work domain-paused", "work domain-unpaused"]
    life.told.clear()
    life.hear(DomainState.ABSENT)
    life.hear(DomainState.RUNNING)
    life.hear(DomainState.ABSENT)
    await life.settle()
    start = "work domain-start start_guid="
    assert [line for line in life.told if line != ENDED[1]] == [ENDED[0], start, ENDED[0]]
    assert life.told[-1] == ENDED[1]
    await life.is_gone()


async def test_a_vm_that_ends_while_it_is_taken_over(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the hypervisor listed a moment ago is not true any more."""
    domains = life.inside.hypervisor.domains

    async def list_and_end() -> list[DomainInfo]:
        found = await domains()
        if found:
            life.hear(DomainState.ABSENT)
        return found

    monkeypatch.setattr(life.inside.hypervisor, "domains", list_and_end)
    life.hear(DomainState.RUNNING)
    await life.settle()
    assert life.told == ["work domain-start start_guid=", *ENDED]
    await life.is_gone()


async def test_a_vm_that_ends_while_its_agent_is_taken_over(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(life.inside.agents.adopt)
    monkeypatch.setattr(life.inside.agents, "adopt", gate)
    life.hear(DomainState.RUNNING)
    await gate.reached.wait()
    life.hear(DomainState.ABSENT)
    await asyncio.sleep(0.02)
    gate.opened.set()
    await life.is_gone()
    assert life.told == ["work domain-start start_guid=", *ENDED]


async def test_a_hypervisor_that_cannot_list_what_it_just_told_of(
    life: Life, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(life.inside.hypervisor, "domains", failing(HypervisorError("no list")))
        life.hear(DomainState.RUNNING)
        await life.settle()
    assert (life.told, life.work.power_state) == (["work domain-start start_guid="], "Running")
    assert "work: no list" in caplog.text
    await life.power.kill(life.work)
    await life.is_gone()


async def test_domains_that_nobody_knows(life: Life) -> None:
    stranger = str(uuid.uuid4())
    for state in (DomainState.PAUSED, DomainState.RUNNING, DomainState.STALLED, DomainState.ABSENT):
        life.inside.hypervisor._listener(stranger, state)
    life.inside.hypervisor._listener(life.inside.registry.dom0.uuid, DomainState.RUNNING)
    life.inside.hypervisor._listener(life.inside.registry.dom0.uuid, DomainState.ABSENT)
    await life.settle()
    assert life.told == []
    await life.is_gone()


# -- disposables


async def make_disposable(life: Life, *, auto_cleanup: bool) -> LocalVM:
    life.inside.inventory.editor.set_property(life.work, "template_for_dispvms", "True")
    wanted = NewVM("DispVM", "disp1", "", life.work)
    await life.inside.inventory.population.create(wanted, created_by="dom0")
    life.inside.inventory.editor.set_property(life.vm("disp1"), "auto_cleanup", str(auto_cleanup))
    life.told.clear()
    return life.vm("disp1")


REMOVED = ["- domain-pre-delete vm=disp1", "- domain-delete vm=disp1", "disp1 domain-remove-from-disk"]


async def test_a_disposable_is_removed_after_its_end(life: Life) -> None:
    vm = await make_disposable(life, auto_cleanup=True)
    await life.run(vm)
    await life.power.shutdown(vm, force=False, wait=True)
    await life.settle()
    assert life.told == [
        "disp1 domain-pre-shutdown force=False",
        "disp1 domain-stopped",
        "disp1 domain-shutdown",
        *REMOVED,
    ]
    assert life.inside.registry.by_name("disp1") is None
    assert life.inside.reloaded().by_name("disp1") is None
    await life.is_gone()


async def test_a_disposable_that_ends_in_the_last_moment_of_its_start(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = await make_disposable(life, auto_cleanup=True)

    async def end(_uuid: str) -> None:
        life.hear(DomainState.ABSENT, vm)

    monkeypatch.setattr(life.inside.hypervisor, "resume", end)
    await life.power.start(vm, QUIETLY)
    await life.settle()
    assert life.told[-5:] == ["disp1 domain-stopped", "disp1 domain-shutdown", *REMOVED]
    await life.is_gone()


@pytest.mark.parametrize(("part", "method", "is_spawned"), [("pool", "start", False), ("hypervisor", "resume", True)])
async def test_a_disposable_whose_start_fails_is_removed(
    life: Life,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    part: str,
    method: str,
    *,
    is_spawned: bool,
) -> None:
    vm = await make_disposable(life, auto_cleanup=True)
    with monkeypatch.context() as patch:
        patch.setattr(getattr(life.inside, part), method, failing(HypervisorError("not now")))
        with pytest.raises(CrannogError, match="not now"):
            await life.power.start(vm, QUIETLY)
        await life.settle()
    ended = ["disp1 domain-stopped", "disp1 domain-shutdown"]
    assert [line for line in life.told if line in ended] == (ended if is_spawned else [])
    assert life.told[-4].startswith("disp1 domain-start-failed reason=")
    assert life.told[-3:] == REMOVED
    assert life.inside.registry.by_name("disp1") is None
    assert life.inside.reloaded().by_name("disp1") is None
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    await life.is_gone()


async def test_a_disposable_that_is_killed_while_it_starts_is_removed(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = await make_disposable(life, auto_cleanup=True)
    gate = Gate(life.inside.hypervisor.create_paused)
    monkeypatch.setattr(life.inside.hypervisor, "create_paused", gate)
    starting = begin(life.power.start(vm, QUIETLY))
    await gate.reached.wait()
    await soon(life.power.kill(vm))
    with pytest.raises(StartError, match="disp1 was killed while it started"):
        await starting
    await life.settle()
    assert life.told[-3:] == REMOVED
    await life.is_gone()


@pytest.mark.parametrize("name", ["disp1", "work"])
async def test_other_vms_stay_when_their_start_fails(life: Life, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    await make_disposable(life, auto_cleanup=False)
    with monkeypatch.context() as patch:
        patch.setattr(life.inside.hypervisor, "resume", failing(HypervisorError("not now")))
        with pytest.raises(StartError, match="not now"):
            await life.power.start(life.vm(name), QUIETLY)
        await life.settle()
    assert life.told[-1].startswith(f"{name} domain-start-failed reason=")
    assert life.vm(name).power_state == "Halted"


async def test_other_vms_stay(life: Life) -> None:
    vm = await make_disposable(life, auto_cleanup=False)
    await life.run(vm)
    await life.power.kill(vm)
    await life.settle()
    assert life.told == ["disp1 domain-stopped", "disp1 domain-shutdown"]


async def test_a_disposable_that_cannot_be_removed_is_logged(
    life: Life, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    vm = await make_disposable(life, auto_cleanup=True)
    await life.run(vm)
    with monkeypatch.context() as patch:
        patch.setattr(life.inside.inventory.population, "remove", failing(StorageError("no space")))
        await life.power.kill(vm)
        await life.settle()
    assert "disp1: no space" in caplog.text
    assert vm.power_state == "Halted"


# -- what a former daemon left


async def adopt(life: Life) -> None:
    await soon(Adoption(life.inside.lifecycle).adopt())


async def test_a_vm_that_ran_on_is_adopted_and_not_told_as_started(life: Life) -> None:
    life.inside.hypervisor.domain_states[life.work.uuid] = DomainInfo(life.work.uuid, "work", DomainState.RUNNING, 7)
    await adopt(life)
    assert (life.told, life.work.power_state) == ([], "Running")
    assert (life.inside.agents.running, life.inside.machines.xid(life.work.uuid)) == ({life.work.uuid}, 7)
    life.hear(DomainState.ABSENT)
    await until(lambda: life.told == ENDED)
    assert life.inside.agents.running == set()


@pytest.mark.usefixtures("settled")
async def test_a_start_that_was_not_finished_is_ended_and_settled_once(life: Life) -> None:
    life.inside.hypervisor.domain_states[life.work.uuid] = DomainInfo(life.work.uuid, "work", DomainState.PAUSED, 7)
    life.inside.lifecycle.world.mark_start(life.work.uuid)
    await adopt(life)
    await life.settle()
    assert not life.inside.lifecycle.world.is_marked(life.work.uuid)
    assert [line for line in life.told if line.startswith("work")] == ENDED
    assert life.told.count("settled root") == 2  # the template's and its own
    await life.is_gone()


@pytest.mark.parametrize("state", [DomainState.PAUSED, DomainState.SUSPENDED])
async def test_a_vm_that_its_user_paused_is_adopted_as_it_is(life: Life, state: DomainState) -> None:
    life.inside.hypervisor.domain_states[life.work.uuid] = DomainInfo(life.work.uuid, "work", state, 7)
    await adopt(life)
    assert (life.told, life.work.power_state) == ([], state.value.capitalize())
    await life.power.resume(life.work)
    assert life.work.power_state == "Running"


async def test_a_mark_on_a_vm_that_runs_is_old(life: Life) -> None:
    """The daemon was killed between letting it run and taking the mark away."""
    world = life.inside.lifecycle.world
    world.mark_start(life.work.uuid)
    life.inside.hypervisor.domain_states[life.work.uuid] = DomainInfo(life.work.uuid, "work", DomainState.RUNNING, 7)
    await adopt(life)
    assert (life.work.power_state, world.is_marked(life.work.uuid)) == ("Running", False)


async def test_marks_go_with_the_start(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    world = life.inside.lifecycle.world
    gate = Gate(life.inside.hypervisor.resume)
    monkeypatch.setattr(life.inside.hypervisor, "resume", gate)
    starting = begin(life.power.start(life.work, QUIETLY))
    await gate.reached.wait()
    assert world.is_marked(life.work.uuid)
    gate.opened.set()
    await soon(starting)
    assert not world.is_marked(life.work.uuid)
    await life.power.kill(life.work)
    monkeypatch.setattr(life.inside.hypervisor, "resume", failing(HypervisorError("no")))
    with pytest.raises(StartError):
        await life.power.start(life.work, QUIETLY)
    assert not world.is_marked(life.work.uuid)


async def test_a_domain_of_nobody_is_ended(life: Life) -> None:
    stranger = str(uuid.uuid4())
    life.inside.hypervisor.domain_states[stranger] = DomainInfo(stranger, "stranger", DomainState.RUNNING, 7)
    await adopt(life)
    await life.settle()
    assert (life.told, life.inside.hypervisor.domain_states) == ([], {})


async def test_a_disposable_that_ended_meanwhile_is_removed(life: Life, caplog: pytest.LogCaptureFixture) -> None:
    await make_disposable(life, auto_cleanup=True)
    await adopt(life)
    await life.settle()
    assert life.told == REMOVED
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    await life.is_gone()


async def test_a_disposable_whose_start_was_not_finished_is_removed_once(
    life: Life, caplog: pytest.LogCaptureFixture
) -> None:
    vm = await make_disposable(life, auto_cleanup=True)
    life.inside.hypervisor.domain_states[vm.uuid] = DomainInfo(vm.uuid, "disp1", DomainState.PAUSED, 7)
    life.inside.lifecycle.world.mark_start(vm.uuid)
    await adopt(life)
    await life.settle()
    assert life.told == ["disp1 domain-stopped", "disp1 domain-shutdown", *REMOVED]
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    await life.is_gone()
