"""The daemon's backend of the API: the model and its editors, with the present of the VMs beside them."""

import asyncio
import logging

from crannog.adapters.policy.shelf import FolderShelf
from crannog.core.registry import Registry
from crannog.core.vms import LocalVM, QubeBase
from crannog.daemon.announcements import Announcements
from crannog.daemon.claims import Claims, Leases
from crannog.daemon.guest_facts import GuestFacts
from crannog.daemon.lifecycle import Lifecycle
from crannog.daemon.machines import Machines
from crannog.daemon.policy import PolicyKeeper
from crannog.daemon.power import LivePower
from crannog.daemon.preloading import Preloading
from crannog.daemon.space import SpaceWatch
from crannog.daemon.world import World
from crannog.editing.devices import Devices
from crannog.editing.editor import Editor
from crannog.editing.exports import Exports
from crannog.editing.firewall import Firewall
from crannog.editing.kernels import KernelShelf
from crannog.editing.policies import Policies
from crannog.editing.pools import Pools
from crannog.editing.population import Population
from crannog.editing.volumes import Volumes
from crannog.errors import CrannogError, VMNotFoundError

log = logging.getLogger(__name__)


class Inventory:
    """Implements `api.backend.Backend`."""

    def __init__(self, world: World, registry: Registry, machines: Machines) -> None:
        self.registry = registry
        registry.runtime = machines
        machines.find_stubdom = world.trees.stubdom_xid
        self.editor = Editor(registry, world.store)
        self.lifecycle = Lifecycle(world, registry, machines, self.editor.tell)
        self.lifecycle.news.on_halted = self._note_halt
        self.editor.listen(self.lifecycle.displays.note_event)
        self.space = SpaceWatch(registry, world.drivers.space)
        self.power = LivePower(self.lifecycle, Announcements(world, registry, self.editor), self.space)
        self.population = Population(
            self.editor, world.pools, hold=machines.lock, busy=machines.busy, forget=world.discard_logs
        )
        self.preloading = Preloading(self.lifecycle, self.population, self.editor)
        self.leases = Leases(self.preloading)
        self.power.serve_disposables(Claims(self.preloading), self.leases)
        self.volumes = Volumes(
            self.editor,
            world.pools,
            machines.lock,
            kernels=world.kernels,
            enlarge=world.hypervisor.enlarge_disk,
            busy=machines.busy,
        )
        self.pools = Pools(self.editor, world.pools, world.drivers)
        self.upkeep = self.lifecycle.upkeep
        self.exports = Exports(self.editor, world.pools, busy=machines.busy)
        self.kernels = KernelShelf(self.editor, world.kernels)
        self.devices = Devices(self.editor, world.host_devices)
        self.firewall = Firewall(self.editor)
        self.guest_facts = GuestFacts(world, registry, self.editor)
        self.policy = PolicyKeeper(registry, world.paths.policy_folders)
        self.policies = Policies(FolderShelf(), world.paths.policy_folders)

    def permits(self, source: QubeBase, method: str, argument: str, vm: QubeBase) -> bool:
        """Tell whether policy lets a VM call a method on another."""
        return self.policy.permits(source, method, argument, vm)

    def _note_halt(self, vm: LocalVM) -> None:
        """Remove a disposable that is there for one run only."""
        if vm.is_disposable and vm.get("auto_cleanup"):
            self.lifecycle.news.keep(asyncio.ensure_future(self._remove_quietly(vm)))

    async def _remove_quietly(self, vm: LocalVM) -> None:
        try:
            await self.population.remove(vm)
        except VMNotFoundError:
            return  # somebody else has removed it
        except CrannogError as error:
            log.error("%s: %s", vm.name, error)
