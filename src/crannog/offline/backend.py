"""The backend of offline mode: the same editors over the same store; what needs the hypervisor is refused by name."""

from functools import partial

from crannog.adapters.hostdevices.sysfs import SysfsDevices
from crannog.adapters.policy.shelf import FolderShelf
from crannog.adapters.storage.drivers import Drivers, open_pools
from crannog.adapters.storage.kernels import KernelPool
from crannog.adapters.store.file import FileStore
from crannog.config import Paths
from crannog.core.vms import QubeBase
from crannog.editing.devices import Devices
from crannog.editing.editor import Editor
from crannog.editing.exports import Exports
from crannog.editing.firewall import Firewall
from crannog.editing.kernels import KernelShelf
from crannog.editing.policies import Policies
from crannog.editing.pools import Pools
from crannog.editing.population import Population
from crannog.editing.upkeep import Upkeep
from crannog.editing.volumes import Volumes
from crannog.hostfacts import read_host_facts
from crannog.offline.power import NoJudge, NoPower
from crannog.offline.processes import LeftRunning
from crannog.vmlogs import discard_logs


class OfflineBackend:
    """Implements `api.backend.Backend` on a store whose lock the caller holds."""

    def __init__(self, paths: Paths, store: FileStore) -> None:
        self.registry = store.load()
        self.registry.host = read_host_facts()
        self.registry.runtime = LeftRunning(paths.pid_files)
        self.editor = Editor(self.registry, store)
        pools = open_pools(paths, self.registry.pools.values())
        self.population = Population(self.editor, pools, forget=partial(discard_logs, paths))
        kernels = KernelPool(paths.kernels)
        self.volumes = Volumes(self.editor, pools, kernels=kernels)
        self.pools = Pools(self.editor, pools, Drivers(paths))
        self.upkeep = Upkeep(self.registry, pools)
        self.exports = Exports(self.editor, pools)
        self.kernels = KernelShelf(self.editor, kernels)
        self.devices = Devices(self.editor, SysfsDevices())
        self.firewall = Firewall(self.editor)
        self.policies = Policies(FolderShelf(), paths.policy_folders)
        self.policy = NoJudge()
        self.power = NoPower()

    def permits(self, source: QubeBase, method: str, argument: str, vm: QubeBase) -> bool:
        """Let dom0's own tools do everything; nobody else calls here."""
        del source, method, argument, vm
        return False
