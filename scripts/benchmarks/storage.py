"""What volumes cost: a VM that comes and gets its disks, copies of VMs, and a guest's reads and writes on a layer."""

import asyncio
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count

from benchmarks.harness import Row, call, own_home, summarize, take_turns, time_command, tool
from benchmarks.start import GIB, _make_overlay
from crannog.adapters.storage.drivers import open_pools
from crannog.adapters.store.file import FileStore
from crannog.config import Paths
from crannog.editing.population import NewVM
from crannog.offline.backend import OfflineBackend

EXTRA = 0.015
"""Seconds that a new VM's record, folder and disks may take beyond one qemu-img that makes one layer."""
CREATE_RUNS = 15
SIZE_TARGET = 1.2
CLONE_RUNS = 2
"""Of virt-clone's, each of which takes half a minute."""
CLONE_TARGET = 1 / 50
IO_TARGET = 1 / 0.9
DRIVERS = ("qcow2", "reflink")
MIB = 2**20
PIECES = 1024
"""Of 1 MiB each in an image of 10 GiB, with a hole after each."""

DOMAIN = """<node><domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>
<test:runstate>5</test:runstate><name>alone</name><memory>65536</memory><os><type>hvm</type></os>
<devices><disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{}'/>
<target dev='vda'/></disk></devices></domain></node>"""
"""A libvirt host of its own for virt-clone, with one halted domain whose disk is a real file."""

IN_GUEST = """
import json, os, random, sys, time
SIZE, STEP, PAGE, COUNT = 64 * 2**20, 2**20, 4096, 1500
def forget():
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")
def timed(act, path, flags):
    forget()
    disk = os.open(path, flags, 0o600)
    began = time.monotonic()
    act(disk)
    if flags & os.O_WRONLY:
        os.fsync(disk)
    seconds = time.monotonic() - began
    os.close(disk)
    return seconds
def places():
    return random.Random(1).sample(range(SIZE // PAGE), COUNT)
def write_all(disk):
    for place in range(0, SIZE, STEP):
        os.pwrite(disk, block, place)
def read_all(disk):
    for place in range(0, SIZE, STEP):
        os.pread(disk, STEP, place)
def write_some(disk):
    for place in places():
        os.pwrite(disk, block[:PAGE], place * PAGE)
def read_some(disk):
    os.posix_fadvise(disk, 0, 0, os.POSIX_FADV_RANDOM)
    for place in places():
        os.pread(disk, PAGE, place * PAGE)
block = os.urandom(STEP)
CREATE = os.O_WRONLY | os.O_CREAT
acts = [(write_all, CREATE), (read_all, os.O_RDONLY), (write_some, os.O_WRONLY), (read_some, os.O_RDONLY)]
for turn in range(int(sys.argv[1]) + 1):
    found = [[timed(act, f"{folder}/io-{turn}", flags) for act, flags in acts] for folder in ("/var", "/rw")]
    print(json.dumps(found), flush=True)
"""
NAMES = ("sequential writes", "sequential reads", "random writes", "random reads")


@contextmanager
def sharing_disk() -> Iterator[str]:
    """Mount a btrfs of 40 GiB in a file, which takes root; take it away afterwards."""
    with tempfile.TemporaryDirectory(prefix="crannog-bench-disk-") as folder:
        file, place = f"{folder}/disk", f"{folder}/btrfs"
        with open(file, "wb") as disk:
            disk.truncate(40 * GIB)
        os.mkdir(place)
        for command in (["mkfs.btrfs", "-q", file], ["mount", "-o", "loop", file, place]):
            subprocess.run(command, check=True, capture_output=True)
        try:
            yield place
        finally:
            subprocess.run(["umount", place], check=True)


# -- VMs that come


class Storehouse:
    """A home that no daemon serves, with a pool of each driver and templates of two sizes in each."""

    def __init__(self, home: str, disk: str) -> None:
        self.paths = Paths(home, f"{home}/cache")
        os.makedirs(self.paths.pools)
        self.backend = OfflineBackend(self.paths, FileStore(self.paths.store, self.paths.kernels))
        self.loop = asyncio.new_event_loop()
        self.numbers = count()
        for driver in DRIVERS:
            folder = f"{disk}/{driver}" if driver == "reflink" else f"{home}/{driver}"
            self.backend.pools.add(driver, driver, {"dir_path": folder})
            for size in (1, 100):
                self.loop.run_until_complete(self._add_template(driver, size))
        self.pools = open_pools(self.paths, self.backend.registry.pools.values())

    async def _add_template(self, driver: str, size: int) -> None:
        path = f"{self.paths.home}/image"
        _make_image(path, size * GIB, 1)
        wanted = NewVM("TemplateVM", f"{driver}-{size}", "", None, {"": driver})
        vm = await self.backend.population.create(wanted, created_by="dom0")
        await self.backend.volumes.import_file(vm, "root", path)

    def time_coming(self, driver: str, size: int) -> float:
        """Return the seconds in which a VM comes and has the disks of its start; it goes again."""
        return self.loop.run_until_complete(self._time_coming(driver, size))

    async def _time_coming(self, driver: str, size: int) -> float:
        backend = self.backend
        template = backend.registry.find_vm(f"{driver}-{size}")
        began = time.perf_counter()
        wanted = NewVM("AppVM", f"app{next(self.numbers)}", "", template, {"private": driver})
        vm = await backend.population.create(wanted, created_by="dom0")
        for name, volume in vm.volumes.items():
            if volume.pool in self.pools:
                await self.pools[volume.pool].start(backend.volumes.describe(vm, name))
        seconds = time.perf_counter() - began
        await backend.population.remove(vm)
        return seconds


def measure_coming(runs: int, home: str, disk: str) -> list[Row]:
    """Measure how a template-based VM comes and gets its disks, from a small and a large template, and one qemu-img."""
    house = Storehouse(home, disk)
    base, overlay = f"{home}/base.img", f"{home}/overlay.qcow2"
    with open(base, "wb") as file:
        file.truncate(100 * GIB)

    def by_hand() -> float:
        began = time.perf_counter()
        _make_overlay(overlay, base)
        return time.perf_counter() - began

    def comes(driver: str, size: int) -> Callable[[], float]:
        return lambda: house.time_coming(driver, size)

    actions = [comes(driver, size) for driver in DRIVERS for size in (1, 100)]
    hand, *found = take_turns(max(runs, CREATE_RUNS), by_hand, *actions)
    limit = replace(hand, median=hand.median + EXTRA, least=hand.least + EXTRA, most=hand.most + EXTRA)
    rows = []
    for number, driver in enumerate(DRIVERS):
        small, large = found[2 * number : 2 * number + 2]
        rows.append(Row(f"VM comes, has its disks ({driver})", large, "qemu-img create -b, and 15 ms", limit, 1.0))
        rows.append(Row(f"the same, template of 100 GiB ({driver})", large, "of 1 GiB", small, SIZE_TARGET))
    return rows


# -- copies


def measure_clones(disk: str) -> list[Row]:
    """Copy a StandaloneVM of 10 GiB with 1 GiB of data, and do the same with virt-clone on the same disk."""
    return [_measure_clone(driver, disk) for driver in DRIVERS]


def _measure_clone(driver: str, disk: str) -> Row:
    with own_home() as home:
        place = disk if driver == "reflink" else home
        image, copy, host = f"{place}/image", f"{place}/copy", f"{home}/host.xml"
        _make_image(image, 10 * GIB, PIECES)
        with open(host, "w") as file:
            file.write(DOMAIN.format(image))
        call("qvm-pool", "add", "here", driver, "-o", f"dir_path={place}/pool")
        call("qubes-prefs", "default_pool", "here")
        call("qvm-create", "--class", "StandaloneVM", "--property", "virt_mode=hvm", "--root-copy-from", image, "alone")

        def ours() -> float:
            seconds = time_command(tool("qvm-clone"), "alone", "again")
            call("qvm-remove", "--force", "again")
            return seconds

        def theirs() -> float:
            command = ("virt-clone", "--quiet", "--connect", f"test://{host}", "--original", "alone")
            seconds = time_command(*command, "--name", "again", "--file", copy)
            os.unlink(copy)
            return seconds

        value, reference = take_turns(CLONE_RUNS, ours, theirs, least=CLONE_RUNS)
        return Row(f"qvm-clone, 1 GiB in 10 GiB ({driver})", value, "virt-clone", reference, CLONE_TARGET)


def _make_image(path: str, size: int, pieces: int) -> None:
    with open(path, "wb") as file:
        for piece in range(pieces):
            file.seek(piece * 10 * MIB)
            file.write(os.urandom(MIB))
        file.truncate(size)
        os.fsync(file.fileno())


# -- a guest's reads and writes


def measure_guest(runs: int) -> list[Row]:
    """Use new files on root, a layer over the template, and on private, a plain file, in one guest."""
    with own_home():
        call("crannog", "template", "build", "debian-12")
        call("qvm-create", "--template", "debian-12", "work")
        call("qvm-start", "--wait", "work")
        command = [tool("qvm-run"), "--pass-io", "--user", "root", "work", f"python3 - {runs}"]
        done = subprocess.run(command, input=IN_GUEST, stdout=subprocess.PIPE, text=True, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines()][1:]  # the first one warms up
    rows = []
    for number, name in enumerate(NAMES):
        layer, plain = (summarize([one[place][number] for one in found]) for place in (0, 1))
        rows.append(Row(f"{name} on a layer", layer, "on a plain file", plain, IO_TARGET))
    return rows


def measure(runs: int) -> list[Row]:
    """Return all rows."""
    with sharing_disk() as disk, tempfile.TemporaryDirectory(prefix="crannog-bench-") as home:
        return [*measure_coming(runs, home, disk), *measure_clones(disk), *measure_guest(runs)]
