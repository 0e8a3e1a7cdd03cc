"""Everything outside the model that the daemon works with, behind the ports."""

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from crannog.adapters.display.headless import HeadlessDisplays
from crannog.adapters.guestdb.host import XenStoreHost
from crannog.adapters.storage.drive_files import look_at_drive
from crannog.adapters.storage.drivers import Drivers
from crannog.adapters.storage.kernels import KernelPool
from crannog.adapters.storage.memory_shelf import MemoryShelf
from crannog.adapters.store.file import FileStore
from crannog.config import Paths
from crannog.core.drives import DriveFile
from crannog.core.events import Event
from crannog.core.pools import DIR_PATH, PoolConfig
from crannog.core.qga import qga_path
from crannog.core.volumes import Volume
from crannog.editing.places import find_pool
from crannog.errors import StorageError
from crannog.hostfacts import HostMemory
from crannog.ports.channel import AgentLinks
from crannog.ports.display import Displays
from crannog.ports.guestdb import HostTrees
from crannog.ports.hostdevices import HostDevices
from crannog.ports.hypervisor import Hypervisor
from crannog.ports.storage import Pool
from crannog.vmlogs import discard_logs

log = logging.getLogger(__name__)

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
    host_memory: HostMemory = field(default_factory=HostMemory)
    displays: Displays = field(default_factory=HeadlessDisplays)
    trees: HostTrees = field(default_factory=XenStoreHost)

    @property
    def drivers(self) -> Drivers:
        """The kinds of pools."""
        return Drivers(self.paths)

    @functools.cached_property
    def memory_shelf(self) -> MemoryShelf:
        """Where memory images are kept."""
        return MemoryShelf(self.paths.memory_images)

    def pool_of(self, volume: Volume) -> Pool:
        """Return the pool of a volume; raises StorageError when this host cannot serve it."""
        return find_pool(self.pools, volume)

    def look_at_drive(self, path: str, pools: Iterable[PoolConfig]) -> DriveFile:
        """Return what the path of an image leads to; images inside the home and the pools are known as ours."""
        folders = [self.paths.home, *(pool.option(DIR_PATH) for pool in pools)]
        return look_at_drive(path, filter(None, folders))

    def discard_logs(self, vm: str) -> None:
        """Delete the logs of a VM that was removed."""
        discard_logs(self.paths, vm)

    def discard_channel(self, uuid: str) -> None:
        """Delete the sockets of the QEMU of a VM that has ended; a QEMU that was killed leaves them."""
        channel = self.paths.channel_socket(uuid)
        for path in (channel, qga_path(channel), self.paths.screen_socket(uuid)):
            _delete(path)

    def mark_start(self, uuid: str) -> None:
        """Note that a domain will be created and does not run yet: found paused and marked, it is half of a start."""
        try:
            with open(self.paths.start_mark(uuid), "wb"):
                pass
        except OSError as error:
            # Without it a start that is cut short leaves a paused VM, which its user can end.
            log.warning("%s: %s", self.paths.start_mark(uuid), error.strerror)

    def unmark_start(self, uuid: str) -> None:
        """Note that the domain runs, or is gone."""
        _delete(self.paths.start_mark(uuid))

    def mark_restore(self, uuid: str) -> None:
        """Note that a domain is a copy of a guest, with that one's secrets. Raises StorageError."""
        _mark(self.paths.restore_mark(uuid))

    def unmark_restore(self, uuid: str) -> None:
        """Note that it has its own by now, or is gone."""
        _delete(self.paths.restore_mark(uuid))

    def is_copy(self, uuid: str) -> bool:
        """Tell whether a domain may still have the secrets of another one."""
        return os.path.exists(self.paths.restore_mark(uuid))

    def mark_claim(self, uuid: str) -> None:
        """Note that a disposable is being handed out: nobody knows its name yet. Raises StorageError."""
        _mark(self.paths.claim_mark(uuid))

    def unmark_claim(self, uuid: str) -> None:
        """Note that it was handed out, or is gone."""
        _delete(self.paths.claim_mark(uuid))

    def marked_claims(self) -> list[str]:
        """Return the UUIDs of the disposables that a former daemon was just handing out."""
        prefix = os.path.basename(self.paths.claim_mark(""))
        return [name.removeprefix(prefix) for name in os.listdir(self.paths.run) if name.startswith(prefix)]

    def is_marked(self, uuid: str) -> bool:
        """Tell whether a domain was never let run."""
        return os.path.exists(self.paths.start_mark(uuid))


def _mark(path: str) -> None:
    try:
        with open(path, "wb"):
            pass
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}") from error


def _delete(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
