"""What is told of VMs that start and pause, in every way in which that can go wrong; nothing is left of a failure."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from crannog.core.events import Event
from crannog.core.startup import StartRequest
from crannog.daemon import steps as steps_module
from crannog.errors import (
    AgentTimeoutError,
    CrannogError,
    HypervisorError,
    RpcError,
    StartError,
    StateError,
    StorageError,
    VMNotHaltedError,
    VMNotPausedError,
    VMNotRunningError,
    VMNotSuspendedError,
)
from tests.fakes import DomainState
from tests.unit.api_world import until
from tests.unit.life_world import (
    ENDED,
    QUIETLY,
    READY,
    RESUMED,
    SPAWNED,
    STARTED,
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


# -- starts


async def test_a_start(life: Life) -> None:
    await life.power.start(life.work, QUIETLY)
    assert life.told == STARTED
    assert len(set(life.guids)) == 1
    assert str(uuid.UUID(life.guids[0])) == life.guids[0]
    assert life.work.power_state == "Running"
    await life.power.kill(life.work)
    assert life.told == STARTED + ENDED
    await life.is_gone()


async def test_each_start_has_a_number_of_its_own(life: Life) -> None:
    for _ in range(2):
        await life.run()
        await life.power.kill(life.work)
    assert len(set(life.guids)) == 2


async def test_the_state_is_transient_until_the_start_is_told(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[str] = []
    life.inside.inventory.editor.listen(lambda event: states.append(f"{event.name} {life.work.power_state}"))
    await life.power.start(life.work, QUIETLY)
    assert states == [
        "domain-pre-start Transient",
        "domain-pre-spawn Transient",
        "domain-spawn Transient",
        "domain-pre-unpaused Transient",
        "domain-unpaused Transient",
        "domain-start Running",
    ]
    states.clear()
    await life.power.kill(life.work)
    monkeypatch.setattr(life.inside.hypervisor, "failing", {"resume"})
    with pytest.raises(StartError):
        await life.power.start(life.work, QUIETLY)
    assert states[:2] == ["domain-stopped Halted", "domain-shutdown Halted"]
    assert states[-3:] == ["domain-stopped Halted", "domain-shutdown Halted", "domain-start-failed Halted"]


async def test_a_start_that_waits_for_the_agent(life: Life) -> None:
    starting = begin(life.power.start(life.work, StartRequest(wait=True)))
    await until(lambda: life.told[-1:] == RESUMED[-1:])
    await asyncio.sleep(0.02)
    assert (life.told, life.work.power_state) == (SPAWNED + RESUMED, "Transient")
    for listener in life.inside.agents.listeners:
        listener(life.work.uuid, READY)
    stages = await soon(starting)
    assert stages[-1][0] == "agent answers"
    assert [line for line in life.told if "feature" not in line] == STARTED


async def test_starting_what_is_there_already_tells_nothing(life: Life) -> None:
    await life.run()
    with pytest.raises(VMNotHaltedError, match="it is Running already"):
        await life.power.start(life.work, QUIETLY)
    await life.power.pause(life.work)
    life.told.clear()
    with pytest.raises(VMNotHaltedError, match="it is Paused already"):
        await life.power.start(life.work, QUIETLY)
    assert life.told == []
    assert life.inside.hypervisor.domain_states != {}


@pytest.mark.parametrize(
    ("part", "method", "error", "told"),
    [
        ("pool", "start", StorageError("no space"), SPAWNED[:1]),
        ("agents", "start", RpcError("no process"), SPAWNED[:1]),
        ("hypervisor", "create_paused", HypervisorError("no memory"), SPAWNED[:2]),
        ("hypervisor", "resume", HypervisorError("no processor"), [*SPAWNED, RESUMED[0], *ENDED]),
    ],
)
async def test_a_start_that_fails(
    life: Life, monkeypatch: pytest.MonkeyPatch, part: str, method: str, error: CrannogError, told: list[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(getattr(life.inside, part), method, failing(error))
        with pytest.raises(CrannogError) as caught:
            await life.power.start(life.work, QUIETLY)
    assert str(caught.value).startswith("work was not started: ")
    reason = str(caught.value).removeprefix("work was not started: ")
    assert str(error) in reason
    assert life.told == [*told, f"work domain-start-failed reason={reason}"]
    await life.is_gone()
    life.told.clear()
    await life.power.start(life.work, QUIETLY)
    assert life.told == STARTED


async def test_a_start_that_fails_by_an_error_of_our_own(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers must hear of its end: else they show the VM as one that starts, for ever."""
    with monkeypatch.context() as patch:
        patch.setattr(life.inside.agents, "start", failing(ZeroDivisionError("a bug")))
        with pytest.raises(ZeroDivisionError):
            await life.power.start(life.work, QUIETLY)
    assert life.told == [SPAWNED[0], "work domain-start-failed reason=crannogd failed; its log says where"]
    await life.is_gone()


async def test_the_channel_of_a_start_that_fails_is_taken_away(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """A QEMU that is killed leaves it, and the next one could not make its own."""
    channel = Path(life.inside.paths.channel_socket(life.work.uuid))
    channel.touch()
    monkeypatch.setattr(life.inside.hypervisor, "failing", {"resume"})
    with pytest.raises(StartError):
        await life.power.start(life.work, QUIETLY)
    assert not channel.exists()


async def test_an_agent_that_does_not_come(life: Life) -> None:
    life.work.values["qrexec_timeout"] = 1
    with pytest.raises(AgentTimeoutError, match="work was not started: its agent did not answer within 1 s"):
        await life.power.start(life.work, StartRequest(wait=True))
    assert life.told[:-1] == SPAWNED + RESUMED + ENDED
    assert life.told[-1].startswith("work domain-start-failed reason=its agent did not answer within 1 s")
    await life.is_gone()


async def test_a_vm_that_ends_while_its_agent_is_waited_for(life: Life) -> None:
    starting = begin(life.power.start(life.work, StartRequest(wait=True)))
    await until(lambda: life.told[-1:] == RESUMED[-1:])
    life.hear(DomainState.ABSENT)
    with pytest.raises(StartError, match="it stopped by itself before its agent answered"):
        await soon(starting)
    assert life.told[:-1] == SPAWNED + RESUMED + ENDED
    assert life.told[-1].startswith("work domain-start-failed reason=it stopped by itself before ")
    await life.is_gone()


async def test_a_vm_that_stalls_while_its_agent_is_waited_for(life: Life) -> None:
    life.work.values["qrexec_timeout"] = 1
    starting = begin(life.power.start(life.work, StartRequest(wait=True)))
    await until(lambda: life.told[-1:] == RESUMED[-1:])
    life.hear(DomainState.STALLED)
    with pytest.raises(StartError, match="QEMU paused it, as a disk could not be written"):
        await soon(starting)
    assert life.told[:-1] == [*SPAWNED, *RESUMED, "work domain-paused", *ENDED]
    await life.is_gone()


async def test_a_vm_that_ends_in_the_last_moment_of_its_start(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    resume = life.inside.hypervisor.resume

    async def resume_and_end(uuid_: str) -> None:
        await resume(uuid_)
        life.hear(DomainState.ABSENT)

    monkeypatch.setattr(life.inside.hypervisor, "resume", resume_and_end)
    await life.power.start(life.work, QUIETLY)
    await life.settle()
    assert life.told == STARTED + ENDED
    await life.is_gone()


async def test_a_vm_that_ends_as_its_start_is_told(life: Life) -> None:
    """The start is over for those who hear of it, but not for its caller."""

    def end(event: Event) -> None:
        if event.name == "domain-start":
            life.hear(DomainState.ABSENT)

    life.inside.inventory.editor.listen(end)
    await life.power.start(life.work, QUIETLY)
    await life.settle()
    assert life.told == STARTED + ENDED
    await life.is_gone()


@pytest.mark.parametrize(
    ("part", "method", "told"),
    [
        ("pool", "start", SPAWNED[:1]),
        ("agents", "start", SPAWNED[:1]),
        ("hypervisor", "capabilities", []),
        ("hypervisor", "create_paused", SPAWNED[:2]),
        ("hypervisor", "resume", [*SPAWNED, RESUMED[0], *ENDED]),
    ],
)
async def test_a_kill_during_each_step_of_a_start(
    life: Life, monkeypatch: pytest.MonkeyPatch, part: str, method: str, told: list[str]
) -> None:
    gate = Gate(getattr(getattr(life.inside, part), method))
    monkeypatch.setattr(getattr(life.inside, part), method, gate)
    starting = begin(life.power.start(life.work, QUIETLY))
    await gate.reached.wait()
    await soon(asyncio.gather(life.power.kill(life.work), life.power.kill(life.work)))
    with pytest.raises(StartError, match="work was killed while it started"):
        await starting
    assert life.told == [*told, *(["work domain-start-failed reason=it was killed"] if told else [])]
    await life.is_gone()


async def test_a_kill_during_the_undoing_of_a_start_waits_for_it(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(life.inside.agents.stop)
    monkeypatch.setattr(life.inside.agents, "stop", gate)
    monkeypatch.setattr(life.inside.hypervisor, "failing", {"resume"})
    starting = begin(life.power.start(life.work, QUIETLY))
    await gate.reached.wait()
    killing = begin(life.power.kill(life.work))
    await asyncio.sleep(0.02)
    assert (killing.done(), life.work.power_state) == (False, "Transient")
    gate.opened.set()
    await soon(killing)
    with pytest.raises(StartError, match="could not be let run"):
        await starting
    await life.is_gone()


async def test_a_kill_in_the_moment_in_which_a_start_is_done(life: Life) -> None:
    """A kill that comes when the VM just runs must end it, whoever's turn it is."""
    kills: list[asyncio.Future[None]] = []

    def kill(event: Event) -> None:
        if event.name == "domain-start":
            kills.append(begin(life.power.kill(life.work)))

    life.inside.inventory.editor.listen(kill)
    await life.power.start(life.work, QUIETLY)
    await soon(asyncio.gather(*kills))
    assert life.told == STARTED + ENDED
    await life.is_gone()


async def test_a_kill_of_a_running_vm_that_somebody_tries_to_start(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    await life.run()
    gate = Gate(life.inside.hypervisor.capabilities)
    monkeypatch.setattr(life.inside.hypervisor, "capabilities", gate)
    starting = begin(life.power.start(life.work, QUIETLY))
    await gate.reached.wait()
    await soon(life.power.kill(life.work))
    assert life.told == ENDED
    with pytest.raises(CrannogError):
        await starting
    await life.is_gone()


async def test_starts_are_undone_when_the_daemon_ends(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(life.inside.hypervisor.resume)
    monkeypatch.setattr(life.inside.hypervisor, "resume", gate)
    starting = begin(life.power.start(life.work, QUIETLY))
    await gate.reached.wait()
    await soon(life.inside.lifecycle.abandon_starts())
    with pytest.raises(StartError):
        await starting
    await life.is_gone()
    await life.inside.lifecycle.abandon_starts()


async def test_a_resume_whose_news_never_comes(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    async def say_nothing(_uuid: str) -> None:
        return

    monkeypatch.setattr(steps_module, "NEWS_TIMEOUT", 0.05)
    monkeypatch.setattr(life.inside.hypervisor, "resume", say_nothing)
    await soon(life.power.start(life.work, QUIETLY))
    assert life.told == [*SPAWNED, RESUMED[0], STARTED[-1]]


async def test_an_end_whose_news_never_comes(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    async def destroy_quietly(uuid_: str) -> None:
        life.inside.hypervisor.domain_states.pop(uuid_)

    monkeypatch.setattr(steps_module, "NEWS_TIMEOUT", 0.05)
    await life.run()
    monkeypatch.setattr(life.inside.hypervisor, "destroy", destroy_quietly)
    await soon(life.power.kill(life.work))
    assert life.told == ENDED
    life.hear(DomainState.ABSENT)  # here it comes after all
    await life.settle()
    assert life.told == ENDED
    await life.is_gone()


async def test_an_end_without_news_is_soon_seen(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a domain that is ended while it is created libvirt tells nothing; nobody waits for the news to be overdue."""

    async def destroy_quietly(uuid_: str) -> None:
        life.inside.hypervisor.domain_states.pop(uuid_)

    monkeypatch.setattr(steps_module, "NEWS_TIMEOUT", 3600)
    monkeypatch.setattr(steps_module, "LOOK_TIMEOUT", 0.05)
    await life.run()
    monkeypatch.setattr(life.inside.hypervisor, "destroy", destroy_quietly)
    await soon(life.inside.lifecycle.steps.end(life.work.uuid))
    assert not life.inside.machines.has_domain(life.work.uuid)
    await life.settle()
    assert life.told == ENDED


async def test_a_domain_that_cannot_be_ended(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    async def do_nothing(_uuid: str) -> None:
        return

    monkeypatch.setattr(steps_module, "NEWS_TIMEOUT", 0.05)
    await life.run()
    with monkeypatch.context() as patch:
        patch.setattr(life.inside.hypervisor, "destroy", do_nothing)
        with pytest.raises(HypervisorError, match="was ended but is still there"):
            await soon(life.power.kill(life.work))
    assert (life.told, life.work.power_state) == ([], "Running")
    await life.power.kill(life.work)
    await life.is_gone()


# -- pausing


async def test_pausing_and_going_on(life: Life) -> None:
    await life.run()
    await life.power.pause(life.work)
    assert life.work.power_state == "Paused"
    await life.power.unpause(life.work)
    assert life.work.power_state == "Running"
    assert life.told == ["work domain-pre-paused", "work domain-paused", *RESUMED]
    life.told.clear()
    await life.power.suspend(life.work)
    assert life.work.power_state in ("Paused", "Suspended")
    await life.power.resume(life.work)
    assert life.told == ["work domain-pre-paused", "work domain-paused", *RESUMED]


@pytest.mark.parametrize(
    ("state", "method", "error"),
    [
        (None, "pause", VMNotRunningError),
        (None, "unpause", VMNotPausedError),
        (None, "suspend", VMNotRunningError),
        (None, "resume", VMNotRunningError),
        (None, "kill", VMNotRunningError),
        (DomainState.RUNNING, "unpause", VMNotPausedError),
        (DomainState.RUNNING, "resume", VMNotSuspendedError),
        (DomainState.PAUSED, "pause", VMNotRunningError),
        (DomainState.PAUSED, "suspend", VMNotRunningError),
        (DomainState.SUSPENDED, "pause", VMNotRunningError),
        (DomainState.SUSPENDED, "unpause", VMNotPausedError),
        (DomainState.CRASHED, "pause", VMNotRunningError),
        (DomainState.CRASHED, "resume", VMNotSuspendedError),
    ],
)
async def test_wrong_states(life: Life, state: DomainState | None, method: str, error: type[CrannogError]) -> None:
    if state:
        await life.run()
        life.hear(state)
    life.told.clear()
    with pytest.raises(error):
        await getattr(life.power, method)(life.work)
    assert life.told == []


REFUSED = [("pause", "Running", "paused"), ("unpause", "Paused", "unpaused"), ("resume", "Paused", "resumed")]
"""What a VM in a state is asked, and what it was not when its domain refuses."""


@pytest.mark.parametrize(("method", "state", "what"), REFUSED)
async def test_a_vm_that_ends_while_it_is_asked(
    life: Life, monkeypatch: pytest.MonkeyPatch, method: str, state: str, what: str
) -> None:
    async def fail_and_end(_uuid: str) -> None:
        asyncio.get_running_loop().call_later(0.05, life.hear, DomainState.ABSENT)
        raise HypervisorError("no answer")

    await run_in(life, state)
    with monkeypatch.context() as patch:
        patch.setattr(life.inside.hypervisor, "pause" if method == "pause" else "resume", fail_and_end)
        with pytest.raises(VMNotRunningError, match=rf"^work was not {what}: it has just ended by itself$"):
            await soon(getattr(life.power, method)(life.work))
    await life.settle()
    assert life.told == [f"work domain-pre-{'paused' if method == 'pause' else 'unpaused'}", *ENDED]


@pytest.mark.parametrize(("method", "state", "what"), REFUSED)
async def test_what_a_domain_refuses(
    life: Life, monkeypatch: pytest.MonkeyPatch, method: str, state: str, what: str
) -> None:
    monkeypatch.setattr(steps_module, "LOOK_TIMEOUT", 0.05)
    await run_in(life, state)
    call = "pause" if method == "pause" else "resume"
    monkeypatch.setattr(life.inside.hypervisor, call, failing(HypervisorError("no answer")))
    with pytest.raises(HypervisorError, match=rf"^work was not {what}: no answer$"):
        await soon(getattr(life.power, method)(life.work))
    assert life.work.power_state == state


async def run_in(life: Life, state: str) -> None:
    """Have the VM run, paused or not, and forget what was told of that."""
    await life.run()
    if state == "Paused":
        await life.power.pause(life.work)
    life.told.clear()


async def test_a_vm_that_starts_or_halts_is_not_paused(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(life.inside.hypervisor.resume)
    monkeypatch.setattr(life.inside.hypervisor, "resume", gate)
    starting = begin(life.power.start(life.work, QUIETLY))
    await gate.reached.wait()
    for method, error in (("pause", VMNotRunningError), ("unpause", VMNotPausedError), ("resume", VMNotSuspendedError)):
        with pytest.raises(error):
            await getattr(life.power, method)(life.work)
    gate.opened.set()
    await soon(starting)
    gate = Gate(life.inside.hypervisor.press_power_button)
    monkeypatch.setattr(life.inside.hypervisor, "press_power_button", gate)
    stopping = begin(life.power.shutdown(life.work, force=False, wait=True))
    await gate.reached.wait()
    with pytest.raises(VMNotRunningError, match="cannot be paused: it is Halting"):
        await life.power.pause(life.work)
    gate.opened.set()
    await soon(stopping)
    await life.is_gone()


async def test_a_guest_that_sleeps_and_wakes_by_itself(life: Life) -> None:
    await life.run()
    life.hear(DomainState.SUSPENDED)
    assert life.work.power_state == "Suspended"
    life.hear(DomainState.RUNNING)
    assert life.told == ["work domain-paused", "work domain-unpaused", "work domain-resumed"]


async def test_a_vm_that_ends_while_it_is_to_go_on(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    async def end(_uuid: str) -> None:
        life.hear(DomainState.ABSENT)

    await life.run()
    await life.power.pause(life.work)
    life.told.clear()
    monkeypatch.setattr(life.inside.hypervisor, "resume", end)
    await soon(life.power.unpause(life.work))
    await life.settle()
    assert life.told == ["work domain-pre-unpaused", *ENDED]
    await life.is_gone()


async def test_a_stalled_vm(life: Life) -> None:
    await life.run()
    life.hear(DomainState.STALLED)
    life.hear(DomainState.STALLED)
    assert (life.told, life.work.power_state) == (["work domain-paused"], "Paused")
    life.hear(DomainState.RUNNING)
    assert life.told == ["work domain-paused", "work domain-unpaused"]
    life.hear(DomainState.STALLED)
    life.told.clear()
    with pytest.raises(StateError, match="a disk could not be written") as caught:
        await life.power.shutdown(life.work, force=True, wait=False)
    assert life.told == [
        "work domain-pre-shutdown force=True",
        f"work domain-shutdown-failed reason={caught.value}",
    ]
    life.told.clear()
    await life.power.kill(life.work)
    assert life.told == ENDED
    await life.is_gone()
