"""Pausing VMs, and having them go on."""

from crannog.core.vms import LocalVM
from crannog.daemon.machines import Machines
from crannog.daemon.steps import Steps
from crannog.errors import VMNotPausedError, VMNotRunningError, VMNotSuspendedError


class Pausing:
    """Stops and resumes the processors of VMs that run."""

    def __init__(self, machines: Machines, steps: Steps) -> None:
        self._machines = machines
        self._steps = steps

    async def pause(self, vm: LocalVM) -> None:
        """Stop the processors of a running VM; raises VMNotRunningError unless it runs."""
        self._check_going(vm, "paused")
        await self._steps.stop_running(vm.name, vm.uuid)

    async def unpause(self, vm: LocalVM) -> None:
        """Let a paused VM go on; raises VMNotPausedError for one that is not."""
        state = self._machines.power_state(vm.uuid)
        if state != "Paused":
            raise VMNotPausedError(f"{vm.name} is not paused: it is {state}")
        await self._go_on(vm, "unpaused")

    async def suspend(self, vm: LocalVM) -> None:
        """Put a VM to sleep. It has no devices of the host that would have to sleep with it, so it is paused."""
        self._check_going(vm, "suspended")
        await self._steps.stop_running(vm.name, vm.uuid)

    async def resume(self, vm: LocalVM) -> None:
        """Wake a VM that sleeps; raises VMNotSuspendedError for one that does not."""
        check_running(vm, self._machines)
        state = self._machines.power_state(vm.uuid)
        if state not in ("Paused", "Suspended"):
            raise VMNotSuspendedError(f"{vm.name} is not suspended: it is {state}")
        await self._go_on(vm, "resumed")

    async def _go_on(self, vm: LocalVM, what: str) -> None:
        async with self._steps.told_of(vm.name, vm.uuid, what):
            await self._steps.let_run(vm.name, vm.uuid)

    def _check_going(self, vm: LocalVM, purpose: str) -> None:
        state = self._machines.power_state(vm.uuid)
        if state != "Running":
            raise VMNotRunningError(f"{vm.name} cannot be {purpose}: it is {state}, not Running")


def check_running(vm: LocalVM, machines: Machines) -> None:
    """Raise VMNotRunningError for a VM that has no domain."""
    if not machines.has_domain(vm.uuid):
        raise VMNotRunningError(f"{vm.name} is not running; start it with 'qvm-start {vm.name}'")
