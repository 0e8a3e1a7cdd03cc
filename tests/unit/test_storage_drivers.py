"""Drivers register themselves: a class with a name, its options and its place is all that a new one takes."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog.adapters.storage.drivers import Drivers
from crannog.adapters.storage.pool_driver import PoolDriver, find_drivers
from crannog.adapters.storage.qcow2 import Qcow2Pool
from crannog.adapters.store.file import FileStore
from crannog.config import Paths
from crannog.core.pools import FOLDER, PoolConfig, PoolOption
from crannog.editing.editor import Editor
from crannog.editing.pools import Pools
from crannog.errors import NotYetError, StorageError, ValueRefusedError


def check_colour(text: str) -> str:
    if text not in ("red", "green"):
        raise ValueRefusedError(f"'{text}' is no colour")
    return text.upper()


COLOUR = PoolOption("colour", check_colour, default="GREEN", is_changeable=True)


@pytest.fixture
def toy() -> Iterator[type[Qcow2Pool]]:
    class Toy(Qcow2Pool):
        """A driver with an option of its own."""

        driver = "toy"
        options = (FOLDER, COLOUR)

    yield Toy
    del PoolDriver.registered["toy"]


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths(str(tmp_path / "home"), str(tmp_path / "cache"))
    os.makedirs(paths.pools)
    return paths


@pytest.fixture
def pools(paths: Paths) -> Pools:
    store = FileStore(paths.store, paths.kernels)
    return Pools(Editor(store.load(), store), {}, Drivers(paths))


def test_the_drivers_that_there_are() -> None:
    assert {"qcow2", "plain", "reflink", "linux-kernel"} <= set(find_drivers())
    assert "" not in find_drivers()


def test_a_driver_that_registers_itself_serves_pools(toy: type[Qcow2Pool], paths: Paths, pools: Pools) -> None:
    assert pools.drivers()["toy"] == ("dir_path", "colour")
    pools.add("box", "toy", {"colour": "red"})
    assert pools.settings("box") == {
        "name": "box", "driver": "toy", "colour": "RED", "dir_path": f"{paths.pools}/box",
    }  # fmt: skip
    assert isinstance(Drivers(paths).open(PoolConfig("box", "toy")), toy)
    assert pools.space("box")
    pools.set_option("box", "colour", "green")
    assert pools.settings("box")["colour"] == "GREEN"
    pools.remove("box")
    assert os.listdir(paths.pools) == []


def test_a_drivers_options_are_checked_by_it(toy: type[Qcow2Pool], paths: Paths, pools: Pools) -> None:
    assert toy.driver in find_drivers()
    with pytest.raises(ValueRefusedError, match=r"^driver toy has no option 'size'; its options are dir_path, colour$"):
        pools.add("box", "toy", {"size": "1"})
    with pytest.raises(ValueRefusedError, match=r"^'blue' is no colour$"):
        pools.add("box", "toy", {"colour": "blue"})
    assert os.listdir(paths.pools) == []
    pools.add("box", "toy", {})
    assert pools.settings("box")["colour"] == "GREEN"
    with pytest.raises(ValueRefusedError, match=r"^'blue' is no colour$"):
        pools.set_option("box", "colour", "blue")
    with pytest.raises(NotYetError, match="dir_path of pool 'box' cannot be changed"):
        pools.set_option("box", "dir_path", "/srv")


def test_a_driver_that_is_not_of_this_host_does_nothing(paths: Paths) -> None:
    drivers, config = Drivers(paths), PoolConfig("far", "lvm_elsewhere", (("volume_group", "vg0"),))
    assert (drivers.open(config), drivers.folder(config), drivers.space(config)) == (None, "", None)
    assert drivers.settings(config) == {"name": "far", "driver": "lvm_elsewhere", "volume_group": "vg0"}
    drivers.unmake(config)
    with pytest.raises(ValueRefusedError):
        drivers.make(config, [])


def test_a_driver_without_folders_takes_part(paths: Paths, pools: Pools) -> None:
    """One that needs no folder says what its place is, and the others are not asked about it."""
    made: list[str] = []

    class Bare(PoolDriver):
        driver = "bare"

        @classmethod
        def make_place(cls, config: PoolConfig, paths: Paths) -> None:
            made.append(f"{config.name} {paths.home}")

    try:
        with pytest.raises(StorageError, match="pool box was made and cannot be opened"):
            pools.add("box", "bare", {})
        assert made == [f"box {paths.home}"]
    finally:
        del PoolDriver.registered["bare"]
