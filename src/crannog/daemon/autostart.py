"""Starting the VMs that start with the host: once after each boot of it, however often crannogd starts meanwhile."""

import asyncio
import logging
import os

from crannog.core.chains import autostart_order
from crannog.core.vms import LocalVM
from crannog.daemon.lifecycle import Lifecycle
from crannog.errors import CrannogError

log = logging.getLogger(__name__)

AT_ONCE = 4
"""Starts that go on at the same time. More would make each slower than its guest's own time limits allow."""


class Autostart:
    """Starts VMs in the background. `mark` is the file that keeps the number of the boot whose VMs were started."""

    def __init__(self, lifecycle: Lifecycle, mark: str, boot_id: str) -> None:
        self._lifecycle = lifecycle
        self._mark = mark
        self._boot_id = boot_id
        self._work: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Start what is to be started after this boot, unless that was done: a user has shut some down since then."""
        vms = autostart_order(self._lifecycle.registry.local_vms())
        if self._is_due(vms):
            self._work = asyncio.ensure_future(self._start_all(vms))

    async def abandon(self) -> None:
        """Begin no more starts; those that go on are the lifecycle's."""
        if self._work:
            self._work.cancel()
            await asyncio.wait([self._work])

    def _is_due(self, vms: list[LocalVM]) -> bool:
        if not self._boot_id:
            if vms:
                log.error("%s not started: this host does not tell when it was booted", _names(vms))
            return False
        try:
            return self._take_mark()
        except OSError as error:
            # Without the mark the next start of crannogd would start once more what a user has shut down.
            if vms:
                log.error("%s not started: %s cannot be written: %s", _names(vms), self._mark, error.strerror)
            return False

    def _take_mark(self) -> bool:
        """Tell whether this boot is new, and note it first: a daemon that dies in between must not start them twice."""
        try:
            with open(self._mark, encoding="utf-8", errors="replace") as file:
                if file.read().strip() == self._boot_id:
                    return False
        except FileNotFoundError:
            pass
        with open(f"{self._mark}.new", "w", encoding="ascii") as file:
            file.write(self._boot_id + "\n")
        os.replace(f"{self._mark}.new", self._mark)
        return True

    async def _start_all(self, vms: list[LocalVM]) -> None:
        slots = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for vm in vms:
                group.create_task(self._start(vm, slots))

    async def _start(self, vm: LocalVM, slots: asyncio.Semaphore) -> None:
        async with slots:
            if self._lifecycle.registry.find_uuid(vm.uuid) is not vm or not vm.get("autostart"):
                return  # somebody removed it, or thought better of it, while it waited for its turn
            try:
                await self._lifecycle.ensure_runs(vm)
            except CrannogError as error:
                log.error("%s: was not started with the host: %s", vm.name, error)
            except Exception:
                log.exception("%s: was not started with the host", vm.name)
            else:
                log.info("%s: started with the host", vm.name)


def _names(vms: list[LocalVM]) -> str:
    return ", ".join(vm.name for vm in vms)
