"""Driver linux-kernel, as one of the drivers: one pool, which is there always, and holds no volumes of VMs."""

from crannog.adapters.storage.kernels import KernelPool
from crannog.adapters.storage.pool_driver import PoolDriver
from crannog.config import Paths
from crannog.core.pools import FOLDER, PoolConfig


class KernelDriver(PoolDriver):
    """The kind of pool that adapters.storage.kernels works with."""

    driver = KernelPool.driver
    options = (FOLDER,)

    @classmethod
    def folder_of(cls, config: PoolConfig, paths: Paths) -> str:
        """Return the home's folder of kernels, whatever a file from elsewhere says."""
        del config
        return paths.kernels
