"""Statistics of running VMs: what is measured, how often, for whom; and their bytes on the socket."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from crannog.core.domain import DomainStats
from crannog.core.events import Event
from crannog.core.startup import StartRequest
from crannog.core.vms import LocalVM, QubeBase
from crannog.daemon.statistics import StatsFeed
from crannog.errors import HypervisorError
from tests.fakes import DomainInfo, DomainState, FakeHypervisor, new_registry, template_and_app
from tests.unit.api_world import World, ask, event, follow, open_descriptors, serving_world, until

SECOND = 10**9
Measured = list[DomainStats] | HypervisorError
STATS = b"admin.vm.Stats+ dom0 name %s\0"


class Feed:
    """A feed whose measurements, and their times, are what a test says."""

    def __init__(self) -> None:
        self.registry = new_registry()
        self.template, self.work = template_and_app(self.registry)
        self.registry.values["stats_interval"] = 0
        self.now = 100.0
        self.asked = 0
        self.answers: asyncio.Queue[Measured] = asyncio.Queue()
        self.told: list[Event] = []
        hypervisor = FakeHypervisor()
        hypervisor.statistics = self._measure  # type: ignore[method-assign]
        self.stats = StatsFeed(hypervisor, self.registry)

    async def _measure(self) -> list[DomainStats]:
        self.asked += 1
        answer = await self.answers.get()
        if isinstance(answer, HypervisorError):
            raise answer
        return answer

    async def look(self, *found: DomainStats, error: str = "") -> list[Event]:
        """Have one measurement made; return what was told after it."""
        self.told.clear()
        asked = self.asked
        self.answers.put_nowait(HypervisorError(error) if error else list(found))
        await until(lambda: self.asked > asked and self.answers.empty())
        return list(self.told)

    async def usage(self, seconds: float, cpu_time: float, *, vcpus: int = 1) -> str:
        """Measure `work` so many seconds after the last time; return the told percentage."""
        self.now += seconds
        (told,) = await self.look(self.of(self.work, cpu_time=cpu_time, vcpus=vcpus))
        return told.arguments["cpu_usage"]

    def of(self, vm: LocalVM, *, cpu_time: float = 0, vcpus: int = 2) -> DomainStats:
        return DomainStats(vm.uuid, 400, 500, round(cpu_time * SECOND), vcpus, self.now)


@pytest.fixture
async def feed() -> Feed:
    return Feed()


async def test_keys_and_units(feed: Feed) -> None:
    feed.stats.follow(feed.told.append)
    await until(lambda: feed.asked == 1)
    (told,) = await feed.look(feed.of(feed.work, cpu_time=1.2345678))
    assert (told.subject, told.name) == ("work", "vm-stats")
    assert told.arguments == {
        "memory_kb": "400",
        "memory_assigned_total": "500",
        "memory_assigned_usable": "400",
        "memory_with_swap_used": "400",
        "cpu_time": "1234",
        "cpu_usage": "0",
        "online_vcpus": "2",
    }


async def test_the_share_of_the_processors(feed: Feed) -> None:
    feed.stats.follow(feed.told.append)
    await until(lambda: feed.asked == 1)
    assert await feed.usage(0, 50) == "0"
    assert await feed.usage(2, 51) == "50"
    assert await feed.usage(2, 53) == "100"
    assert await feed.usage(4, 54, vcpus=2) == "12"
    assert await feed.usage(3, 54) == "0"
    assert await feed.usage(0, 55) == "0"  # no time has passed
    assert await feed.usage(1, 0.5) == "0"  # another domain of that VM
    assert await feed.usage(1, 0.75) == "25"
    assert await feed.usage(-5, 0.8) == "0"
    assert await feed.usage(1, 0.9, vcpus=0) == "10"
    assert await feed.usage(2, 4.6) == "100"  # what an emulator does beside its processors


async def test_a_vm_that_comes_later_begins_with_nothing(feed: Feed) -> None:
    feed.stats.follow(feed.told.append)
    await until(lambda: feed.asked == 1)
    await feed.look(feed.of(feed.work, cpu_time=1))
    feed.now += 1
    told = await feed.look(feed.of(feed.work, cpu_time=2), feed.of(feed.template, cpu_time=9))
    assert [(each.subject, each.arguments["cpu_usage"]) for each in told] == [("work", "50"), ("debian", "0")]
    feed.now += 1
    assert await feed.look() == []
    feed.now += 1
    (back,) = await feed.look(feed.of(feed.work, cpu_time=3))
    assert back.arguments["cpu_usage"] == "0"


async def test_domains_that_nobody_knows_are_passed_over(feed: Feed) -> None:
    feed.stats.follow(feed.told.append)
    await until(lambda: feed.asked == 1)
    stranger = DomainStats("00000000-0000-4000-8000-000000000009", 1, 1, 1, 1, 1)
    (told,) = await feed.look(stranger, feed.of(feed.work))
    assert told.subject == "work"


async def test_one_measurement_for_all(feed: Feed) -> None:
    told: list[list[Event]] = [[], [], []]
    leaves = [feed.stats.follow(each.append) for each in told]
    await until(lambda: feed.asked == 1)
    await feed.look(feed.of(feed.work))
    assert feed.asked == 2
    assert [len(each) for each in told] == [1, 1, 1]
    leaves[0]()
    leaves[0]()
    await feed.look(feed.of(feed.work))
    assert [len(each) for each in told] == [1, 2, 2]
    leaves[1]()
    leaves[2]()
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})
    assert feed.asked == 3


async def test_it_begins_anew_when_somebody_comes_again(feed: Feed) -> None:
    leave = feed.stats.follow(lambda _event: None)
    await until(lambda: feed.asked == 1)
    await feed.look(feed.of(feed.work, cpu_time=1))
    leave()
    feed.stats.follow(feed.told.append)
    leave()  # it has left already
    feed.now += 1
    await until(lambda: feed.asked == 3)
    (told,) = await feed.look(feed.of(feed.work, cpu_time=2))
    assert told.arguments["cpu_usage"] == "0"
    assert len(asyncio.all_tasks()) == 2


async def test_somebody_who_leaves_while_being_told(feed: Feed) -> None:
    def hear_once(told: Event) -> None:
        feed.told.append(told)
        leave()

    leave = feed.stats.follow(hear_once)
    await until(lambda: feed.asked == 1)
    feed.answers.put_nowait([feed.of(feed.work)])
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})
    assert len(feed.told) == 1
    feed.stats.follow(feed.told.append)
    await until(lambda: feed.asked == 2)


async def test_a_hypervisor_that_fails_once(feed: Feed, caplog: pytest.LogCaptureFixture) -> None:
    feed.stats.follow(feed.told.append)
    await until(lambda: feed.asked == 1)
    assert await feed.look(error="busy") == []
    assert "statistics: busy" in caplog.text
    (told,) = await feed.look(feed.of(feed.work))
    assert told.subject == "work"


async def test_a_reader_that_fails_stops_nobody(feed: Feed, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_told: Event) -> None:
        raise ZeroDivisionError

    feed.stats.follow(fail)
    feed.stats.follow(feed.told.append)
    await until(lambda: feed.asked == 1)
    for _ in range(2):
        (told,) = await feed.look(feed.of(feed.work))
        assert told.subject == "work"
    assert "ZeroDivisionError" in caplog.text


async def test_the_pause_is_the_systems_setting(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        if not 0 < seconds < 1:  # those of the test itself
            pauses.append(seconds)
        await sleep(0.001)

    monkeypatch.setattr(asyncio, "sleep", note)
    feed.registry.values.pop("stats_interval")
    feed.stats.follow(feed.told.append)
    await feed.look()
    feed.registry.set("stats_interval", 7)
    await feed.look()
    await feed.look()
    assert pauses[:2] == [3, 7]


# -- over the socket


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with serving_world() as world:
        world.inside.registry.values["stats_interval"] = 1
        yield world


def stats_of(vm: str) -> bytes:
    return event(
        vm,
        "vm-stats",
        memory_kb="409600",
        memory_assigned_total="409600",
        memory_assigned_usable="409600",
        memory_with_swap_used="409600",
        cpu_time="5000",
        cpu_usage="0",
        online_vcpus="2",
    )


def run(world: World, name: str) -> None:
    """Make it as if a VM ran."""
    uuid = world.inside.registry.find_vm(name).uuid
    world.inside.hypervisor.domain_states[uuid] = DomainInfo(uuid, name, DomainState.RUNNING, 1)


async def test_exact_bytes(world: World) -> None:
    run(world, "debian")
    run(world, "work")
    with await follow(world.path, STATS % b"dom0") as of_all:
        both = stats_of("debian") + stats_of("work")
        assert await of_all.read_exactly(2 * len(both)) == 2 * both
    with await follow(world.path, STATS % b"work") as of_work:
        assert await of_work.read_exactly(len(stats_of("work"))) == stats_of("work")
        assert of_work.pending() == b""


async def test_a_vm_that_is_halted_has_none_until_it_runs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    statistics = world.inside.hypervisor.statistics

    async def count() -> list[DomainStats]:
        nonlocal asked
        asked += 1
        return await statistics()

    monkeypatch.setattr(world.inside.hypervisor, "statistics", count)
    run(world, "debian")
    with await follow(world.path, STATS % b"work") as reader:
        await until(lambda: asked == 1)
        assert reader.pending() == b""
        run(world, "work")
        assert await reader.read_exactly(len(stats_of("work"))) == stats_of("work")
    await until(lambda: not world.server.connections)
    assert asked == 2


async def test_nothing_is_measured_when_all_readers_have_gone(world: World) -> None:
    before = open_descriptors()
    tasks = asyncio.all_tasks()
    readers = [await follow(world.path, STATS % b"dom0") for _ in range(20)]
    assert len(asyncio.all_tasks() - tasks) == 1
    for reader in readers:
        reader.close()
    await until(lambda: not world.server.connections)
    await until(lambda: asyncio.all_tasks() == tasks)
    assert open_descriptors() == before


async def test_statistics_end_with_the_server(world: World) -> None:
    tasks = asyncio.all_tasks()
    with await follow(world.path, STATS % b"dom0") as reader:
        await world.server.stop()
        assert await reader.read() == b""
    await until(lambda: asyncio.all_tasks() == tasks)


async def test_other_callers_see_what_policy_lets_them_see(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def permits(source: QubeBase, method: str, argument: str, vm: QubeBase) -> bool:
        return (source.name, method, argument, vm.name) == ("work", "admin.vm.Stats", "", "debian")

    run(world, "debian")
    run(world, "work")
    with await follow(world.path, STATS.replace(b"dom0 ", b"work ") % b"dom0") as nothing:
        with await follow(world.path, STATS % b"dom0") as all_:
            await all_.read_exactly(len(stats_of("debian") + stats_of("work")))
        assert nothing.pending() == b""
    monkeypatch.setattr(world.inside.inventory, "permits", permits)
    with await follow(world.path, STATS.replace(b"dom0 ", b"work ") % b"dom0") as some:
        assert await some.read_exactly(len(stats_of("debian"))) == stats_of("debian")
        assert some.pending() == b""


async def test_the_present_use_of_one_vm(world: World) -> None:
    request = b"admin.vm.CurrentState+ dom0 name %s\0"
    assert await ask(world.path, request % b"work") == b"0\0mem=0 mem_static_max=0 cputime=0 power_state=Halted"
    assert await ask(world.path, request % b"dom0") == b"0\0mem=0 mem_static_max=0 cputime=0 power_state=Running"
    for vm in world.inside.registry.local_vms():
        await world.inside.pool.create(tuple(vm.volumes.values()))
    await world.inside.inventory.power.start(vm, StartRequest(wait=False))
    running = b"0\0mem=409600 mem_static_max=409600 cputime=5000 power_state=Running"
    assert await ask(world.path, request % b"work") == running


async def test_both_kinds_of_streams_at_once(world: World) -> None:
    run(world, "work")
    with await follow(world.path) as events, await follow(world.path, STATS % b"work") as stats:
        await ask(world.path, b"admin.vm.tag.Set+t dom0 name work\0")
        assert await stats.read_exactly(len(stats_of("work"))) == stats_of("work")
        assert events.pending() == event("work", "domain-tag-add:t", tag="t")
