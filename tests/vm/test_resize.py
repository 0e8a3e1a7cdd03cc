"""Volumes that become larger while their VMs run, and while they do not; their file systems follow."""

import os
from collections.abc import Iterator

import pytest

from tests.vm.home import Home, wait_until
from tests.vm.test_layers import Files, as_root

pytestmark = pytest.mark.vm

GIB = 2**30


@pytest.fixture
def alone(shared_home: Home) -> Iterator[str]:
    """Return the name of a halted StandaloneVM."""
    shared_home.ok("qvm-clone", "--class", "StandaloneVM", "debian-12", "alone")
    yield "alone"
    shared_home.run("qvm-kill", "alone")
    shared_home.ok("qvm-remove", "--force", "alone")


def size_inside(home: Home, vm: str, disk: str) -> int:
    return int(as_root(home, vm, f"blockdev --getsize64 /dev/{disk}"))


def space_inside(home: Home, vm: str, folder: str) -> int:
    """Return the bytes of a file system, as its users see it."""
    blocks, size = map(int, as_root(home, vm, f"stat -f -c '%b %S' {folder}").split())
    return blocks * size


def size_of(home: Home, volume: str) -> int:
    return int(home.ok("qvm-volume", "info", volume, "size"))


def test_a_private_volume_grows_while_it_is_written(shared_home: Home, work: str) -> None:
    home = shared_home
    home.ok("qvm-start", "--wait", work)
    as_root(home, work, "echo kept > /rw/kept; (dd if=/dev/zero of=/rw/big bs=1M count=64; sync) 2>/dev/null &")
    home.ok("qvm-volume", "resize", f"{work}:private", "3GiB")
    assert size_of(home, f"{work}:private") == size_inside(home, work, "vdb") == 3 * GIB
    wait_until(lambda: space_inside(home, work, "/rw") > 2.7 * GIB, "the file system has followed")
    assert os.stat(f"{Files(home, work).folder}/private.img").st_size == 3 * GIB
    complaint = home.fails(2, "qvm-volume", "resize", "--force", f"{work}:private", "2GiB")
    assert "cannot get fewer" in complaint
    home.ok("qvm-shutdown", "--wait", work)
    home.ok("qvm-start", "--wait", work)
    assert as_root(home, work, "cat /rw/kept") == "kept\n"
    assert size_inside(home, work, "vdb") == 3 * GIB


def test_a_halted_vms_volumes_grow(shared_home: Home, alone: str) -> None:
    home = shared_home
    for volume in ("root", "private"):
        home.ok("qvm-volume", "resize", f"{alone}:{volume}", "12GiB")
    home.ok("qvm-start", "--wait", alone)
    assert (size_inside(home, alone, "vda"), size_inside(home, alone, "vdb")) == (12 * GIB, 12 * GIB)
    for folder in ("/", "/rw"):
        wait_until(lambda folder=folder: space_inside(home, alone, folder) > 11 * GIB, f"{folder} has followed")  # type: ignore[misc]


@pytest.mark.slow
def test_a_template_with_revisions_grows_while_it_runs(shared_home: Home) -> None:
    """What it writes to is a layer; the revision that it becomes is larger than the one before."""
    home = shared_home
    home.ok("qvm-clone", "debian-12", "grown")
    try:
        home.ok("qvm-start", "--wait", "grown")
        home.ok("qvm-volume", "resize", "grown:root", "11GiB")
        wait_until(lambda: space_inside(home, "grown", "/") > 10.2 * GIB, "the file system has followed")
        home.ok("qvm-shutdown", "--wait", "grown")
        home.ok("qvm-create", "--template", "grown", "larger")
        home.ok("qvm-start", "--wait", "larger")
        assert space_inside(home, "larger", "/") > 10.2 * GIB
    finally:
        home.run("qvm-kill", "larger", "grown")
        home.run("qvm-remove", "--force", "larger")
        home.ok("qvm-remove", "--force", "grown")


def test_layers_of_a_running_vm_keep_their_size(shared_home: Home, running: str) -> None:
    complaint = shared_home.fails(5, "qvm-volume", "resize", f"{running}:root", "20GiB")
    assert f"shut it down with 'qvm-shutdown {running}'" in complaint
