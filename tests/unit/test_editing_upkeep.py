"""Pools that are looked after: what a start says and refuses, whose volumes count, and what is deleted."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crannog.adapters.storage.qcow2 import Qcow2Pool
from crannog.core.findings import Kind
from crannog.core.pools import DEFAULT_POOL, PoolConfig
from crannog.core.vms import LocalVM
from crannog.editing.upkeep import Upkeep
from crannog.errors import NotYetError, StorageError, ValueRefusedError
from tests.contract.benches import session
from tests.unit.life_world import QUIETLY, Life, living


@pytest.fixture
async def life() -> AsyncIterator[Life]:
    async with living() as life:
        yield life


def newest(life: Life, vm: LocalVM, volume: str = "root") -> str:
    return life.inside.pool.newest(vm.volumes[volume].vid).path


def change(path: str) -> None:
    os.utime(path, ns=(1, 1))


async def content(life: Life) -> None:
    """Have the template's root have content, and be sealed."""
    image = Path(life.inside.paths.home, "image")
    image.write_bytes(b"t" * 2**20)
    await life.inside.inventory.volumes.import_file(life.vm("debian"), "root", str(image))


async def test_a_changed_template_is_told_of_at_each_start(life: Life, caplog: pytest.LogCaptureFixture) -> None:
    await content(life)
    path = newest(life, life.vm("debian"))
    change(path)
    for _ in range(2):
        stages = await life.power.start(life.work, QUIETLY)
        sentence = f"{path} was written to after it was finished; it is taken as it is"
        assert stages[0][0] == f"volume ready ({sentence})"
        assert sum(sentence in stage for stage, _ in stages) == 1
        warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert any(sentence in record.getMessage() for record in warnings)
        caplog.clear()
        await life.power.kill(life.work)
        await life.settle()
    await life.inside.inventory.upkeep.accept(life.vm("debian"), "root")
    stages = await life.power.start(life.work, QUIETLY)
    assert [stage for stage, _ in stages[:2]] == ["volume ready", "volume ready"]


async def test_data_that_would_be_mixed_are_refused_with_what_to_do(life: Life) -> None:
    await content(life)
    template = life.vm("debian")
    below = newest(life, template)
    await session(life.inside.pool, template.volumes["root"], "a")
    assert newest(life, template) != below
    change(below)
    with pytest.raises(StorageError) as caught:
        await life.power.start(life.work, QUIETLY)
    assert str(caught.value) == (
        f"work was not started: {below} was written to after it was finished; take it as it is with 'crannog storage "
        "accept debian root', or go back with 'qvm-volume revert debian:root', or restore a backup with 'qvm-volume "
        "import debian:root FILE'"
    )
    assert life.work.power_state == "Halted"
    await life.inside.inventory.upkeep.accept(template, "root")
    await life.power.start(life.work, QUIETLY)


async def test_a_damaged_image_is_refused_with_what_to_do(life: Life) -> None:
    await content(life)
    template = life.vm("debian")
    await session(life.inside.pool, template.volumes["root"], "a")
    path = newest(life, template)
    Path(path).write_bytes(b"nonsense")
    with pytest.raises(StorageError) as caught:
        await life.power.start(life.work, QUIETLY)
    assert str(caught.value) == (
        f"work was not started: {path} cannot be read: Image is not in qcow2 format; go back with 'qvm-volume revert "
        "debian:root', or restore a backup with 'qvm-volume import debian:root FILE'"
    )
    await life.inside.inventory.volumes.revert(
        template, "root", life.inside.pool.revisions(template.volumes["root"])[0]
    )
    await life.power.start(life.work, QUIETLY)


async def test_a_kept_layer_over_a_changed_template(life: Life) -> None:
    await content(life)
    upkeep, pool = life.inside.inventory.upkeep, life.inside.pool
    source = life.vm("debian").volumes["root"]
    layer = replace(life.work.volumes["root"], source=source.vid, keeps_layer=True)
    await session(pool, layer, "k")
    assert await upkeep.examine(layer) == []
    change(newest(life, life.vm("debian")))
    with pytest.raises(StorageError, match="accept debian root', which drops the layer that is kept, or restore"):
        await upkeep.examine(layer)
    await upkeep.accept(life.vm("debian"), "root")
    assert await upkeep.examine(layer) == []
    await session(pool, layer, "k")
    Path(pool.locate(layer).path).write_bytes(b"nonsense")
    with pytest.raises(StorageError, match="have the kept layer dropped: start the VM once with its property debug"):
        await upkeep.examine(layer)


async def test_what_is_accepted_is_a_volume_with_images_of_its_own(life: Life) -> None:
    upkeep = life.inside.inventory.upkeep
    with pytest.raises(ValueRefusedError, match=r"root of work is a layer over that of debian; .* accept debian root'"):
        await upkeep.accept(life.work, "root")
    with pytest.raises(KeyError):
        await upkeep.accept(life.work, "none")


async def test_the_volumes_of_running_and_of_busy_vms_count_as_used(life: Life) -> None:
    inventory = life.inside.inventory
    (alone,) = await life.add("alone")
    folder = Path(newest(life, alone)).parent
    assert await inventory.upkeep.check(DEFAULT_POOL) == []
    _, path = await inventory.volumes.begin_import(alone, "root", None)
    assert await inventory.upkeep.check(DEFAULT_POOL) == []
    assert (await inventory.upkeep.collect(DEFAULT_POOL)).found == []
    assert os.path.exists(path)
    await inventory.volumes.end_import(alone, "root", success=False)
    (folder / "root.import.new").touch(0o600)
    (found,) = await inventory.upkeep.check(DEFAULT_POOL)
    assert (found.kind, found.path) == (Kind.HALF_MADE, str(folder / "root.import.new"))
    await life.power.start(alone, QUIETLY)
    assert await inventory.upkeep.check(DEFAULT_POOL) == []
    await life.power.kill(alone)
    await life.settle()
    assert len((await inventory.upkeep.collect(DEFAULT_POOL)).found) == 1


async def test_the_volatile_disk_of_a_running_vm_is_no_waste(life: Life) -> None:
    upkeep = life.inside.inventory.upkeep
    await life.power.start(life.work, QUIETLY)
    path = Path(life.inside.pool.locate(life.work.volumes["volatile"]).path)
    path.write_bytes(b"v" * 4096)
    assert await upkeep.check(DEFAULT_POOL) == []
    assert (await upkeep.find_waste(DEFAULT_POOL)).found == []
    assert (await upkeep.collect(DEFAULT_POOL)).found == []
    assert path.read_bytes() == b"v" * 4096
    await life.power.kill(life.work)
    await life.settle()
    assert not path.exists()
    assert await upkeep.check(DEFAULT_POOL) == []


async def test_a_vm_that_somebody_works_on_is_waited_for(life: Life) -> None:
    (alone,) = await life.add("alone")
    half_made = Path(newest(life, alone)).parent / "root.new"
    half_made.touch(0o600)
    async with life.inside.machines.lock(alone.uuid):
        collecting = asyncio.ensure_future(life.inside.inventory.upkeep.collect(DEFAULT_POOL))
        await asyncio.sleep(0.3)
        assert half_made.exists()
        assert not collecting.done()
    assert len((await collecting).found) == 1


async def test_what_is_in_doubt_is_kept_and_told(life: Life) -> None:
    """An image that cannot be read, in one pool, keeps all that it might stand on, in all pools."""
    inside = life.inside
    other = Qcow2Pool("other", f"{inside.paths.home}/other")
    pools: dict[str, Any] = {DEFAULT_POOL: inside.pool, "other": other}
    inside.registry.add_pool(PoolConfig("other", "qcow2", (("dir_path", other.folder),)))
    upkeep = Upkeep(inside.registry, pools)
    (alone,) = await life.add("alone")
    os.unlink(newest(life, alone, "private"))
    private = replace(alone.volumes["private"], pool="other", revisions_to_keep=1)
    alone.volumes["private"] = private
    await other.create((private,))
    await session(other, private, "a")
    orphan = Path(inside.pool.folder, "gone-12345678")
    orphan.mkdir(0o700)
    (orphan / "root.img").touch(0o600)
    assert [found.path for found in (await upkeep.find_waste(DEFAULT_POOL)).found] == [str(orphan)]
    good = Path(other.newest(private.vid).path).read_bytes()
    Path(other.newest(private.vid).path).write_bytes(b"nonsense")
    fresh: dict[str, Any] = {**pools, "other": Qcow2Pool("other", other.folder)}
    for act in (Upkeep(inside.registry, fresh).find_waste, Upkeep(inside.registry, fresh).collect):
        waste = await act(DEFAULT_POOL)
        assert waste.found == []
        assert len(waste.remarks) == 1
        assert waste.remarks[0].startswith("only what is half-made can be deleted as long as /")
    Path(other.newest(private.vid).path).write_bytes(good)
    assert [found.path for found in (await upkeep.collect(DEFAULT_POOL)).found] == [str(orphan)]
    assert [found.kind for found in await upkeep.check("other")] == [Kind.CHANGED]


async def test_pools_that_cannot_be_looked_at(life: Life) -> None:
    inside = life.inside

    class Odd:
        """A pool whose driver cannot be looked after."""

    inside.registry.add_pool(PoolConfig("far", "zfs"))
    upkeep = Upkeep(inside.registry, {"far": Odd()})  # type: ignore[dict-item]
    with pytest.raises(NotYetError, match="pool far cannot be checked: pools of driver zfs"):
        await upkeep.check("far")
    with pytest.raises(StorageError, match="pool linux-kernel of driver linux-kernel holds no volumes"):
        await upkeep.check("linux-kernel")
    with pytest.raises(KeyError):
        await upkeep.check("none")
