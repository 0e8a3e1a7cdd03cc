"""What is told of VMs that start, pause and end, in every way in which they can; and that nothing is left of them."""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from crannog.core.announcement import AgentState, AgentStatus, Announcement
from crannog.core.events import Event
from crannog.core.startup import StartRequest
from crannog.core.vms import LocalVM
from crannog.core.volumes import Volume
from crannog.daemon import steps as steps_module
from crannog.daemon.adoption import Adoption
from crannog.editing.population import NewVM
from crannog.errors import (
    AgentTimeoutError,
    CrannogError,
    HypervisorError,
    InUseError,
    RpcError,
    ShutdownTimeoutError,
    StartError,
    StateError,
    StorageError,
    VMNotHaltedError,
    VMNotPausedError,
    VMNotRunningError,
    VMNotSuspendedError,
)
from tests.fakes import DomainInfo, DomainState, Inside, build_inside, template_and_app
from tests.unit.api_world import until

READY = AgentStatus(AgentState.READY, Announcement("1", "Linux", qrexec=True, gui=False, default_user=""))
SPAWNED = [
    "work domain-pre-start start_guid=GUID mem_required=419430400",
    "work domain-pre-spawn start_guid=GUID",
    "work domain-spawn start_guid=GUID",
]
RESUMED = ["work domain-pre-unpaused", "work domain-unpaused"]
STARTED = [*SPAWNED, *RESUMED, "work domain-start start_guid=GUID"]
ENDED = ["work domain-stopped", "work domain-shutdown"]
QUIETLY = StartRequest(wait=False)


@dataclass
class Life:
    """A daemon's inside, and what it told."""

    inside: Inside
    told: list[str] = field(default_factory=list)
    guids: list[str] = field(default_factory=list)
    problems: list[dict[str, Any]] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    def note(self, event: Event) -> None:
        words = [event.subject or "-", event.name]
        for key, value in event.arguments.items():
            if key == "start_guid" and value:
                self.guids.append(value)
            words.append(f"{key}={'GUID' if key == 'start_guid' and value else value}")
        self.told.append(" ".join(words))

    @property
    def work(self) -> LocalVM:
        return self.vm("work")

    @property
    def power(self) -> Any:  # noqa: ANN401 - its parts are given bad arguments as well
        return self.inside.inventory.power

    @property
    def news(self) -> Any:  # noqa: ANN401
        return self.inside.lifecycle.news

    def vm(self, name: str) -> LocalVM:
        vm = self.inside.registry.find_vm(name)
        assert isinstance(vm, LocalVM)
        return vm

    def all_files(self) -> list[Path]:
        return sorted(Path(self.inside.pool.folder).rglob("*"))

    def hear(self, state: DomainState, vm: LocalVM | None = None) -> None:
        """Have the hypervisor tell of a VM's domain what nobody asked it for."""
        chosen = vm or self.work
        domains = self.inside.hypervisor.domain_states
        if state is DomainState.ABSENT:
            domains.pop(chosen.uuid, None)
        else:
            domains[chosen.uuid] = DomainInfo(chosen.uuid, chosen.name, state, 42)
        self.inside.hypervisor._listener(chosen.uuid, state)

    async def run(self, vm: LocalVM | None = None) -> None:
        """Start a VM, and forget what was told of it."""
        await self.power.start(vm or self.work, QUIETLY)
        self.told.clear()

    async def settle(self) -> None:
        """Return when all that goes on by itself is done."""
        await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})
        await asyncio.sleep(0)  # what is called back when a task is done

    async def is_gone(self) -> None:
        """Check that nothing is left of any VM but what was there before."""
        await self.settle()
        inside = self.inside
        assert {vm.power_state for vm in inside.registry.local_vms()} == {"Halted"}
        assert (inside.hypervisor.domain_states, inside.agents.running) == ({}, set())
        assert (inside.machines.active(), inside.lifecycle.steps.starting) == (frozenset(), {})
        assert (inside.lifecycle._starts, inside.lifecycle._shutdowns, self.news._cleanups) == ({}, {}, {})
        assert (self.news.ours, self.news._chores, inside.machines._waiting) == (set(), set(), {})
        assert self.all_files() == self.files
        assert self.problems == []


@pytest.fixture
async def life(tmp_path: Path) -> AsyncIterator[Life]:
    """Return a daemon's inside with a template and an AppVM that could start."""
    inside = build_inside(tmp_path)
    for vm in template_and_app(inside.registry):
        await inside.pool.create(tuple(vm.volumes.values()))
    life = Life(inside)
    life.files = life.all_files()
    inside.inventory.editor.listen(life.note)
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: life.problems.append(context))
    yield life
    assert life.problems == []


def failing(error: Exception) -> Callable[..., Awaitable[Any]]:
    async def fail(*_arguments: object) -> None:
        raise error

    return fail


class Gate:
    """Takes the place of a call: says that it was reached, and lets it happen when it is opened."""

    def __init__(self, call: Callable[..., Awaitable[Any]]) -> None:
        self.call = call
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()

    async def __call__(self, *arguments: object) -> Any:  # noqa: ANN401
        self.reached.set()
        await self.opened.wait()
        return await self.call(*arguments)


def begin(work: Awaitable[Any]) -> "asyncio.Future[Any]":
    return asyncio.ensure_future(work)


async def soon(work: Awaitable[Any]) -> Any:  # noqa: ANN401
    return await asyncio.wait_for(work, 20)


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


async def test_the_state_is_transient_until_the_start_is_told(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
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


async def test_a_kill_during_the_undoing_of_a_start_waits_for_it(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    with pytest.raises(StartError, match="no|could not be let run"):
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


async def test_a_kill_of_a_running_vm_that_somebody_tries_to_start(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
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
async def test_wrong_states(
    life: Life, state: DomainState | None, method: str, error: type[CrannogError]
) -> None:
    if state:
        await life.run()
        life.hear(state)
    life.told.clear()
    with pytest.raises(error):
        await getattr(life.power, method)(life.work)
    assert life.told == []


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
    await life.power.shutdown(life.work, force=True, wait=False)
    assert (life.told, life.work.power_state) == (["work domain-pre-shutdown force=True"], "Halting")
    gate.opened.set()
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
    with pytest.raises(InUseError, match="debian was not shut down: work get") as caught:
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
    try:
        await soon(life.power.shutdown(life.work, force=False, wait=wait))
    except HypervisorError as error:
        assert str(error) == "no button"
    else:
        assert not wait
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
    for end in (
        lambda: life.power.kill(life.work),
        lambda: life.power.shutdown(life.work, force=False, wait=True),
    ):
        await life.run()
        await end()
        assert life.work.power_state == "Halted"


# -- what nobody asked for


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
    assert life.told == ["work domain-stopped", "settled root", "settled private", "work domain-shutdown"]
    await life.is_gone()


@pytest.mark.usefixtures("settled")
async def test_an_end_that_is_told_twice_is_one_end(life: Life) -> None:
    await life.run()
    life.hear(DomainState.ABSENT)
    life.hear(DomainState.ABSENT)
    await life.settle()
    life.hear(DomainState.ABSENT)
    await life.settle()
    assert life.told == ["work domain-stopped", "settled root", "settled private", "work domain-shutdown"]


async def test_volumes_that_cannot_be_settled_hold_up_nothing(
    life: Life, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await life.run()
    with monkeypatch.context() as patch:
        patch.setattr(life.inside.pool, "stop", failing(StorageError("no such disk")))
        life.hear(DomainState.ABSENT)
        await life.settle()
    assert life.told == ENDED
    assert caplog.text.count("work: no such disk") == 2


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
    """libvirt's news of a start by others are these two, and they can come in the same moment."""
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
    life.inside.hypervisor.domain_states[life.work.uuid] = DomainInfo(
        life.work.uuid, "work", DomainState.RUNNING, 7
    )
    await adopt(life)
    assert (life.told, life.work.power_state) == ([], "Running")
    assert (life.inside.agents.running, life.inside.machines.xid(life.work.uuid)) == ({life.work.uuid}, 7)
    life.hear(DomainState.ABSENT)
    await until(lambda: life.told == ENDED)
    assert life.inside.agents.running == set()


@pytest.mark.usefixtures("settled")
async def test_a_start_that_was_not_finished_is_ended_and_settled_once(life: Life) -> None:
    life.inside.hypervisor.domain_states[life.work.uuid] = DomainInfo(life.work.uuid, "work", DomainState.PAUSED, 7)
    await adopt(life)
    await life.settle()
    assert [line for line in life.told if line.startswith("work")] == ENDED
    assert life.told.count("settled root") == 2  # the template's and its own
    await life.is_gone()


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
    await adopt(life)
    await life.settle()
    assert life.told == ["disp1 domain-stopped", "disp1 domain-shutdown", *REMOVED]
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    await life.is_gone()


async def test_the_looks_after_an_adoption_outlive_a_failure(
    life: Life, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """libvirt lists a domain that is not there any more, fails once, and then says the truth."""
    monkeypatch.setattr("crannog.daemon.adoption.ADOPTION_CHECKS", (0.01, 0.01, 0.01))
    info = DomainInfo(life.work.uuid, "work", DomainState.RUNNING, 7)
    answers: list[list[DomainInfo] | HypervisorError] = [[info], HypervisorError("busy"), [info], []]

    async def answer() -> list[DomainInfo]:
        found = answers.pop(0)
        if isinstance(found, HypervisorError):
            raise found
        return found

    monkeypatch.setattr(life.inside.hypervisor, "domains", answer)
    await adopt(life)
    await life.settle()
    assert life.told == ENDED
    assert "busy" in caplog.text
    await life.is_gone()
