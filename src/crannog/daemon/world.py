"""Everything outside the model that the daemon works with, behind the ports."""

import contextlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from crannog.adapters.storage.drivers import Drivers
from crannog.adapters.storage.kernels import KernelPool
from crannog.adapters.store.file import FileStore
from crannog.config import Paths
from crannog.core.events import Event
from crannog.core.volumes import Volume
from crannog.editing.places import find_pool
from crannog.ports.channel import AgentLinks
from crannog.ports.hostdevices import HostDevices
from crannog.ports.hypervisor import Hypervisor
from crannog.ports.storage import Pool
from crannog.vmlogs import discard_logs

Tell = Callable[[Iterable[Event]], None]
"""Tells events to whoever listens."""


@dataclass(frozen=True)
class World:
    """The adapters that `main` chose."""

    paths: Paths
    store: FileStore
    hypervisor: Hypervisor
    agents: AgentLinks
    pools: dict[str, Pool]
    kernels: KernelPool
    host_devices: HostDevices

    @property
    def drivers(self) -> Drivers:
        """The kinds of pools."""
        return Drivers(self.paths)

    def pool_of(self, volume: Volume) -> Pool:
        """Return the pool of a volume; raises StorageError when this host cannot serve it."""
        return find_pool(self.pools, volume)

    def discard_logs(self, vm: str) -> None:
        """Delete the logs of a VM that was removed."""
        discard_logs(self.paths, vm)

    def discard_channel(self, uuid: str) -> None:
        """Delete the channel's socket of a VM that has ended; a QEMU that was killed leaves it."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.paths.channel_socket(uuid))
