"""Everything outside the model that the daemon works with, behind the ports."""

import contextlib
import os
from dataclasses import dataclass

from crannog.adapters.storage.kernels import KernelPool
from crannog.config import Paths
from crannog.ports.channel import AgentLinks
from crannog.ports.hypervisor import Hypervisor
from crannog.ports.storage import Pool
from crannog.ports.store import Store


@dataclass(frozen=True)
class World:
    """The adapters that `main` chose."""

    paths: Paths
    store: Store
    hypervisor: Hypervisor
    agents: AgentLinks
    pools: dict[str, Pool]
    kernels: KernelPool

    def discard_logs(self, vm: str) -> None:
        """Delete the logs of a VM that was removed."""
        for path in (self.paths.console_log(vm), self.paths.rpc_log(vm)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def discard_channel(self, uuid: str) -> None:
        """Delete the channel's socket of a VM that has ended; a QEMU that was killed leaves it."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.paths.channel_socket(uuid))
