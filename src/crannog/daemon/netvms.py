"""Netvms that must run before a VM starts: each is started once, however many VMs want it."""

from collections.abc import Awaitable, Callable

from crannog.core.plan import StartNetvm
from crannog.core.registry import Registry
from crannog.core.vms import LocalVM
from crannog.errors import CrannogError, StartError


class NetvmStarts:
    """Does the step StartNetvm. `ensure` returns when a VM runs, or raises why it does not."""

    def __init__(self, registry: Registry, ensure: Callable[[LocalVM], Awaitable[None]]) -> None:
        self._registry = registry
        self._ensure = ensure
        self._waits: dict[str, str] = {}
        """Who waits for whose start, by UUID."""

    async def start(self, step: StartNetvm) -> None:
        """See that a netvm runs; raises StartError that names it. It stays when the start it was started for fails."""
        netvm = self._registry.find_uuid(step.uuid)
        if not isinstance(netvm, LocalVM):
            raise StartError(f"its netvm {step.name} is gone: it was removed a moment ago; try again")
        self._refuse_circle(step)
        self._waits[step.client] = step.uuid
        try:
            await self._ensure(netvm)
        except CrannogError as error:
            reason = str(error).removeprefix(f"{netvm.name} was not started: ")
            raise StartError(f"its netvm {netvm.name} could not be started: {reason}") from error
        finally:
            del self._waits[step.client]

    def _refuse_circle(self, step: StartNetvm) -> None:
        """Refuse to wait for ever: settings that change while VMs start can have two starts wait for each other."""
        waiting: str | None = step.uuid
        while waiting is not None:
            if waiting == step.client:
                raise StartError(f"its netvm {step.name} waits for it: the settings of networks have just changed")
            waiting = self._waits.get(waiting)
