"""Pools of driver device-mapper, and looks at what there is of their devices."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crannog.adapters.storage import dm_devices
from crannog.adapters.storage.device_mapper import DeviceMapperPool
from crannog.adapters.storage.dm_tables import digest
from tests.contract.benches import FolderBench
from tests.dm.devices import run


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

    def images(self) -> set[str]:
        """Return the image files that there are of pool `p`."""
        pool = self.folder / "p"
        return {str(path.relative_to(pool)) for path in pool.rglob("*.img")}


async def release(folder: str) -> None:
    """Remove what a pool has in the kernel."""
    await dm_devices.remove(dm_devices.unused_devices(folder, frozenset()))
    await dm_devices.detach(dm_devices.idle_loops(folder))


@contextmanager
def dm_bench(folder: Path) -> Iterator[DmBench]:
    """Have pools in a folder, which is made if need be, until the end of the block."""
    folder.mkdir(exist_ok=True)
    bench = DmBench(folder)
    try:
        yield bench
    finally:
        bench.close()
