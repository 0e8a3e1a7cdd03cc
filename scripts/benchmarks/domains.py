"""What it costs to ask for the states of many domains at once: real QEMUs, as small as they get, that never run.

This is what crannogd asks when it starts, and whenever a libvirtd comes back.
"""

import asyncio
import contextlib
import glob
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # it is run as a script as well

from benchmarks.harness import COMMAND_TIMEOUT, MIN_RUNS, Row, summarize
from benchmarks.model import exactly
from crannog.adapters.libvirt.connection import LibvirtHypervisor
from crannog.config import Paths, Settings
from crannog.core.domain import Boot, DomainSpec

DOMAINS, TARGET = 200, 0.020
MEMORY = 8
"""MiB of each."""
AT_ONCE = 4
"""How many are created or ended at the same time."""


def measure(runs: int) -> list[Row]:
    """Return the row, measured in a process of its own: one can have one libvirt in its life."""
    with tempfile.TemporaryDirectory(prefix="crannog-bench-") as home:
        command = [sys.executable, __file__, home, str(max(runs, MIN_RUNS))]
        try:
            output = subprocess.run(command, stdout=subprocess.PIPE, timeout=COMMAND_TIMEOUT, check=True).stdout
        finally:
            end_emulators(home)
    figure = summarize(json.loads(output))
    return [Row(f"states of {DOMAINS} domains", figure, "a fixed time", exactly(TARGET), 1)]


def end_emulators(home: str) -> None:
    """Kill the QEMUs of a home that nobody serves any more; normally there are none."""
    for path in glob.glob(f"{glob.escape(Paths(home).pid_files)}/*-*.pid"):
        with open(path, encoding="ascii") as file, contextlib.suppress(ProcessLookupError):
            os.kill(int(file.read()), signal.SIGKILL)


async def time_domains(home: str, runs: int) -> list[float]:
    """Create the domains, list them again and again, and end them; return the seconds of each list."""
    paths = Paths(home)
    hypervisor = LibvirtHypervisor(paths, Settings.load(paths.settings))
    turn = asyncio.Semaphore(AT_ONCE)
    await hypervisor.open()

    async def create(number: int) -> None:
        name, log = f"domain-{number:03}", f"{home}/console-{number:03}.log"
        async with turn:
            await hypervisor.create_paused(
                DomainSpec(str(uuid.uuid4()), name, "hvm", MEMORY, 1, Boot.DISK, (), (), log)
            )

    async def destroy(one: str) -> None:
        async with turn:
            await hypervisor.destroy(one)

    try:
        await asyncio.gather(*map(create, range(DOMAINS)))
        return [await time_list(hypervisor) for _ in range(runs)]
    finally:
        await asyncio.gather(*[destroy(domain.uuid) for domain in await hypervisor.domains()])
        await hypervisor.close()


async def time_list(hypervisor: LibvirtHypervisor) -> float:
    """Return the seconds of one list."""
    began = time.perf_counter()
    count = len(await hypervisor.domains())
    seconds = time.perf_counter() - began
    if count != DOMAINS:
        raise RuntimeError(f"{count} domains were listed, not {DOMAINS}")
    return seconds


if __name__ == "__main__":
    print(json.dumps(asyncio.run(time_domains(sys.argv[1], int(sys.argv[2])))))
