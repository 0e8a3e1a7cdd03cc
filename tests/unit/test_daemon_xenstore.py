"""XenStore in the daemon: room for guests before they run, stub domains (B4), and tools that announce themselves."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from crannog.adapters.guestdb.host import STUBDOM, XenStoreHost
from crannog.adapters.guestdb.tree import domain_folder
from crannog.core.announcement import AgentState, AgentStatus, Announcement
from crannog.core.domain import DomainInfo, DomainSpec, DomainState, DomainStats
from crannog.core.vms import LocalVM
from crannog.daemon.statistics import StatsFeed
from crannog.errors import HypervisorError
from tests.fakes import FakeHypervisor, Inside, add_vm, build_inside, short_folder
from tests.unit.life_world import QUIETLY
from tests.xenstore_fake import Store, serving

XID, STUBDOM_XID = 42, 43


class Xen(FakeHypervisor):
    """A hypervisor that does with a store what libxl does."""

    def __init__(self, store: Store, *, has_stubdoms: bool) -> None:
        super().__init__()
        self.store = store
        self.has_stubdoms = has_stubdoms
        self.rooms_at_resume: list[bool] = []

    async def create_paused(self, spec: DomainSpec) -> DomainInfo:
        info = await super().create_paused(spec)
        folder = self.store.add_domain(info.xid)
        if self.has_stubdoms:
            self.store.add_domain(info.xid + 1)
            self.store.write(0, f"{domain_folder(info.xid + 1)}/memory/target", b"131072")
            self.store.write(0, f"{folder}/{STUBDOM}", b"%d" % (info.xid + 1))
        return info

    async def resume(self, uuid: str) -> None:
        info = self.domain_states[uuid]
        self.rooms_at_resume.append(f"{domain_folder(info.xid)}/qubes-tools" in self.store.values)
        await super().resume(uuid)


class World:
    """A daemon's inside on such a host."""

    def __init__(self, home: Path, store: Store, path: str, *, has_stubdoms: bool = False) -> None:
        self.store = store
        self.path = path
        self.hypervisor = Xen(store, has_stubdoms=has_stubdoms)
        self.inside: Inside = build_inside(home, self.hypervisor, trees=XenStoreHost(lambda: self.path))
        self.vm: LocalVM = add_vm(self.inside.registry, "StandaloneVM", "work", mode="pvh")

    async def start(self) -> None:
        await self.inside.pool.create(tuple(self.vm.pool_volumes()))
        await self.inside.inventory.power.start(self.vm, QUIETLY)


@pytest.fixture(params=[False, True], ids=["dom0", "stubdom"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    with serving(tmp_path) as (store, path), short_folder() as home:
        yield World(home, store, path, has_stubdoms=request.param)


async def test_a_guest_finds_its_folders_when_it_runs(world: World) -> None:
    await world.start()
    assert world.hypervisor.rooms_at_resume == [True]
    assert world.inside.agents.introduced == [world.vm.uuid], "its RPC process was told before it ran"


async def test_the_stub_domain_is_that_of_xenstore_while_the_vm_runs(world: World) -> None:
    assert world.vm.get("stubdom_xid") == -1
    await world.start()
    xid = int(world.vm.get("xid"))
    assert world.vm.get("stubdom_xid") == (xid + 1 if world.hypervisor.has_stubdoms else -1)
    await world.inside.inventory.power.kill(world.vm)
    assert world.vm.get("stubdom_xid") == -1


async def test_its_memory_is_counted_as_the_vms(world: World) -> None:
    await world.start()
    feed = StatsFeed(world.hypervisor, world.inside.registry, stubdom_memory=XenStoreHost(lambda: world.path).memory)
    (told,) = feed._describe_all([DomainStats(world.vm.uuid, 400000, 500000, 0, 1, measured_at=1)])
    more = 131072 if world.hypervisor.has_stubdoms else 0
    assert told.arguments["memory_kb"] == str(400000 + more)
    assert told.arguments["memory_assigned_total"] == str(500000 + more)


async def test_a_xenstore_that_has_gone_is_no_error_for_who_reads_properties(world: World) -> None:
    await world.start()
    world.path = "/nowhere/at/all"
    assert world.vm.get("stubdom_xid") == -1


async def test_a_start_without_room_for_the_guest_fails_and_leaves_nothing(world: World) -> None:
    world.path = "/nowhere/at/all"
    with pytest.raises(HypervisorError, match="work was not started: XenStore cannot be reached at /nowhere/at/all"):
        await world.start()
    assert (world.vm.power_state, world.hypervisor.domain_states) == ("Halted", {})


async def test_a_host_without_xenstore_has_none_of_that(tmp_path: Path) -> None:
    with short_folder() as home:
        world = World(home, Store(), "")
        await world.start()
        assert world.inside.agents.introduced == []
        assert world.vm.get("stubdom_xid") == -1


async def test_tools_without_an_agent_are_known_by_what_they_say(world: World) -> None:
    said = Announcement("1", "Windows", qrexec=False, gui=False, default_user="alice")
    status = AgentStatus(AgentState.WAITING, said)
    world.inside.agents.statuses[world.vm.uuid] = status
    for listener in world.inside.agents.listeners:
        listener(world.vm.uuid, status)
    assert {name: world.vm.features[name] for name in ("os", "qrexec", "gui")} == {
        "os": "Windows",
        "qrexec": "",
        "gui": "",
    }
    assert world.vm.get("default_user") == "alice"
    assert world.inside.machines.domain_state(world.vm.uuid) is DomainState.ABSENT
