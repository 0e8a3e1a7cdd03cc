"""The backend of offline mode: the same editor over the same store; what needs the hypervisor is refused by name."""

from typing import NoReturn

from crannog.adapters.storage.drivers import open_pools
from crannog.adapters.storage.kernels import KernelPool
from crannog.adapters.store.file import FileStore
from crannog.config import Paths
from crannog.core.domain import DomainUsage, HostCapabilities
from crannog.core.plan import Plan
from crannog.core.startup import StartRequest
from crannog.core.vms import LocalVM, QubeBase
from crannog.editing.editor import Editor
from crannog.editing.images import Images
from crannog.editing.population import NewVM, Population
from crannog.errors import OfflineError
from crannog.hostfacts import read_host_facts
from crannog.offline.processes import LeftRunning
from crannog.vmlogs import discard_logs


class OfflineBackend:
    """Implements `api.backend.Backend` on a store whose lock the caller holds."""

    def __init__(self, paths: Paths, store: FileStore) -> None:
        self._paths = paths
        self.registry = store.load()
        self.registry.host = read_host_facts()
        self.registry.runtime = LeftRunning(paths.pid_files)
        self.editor = Editor(self.registry, store)
        pools = open_pools(paths, self.registry.pools.values())
        self._population = Population(self.editor, pools)
        self._images = Images(self.editor, pools, KernelPool(paths.kernels))

    async def create(self, wanted: NewVM, *, created_by: str) -> QubeBase:
        """Make a new VM with its volumes."""
        return await self._population.create(wanted, created_by=created_by)

    async def clone(self, source: QubeBase, name: str, *, klass: str, created_by: str) -> QubeBase:
        """Make a VM with the settings, notes and volumes of a halted one."""
        return await self._population.clone(source, name, klass=klass, created_by=created_by)

    async def remove(self, vm: QubeBase) -> None:
        """Remove a halted VM with its volumes."""
        try:
            await self._population.remove(vm)
        finally:
            if self.registry.find_uuid(vm.uuid) is None:
                discard_logs(self._paths, vm.name)

    async def import_volume(self, vm: LocalVM, name: str, path: str) -> None:
        """Make the raw image at `path` the content of a halted VM's volume."""
        await self._images.import_volume(vm, name, path)

    async def import_kernel(self, name: str, folder: str) -> None:
        """Add a kernel to pool linux-kernel."""
        await self._images.import_kernel(name, folder)

    async def remove_kernel(self, name: str) -> None:
        """Remove a kernel that nobody uses."""
        await self._images.remove_kernel(name)

    async def usage(self, vm: QubeBase) -> DomainUsage | None:
        """Return None for a halted VM; what a running one uses is not known here."""
        if vm.power_state != "Halted" and not vm.fixed_state:
            _refuse(f"what {vm.name} uses")
        return None

    async def plan(self, vm: LocalVM, request: StartRequest) -> Plan:
        """Refuse."""
        del request
        _refuse(f"the plan of a start of {vm.name}")

    async def start(self, vm: LocalVM, request: StartRequest) -> list[tuple[str, float]]:
        """Refuse."""
        del request
        _refuse(f"a start of {vm.name}")

    async def shutdown(self, vm: LocalVM, *, wait: bool) -> None:
        """Refuse."""
        del wait
        _refuse(f"a shutdown of {vm.name}")

    async def kill(self, vm: LocalVM) -> None:
        """Refuse."""
        _refuse(f"an end of {vm.name}")

    async def screenshot(self, vm: LocalVM) -> bytes:
        """Refuse."""
        _refuse(f"a picture of the screen of {vm.name}")

    async def capabilities(self) -> HostCapabilities:
        """Refuse."""
        _refuse("what the hypervisor can do")

    async def diagnose(self) -> list[str]:
        """Refuse."""
        _refuse("what the hypervisor can do")


def _refuse(what: str) -> NoReturn:
    raise OfflineError(f"{what} needs the hypervisor, which offline mode does without; leave out --offline")
