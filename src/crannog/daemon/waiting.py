"""Waiting for whichever of several things comes first."""

import asyncio
from collections.abc import Coroutine
from typing import Any


async def first_of(timeout: float, *waits: Coroutine[Any, Any, object]) -> None:  # noqa: ASYNC109
    """Return when one of the waits is over, or so many seconds are; the others are given up."""
    tasks = {asyncio.ensure_future(wait) for wait in waits}
    try:
        await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
