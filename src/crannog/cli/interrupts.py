"""What ends a tool from outside, and how to have that wait."""

from __future__ import annotations

import signal
from contextlib import contextmanager

# Importing collections.abc would cost each tool some ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def hold_interrupts() -> Iterator[None]:
    """Have what ends this tool wait until the block is done. For the main thread.

    Masked they are not: a program that is started in the block would have the mask for ever.
    """
    came: list[int] = []
    before = [(each, signal.signal(each, lambda number, _: came.append(number))) for each in INTERRUPTS]
    try:
        yield
    finally:
        for each, handler in before:
            signal.signal(each, handler)
        for number in came[:1]:
            signal.raise_signal(number)
