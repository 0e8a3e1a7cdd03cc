"""Memory that is promised while VMs start, run and end; what the kernel tells of it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from crannog.core.memory import HOST_MIB, PROCESS_MIB, TRANSLATION_MIB
from crannog.core.startup import StartRequest
from crannog.core.vms import LocalVM
from crannog.daemon.adoption import Adoption
from crannog.errors import MemoryRefusedError, StartError
from crannog.hostfacts import HostMemory, read_boot_id
from tests.fakes import DomainInfo, DomainState
from tests.unit.api_world import until
from tests.unit.life_world import QUIETLY, SPAWNED, Gate, Life, begin, living, soon

NEED = 400 + PROCESS_MIB + 1 + TRANSLATION_MIB
"""What a VM with the default memory needs on the stand-in of a host, in MiB."""


@pytest.fixture
async def life() -> AsyncIterator[Life]:
    async with living() as life:
        yield life


def room_for(life: Life, vms: float) -> None:
    life.inside.host_memory.free = HOST_MIB + int(vms * NEED)


# -- starts


async def test_a_vm_that_does_not_fit_is_refused_and_nothing_is_left(life: Life) -> None:
    room_for(life, 0.9)
    with pytest.raises(MemoryRefusedError, match=r"^work needs 400 MiB and 189 MiB for QEMU, but 530 MiB are free:"):
        await life.power.start(life.work, QUIETLY)
    assert life.told[0] == SPAWNED[0]
    assert life.told[1].startswith("work domain-start-failed reason=work needs 400 MiB")
    assert len(life.told) == 2
    assert life.inside.hypervisor.specs == []
    await life.is_gone()
    room_for(life, 1)
    await life.power.start(life.work, QUIETLY)


async def test_who_does_not_end_is_given_up_once(life: Life) -> None:
    (other,) = await life.add("other")
    room_for(life, 1.5)
    await life.power.start(other, QUIETLY)
    asked = list[str]()

    async def give_up(uuid: str) -> None:
        asked.append(uuid)

    ledger = life.inside.lifecycle.ledger
    ledger.spare, ledger.give_up = lambda _newcomer: [other.uuid], give_up
    with pytest.raises(MemoryRefusedError, match="other holds"):
        await soon(life.power.start(life.work, QUIETLY))
    assert asked == [other.uuid]


async def test_two_starts_cannot_promise_the_same_memory(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither has a domain yet when the second asks."""
    (other,) = await life.add("other")
    room_for(life, 1.5)
    gate = Gate(life.inside.hypervisor.create_paused)
    monkeypatch.setattr(life.inside.hypervisor, "create_paused", gate)
    first = begin(life.power.start(life.work, QUIETLY))
    await gate.reached.wait()
    with pytest.raises(MemoryRefusedError, match=f"are free: work holds {NEED} MiB; shut one down"):
        await life.power.start(other, QUIETLY)
    gate.opened.set()
    await soon(first)


async def test_of_many_starts_at_once_as_many_succeed_as_fit(life: Life) -> None:
    vms = await life.add(*(f"vm{number}" for number in range(6)))
    for vm in vms:
        vm.set("netvm", None)
    room_for(life, 3.5)
    ends = await asyncio.gather(*(life.power.start(vm, QUIETLY) for vm in vms), return_exceptions=True)
    assert [type(end) for end in ends].count(MemoryRefusedError) == 3
    assert len(life.inside.hypervisor.domain_states) == 3


async def test_an_idle_guest_holds_what_it_was_promised(life: Life) -> None:
    """MemAvailable stays as it is, as it has touched nothing."""
    (other,) = await life.add("other")
    room_for(life, 1.5)
    await life.run()
    with pytest.raises(MemoryRefusedError, match="work holds"):
        await life.power.start(other, QUIETLY)
    await life.power.pause(life.work)
    with pytest.raises(MemoryRefusedError, match="work holds"):
        await life.power.start(other, QUIETLY)


async def test_what_a_guest_has_touched_is_not_counted_twice(life: Life) -> None:
    (other,) = await life.add("other")
    await life.run()
    life.inside.host_memory.used[life.work.uuid] = NEED
    room_for(life, 1)
    await life.power.start(other, QUIETLY)


@pytest.mark.parametrize("end", ["kill", "shutdown", "by itself", "failure"])
async def test_a_promise_ends_with_the_domain(life: Life, end: str) -> None:
    (other,) = await life.add("other")
    room_for(life, 1)
    if end == "failure":
        life.inside.hypervisor.failing = {"resume"}
        with pytest.raises(StartError):
            await life.power.start(life.work, QUIETLY)
        life.inside.hypervisor.failing = set()
    else:
        await life.run()
        if end == "kill":
            await life.power.kill(life.work)
        elif end == "shutdown":
            await life.power.shutdown(life.work, force=False, wait=True)
        else:
            life.hear(DomainState.ABSENT)
    await life.power.start(other, QUIETLY)
    await life.power.kill(other)
    await life.is_gone()


@pytest.mark.parametrize("call", ["available", "resident"])
async def test_a_kill_while_memory_is_looked_at(life: Life, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    gate = Gate(asyncio.to_thread)

    async def to_thread(function: object, *arguments: object) -> object:
        return await gate(function, *arguments) if getattr(function, "__name__", "") == call else function(*arguments)  # type: ignore[operator]

    with monkeypatch.context() as patch:
        patch.setattr("crannog.daemon.memory.asyncio.to_thread", to_thread)
        starting = begin(life.power.start(life.work, QUIETLY))
        await gate.reached.wait()
        await soon(life.power.kill(life.work))
        with pytest.raises(StartError, match="was killed while it started"):
            await starting
    await life.is_gone()
    await life.power.start(life.work, QUIETLY)


async def test_settings_that_change_while_a_vm_runs_count_from_its_next_start(life: Life) -> None:
    (other,) = await life.add("other")
    await life.run()
    life.work.values["memory"] = 40000
    room_for(life, 2)
    await life.power.start(other, QUIETLY)


async def test_a_host_that_does_not_tell_lets_everybody_in(life: Life, caplog: pytest.LogCaptureFixture) -> None:
    (other,) = await life.add("other")
    life.inside.host_memory.free = 0
    for vm in (life.work, other):
        await life.power.start(vm, QUIETLY)
    assert caplog.text.count("does not tell how much memory is free") == 1
    await life.power.kill(other)
    room_for(life, 0.5)
    with pytest.raises(MemoryRefusedError, match="work holds"):
        await life.power.start(other, QUIETLY)


async def test_adopted_vms_are_counted(life: Life) -> None:
    """A daemon that starts again promised nothing to those that run, and yet they hold it."""
    vms = await life.add("big")
    vms[0].set("memory", 2000)
    for vm in (life.work, vms[0]):
        life.inside.hypervisor.domain_states[vm.uuid] = DomainInfo(vm.uuid, vm.name, DomainState.RUNNING, 1)
    await Adoption(life.inside.lifecycle).adopt()
    debian = life.vm("debian")
    room_for(life, 5)
    with pytest.raises(MemoryRefusedError, match=f"are free: big holds 2192 MiB, work holds {NEED} MiB; shut one down"):
        await life.power.start(debian, QUIETLY)
    room_for(life, 6)
    await life.power.start(debian, QUIETLY)


async def test_a_vm_that_somebody_else_started_is_counted(life: Life) -> None:
    (other,) = await life.add("other")
    room_for(life, 1.5)
    life.hear(DomainState.RUNNING)
    await life.settle()
    with pytest.raises(MemoryRefusedError, match="work holds"):
        await life.power.start(other, QUIETLY)


async def test_a_dry_run_reserves_nothing(life: Life) -> None:
    room_for(life, 0)
    lines = [step.describe() for step in await life.power.plan(life.work, QUIETLY)]
    assert "reserve 400 MiB of memory, and 189 MiB for QEMU" in lines
    await life.is_gone()


# -- kills do not wait for the clean-up


class SlowEnd:
    """Takes the place of `destroy`: QEMU is gone at once, and the hypervisor is busy with it until it is let go on."""

    def __init__(self, life: Life) -> None:
        self.opened = asyncio.Event()
        self.is_over = False
        self._life = life

    async def __call__(self, uuid: str) -> None:
        vm = self._life.inside.registry.find_uuid(uuid)
        assert isinstance(vm, LocalVM)
        self._life.hear(DomainState.ABSENT, vm)
        await self.opened.wait()
        self.is_over = True


@pytest.fixture
def slow(life: Life, monkeypatch: pytest.MonkeyPatch) -> SlowEnd:
    slow = SlowEnd(life)
    monkeypatch.setattr(life.inside.hypervisor, "destroy", slow)
    life.inside.lifecycle.grace = 0.01
    return slow


async def test_a_kill_returns_when_the_domain_is_gone(life: Life, slow: SlowEnd) -> None:
    await life.run()
    before = asyncio.get_running_loop().time()
    await soon(life.power.kill(life.work))
    assert asyncio.get_running_loop().time() - before < 1
    assert (slow.is_over, life.work.power_state, life.told) == (False, "Halted", ["work domain-stopped"])
    slow.opened.set()
    await life.settle()
    assert life.told == ["work domain-stopped", "work domain-shutdown"]
    await life.is_gone()


async def test_a_kill_does_not_wait_for_slow_volumes(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    life.inside.lifecycle.grace = 0.01
    await life.run()
    gate = Gate(life.inside.pool.stop)
    monkeypatch.setattr(life.inside.pool, "stop", gate)
    await soon(life.power.kill(life.work))
    assert life.told == ["work domain-stopped"]
    gate.opened.set()
    await life.is_gone()


async def test_a_start_after_a_kill_waits_until_all_is_done(life: Life, slow: SlowEnd) -> None:
    """A command to end the old domain must not reach the new one."""
    await life.run()
    await soon(life.power.kill(life.work))
    starting = begin(life.power.start(life.work, QUIETLY))
    await asyncio.sleep(0.02)
    assert len(life.inside.hypervisor.specs) == 1
    slow.opened.set()
    await soon(starting)
    assert life.told[:3] == ["work domain-stopped", "work domain-shutdown", SPAWNED[0]]
    assert life.work.power_state == "Running"


async def test_a_removal_after_a_kill_waits_until_all_is_done(life: Life, slow: SlowEnd) -> None:
    await life.run()
    await soon(life.power.kill(life.work))
    removing = begin(life.inside.inventory.population.remove(life.work))
    await asyncio.sleep(0.02)
    assert life.inside.registry.by_name("work") is not None
    slow.opened.set()
    await soon(removing)
    assert life.inside.registry.by_name("work") is None
    told = life.told
    assert told.index("work domain-shutdown") < told.index("- domain-pre-delete vm=work")
    await life.settle()


async def test_a_start_that_waits_while_its_vm_is_removed(life: Life, slow: SlowEnd) -> None:
    await life.run()
    await soon(life.power.kill(life.work))
    removing = begin(life.inside.inventory.population.remove(life.work))
    await asyncio.sleep(0)
    starting = begin(life.power.start(life.work, QUIETLY))
    slow.opened.set()
    await soon(removing)
    with pytest.raises(Exception, match="work was not started: it has just been removed"):
        await soon(starting)
    assert life.inside.hypervisor.domain_states == {}


async def test_a_second_kill_of_a_vm_that_ends_finds_it_halted(life: Life, slow: SlowEnd) -> None:
    await life.run()
    await soon(life.power.kill(life.work))
    with pytest.raises(Exception, match="work is not running"):
        await life.power.kill(life.work)
    slow.opened.set()
    await life.is_gone()


async def test_a_start_waits_for_the_new_revision_of_its_template(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    """`qvm-kill debian; qvm-start work`: work starts from what was written in debian's last session."""
    life.inside.lifecycle.grace = 0.01
    await life.run(life.vm("debian"))
    gate = Gate(life.inside.pool.stop)
    monkeypatch.setattr(life.inside.pool, "stop", gate)
    await soon(life.power.kill(life.vm("debian")))
    starting = begin(life.power.start(life.work, QUIETLY))
    await asyncio.sleep(0.02)
    assert life.told == ["debian domain-stopped"]
    gate.opened.set()
    await soon(starting)
    assert life.told[1:3] == ["debian domain-shutdown", SPAWNED[0]]


async def test_a_start_that_waits_for_its_agent_is_killed_and_leaves_no_promise(life: Life) -> None:
    starting = begin(life.power.start(life.work, StartRequest(wait=True)))
    await until(lambda: life.work.uuid in life.inside.hypervisor.domain_states)
    await soon(life.power.kill(life.work))
    with pytest.raises(StartError):
        await starting
    await life.is_gone()


# -- what the kernel tells


def proc(folder: Path, meminfo: str, processes: dict[str, tuple[str, str]]) -> HostMemory:
    (folder / "meminfo").write_text(meminfo)
    for number, (command, statm) in processes.items():
        (folder / number).mkdir()
        (folder / number / "cmdline").write_bytes(command.replace(" ", "\0").encode())
        (folder / number / "statm").write_text(statm)
    return HostMemory(str(folder))


@pytest.mark.parametrize(
    ("text", "mib"),
    [
        ("MemTotal:  16000000 kB\nMemAvailable:    2048000 kB\n", 2000),
        ("MemTotal:  16000000 kB\nMemFree:    2048000 kB\n", 0),  # kernels before 3.14
        ("MemAvailable: much kB\n", 0),
        ("MemAvailable:\n", 0),
        ("", 0),
    ],
)
def test_what_is_available(tmp_path: Path, text: str, mib: int) -> None:
    assert proc(tmp_path, text, {}).available() == mib


def test_a_host_without_proc(tmp_path: Path) -> None:
    memory = HostMemory(str(tmp_path / "nowhere"))
    assert (memory.available(), memory.resident(frozenset({"a"}))) == (0, {})
    assert read_boot_id(str(tmp_path / "nowhere")) == ""


def test_what_vms_have_of_it(tmp_path: Path) -> None:
    memory = proc(
        tmp_path,
        "",
        {
            "1": ("init", "1 256"),
            "7": ("qemu -name x -uuid AAA -m 400", "99999 25600 1 1"),
            "8": ("qemu -uuid bbb", "no numbers"),
            "9": ("qemu -uuid", "1 256"),
            "10": ("qemu -uuid other", "1 256"),
            "self": ("qemu -uuid aaa", "1 999999"),
        },
    )
    (tmp_path / "11").mkdir()  # it has just ended
    assert memory.resident(frozenset({"aaa", "bbb", "ccc"})) == {"aaa": 100}


def test_this_host_tells() -> None:
    assert HostMemory().available() > 0
    assert len(read_boot_id()) == 36
