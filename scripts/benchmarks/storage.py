"""What volumes cost: a VM that comes and gets its disks, copies of VMs, and a guest's reads and writes on a layer."""

import asyncio
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count

from benchmarks import disk_io
from benchmarks.harness import Row, call, own_home, take_turns, time_command, tool
from benchmarks.start import GIB
from crannog.adapters.storage.drivers import open_pools
from crannog.adapters.store.file import FileStore
from crannog.config import Paths
from crannog.core.layers import ready_volumes
from crannog.core.vms import LocalVM
from crannog.editing.population import NewVM
from crannog.editing.upkeep import Upkeep
from crannog.offline.backend import OfflineBackend

EXTRA = 0.015
"""Seconds that a new VM's record, folder and disks may take beyond one qemu-img that makes one layer."""
CREATE_RUNS = 15
SIZES = (1, 100)
"""GiB of the templates."""
SIZE_TARGET = 1.2
SESSIONS = 2
"""Of the templates, after which the newest content is a layer over layers where the driver has such."""
FASTER = 50
"""How many times as fast as virt-clone a copy shall be."""
MIB = 2**20

DOMAIN = """<node><domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>
<test:runstate>5</test:runstate><name>alone</name><memory>65536</memory><os><type>hvm</type></os>
<devices><disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{}'/>
<target dev='vda'/></disk></devices></domain></node>"""
"""A libvirt host of its own for virt-clone, with one halted domain whose disk is a real file."""


@dataclass(frozen=True)
class Place:
    """A folder that a driver's pools can be in, and how both are called."""

    driver: str
    name: str
    folder: str


@contextmanager
def all_places() -> Iterator[list[Place]]:
    """Give out a folder for qcow2, and one on each file system whose files share data: in files, which takes root."""
    with (
        tempfile.TemporaryDirectory(prefix="crannog-bench-") as folder,
        _mounted("btrfs", "-q") as btrfs,
        _mounted("xfs", "-q", "-m", "reflink=1") as xfs,
    ):
        yield [
            Place("qcow2", "qcow2", folder),
            Place("reflink", "reflink, btrfs", btrfs),
            Place("reflink", "reflink, xfs", xfs),
        ]


@contextmanager
def _mounted(kind: str, *options: str) -> Iterator[str]:
    """Mount a file system of 40 GiB in a file; take it away afterwards."""
    with tempfile.TemporaryDirectory(prefix="crannog-bench-disk-") as folder:
        file, place = f"{folder}/disk", f"{folder}/{kind}"
        with open(file, "wb") as disk:
            disk.truncate(40 * GIB)
        os.mkdir(place)
        for command in ([f"mkfs.{kind}", *options, file], ["mount", "-o", "loop", file, place]):
            subprocess.run(command, check=True, capture_output=True)
        try:
            yield place
        finally:
            subprocess.run(["umount", place], check=True)


def _make_image(path: str, size: int, pieces: int, length: int) -> None:
    """Make a sparse image with random data in so many pieces, all over it."""
    with open(path, "wb") as file:
        for piece in range(pieces):
            file.seek(piece * (size // pieces))
            file.write(os.urandom(length))
        file.truncate(size)
        os.fsync(file.fileno())


# -- VMs that come


class Storehouse:
    """A home that no daemon serves, with a pool in a place, and templates of several sizes with the same much data."""

    def __init__(self, place: Place) -> None:
        self.place = place
        home = f"{place.folder}/home"
        self.paths = Paths(home, f"{home}/cache")
        os.makedirs(self.paths.pools)
        self.backend = OfflineBackend(self.paths, FileStore(self.paths.store, self.paths.kernels))
        self.loop = asyncio.new_event_loop()
        self.numbers = count()
        self.backend.pools.add("here", place.driver, {})
        self.pools = open_pools(self.paths, self.backend.registry.pools.values())
        self.upkeep = Upkeep(self.backend.registry, self.pools)
        for size in SIZES:
            self.loop.run_until_complete(self._add_template(size))

    async def _add_template(self, size: int) -> None:
        path = f"{self.place.folder}/image"
        _make_image(path, size * GIB, 256, MIB)
        wanted = NewVM("TemplateVM", f"t{size}", "", None, {"": "here"})
        vm = await self.backend.population.create(wanted, created_by="dom0")
        await self.backend.volumes.import_file(vm, "root", path)
        os.unlink(path)
        for _ in range(SESSIONS):
            await self.pools["here"].start(vm.volumes["root"])
            await self.pools["here"].stop(vm.volumes["root"])

    def time_coming(self, size: int) -> float:
        """Return the seconds in which a VM comes and has the disks of its start; it goes again."""
        return self.loop.run_until_complete(self._time_coming(size))

    async def _time_coming(self, size: int) -> float:
        backend = self.backend
        template = backend.registry.find_vm(f"t{size}")
        began = time.perf_counter()
        wanted = NewVM("AppVM", f"app{next(self.numbers)}", "", template, {"": "here"})
        vm = await backend.population.create(wanted, created_by="dom0")
        if not isinstance(vm, LocalVM):
            raise TypeError(f"{vm.name} has no disks")
        for volume in ready_volumes(vm):  # what the daemon's steps do with each
            await self.upkeep.examine(volume)
            await self.pools[volume.pool].start(volume)
        seconds = time.perf_counter() - began
        await backend.population.remove(vm)
        return seconds


def measure_coming(runs: int, places: list[Place]) -> list[Row]:
    """Measure how a template-based VM comes and gets its disks, from a small and a large template, and one qemu-img."""
    houses = [Storehouse(place) for place in places]
    base, overlay = f"{places[0].folder}/base.img", f"{places[0].folder}/overlay.qcow2"
    _make_image(base, SIZES[-1] * GIB, 256, MIB)

    def by_hand() -> float:
        began = time.perf_counter()
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, overlay], check=True)
        return time.perf_counter() - began

    def comes(house: Storehouse, size: int) -> Callable[[], float]:
        return lambda: house.time_coming(size)

    actions = [comes(house, size) for house in houses for size in SIZES]
    hand, *found = take_turns(max(runs, CREATE_RUNS), by_hand, *actions)
    limit = replace(hand, median=hand.median + EXTRA, least=hand.least + EXTRA, most=hand.most + EXTRA)
    rows = []
    for number, place in enumerate(places):
        small, large = found[2 * number : 2 * number + 2]
        rows.append(Row(f"VM comes, has its disks ({place.name})", large, "qemu-img create -b, and 15 ms", limit, 1.0))
        rows.append(Row(f"the same, template of 100 GiB ({place.name})", large, "of 1 GiB", small, SIZE_TARGET))
    return rows


# -- copies


def measure_clone(runs: int, place: Place) -> Row:
    """Copy a StandaloneVM of 10 GiB with 3 GiB of data, and do the same with virt-clone on the same disk."""
    if not shutil.which("virt-clone"):
        raise RuntimeError("virt-clone is missing: run 'scripts/setup test'")
    with own_home() as home:
        image, copy, host = f"{place.folder}/image", f"{place.folder}/copy", f"{home}/host.xml"
        _make_image(image, 10 * GIB, 1024, 3 * MIB)
        with open(host, "w") as file:
            file.write(DOMAIN.format(image))
        call("qvm-pool", "add", "here", place.driver, "-o", f"dir_path={place.folder}/pool")
        call("qubes-prefs", "default_pool", "here")
        call("qvm-create", "--class", "StandaloneVM", "--property", "virt_mode=hvm", "--root-copy-from", image, "alone")

        def ours() -> float:
            os.sync()  # so that nobody waits for what others wrote
            seconds = time_command(tool("qvm-clone"), "alone", "again")
            call("qvm-remove", "--force", "again")
            return seconds

        def theirs() -> float:
            os.sync()
            command = ("virt-clone", "--quiet", "--connect", f"test://{host}", "--original", "alone")
            seconds = time_command(*command, "--name", "again", "--file", copy)
            os.unlink(copy)
            return seconds

        value, whole = take_turns(runs, ours, theirs)
        limit = replace(whole, median=whole.median / FASTER, least=whole.least / FASTER, most=whole.most / FASTER)
        return Row(f"qvm-clone, 3 GiB in 10 GiB ({place.name})", value, f"a {FASTER}th of virt-clone", limit, 1.0)


def measure(runs: int) -> list[Row]:
    """Return all rows."""
    with all_places() as places:
        rows = measure_coming(runs, places) + [measure_clone(runs, place) for place in places]
    return rows + disk_io.measure(runs)
