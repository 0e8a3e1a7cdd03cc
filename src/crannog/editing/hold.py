"""Holding a VM: while somebody works on its volumes, nobody starts, stops, copies or removes it."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext

from crannog.core.vms import QubeBase
from crannog.errors import StateError

Hold = Callable[[str], AbstractAsyncContextManager[object]]
"""Returns what keeps others away from the VM with that UUID, for `async with`."""

Busy = dict[str, str]
"""What goes on with VMs for longer than a call, by UUID: meanwhile others are refused, with this in the sentence."""


def hold_nothing(_uuid: str) -> AbstractAsyncContextManager[object]:
    """Return what keeps nobody away: offline, this process is alone with the store."""
    return nullcontext()


@asynccontextmanager
async def hold_all(hold: Hold, *vms: QubeBase) -> AsyncIterator[None]:
    """Hold several VMs, always in the same order, so that two who want the same ones never wait for each other."""
    async with AsyncExitStack() as stack:
        for uuid in sorted({vm.uuid for vm in vms}):
            await stack.enter_async_context(hold(uuid))
        yield


def check_free(busy: Mapping[str, str], vm: QubeBase, purpose: str) -> None:
    """Raise StateError, naming the purpose, while something longer goes on with a VM."""
    if vm.uuid in busy:
        raise StateError(f"{vm.name} cannot {purpose}: {busy[vm.uuid]}")
