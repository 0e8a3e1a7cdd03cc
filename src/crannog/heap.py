"""The memory of this process."""

import asyncio
import ctypes

SECONDS = (0.0, 10.0, 60.0)
"""When crannogd gives back what it has freed: reading a store of many VMs, and what clients ask first, take several MB
for a moment. Later it comes and goes in smaller pieces, which are used again."""


async def settle() -> None:
    """Give the kernel what was freed and is kept for later, at those times after a start."""
    for seconds in SECONDS:
        await asyncio.sleep(seconds)
        give_back_freed_memory()


def give_back_freed_memory() -> None:
    """Do so now (malloc_trim(3)); nothing where the C library cannot."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
