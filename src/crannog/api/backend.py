"""What the methods ask of who answers them: crannogd, or a tool in offline mode (design.md, B7)."""

from collections.abc import Callable, Mapping
from typing import Protocol

from crannog.core.domain import DomainStats, HostCapabilities
from crannog.core.events import Listener
from crannog.core.plan import Plan
from crannog.core.registry import Registry
from crannog.core.startup import StartRequest
from crannog.core.vms import LocalVM, QubeBase
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
from crannog.policy.decisions import Decision, Request
from crannog.policy.system import SystemInfo


class Power(Protocol):
    """The running side of VMs. Offline every call raises OfflineError that names the operation."""

    async def usage(self, vm: QubeBase) -> DomainStats | None:
        """Return what a VM uses; None when it is halted."""

    async def plan(self, vm: LocalVM, request: StartRequest) -> Plan:
        """Return what a start would do."""

    async def start(self, vm: LocalVM, request: StartRequest) -> list[tuple[str, float]]:
        """Start a VM; return its stages with their seconds."""

    async def shutdown(self, vm: LocalVM, *, force: bool, wait: bool) -> None:
        """Ask a VM to shut down; without `force` only when no running VM needs it."""

    async def kill(self, vm: LocalVM) -> None:
        """End a VM at once."""

    async def pause(self, vm: LocalVM) -> None:
        """Stop the processors of a running VM."""

    async def unpause(self, vm: LocalVM) -> None:
        """Let a paused VM go on."""

    async def suspend(self, vm: LocalVM) -> None:
        """Put a running VM to sleep."""

    async def resume(self, vm: LocalVM) -> None:
        """Wake a VM that sleeps."""

    async def console(self, vm: LocalVM) -> str:
        """Return the path of the terminal at which a running VM's console is."""

    async def screenshot(self, vm: LocalVM) -> bytes:
        """Return the picture of a running VM's emulated screen."""

    async def show(self, vm: LocalVM, environment: Mapping[str, str]) -> None:
        """Open the displays of a running VM that the user closed; on the X display that `environment` names, if any."""

    async def announce(self, vm: LocalVM) -> None:
        """Take over what the tools in a VM say they are (design.md, B13)."""

    async def take_features(self, vm: LocalVM) -> None:
        """Take over the features that the tools in a VM ask for (design.md, B13)."""

    def follow_stats(self, vm: QubeBase, listener: Listener) -> Callable[[], None]:
        """Have `listener` called with the statistics of a VM, of all for dom0; return what ends that."""

    async def take_preloaded(self, template: QubeBase, created_by: str) -> LocalVM | None:
        """Return a disposable that was started in advance, for who asks; None when one is to be made."""

    async def preload(self, template: QubeBase) -> LocalVM:
        """Start one more disposable in advance, and return it."""

    def lease(self, vm: QubeBase, listener: Listener) -> Callable[[], None]:
        """Note that somebody uses a disposable; return what ends that, and the VM with it."""

    async def capabilities(self) -> HostCapabilities:
        """Return what this host can run."""

    async def diagnose(self) -> list[str]:
        """Return what this host can and cannot do, a sentence each."""


class Judge(Protocol):
    """The policy that counts now, and the VMs that it is about."""

    @property
    def system(self) -> SystemInfo:
        """The VMs as policy sees them."""

    def decide(self, request: Request) -> Decision:
        """Return the decision about a call."""


class Backend(Protocol):
    """Everything that a method may do. Each change is saved before the call returns."""

    registry: Registry
    editor: Editor
    population: Population
    volumes: Volumes
    upkeep: Upkeep
    exports: Exports
    kernels: KernelShelf
    pools: Pools
    devices: Devices
    firewall: Firewall
    policies: Policies

    @property
    def policy(self) -> Judge:
        """Who decides about calls."""

    @property
    def power(self) -> Power:
        """The running side of VMs."""

    def permits(self, source: QubeBase, method: str, argument: str, vm: QubeBase) -> bool:
        """Tell whether policy lets `source`, which is not dom0, call a method on a VM."""
