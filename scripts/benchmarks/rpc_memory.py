"""What the RPC processes of 100 VMs cost: memory that none shares with another, and the time until one listens.

No VM is started: each process has a channel socket, and some have a relay in QEMU's place with our guests' agent behind
it, and made calls. The reference is a process that is started on its own, as `python -m crannog.rpc.vm_process`.
"""

import asyncio
import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.unit.rpc_world import World, wait_until

from benchmarks.harness import Figure, Row, summarize
from crannog.client.rpc import run_command
from crannog.rpc.nursery_link import NurseryLink, RpcChild
from crannog.rpc.place import Place

VMS, WITH_AGENT, CALLS = 100, 5, 3
MOST = 8e6
"""Bytes."""


class VMs:
    """Where many VMs are served: their channels, and the agents of some."""

    def __init__(self, folder: Path) -> None:
        self._channels: list[socket.socket] = []
        self._worlds: list[World] = []
        self.places = [self._make(folder / f"vm{number}", has_agent=number < WITH_AGENT) for number in range(VMS)]

    def _make(self, folder: Path, *, has_agent: bool) -> Place:
        folder.mkdir()
        world = World(folder)
        if has_agent:
            self._worlds.append(world)
            world.start_relay()
            world.start_agent()
        else:
            channel = socket.socket(socket.AF_UNIX)
            channel.bind(world.host_port)
            channel.listen(1)
            self._channels.append(channel)
        return Place(folder.name, world.host_port, world.rpc_socket, home=str(folder))

    def call(self) -> None:
        """Make calls to the VMs that have an agent."""
        for world in self._worlds:
            wait_until(world.is_ready, 60)
            for _ in range(CALLS):
                if run_command(world.rpc_socket, "DEFAULT", "head -c 1000000 /dev/zero", 0, os.open(os.devnull, 1), 2):
                    raise RuntimeError("a call of the benchmark failed")

    def close(self) -> None:
        """End what stands for the VMs."""
        for world in self._worlds:
            world.close()
        for channel in self._channels:
            channel.close()


@contextmanager
def vms() -> Iterator[VMs]:
    """Give VMs in a folder of their own."""
    folder = Path(tempfile.mkdtemp(prefix="m-bench-", dir="/tmp"))
    served = VMs(folder)
    try:
        yield served
    finally:
        served.close()
        shutil.rmtree(folder)


def unshared(process: int) -> float:
    """Return the bytes that a process alone has in memory."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(("Private_Clean:", "Private_Dirty:")))


def _until_listening(place: Place) -> None:
    while True:
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(place.listen_path) == 0:
                return
        time.sleep(0.0002)


def memory(processes: list[int]) -> Figure:
    """Return the mean, the least and the most that the processes have alone."""
    counts = [unshared(process) for process in processes]
    return Figure(statistics.mean(counts), min(counts), max(counts), len(counts), "MB")


async def _forked(served: VMs) -> tuple[Figure, Figure, Figure]:
    """Return the seconds to listening, the memory, and the memory once the parent is gone."""
    link = NurseryLink(os.devnull, os.environ)
    children: list[RpcChild] = []
    times = []
    try:
        for place in served.places:
            began = time.perf_counter()
            children.append(await link.bear(place, os.environ, os.devnull))
            await asyncio.to_thread(_until_listening, place)
            times.append(time.perf_counter() - began)
        await asyncio.to_thread(served.call)
        with_parent = memory([child.pid for child in children])
        await link.close()
        return summarize(times), with_parent, memory([child.pid for child in children])
    finally:
        for child in children:
            await child.end()
        await link.close()


def _spawned(served: VMs) -> tuple[Figure, Figure]:
    """Return the seconds to listening and the memory of processes that each begin as a program."""
    children: list[subprocess.Popen[bytes]] = []
    times = []
    try:
        for place in served.places:
            began = time.perf_counter()
            children.append(
                subprocess.Popen(
                    place.command(), stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
                )
            )
            _until_listening(place)
            times.append(time.perf_counter() - began)
        served.call()
        return summarize(times), memory([child.pid for child in children])
    finally:
        for child in children:
            child.terminate()
            child.wait()


def measure(runs: int) -> list[Row]:
    """Return all rows; `runs` is ignored, as there are many processes."""
    del runs
    with vms() as served:
        times, own, left = asyncio.run(_forked(served))
    with vms() as served:
        alone_times, alone = _spawned(served)
    limit = Figure(MOST, MOST, MOST, 1, "MB")
    return [
        Row(f"unshared memory of each of {VMS} RPC processes (mean)", own, "the limit", limit, 1),
        Row("the same, started on their own", alone, "the limit", limit, 1),
        Row("the same, when their parent is gone", left, "started on their own", alone, 1),
        Row("an RPC process, until it listens", times, "started on its own", alone_times, 1),
    ]
