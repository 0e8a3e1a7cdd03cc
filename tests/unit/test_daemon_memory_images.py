"""Memory images in a daemon's inside: when they are made, who is restored from them, and what goes wrong.

The hypervisor is a stand-in; pools, layers and the images' files are real.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from crannog.adapters.storage.memory_shelf import MemoryShelf
from crannog.core.announcement import AgentStatus
from crannog.core.memory_images import FEATURE
from crannog.core.startup import StartRequest
from crannog.core.vms import LocalVM
from crannog.daemon import seedlings
from tests.fakes import Inside, short_folder
from tests.unit.api_world import until
from tests.unit.life_world import READY, Gate, begin, soon
from tests.unit.preload_world import Remains, Reserve, come_back, cut, preloading

ABLE = READY._replace(announced=READY.announced and READY.announced._replace(renewal="1"))


def make_able(inside: Inside, status: AgentStatus = ABLE) -> None:
    """Let the hypervisor save memory, and guests be renewed."""
    inside.hypervisor.saves_memory = True
    start = inside.agents.start

    async def answer(uuid: str, name: str, default_user: str) -> None:
        await start(uuid, name, default_user)
        inside.agents.statuses[uuid] = status

    inside.agents.start = answer  # type: ignore[method-assign]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seedlings, "DESYNC_SECONDS", 0.0)


class Images(Reserve):
    """What the tests look at."""

    @property
    def shelf(self) -> MemoryShelf:
        return self.inside.lifecycle.world.memory_shelf

    @property
    def folder(self) -> Path:
        return Path(self.inside.paths.memory_images)

    def has_image(self) -> bool:
        return self.dvm.uuid in self.shelf.templates()

    def is_idle(self) -> bool:
        return not self.inside.inventory.preloading.seedlings.is_going

    async def image(self) -> None:
        await until(lambda: self.has_image() and self.is_idle())

    async def run_one(self) -> tuple[LocalVM, bool]:
        """Make and start a disposable; return it, and whether it was restored."""
        vm = await self.inside.inventory.population.create_disposable(self.dvm, created_by="dom0")
        assert isinstance(vm, LocalVM)
        await self.inside.inventory.power.start(vm, StartRequest(wait=True))
        return vm, self.was_restored(vm)

    def was_restored(self, vm: LocalVM) -> bool:
        spec = next(spec for spec in reversed(self.inside.hypervisor.specs) if spec.uuid == vm.uuid)
        is_restored = bool(spec.memory_files and spec.memory_files.is_saved)
        assert (vm.uuid in self.inside.agents.renewed) is is_restored
        return is_restored

    async def make_image(self) -> None:
        """Have an image made by two cold starts."""
        for _ in range(2):
            assert not (await self.run_one())[1]
        await self.image()

    async def end_all(self) -> None:
        for vm in [vm for vm in self.inside.registry.local_vms() if vm.is_disposable]:
            await self.inside.inventory.preloading.vms.put_away(vm)
        await self.none_is_left()


@asynccontextmanager
async def world(status: AgentStatus = ABLE) -> AsyncIterator[Images]:
    async with preloading() as reserve:
        make_able(reserve.inside, status)
        yield Images(reserve.inside)


async def test_the_third_cold_start_is_none() -> None:
    async with world() as images:
        await images.make_image()
        vm, is_restored = await images.run_one()
        assert is_restored
        assert vm.power_state == "Running"
        seedling = next(spec for spec in images.inside.hypervisor.specs if spec.memory_files)
        assert images.inside.hypervisor.saved == images.inside.agents.asleep == [seedling.uuid]
        assert images.inside.registry.find_uuid(seedling.uuid) is None
        await images.end_all()


async def test_a_pool_is_restored_but_for_its_first_one() -> None:
    async with world() as images:
        images.want(3)
        names = await images.ready(3)
        assert sorted(images.was_restored(images.vm(name)) for name in names) == [False, True, True]
        assert len(images.inside.hypervisor.saved) == 1
        for name in names:
            assert images.vm(name).get("is_preload")
        vm = await images.take()
        assert vm
        images.want(0)
        await images.end_all()


async def test_the_steps_that_a_start_would_have_are_those_of_a_restore() -> None:
    async with world() as images:
        await images.make_image()
        power = images.inside.inventory.power
        vm = await images.inside.inventory.population.create_disposable(images.dvm, created_by="dom0")
        assert isinstance(vm, LocalVM)
        foreseen = await power.plan(vm, StartRequest(wait=True))
        assert "memory-images" in "".join(step.describe() for step in foreseen)
        await power.start(vm, StartRequest(wait=True))
        assert images.was_restored(vm)
        images.inside.inventory.editor.set_feature(images.dvm, FEATURE, "")
        other = await images.inside.inventory.population.create_disposable(images.dvm, created_by="dom0")
        assert isinstance(other, LocalVM)
        foreseen = await power.plan(other, StartRequest(wait=True))
        assert "memory-images" not in "".join(step.describe() for step in foreseen)


async def test_a_seedling_is_nobodys() -> None:
    async with world() as images:
        gate = Gate(images.inside.agents.put_to_sleep)
        images.inside.agents.put_to_sleep = gate  # type: ignore[method-assign, assignment, unused-ignore]
        images.want(1)
        await soon(gate.reached.wait())
        seedling = images.inside.inventory.preloading.seedlings.current
        assert seedling
        assert (seedling.get("is_preload"), seedling.features["internal"]) == (False, "1")
        system = images.inside.inventory.policy.system
        assert system.find(seedling.name) is None
        assert seedling.name not in images.dvm.features.get("preload-dispvm", "").split()
        claimed = await images.take()
        assert claimed
        assert claimed is not seedling
        assert await images.take() is None
        gate.opened.set()
        await images.image()
        images.want(0)
        await images.end_all()


def read_first(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(4)


def change_first(path: str) -> None:
    with open(path, "r+b") as file:
        file.write(b"mine")


async def test_restored_ones_have_disks_of_their_own_that_begin_alike() -> None:
    async with world() as images:
        await images.make_image()
        (one, _), (other, _) = await images.run_one(), await images.run_one()
        pool = images.inside.pool
        for name in ("root", "private", "volatile"):
            paths = [pool.locate(vm.volumes[name]).path for vm in (one, other)]
            saved = str(images.folder / images.dvm.uuid / f"{name}.layer")
            change_first(paths[0])
            assert len({os.stat(path).st_ino for path in (*paths, saved)}) == 3
            assert read_first(saved) == read_first(paths[1]) != read_first(paths[0])
        await images.end_all()


CHANGES: dict[str, Callable[[Images], object]] = {
    "a setting": lambda images: images.inside.inventory.editor.set_property(images.dvm, "memory", "512"),
    "a feature": lambda images: images.inside.inventory.editor.set_feature(images.dvm, "service.x", "1"),
    "the kernel": lambda images: Path(images.inside.paths.kernels, "6.1.0-test", "vmlinuz").write_text("new"),
    "switched off": lambda images: images.inside.inventory.editor.set_feature(images.dvm, FEATURE, ""),
    "switched off for all": lambda i: i.inside.inventory.editor.set_feature(i.inside.registry.dom0, FEATURE, "0"),
    "no template for disposables": lambda i: i.inside.inventory.editor.set_property(i.dvm, "template_for_dispvms", "0"),
}


@pytest.mark.parametrize("what", CHANGES)
async def test_what_changed_drops_the_image(what: str) -> None:
    async with world() as images:
        await images.make_image()
        await images.end_all()
        CHANGES[what](images)
        if what == "the kernel":  # nobody is told of that: the next start finds out
            assert not (await images.run_one())[1]
        await until(lambda: not images.has_image())
        await images.end_all()


async def test_new_content_of_the_template_drops_the_image() -> None:
    async with world() as images:
        await images.make_image()
        await images.end_all()
        debian = images.vm("debian")
        await images.inside.inventory.power.start(debian, StartRequest(wait=False))
        await images.inside.inventory.power.kill(debian)
        await until(lambda: not images.has_image())
        assert not (await images.run_one())[1]
        await images.end_all()


async def test_the_image_goes_with_its_template() -> None:
    async with world() as images:
        await images.make_image()
        await images.end_all()
        await images.inside.inventory.population.remove(images.dvm)
        await until(lambda: list(images.folder.iterdir()) == [])


@pytest.mark.parametrize("file", ["state", "memory", "root.layer", "manifest.json"])
async def test_a_damaged_image_is_a_cold_start_and_is_told(file: str, caplog: pytest.LogCaptureFixture) -> None:
    async with world() as images:
        await images.make_image()
        path = images.folder / images.dvm.uuid / file
        os.truncate(path, path.stat().st_size // 2)
        vm, is_restored = await images.run_one()
        assert not is_restored
        assert vm.power_state == "Running"
        assert f"{vm.name}: is started cold: the memory image in" in caplog.text
        await until(lambda: not images.has_image() or images.inside.hypervisor.saved[1:] != [])
        await images.end_all()


class Refusals:
    """What fails in a restore, and only there."""

    @staticmethod
    def create(images: Images) -> None:
        create = images.inside.hypervisor.create_paused

        async def fail(spec: Any) -> Any:  # noqa: ANN401
            if spec.memory_files and spec.memory_files.is_saved:
                images.inside.hypervisor.failing.add("create_paused")
            try:
                return await create(spec)
            finally:
                images.inside.hypervisor.failing.discard("create_paused")

        images.inside.hypervisor.create_paused = fail  # type: ignore[method-assign]

    @staticmethod
    def renew(images: Images) -> None:
        images.inside.agents.failing.add("renew")


@pytest.mark.parametrize("step", ["create", "renew"])
async def test_what_cannot_be_restored_is_started_cold(step: str, caplog: pytest.LogCaptureFixture) -> None:
    async with world() as images:
        await images.make_image()
        getattr(Refusals, step)(images)
        vm, is_restored = await images.run_one()
        assert not is_restored
        assert vm.power_state == "Running"
        assert "is started cold, as it could not be restored" in caplog.text
        assert not images.has_image()
        assert not (await images.run_one())[1]  # and another one is not made at once
        assert images.inside.hypervisor.saved[1:] == []
        await images.end_all()


async def test_a_guest_that_cannot_be_renewed_is_never_saved() -> None:
    async with world(READY) as images:
        images.want(2)
        await images.ready(2)
        specs = images.inside.hypervisor.specs
        await until(lambda: sum(spec.memory_files is not None for spec in specs) == 1)
        for _ in range(3):
            assert not (await images.run_one())[1]
        await until(images.is_idle)
        assert images.inside.hypervisor.saved == []
        assert sum(spec.memory_files is not None for spec in specs) == 1
        assert list(images.folder.iterdir()) == []
        images.want(0)
        await images.end_all()


async def test_without_a_hypervisor_that_can_there_is_none() -> None:
    async with preloading() as reserve:
        reserve.want(2)
        await reserve.ready(2)
        assert not [spec for spec in reserve.inside.hypervisor.specs if spec.memory_files]
        reserve.want(0)
        await reserve.none_is_left()


@pytest.mark.parametrize("method", ["save_memory", "pause", "resume"])
async def test_a_save_that_fails_leaves_nothing(method: str) -> None:
    async with world() as images:
        for _ in range(2):
            await images.run_one()
        images.inside.hypervisor.failing.add(method)
        await until(lambda: any(spec.memory_files for spec in images.inside.hypervisor.specs) and images.is_idle())
        images.inside.hypervisor.failing.clear()
        assert list(images.folder.iterdir()) == []
        assert not [vm for vm in images.inside.registry.local_vms() if "restore-dispvm-seedling" in vm.features]
        await images.end_all()


async def test_without_room_on_the_disk_none_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world() as images:
        monkeypatch.setattr(MemoryShelf, "free", lambda _self: 500 * 2**20)
        for _ in range(3):
            await images.run_one()
        await until(images.is_idle)
        assert not [spec for spec in images.inside.hypervisor.specs if spec.memory_files]
        assert not images.folder.exists() or list(images.folder.iterdir()) == []
        await images.end_all()


async def test_without_room_in_memory_none_is_made() -> None:
    async with world() as images:
        for _ in range(2):
            images.inside.host_memory.free = 2**20
            await images.run_one()
            images.inside.host_memory.free = 300
        images.inside.inventory.editor.set_feature(images.dvm, "anything", "")  # a look
        await asyncio.sleep(0.3)
        assert not [spec for spec in images.inside.hypervisor.specs if spec.memory_files]
        await images.end_all()


async def test_a_template_that_starts_ends_its_seedling() -> None:
    async with world() as images:
        gate = Gate(images.inside.agents.put_to_sleep)
        images.inside.agents.put_to_sleep = gate  # type: ignore[method-assign, assignment, unused-ignore]
        for _ in range(2):
            await images.run_one()
        await soon(gate.reached.wait())
        seedling = images.inside.inventory.preloading.seedlings.current
        assert seedling
        removal = begin(images.inside.inventory.preloading.make_way(images.dvm))
        gate.opened.set()
        await soon(removal)
        await until(images.is_idle)
        assert images.inside.registry.find_uuid(seedling.uuid) is None
        assert not images.has_image()
        await images.end_all()


KILLS = {
    "created": ("pool", "claim", True),
    "domain created": ("hypervisor", "create_paused", True),
    "runs": ("hypervisor", "resume", True),
    "asleep": ("agents", "put_to_sleep", True),
    "paused": ("hypervisor", "pause", True),
    "saved": ("hypervisor", "save_memory", True),
    "copied": ("pool", "copy_session", True),
    "ended": ("hypervisor", "destroy", True),
}


@pytest.mark.parametrize("point", KILLS)
async def test_killed_while_an_image_is_made(point: str) -> None:
    with short_folder() as folder:
        async with world() as images:
            for _ in range(2):
                await images.run_one()
                await images.end_all()
                moment = cut(images.inside, folder / "h", *KILLS[point])
            remains = await soon(moment)
            await until(images.is_idle)
        await nothing_is_half_made(remains)


RESTORES = {
    "a volume is copied": ("pool", "start_from", True),
    "domain created": ("hypervisor", "create_paused", True),
    "runs, as who was saved": ("hypervisor", "resume", True),
    "is to be another one": ("agents", "renew", False),
    "is another one": ("agents", "renew", True),
}


@pytest.mark.parametrize("point", RESTORES)
async def test_killed_while_one_is_restored(point: str) -> None:
    """Nobody ever gets a copy that was not renewed, and nothing is left of it."""
    with short_folder() as folder:
        async with world() as images:
            await images.make_image()
            await images.end_all()
            moment = cut(images.inside, folder / "h", *RESTORES[point])
            await images.run_one()
            remains = await soon(moment)
        inside = await nothing_is_half_made(remains, has_image=True)
        assert Images(inside).shelf.find(Images(inside).dvm.uuid)  # the image is as good as before


async def nothing_is_half_made(remains: Remains, *, has_image: bool = False) -> Inside:
    """Be the next daemon, and look at what it has made of what was left."""
    home = remains.home
    shelf = MemoryShelf(f"{home}/memory-images")
    inside = await come_back(remains)
    shelf.recover(frozenset(vm.uuid for vm in inside.registry))
    later = Images(inside)
    for vm in [vm for vm in inside.registry.local_vms() if vm.is_disposable]:
        await until(lambda vm=vm: inside.registry.find_uuid(vm.uuid) is None or vm.power_state == "Halted")  # type: ignore[misc]
    await later.end_all()
    there = [path.name for path in later.folder.iterdir()] if later.folder.exists() else []
    assert there == ([later.dvm.uuid] if has_image else [])
    return inside
