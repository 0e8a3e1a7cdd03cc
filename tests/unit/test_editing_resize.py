"""Volumes that become larger while their VM runs, with a hypervisor that only takes note."""

import os
from pathlib import Path

import pytest

from crannog.api.framing import Request
from crannog.api.methods import answer
from crannog.core.startup import StartRequest
from crannog.core.vms import LocalVM
from crannog.errors import HypervisorError, StorageError, ValueRefusedError, VMNotHaltedError
from tests.fakes import Inside, build_inside

GIB = 2**30


async def resize(inside: Inside, volume: str, size: int) -> None:
    await answer(inside.inventory, Request("admin.vm.volume.Resize", volume, "dom0", "alone", str(size).encode()))


@pytest.fixture
async def inside(tmp_path: Path) -> Inside:
    """Return a daemon's inside whose StandaloneVM `alone` runs."""
    inside = build_inside(tmp_path)
    await answer(inside.inventory, Request("admin.vm.Create.StandaloneVM", "", "dom0", "dom0", b"name=alone label=red"))
    await inside.inventory.lifecycle.start(vm(inside), StartRequest(wait=False))
    return inside


def vm(inside: Inside) -> LocalVM:
    found = inside.registry.find_vm("alone")
    assert isinstance(found, LocalVM)
    return found


def size_of(inside: Inside, volume: str) -> int:
    return inside.reloaded().find_vm("alone").volumes[volume].size


async def test_the_disk_grows_and_the_store_knows(inside: Inside) -> None:
    await resize(inside, "private", 3 * GIB)
    ((path, size),) = inside.hypervisor.enlarged
    assert os.path.basename(path) == "private.img"
    assert size == size_of(inside, "private") == 3 * GIB


async def test_disks_have_whole_sectors(inside: Inside) -> None:
    await resize(inside, "private", 3 * GIB + 1)
    assert inside.hypervisor.enlarged[0][1] == size_of(inside, "private") == 3 * GIB + 512


async def test_a_paused_vms_disk_grows_too(inside: Inside) -> None:
    await inside.inventory.lifecycle.pausing.pause(vm(inside))
    await resize(inside, "private", 3 * GIB)
    assert size_of(inside, "private") == 3 * GIB


async def test_nothing_gets_smaller(inside: Inside) -> None:
    with pytest.raises(ValueRefusedError, match="cannot get fewer"):
        await resize(inside, "private", GIB)
    assert inside.hypervisor.enlarged == []


async def test_what_the_hypervisor_refuses_is_not_kept(inside: Inside) -> None:
    before = size_of(inside, "private")
    inside.hypervisor.failing.add("enlarge_disk")
    with pytest.raises(HypervisorError):
        await resize(inside, "private", 3 * GIB)
    assert size_of(inside, "private") == before


async def test_what_the_pool_refuses_is_not_asked_of_the_hypervisor(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(volume: object, size: int) -> int:
        del volume, size
        raise StorageError("this pool has devices of a fixed size")

    monkeypatch.setattr(inside.pool, "make_room", refuse)
    pools = inside.inventory.volumes._pools
    monkeypatch.setattr(pools["vm-pool"], "make_room", refuse)
    with pytest.raises(StorageError):
        await resize(inside, "private", 3 * GIB)
    assert inside.hypervisor.enlarged == []


async def test_a_volatile_disk_keeps_its_size_while_it_is_used(inside: Inside) -> None:
    with pytest.raises(VMNotHaltedError):
        await resize(inside, "volatile", 20 * GIB)
