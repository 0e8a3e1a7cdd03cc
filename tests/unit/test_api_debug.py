"""Debug mode's layer (design.md, B2) from start to start of a VM, and what its user is told."""

from dataclasses import replace
from pathlib import Path

import pytest

from crannog.core.layers import in_session
from crannog.core.startup import StartRequest
from crannog.core.templates import origin
from crannog.core.vms import LocalVM
from tests.contract.benches import peek, session, write
from tests.fakes import Inside, build_inside, template_and_app

KEPT = "volume ready (debug mode: the layer of its last start was kept)"
NEW = "volume ready (debug mode: a new layer, which is kept)"
CHANGED = "volume ready (debug mode: a new layer, as what is below the last one has changed)"
REQUEST = StartRequest(wait=False)


@pytest.fixture
async def inside(tmp_path: Path) -> Inside:
    """Return a daemon's inside with an HVM in debug mode over a template."""
    inside = build_inside(tmp_path)
    for vm in template_and_app(inside.registry, "hvm"):
        for volume in vm.volumes.values():
            inside.registry.find_vm(vm.name).volumes[volume.name] = replace(volume, size=2**20)
        await inside.pool.create(tuple(vm.volumes.values()))
    inside.registry.find_vm("work").set("debug", True)
    return inside


async def start(inside: Inside) -> str:
    """Start the VM; return what is told of its root, once its plan says the same."""
    vm = local(inside, "work")
    planned = (await inside.lifecycle.plan(vm, REQUEST))[0]
    stages = await inside.lifecycle.start(vm, REQUEST)
    assert planned.tell() == stages[0][0]
    assert planned.tell().removeprefix("volume ready") in planned.describe()
    return stages[0][0]


async def stop(inside: Inside) -> None:
    vm = local(inside, "work")
    await inside.lifecycle.kill(vm)
    await inside.lifecycle.news.settled(vm.uuid)


def local(inside: Inside, name: str) -> LocalVM:
    vm = inside.registry.find_vm(name)
    assert isinstance(vm, LocalVM)
    return vm


async def test_the_layer_is_kept_until_the_template_changes(inside: Inside) -> None:
    vm = local(inside, "work")
    root = inside.pool.locate(in_session(vm, vm.volumes["root"]))
    assert await start(inside) == NEW
    write(root, "a")
    await stop(inside)
    assert await start(inside) == KEPT
    assert peek(root) == "a"
    await stop(inside)
    await session(inside.pool, origin(vm, "root")[1], "t")
    assert await start(inside) == CHANGED
    assert peek(root) == "t"
    await stop(inside)


async def test_without_debug_mode_nothing_is_kept_or_told(inside: Inside) -> None:
    vm = local(inside, "work")
    assert await start(inside) == NEW
    write(inside.pool.locate(vm.volumes["root"]), "a")
    await stop(inside)
    vm.set("debug", False)
    assert await start(inside) == "volume ready"
    assert peek(inside.pool.locate(vm.volumes["root"])) == "\0"
    await stop(inside)
    assert not Path(inside.pool.locate(vm.volumes["root"]).path).exists()
