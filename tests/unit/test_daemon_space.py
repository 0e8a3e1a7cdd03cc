"""Pools that run full are told of in time, and not again and again."""

from pathlib import Path

from crannog.adapters.storage.drivers import Drivers
from crannog.config import Paths
from crannog.core.pools import PoolConfig
from crannog.daemon.space import Space, SpaceWatch, describe_space
from tests.fakes import new_registry
from tests.mounts import small_file_system

GIB = 2**30


class Shares:
    """Pools as full as a test says."""

    def __init__(self) -> None:
        self.used = 0
        self.watch = SpaceWatch(new_registry(), self.space)

    def space(self, config: PoolConfig) -> Space | None:
        return (100 * GIB, self.used * GIB) if config.name == "vm-pool" else None

    async def told(self, used: int) -> int:
        self.used = used
        return len(await self.watch.look())


async def test_each_level_is_told_once() -> None:
    shares = Shares()
    assert [await shares.told(used) for used in (10, 89, 90, 91, 96, 97, 99, 100)] == [0, 0, 1, 0, 0, 1, 0, 0]


async def test_up_and_down_about_a_level_is_told_once() -> None:
    shares = Shares()
    assert [await shares.told(used) for used in (90, 89, 90, 89, 97, 96, 97)] == [1, 0, 0, 0, 1, 0, 0]


async def test_a_pool_that_was_emptied_is_told_of_again() -> None:
    shares = Shares()
    assert [await shares.told(used) for used in (98, 50, 98, 91, 98)] == [1, 0, 1, 0, 1]


async def test_what_is_full_now() -> None:
    shares = Shares()
    shares.used = 95
    assert await shares.watch.describe() == [describe_space("vm-pool", (100 * GIB, 95 * GIB))]
    assert await shares.watch.describe() != []
    shares.used = 5
    assert await shares.watch.describe() == []


def test_the_sentence_has_the_figures() -> None:
    assert describe_space("vm-pool", (100 * GIB, 95 * GIB)).startswith("pool vm-pool is 95 % full, 5.0 GiB are left: ")
    assert describe_space("vm-pool", (0, 0)) == ""


async def test_a_real_file_system(tmp_path: Path) -> None:
    with small_file_system(tmp_path / "small", "4M") as folder:
        paths = Paths(str(folder), str(tmp_path / "cache"))
        Path(paths.pools, "vm-pool").mkdir(parents=True)
        watch = SpaceWatch(new_registry(), Drivers(paths).space)
        assert await watch.look() == []
        with (Path(folder) / "ballast").open("wb") as file:
            file.write(bytes(int(3.8 * 2**20)))
        assert "pool vm-pool is 9" in "".join(await watch.look())
