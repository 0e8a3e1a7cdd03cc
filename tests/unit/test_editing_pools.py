"""Pools that come and go, with drivers that fail: in the store, in what is served and on the disk, or nowhere."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from crannog.adapters.storage.drivers import Drivers, open_pools
from crannog.adapters.storage.qcow2 import Qcow2Pool
from crannog.adapters.store.file import FileStore
from crannog.config import Paths
from crannog.core.pools import EPHEMERAL, FOLDER, KERNEL_POOL, REVISIONS, PoolConfig, new_pool
from crannog.editing.editor import Editor
from crannog.editing.pools import Pools, PoolUsage
from crannog.editing.population import NewVM, Population
from crannog.errors import NotYetError, PoolInUseError, StorageError, ValueRefusedError
from crannog.ports.storage import Pool

OPTIONS = (FOLDER, REVISIONS, EPHEMERAL)


class World:
    """Pools in a home, and what was told."""

    def __init__(self, home: Path) -> None:
        self.paths = Paths(str(home), str(home / "cache"))
        os.makedirs(self.paths.pools)
        self.store = FileStore(self.paths.store, self.paths.kernels)
        self.editor = Editor(self.store.load(), self.store)
        self.served: dict[str, Pool] = open_pools(self.paths, self.editor.registry.pools.values())
        self.pools = Pools(self.editor, self.served, Drivers(self.paths))
        self.told: list[str] = []
        self.editor.listen(lambda event: self.told.append(event.name))

    def snapshot(self) -> object:
        return (
            dict(self.editor.registry.pools),
            dict(self.served),
            sorted(os.listdir(self.paths.pools)),
            list(self.told),
        )


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "home")


def test_a_pool_is_served_before_it_is_told(world: World) -> None:
    seen: list[bool] = []
    world.editor.listen(lambda _event: seen.append("big" in world.served))
    world.pools.add("big", "qcow2", {})
    world.pools.remove("big")
    assert seen == [True, True, True]
    assert "big" not in world.served
    assert world.told == ["pool-add", "pool-pre-delete", "pool-delete"]


def test_a_home_can_be_moved_with_the_pools_in_it(world: World, tmp_path: Path) -> None:
    world.pools.add("near", "qcow2", {})
    world.pools.add("far", "qcow2", {"dir_path": f"{tmp_path}/far"})
    os.rename(world.paths.home, tmp_path / "moved")
    paths = Paths(str(tmp_path / "moved"), str(tmp_path / "cache"))
    pools = open_pools(paths, FileStore(paths.store, paths.kernels).load().pools.values())
    assert {name: getattr(pool, "folder") for name, pool in pools.items()} == {  # noqa: B009
        "vm-pool": f"{tmp_path}/moved/pools/vm-pool",
        "near": f"{tmp_path}/moved/pools/near",
        "far": f"{tmp_path}/far",
    }


def test_a_folder_that_cannot_be_made(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    before = world.snapshot()

    def refuse(*_arguments: object, **_more: object) -> None:
        raise PermissionError(13, os.strerror(13))

    for name in ("makedirs", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, refuse)
            with pytest.raises(StorageError, match=r"pool big cannot be made in .*: Permission denied"):
                world.pools.add("big", "qcow2", {})
        assert world.snapshot() == before


def test_a_pool_of_the_same_name_is_never_touched(world: World) -> None:
    world.pools.add("big", "qcow2", {})
    Path(world.paths.pools, "big", "data").touch()
    before = world.snapshot()
    with pytest.raises(PoolInUseError):
        world.pools.add("big", "qcow2", {})
    assert world.snapshot() == before
    assert Path(world.paths.pools, "big", "data").exists()


def test_what_a_file_says_of_pools_that_makes_no_sense(world: World) -> None:
    configs = [
        PoolConfig("relative", "qcow2", (("dir_path", "vms"),)),
        PoolConfig("../up", "qcow2"),
        PoolConfig("a b", "qcow2"),
        PoolConfig("odd", "qcow2", (("revisions_to_keep", "many"),)),
        PoolConfig("../there", "qcow2", (("dir_path", "/srv/vms"),)),
        PoolConfig(KERNEL_POOL, "linux-kernel"),
    ]
    assert sorted(open_pools(world.paths, configs)) == ["../there", "odd"]
    assert configs[3].revisions_to_keep == 1
    drivers = Drivers(world.paths)
    assert drivers.space(configs[0]) is None
    assert drivers.settings(configs[0]) == {
        "dir_path": "vms", "driver": "qcow2", "name": "relative", "revisions_to_keep": "1",
        "ephemeral_volatile": "False",
    }  # fmt: skip


async def test_usage_counts_what_the_store_has_in_a_pool(world: World) -> None:
    """Files that nobody refers to are not in it, nor volumes of other pools, nor a VM's that is gone."""
    world.pools.add("big", "qcow2", {})
    population = Population(world.editor, world.served)
    registry = world.editor.registry
    first = await population.create(NewVM("StandaloneVM", "first", "", None, {"": "big"}), created_by="dom0")
    second = await population.create(NewVM("StandaloneVM", "second", "", None), created_by="dom0")
    Path(world.served["big"].newest(first.volumes["root"].vid).path).write_bytes(os.urandom(2**20))
    Path(world.paths.pools, "big", "orphan.img").write_bytes(os.urandom(2**20))
    usage = world.pools.usage("big")
    assert usage.driver == "qcow2"
    assert usage.space is not None
    assert usage.volumes == len(list(first.pool_volumes()))
    assert usage.virtual == sum(volume.size for volume in first.pool_volumes())
    assert usage.real == 2**20
    assert world.pools.usage("vm-pool").virtual == sum(volume.size for volume in second.pool_volumes())
    await population.remove(first)
    usage = world.pools.usage("big")
    assert (usage.volumes, usage.virtual, usage.real) == (0, 0, 0)
    registry.kernels |= {"6.1", "6.12"}
    assert world.pools.usage(KERNEL_POOL).volumes == 2
    assert world.pools.usage(KERNEL_POOL).virtual is None


async def test_usage_of_a_pool_that_is_not_served(world: World) -> None:
    vm = await Population(world.editor, world.served).create(NewVM("StandaloneVM", "vm", "", None), created_by="dom0")
    world.editor.registry.pools["there"] = PoolConfig("there", "zfs")
    vm.volumes["root"] = replace(vm.volumes["root"], pool="there", size=5)
    assert world.pools.usage("there") == PoolUsage("zfs", None, 1, 5)
    with pytest.raises(KeyError):
        world.pools.usage("nowhere")


@pytest.mark.parametrize(
    ("text", "path"),
    [("/srv/vms", "/srv/vms"), ("//srv///vms/", "/srv/vms"), ("/", "/"), ("/srv/my vms", "/srv/my vms")],
)
def test_paths_are_kept_in_their_usual_form(text: str, path: str) -> None:
    assert FOLDER.check(text) == path


@pytest.mark.parametrize(
    "text", ["", "srv", "./srv", "/srv/..", "/../etc", "/a/./b", "/a\nb", "/\x7f", "/" + "x" * 1024]
)
def test_paths_that_are_refused(text: str) -> None:
    with pytest.raises(ValueRefusedError, match="is not an absolute path"):
        FOLDER.check(text)


def test_values_are_kept_in_their_usual_form() -> None:
    config = new_pool("x", "qcow2", {"ephemeral_volatile": "off", "revisions_to_keep": "007"}, OPTIONS)
    assert config.options == (("ephemeral_volatile", "False"), ("revisions_to_keep", "7"))
    with pytest.raises(NotYetError):
        new_pool("x", "qcow2", {"ephemeral_volatile": "on"}, OPTIONS)


def test_changing_an_option_makes_no_other_pool(world: World) -> None:
    """Who works with a volume keeps on working with the same object, which knows what it is just reading."""
    pool = world.served["vm-pool"]
    world.pools.set_option("vm-pool", "revisions_to_keep", "4")
    assert world.served["vm-pool"] is pool
    assert isinstance(pool, Qcow2Pool)
    for key in ("dir_path", "driver", "odd"):
        with pytest.raises(NotYetError, match="cannot be changed"):
            world.pools.set_option("vm-pool", key, "1")
