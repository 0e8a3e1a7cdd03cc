"""Memory that was freed goes back to the kernel."""

import asyncio
import os

import pytest

from crannog import heap
from tests.processes import memory_of

MIB = 2**20


async def test_what_was_freed_between_what_is_kept_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = [bytearray(64 * 1024) for _ in range(1000)]  # below the threshold for mappings of their own (mallopt(3))
    del blocks[:-1]  # the last one keeps the heap from being cut at its end
    before = memory_of(os.getpid())
    monkeypatch.setattr(heap, "SECONDS", (0.0, 0.01))
    await asyncio.wait_for(heap.settle(), 10)
    assert before - memory_of(os.getpid()) > 30 * MIB
