"""The daemon's backend of the API: every change to the model, saved before anyone is told that it was made."""

import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from crannog.api.backend import NewVM
from crannog.core.announcement import AgentState, AgentStatus, Announcement
from crannog.core.domain import DomainUsage, HostCapabilities
from crannog.core.plan import Plan
from crannog.core.properties import Holder, Property
from crannog.core.registry import Registry
from crannog.core.startup import StartRequest
from crannog.core.vms import CLASSES, LocalVM, QubeBase
from crannog.daemon.lifecycle import Lifecycle
from crannog.daemon.machines import Machines
from crannog.daemon.world import World
from crannog.errors import CrannogError, StorageError, ValueRefusedError, VMNotHaltedError, VMNotRunningError

log = logging.getLogger(__name__)


class Inventory:
    """Implements `api.backend.Backend`: the model, the store and the volumes, changed together or not at all."""

    def __init__(self, world: World, registry: Registry, machines: Machines, lifecycle: Lifecycle) -> None:
        self.registry = registry
        self._world = world
        self._machines = machines
        self._lifecycle = lifecycle
        world.agents.listen(self._note_agent)

    def power_state(self, vm: QubeBase) -> str:
        """Return the power state; dom0 always runs."""
        return "Running" if vm.klass == "AdminVM" else self._machines.power_state(vm.uuid)

    def value(self, holder: Holder, name: str) -> object:
        """Return the value of a property; what only the running VM has comes from the hypervisor."""
        if name == "xid" and isinstance(holder, QubeBase):
            return self._machines.xid(holder.uuid)
        return holder.get(name)

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

    async def create(self, wanted: NewVM, *, created_by: str) -> LocalVM:
        """Make a new VM with its volumes; a failure at any step leaves nothing of it."""
        label = self.registry.find_label(wanted.label) if wanted.label else None
        template = wanted.template
        if template is None and CLASSES.get(wanted.klass, LocalVM).is_template_based:
            template = self.registry.get("default_template")
        vm = self.registry.create(wanted.klass, wanted.name, str(uuid.uuid4()), template)
        vm.values["label"] = label or vm.values["label"]
        vm.tags.add(f"created-by-{created_by}")
        volumes = tuple(vm.volumes.values())
        pool = self._world.pools[volumes[0].pool]
        try:
            await pool.create(volumes)
            self._world.store.save(self.registry)
            await pool.claim(volumes)
        except BaseException:
            self.registry.remove(vm)
            await pool.remove(volumes)
            raise
        return vm

    async def remove(self, vm: QubeBase) -> None:
        """Remove a halted VM: from the store first, so that a crash leaves at most files that nobody refers to."""
        async with self._machines.lock(vm.uuid):
            self._check_halted(vm, "be removed")
            self.registry.remove(vm)
            try:
                self._world.store.save(self.registry)
            except StorageError:
                self.registry.adopt(vm)
                raise
            for volume in vm.volumes.values():
                await self._world.pools[volume.pool].remove((volume,))
            self._world.discard_logs(vm.name)

    async def set_property(self, holder: Holder, name: str, text: str) -> None:
        """Give a property the value that `text` means."""
        declared = self._find_changeable(holder, name)
        try:
            value = declared.kind.parse(text, self.registry)
            if declared.check and not declared.is_readonly:
                declared.check(holder, value)
        except ValueRefusedError as error:
            raise ValueRefusedError(f"property '{name}' of {holder.title()} was not set: {error}") from None
        with self._saved(holder):
            if name == "name" and isinstance(holder, QubeBase):
                self.registry.rename(holder, text)
            else:
                holder.set(name, value)

    async def reset_property(self, holder: Holder, name: str) -> None:
        """Give a property its default again."""
        self._find_changeable(holder, name)
        with self._saved(holder):
            holder.reset(name)

    async def set_feature(self, vm: QubeBase, name: str, value: str | None) -> None:
        """Set a feature; None removes it."""
        with self._saved(vm):
            if value is None:
                vm.features.pop(name, None)
            else:
                vm.features[name] = value

    async def import_volume(self, vm: LocalVM, name: str, path: str) -> None:
        """Make the raw image at `path` the content of a halted VM's volume."""
        async with self._machines.lock(vm.uuid):
            self._check_halted(vm, "get another image")
            volume = vm.volumes[name]
            if not volume.save_on_stop:
                raise ValueRefusedError(
                    f"volume {name} of {vm.name} cannot be given an image: it is made anew from the template at each "
                    f"start; create the VM with '--class StandaloneVM' instead"
                )
            vm.volumes[name] = await self._world.pools[volume.pool].import_file(volume, path)
            self._world.store.save(self.registry)

    async def capabilities(self) -> HostCapabilities:
        """Return what this host can run."""
        return await self._world.hypervisor.capabilities()

    async def diagnose(self) -> list[str]:
        """Return what this host can and cannot do, a sentence each."""
        return await self._world.hypervisor.diagnose()

    async def import_kernel(self, name: str, folder: str) -> None:
        """Add a kernel to pool linux-kernel; the first one becomes the default."""
        await self._world.kernels.add(name, folder)
        self.registry.kernels.add(name)
        if not self.registry.get("default_kernel"):
            await self.set_property(self.registry, "default_kernel", name)

    def _find_changeable(self, holder: Holder, name: str) -> Property:
        """Return a property's declaration; raises VMNotHaltedError when it cannot change in the VM's present state."""
        declared = holder.find_property(name)
        if declared.needs_halted and isinstance(holder, QubeBase):
            self._check_halted(holder, f"get another {name}")
        return declared

    def _check_halted(self, vm: QubeBase, purpose: str) -> None:
        state = self.power_state(vm)
        if vm.klass != "AdminVM" and state != "Halted":
            raise VMNotHaltedError(
                f"{vm.name} cannot {purpose} while it is {state}; shut it down with 'qvm-shutdown {vm.name}'"
            )

    @contextmanager
    def _saved(self, holder: Holder) -> Iterator[None]:
        """Save after the block; take back what it did to the holder's properties and features when that fails."""
        before, name = dict(holder.values), holder.title()
        features = dict(holder.features) if isinstance(holder, QubeBase) else {}
        yield
        try:
            self._world.store.save(self.registry)
        except StorageError:
            if isinstance(holder, QubeBase):
                if holder.name != name:
                    self.registry.rename(holder, name)
                holder.features = features
            holder.values = before
            raise

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
        if not changed and not has_new_user:
            return
        with self._saved(vm):
            vm.features.update(changed)
            if has_new_user:
                vm.set("default_user", user)
        log.info("%s: its tools announced %s", vm.name, announced)


def _flag(value: bool) -> str:
    return "1" if value else ""
