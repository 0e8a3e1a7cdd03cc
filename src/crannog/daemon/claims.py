"""Handing out disposables that were started in advance, and ending those whose user has gone."""

import logging
import time
from collections.abc import Callable

from crannog.core.chains import netvms_to_start
from crannog.core.events import Listener
from crannog.core.preload import Member
from crannog.core.vms import LocalVM, QubeBase
from crannog.daemon.preloading import Preloading
from crannog.errors import HypervisorError, ValueRefusedError

log = logging.getLogger(__name__)


class Claims:
    """Gives ready disposables to those who ask for one."""

    def __init__(self, preloading: Preloading, now: Callable[[], int] = time.time_ns) -> None:
        """`now` tells the nanoseconds since 1970."""
        self._preloading = preloading
        self._lifecycle = preloading.lifecycle
        self._world = preloading.lifecycle.world
        self._machines = preloading.lifecycle.machines
        self._now = now

    async def preload(self, template: QubeBase) -> LocalVM:
        """Start one more disposable of a template in advance; raises StateError when there are as many as wanted."""
        return await self._preloading.ask(template)

    async def take(self, template: QubeBase, created_by: str) -> LocalVM | None:
        """Return a disposable of a template that was started in advance; None when there is none: one is to be made.

        It runs, or still starts. From the moment in which it is chosen nobody else gets it, and nothing of it is told
        before that is saved. Raises StorageError when that cannot be.
        """
        preloading = self._preloading
        if not preloading.reserve.unclaimed_of(template.uuid):
            return None
        preloading.claims_going += 1
        try:
            preloading.reserve.wish(preloading.facts.wishes())
            while member := preloading.reserve.claim(template.uuid, preloading.clock()):
                vm = preloading.lifecycle.registry.find_uuid(member.uuid)
                if isinstance(vm, LocalVM) and await self._try_to_hand_out(vm, member, created_by):
                    return vm
        finally:
            preloading.claims_going -= 1
        return None

    async def _try_to_hand_out(self, vm: LocalVM, member: Member, created_by: str) -> bool:
        """Hand a VM out; return False for one that turns out to be dead."""
        try:
            self._world.mark_claim(vm.uuid)
            await self._hand_out(vm, member, created_by)
        except HypervisorError as error:
            log.warning("%s: was ready, and cannot be let run: %s", vm.name, error)
            await self._preloading.vms.discard(member.uuid, "it is of no use")
            return False
        except BaseException:
            await self._preloading.vms.discard(member.uuid, "it could not be handed out")
            raise
        finally:
            self._world.unmark_claim(vm.uuid)
        return True

    async def _hand_out(self, vm: LocalVM, member: Member, created_by: str) -> None:
        for netvm in netvms_to_start(vm, self._machines.serving()) if member.was_ready else ():
            await self._lifecycle.ensure_runs(netvm)
        self._preloading.books.save_claim(vm, created_by)
        if not member.was_ready:
            return  # it still starts; whoever asks something of it waits for its agent
        self._world.agents.set_clock(vm.uuid, self._now())
        await self._lifecycle.steps.let_run(vm.name, vm.uuid)
        if not self._machines.has_domain(vm.uuid):
            raise HypervisorError("it has just ended")
        await self._lifecycle.show(vm)


class Leases:
    """Ends disposables when the connections go of those who use them: whatever happened to them."""

    def __init__(self, preloading: Preloading) -> None:
        self._preloading = preloading
        self._is_over = False

    def take(self, vm: QubeBase, listener: Listener) -> Callable[[], None]:
        """Note that somebody uses a disposable; return what ends that, and the VM with it.

        Raises ValueRefusedError for a VM that is not there for one use.
        """
        del listener
        if not isinstance(vm, LocalVM) or not vm.is_disposable or not vm.get("auto_cleanup"):
            raise ValueRefusedError(
                f"{vm.name} is no disposable that goes when its user has gone; make one with admin.vm.CreateDisposable"
            )

        def end() -> None:
            if not self._is_over:
                self._preloading.vms.keep(self._preloading.vms.put_away(vm))

        return end

    def close(self) -> None:
        """End nothing any more: the daemon goes, the VMs and their users stay."""
        self._is_over = True
