"""Pools of driver device-mapper, and looks at what there is of their devices."""

import asyncio
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog.adapters.storage import dm_devices
from crannog.adapters.storage.device_mapper import DeviceMapperPool
from crannog.adapters.storage.dm_tables import digest
from tests.contract.benches import FolderBench
from tests.dm.devices import run
from tests.mounts import small_file_system


class DmBench(FolderBench):
    """Pools in one folder whose devices go with them: in most tests nobody stops the VMs."""

    def __init__(self, folder: Path) -> None:
        super().__init__(DeviceMapperPool, folder)

    def close(self) -> None:
        """Remove all devices of all pools, as a reboot of the host does."""
        for folder in self.folder.iterdir():
            asyncio.run(release(str(folder)))

    def devices(self) -> dict[str, str]:
        """Return the devices of pool `p`, by role, each with its table."""
        names = dm_devices.list_devices(digest(str(self.folder / "p")))
        return {name.role: run("dmsetup", "table", str(name)) for name in names}

    def active(self) -> list[str]:
        """Return the devices of pool `p`, and the loop devices over its files."""
        loops = run("losetup", "--list", "--noheadings", "--raw", "-O", "BACK-FILE").splitlines()
        return [*self.devices(), *(path for path in loops if path.startswith(f"{self.folder / 'p'}/"))]

    def below(self, role: str) -> list[str]:
        """Return the files that a device of pool `p` is made of, each `ro` or `rw`, in the order of its table."""
        numbers = dict.fromkeys(re.findall(r"\b\d+:\d+\b", self.devices()[role]))
        return [self._describe_loop(Path("/sys/dev/block", number)) for number in numbers]

    def _describe_loop(self, device: Path) -> str:
        path = (device / "loop/backing_file").read_text().strip()
        rights = "ro" if (device / "ro").read_text().strip() == "1" else "rw"
        return f"{os.path.relpath(path, self.folder / 'p')} {rights}"

    def images(self) -> set[str]:
        """Return the image files that there are of pool `p`."""
        pool = self.folder / "p"
        return {str(path.relative_to(pool)) for path in pool.rglob("*.img")}


async def release(folder: str) -> None:
    """Remove what a pool has in the kernel."""
    await dm_devices.remove(dm_devices.unused_devices(folder, frozenset()))
    await dm_devices.detach(dm_devices.idle_loops(folder))


class WithDevices:
    """For classes of tests: pools in a folder of each test, small ones on a file system of 8 MiB."""

    @pytest.fixture
    def bench(self, tmp_path: Path) -> Iterator[DmBench]:
        yield from lend_bench(tmp_path / "pools")

    @pytest.fixture
    def small_bench(self, tmp_path: Path) -> Iterator[DmBench]:
        with small_file_system(tmp_path / "small", "8m") as folder:
            yield from lend_bench(folder)


def lend_bench(folder: Path) -> Iterator[DmBench]:
    """Have pools in a folder, for a fixture."""
    folder.mkdir(exist_ok=True)
    bench = DmBench(folder)
    yield bench
    bench.close()
