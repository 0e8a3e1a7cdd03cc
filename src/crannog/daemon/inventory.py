"""The daemon's backend of the API: the editor and the population, with the present of the VMs beside them."""

import logging

from crannog.core.announcement import AgentState, AgentStatus, Announcement
from crannog.core.domain import DomainUsage, HostCapabilities
from crannog.core.plan import Plan
from crannog.core.registry import Registry
from crannog.core.startup import StartRequest
from crannog.core.vms import LocalVM, QubeBase
from crannog.daemon.lifecycle import Lifecycle
from crannog.daemon.machines import Machines
from crannog.daemon.world import World
from crannog.editing.editor import Editor
from crannog.editing.images import Images
from crannog.editing.population import NewVM, Population
from crannog.errors import CrannogError, VMNotRunningError

log = logging.getLogger(__name__)


class Inventory:
    """Implements `api.backend.Backend`."""

    def __init__(self, world: World, registry: Registry, machines: Machines, lifecycle: Lifecycle) -> None:
        self.registry = registry
        registry.runtime = machines
        self.editor = Editor(registry, world.store)
        self._population = Population(self.editor, world.pools)
        self._images = Images(self.editor, world.pools, world.kernels)
        self._world = world
        self._machines = machines
        self._lifecycle = lifecycle
        world.agents.listen(self._note_agent)

    async def usage(self, vm: QubeBase) -> DomainUsage | None:
        """Return what a VM uses; None when it is halted."""
        return await self._world.hypervisor.usage(vm.uuid) if self._machines.has_domain(vm.uuid) else None

    async def plan(self, vm: LocalVM, request: StartRequest) -> Plan:
        """Return what a start would do."""
        return await self._lifecycle.plan(vm, request)

    async def start(self, vm: LocalVM, request: StartRequest) -> list[tuple[str, float]]:
        """Start a VM."""
        return await self._lifecycle.start(vm, request)

    async def shutdown(self, vm: LocalVM, *, wait: bool) -> None:
        """Ask a VM to shut down."""
        await self._lifecycle.shutdown(vm, wait=wait)

    async def kill(self, vm: LocalVM) -> None:
        """End a VM at once."""
        await self._lifecycle.kill(vm)

    async def screenshot(self, vm: LocalVM) -> bytes:
        """Return the picture of a running VM's emulated screen."""
        if not self._machines.has_domain(vm.uuid):
            raise VMNotRunningError(f"{vm.name} has no screen: it is not running; start it with 'qvm-start {vm.name}'")
        return await self._world.hypervisor.screenshot(vm.uuid)

    async def create(self, wanted: NewVM, *, created_by: str) -> QubeBase:
        """Make a new VM with its volumes."""
        return await self._population.create(wanted, created_by=created_by)

    async def clone(self, source: QubeBase, name: str, *, klass: str, created_by: str) -> QubeBase:
        """Make a VM with the settings, notes and volumes of a halted one, which stays halted meanwhile."""
        async with self._machines.lock(source.uuid):
            return await self._population.clone(source, name, klass=klass, created_by=created_by)

    async def remove(self, vm: QubeBase) -> None:
        """Remove a halted VM with its volumes and logs."""
        async with self._machines.lock(vm.uuid):
            await self._population.remove(vm)
            self._world.discard_logs(vm.name)

    async def import_volume(self, vm: LocalVM, name: str, path: str) -> None:
        """Make the raw image at `path` the content of a halted VM's volume."""
        async with self._machines.lock(vm.uuid):
            await self._images.import_volume(vm, name, path)

    async def import_kernel(self, name: str, folder: str) -> None:
        """Add a kernel to pool linux-kernel; the first one becomes the default."""
        await self._images.import_kernel(name, folder)

    async def remove_kernel(self, name: str) -> None:
        """Remove a kernel that nobody uses."""
        await self._images.remove_kernel(name)

    async def capabilities(self) -> HostCapabilities:
        """Return what this host can run."""
        return await self._world.hypervisor.capabilities()

    async def diagnose(self) -> list[str]:
        """Return what this host can and cannot do, a sentence each."""
        return await self._world.hypervisor.diagnose()

    def _note_agent(self, vm_uuid: str, status: AgentStatus) -> None:
        vm = self.registry.find_uuid(vm_uuid)
        if isinstance(vm, LocalVM) and status.agent is AgentState.READY and status.announced:
            try:
                self._apply(vm, status.announced)
            except CrannogError as error:
                log.error("%s: its announcement was not kept: %s", vm.name, error)

    def _apply(self, vm: LocalVM, announced: Announcement) -> None:
        """Keep what the guest's tools say, where it differs from what is known (B13); templates are not touched."""
        news = {"qrexec": _flag(announced.qrexec), "gui": _flag(announced.gui), "os": announced.os}
        changed = {name: value for name, value in news.items() if vm.feature(name) != value}
        user = announced.default_user
        has_new_user = bool(user) and vm.get("default_user") != user
        if changed:
            self.editor.set_features(vm, changed)
        if has_new_user:
            self.editor.set_property(vm, "default_user", user)
        if changed or has_new_user:
            log.info("%s: its tools announced %s", vm.name, announced)


def _flag(value: bool) -> str:
    return "1" if value else ""
