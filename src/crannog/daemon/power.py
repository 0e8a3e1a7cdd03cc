"""The running side of VMs, as the API asks for it."""

from collections.abc import Callable

from crannog.core.displays import has_screen
from crannog.core.domain import DomainStats, HostCapabilities
from crannog.core.events import Event, Listener
from crannog.core.vms import LocalVM, QubeBase
from crannog.daemon.announcements import Announcements
from crannog.daemon.claims import Claims, Leases
from crannog.daemon.lifecycle import Lifecycle
from crannog.daemon.space import SpaceWatch
from crannog.daemon.statistics import StatsFeed
from crannog.errors import DisplayError, VMNotRunningError


class LivePower:
    """Implements `api.backend.Power`: changes of state by the lifecycle, questions by the hypervisor."""

    def __init__(self, lifecycle: Lifecycle, announcements: Announcements, space: SpaceWatch) -> None:
        self._hypervisor = lifecycle.world.hypervisor
        self._machines = lifecycle.machines
        self._announcements = announcements
        self._space = space
        self._stats = StatsFeed(self._hypervisor, lifecycle.registry, stubdom_memory=lifecycle.world.trees.memory)
        self.plan = lifecycle.preview
        self.start = lifecycle.start
        self.shutdown = lifecycle.shutdowns.shutdown
        self.kill = lifecycle.kill
        self.pause = lifecycle.pausing.pause
        self.unpause = lifecycle.pausing.unpause
        self.suspend = lifecycle.pausing.suspend
        self.resume = lifecycle.pausing.resume
        self._displays = lifecycle.world.displays
        self.show = lifecycle.displays.show

    def serve_disposables(self, claims: Claims, leases: Leases) -> None:
        """Take on who hands out disposables that were started in advance, and who ends those that nobody uses."""
        self.take_preloaded = claims.take
        self.preload = claims.preload
        self.lease = leases.take

    async def usage(self, vm: QubeBase) -> DomainStats | None:
        """Return what a VM uses; None when it is halted."""
        return await self._hypervisor.usage(vm.uuid) if self._machines.has_domain(vm.uuid) else None

    async def console(self, vm: LocalVM) -> str:
        """Return the path of the terminal at which a running VM's console is."""
        self._check_has(vm, "console")
        return await self._hypervisor.console(vm.uuid)

    async def screenshot(self, vm: LocalVM) -> bytes:
        """Return the picture of a running VM's emulated screen."""
        self._check_has(vm, "screen")
        if not has_screen(vm):
            raise DisplayError(f"{vm.name} has no emulated screen; if it has windows, take those with --windows")
        return await self._hypervisor.screenshot(vm.uuid)

    def _check_has(self, vm: LocalVM, thing: str) -> None:
        if not self._machines.has_domain(vm.uuid):
            raise VMNotRunningError(f"{vm.name} has no {thing}: it is not running; start it with 'qvm-start {vm.name}'")

    async def announce(self, vm: LocalVM) -> None:
        """Take over what the tools in a VM say they are."""
        await self._announcements.take(vm)

    async def take_features(self, vm: LocalVM) -> None:
        """Take over the features that the tools in a VM ask for."""
        self._check_has(vm, "guest DB")
        await self._announcements.take_features(vm)

    def follow_stats(self, vm: QubeBase, listener: Listener) -> Callable[[], None]:
        """Have `listener` called with the statistics of a VM, of all for dom0; return what ends that."""

        def pass_on(event: Event) -> None:
            if vm.klass == "AdminVM" or event.subject == vm.name:
                listener(event)

        return self._stats.follow(pass_on)

    async def capabilities(self) -> HostCapabilities:
        """Return what this host can run."""
        return await self._hypervisor.capabilities()

    async def diagnose(self) -> list[str]:
        """Return what this host can and cannot do, a sentence each; also which pools are nearly full."""
        warnings = [f"WARNING: {sentence}." for sentence in await self._space.describe()]
        return [*await self._hypervisor.diagnose(), *self._displays.diagnose(), *warnings]
