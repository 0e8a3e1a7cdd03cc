"""The running side of VMs in offline mode: every question to it is refused, by name (design.md, B7)."""

from collections.abc import Callable, Mapping
from typing import NoReturn

from crannog.core.domain import DomainStats, HostCapabilities
from crannog.core.events import Listener
from crannog.core.plan import Plan
from crannog.core.startup import StartRequest
from crannog.core.vms import LocalVM, QubeBase
from crannog.errors import OfflineError
from crannog.policy.decisions import Decision, Request
from crannog.policy.system import SystemInfo


class NoPower:
    """Implements `api.backend.Power` where there is no hypervisor."""

    async def usage(self, vm: QubeBase) -> DomainStats | None:
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

    async def shutdown(self, vm: LocalVM, *, force: bool, wait: bool) -> None:
        """Refuse."""
        del force, wait
        _refuse(f"a shutdown of {vm.name}")

    async def kill(self, vm: LocalVM) -> None:
        """Refuse."""
        _refuse(f"an end of {vm.name}")

    async def pause(self, vm: LocalVM) -> None:
        """Refuse."""
        _refuse(f"a pause of {vm.name}")

    async def unpause(self, vm: LocalVM) -> None:
        """Refuse."""
        _refuse(f"the end of a pause of {vm.name}")

    async def suspend(self, vm: LocalVM) -> None:
        """Refuse."""
        _refuse(f"the sleep of {vm.name}")

    async def resume(self, vm: LocalVM) -> None:
        """Refuse."""
        _refuse(f"the end of the sleep of {vm.name}")

    async def console(self, vm: LocalVM) -> str:
        """Refuse."""
        _refuse(f"the console of {vm.name}")

    async def screenshot(self, vm: LocalVM) -> bytes:
        """Refuse."""
        _refuse(f"a picture of the screen of {vm.name}")

    async def show(self, vm: LocalVM, environment: Mapping[str, str]) -> None:
        """Refuse."""
        del environment
        _refuse(f"the displays of {vm.name}")

    async def announce(self, vm: LocalVM) -> None:
        """Refuse."""
        _refuse(f"what the tools in {vm.name} say")

    async def take_features(self, vm: LocalVM) -> None:
        """Refuse."""
        _refuse(f"what the tools in {vm.name} ask for")

    def follow_stats(self, vm: QubeBase, listener: Listener) -> Callable[[], None]:
        """Refuse."""
        del listener
        _refuse(f"statistics of {vm.name}")

    async def take_preloaded(self, template: QubeBase, created_by: str) -> LocalVM | None:
        """Return None: what a former daemon has left ready cannot be let run here."""
        del template, created_by
        return None

    async def preload(self, template: QubeBase) -> LocalVM:
        """Refuse."""
        _refuse(f"a start of disposables of {template.name}")

    def lease(self, vm: QubeBase, listener: Listener) -> Callable[[], None]:
        """Refuse."""
        del listener
        _refuse(f"the use of {vm.name}")

    async def capabilities(self) -> HostCapabilities:
        """Refuse."""
        _refuse("what the hypervisor can do")

    async def diagnose(self) -> list[str]:
        """Refuse."""
        _refuse("what the hypervisor can do")


class NoJudge:
    """Implements `api.backend.Judge` where no VM makes calls."""

    def __init__(self) -> None:
        self.system = SystemInfo(())

    def decide(self, request: Request) -> Decision:
        """Refuse."""
        raise OfflineError(
            f"crannogd decides about calls of {request.service}; without it, use 'crannog policy explain'"
        )


def _refuse(what: str) -> NoReturn:
    raise OfflineError(f"{what} needs the hypervisor, which offline mode does without; leave out --offline")
