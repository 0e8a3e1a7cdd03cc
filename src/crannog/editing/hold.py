"""Holding a VM: while somebody works on its volumes, nobody starts, stops, copies or removes it."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext

Hold = Callable[[str], AbstractAsyncContextManager[object]]
"""Returns what keeps others away from the VM with that UUID, for `async with`."""


def hold_nothing(_uuid: str) -> AbstractAsyncContextManager[object]:
    """Return what keeps nobody away: offline, this process is alone with the store."""
    return nullcontext()
