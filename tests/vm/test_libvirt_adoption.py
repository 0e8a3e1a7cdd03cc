"""A domain outlives the process that started it, and the next one takes it over.

Each process here is a Python program of its own (this file, run as a script): the in-process driver holds its folder
for as long as a process lives.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from crannog.adapters.libvirt.connection import LibvirtHypervisor
from crannog.config import Paths, Settings
from crannog.core.domain import Boot, Disk, DomainSpec
from crannog.errors import InUseError
from crannog.shortpath import short_path

pytestmark = pytest.mark.vm


async def _open(home: str, cache: str) -> LibvirtHypervisor:
    settings = Settings()
    settings.accel = "tcg"
    hypervisor = LibvirtHypervisor(Paths(home, cache), settings)
    await hypervisor.open()
    return hypervisor


async def start_and_wait(home: str, cache: str) -> None:
    disk = Path(home, "disk.raw")
    disk.write_bytes(b"\xfb\xf4\xeb\xfd".ljust(510, b"\0") + b"\x55\xaa")
    hypervisor = await _open(home, cache)
    spec = DomainSpec(
        uuid=str(uuid4()),
        name="work-with-a-long-name-of-31-chars",
        virt_mode="hvm",
        memory=32,
        vcpus=1,
        boot=Boot.DISK,
        disks=(Disk(str(disk), "vda", format="raw"),),
        channels=(),
        console_log=home + "/console.log",
    )
    await hypervisor.create_paused(spec)
    await hypervisor.resume(spec.uuid)
    print(spec.uuid, flush=True)
    await asyncio.sleep(60)


async def take_over(home: str, cache: str) -> None:
    try:
        hypervisor = await _open(home, cache)
    except InUseError as error:
        print(json.dumps({"refused": str(error)}))
        return
    found = [(domain.uuid, domain.state) for domain in await hypervisor.domains()]
    for uuid, _ in found:
        await hypervisor.destroy(uuid)
    left = len(await hypervisor.domains())
    await hypervisor.close()
    print(json.dumps({"found": found, "left": left}))


def run(action: str, home: Path, cache: Path) -> "subprocess.Popen[str]":
    arguments = [sys.executable, __file__, action, str(home), str(cache)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def take_over_now(home: Path, cache: Path) -> dict[str, object]:
    with run("take_over", home, cache) as process:
        output, _ = process.communicate(timeout=60)
    result = json.loads(output)
    assert isinstance(result, dict)
    return result


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(params=["short", "long"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    path = Path(f"/tmp/cr-{os.getpid()}") if request.param == "short" else tmp_path / ("long" * 20)
    path.mkdir(parents=True)
    yield path
    if os.path.islink(short_path(str(path))):
        os.unlink(short_path(str(path)))
    shutil.rmtree(path)


def test_the_next_process_finds_and_ends_the_domain(home: Path, cache: Path) -> None:
    with run("start_and_wait", home, cache) as first:
        assert first.stdout
        uuid = first.stdout.readline().strip()
        assert uuid
        refused = take_over_now(home, cache)
        first.kill()
    assert f"already in use by process {first.pid} (" in str(refused["refused"])
    assert take_over_now(home, cache) == {"found": [[uuid, "running"]], "left": 0}


if __name__ == "__main__":
    asyncio.run(globals()[sys.argv[1]](*sys.argv[2:]))
