"""Pools that run full: said before writes fail, once each time it gets worse.

When a pool is full the hypervisor pauses whoever cannot write (daemon.stalls); nothing is lost, but VMs stand still.
"""

import asyncio
import logging
from collections.abc import Callable

from crannog.core.pools import PoolConfig
from crannog.core.registry import Registry

log = logging.getLogger(__name__)

PAUSE = 20.0
"""Seconds between two looks: a VM that writes 100 MB/s fills 2 GB meanwhile."""
LEVELS = (0.90, 0.97)
"""Shares of a pool from which on it is nearly full, and all but full."""
_RETREAT = 0.02
"""So far below a level a pool must fall before it is told of that level again."""

Space = tuple[int, int]
"""Size and usage in bytes."""


def describe_space(name: str, space: Space) -> str:
    """Return the sentence about a pool that is nearly full, empty for one that is not."""
    size, used = space
    if not size or used / size < LEVELS[0]:
        return ""
    share, free = 100 * used // size, max(0, size - used) / 2**30
    return (
        f"pool {name} is {share} % full, {free:.1f} GiB are left: VMs are paused when it is full; free some space, or "
        "remove VMs that are not needed"
    )


class SpaceWatch:
    """Looks at all pools now and then."""

    def __init__(self, registry: Registry, space: Callable[[PoolConfig], Space | None]) -> None:
        """`space` returns size and usage of where a pool is, in bytes. It may block."""
        self._registry = registry
        self._space = space
        self._told: dict[str, int] = {}
        """The level that each pool was told of last."""

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            for sentence in await self.look():
                log.warning("%s", sentence)
            await asyncio.sleep(PAUSE)

    async def look(self) -> list[str]:
        """Return what is new of the pools: a sentence for each that got nearly full since the last look, or fuller."""
        sentences = [self._judge(name, space) for name, space in await self._measure()]
        return list(filter(None, sentences))

    async def describe(self) -> list[str]:
        """Return a sentence for each pool that is nearly full now."""
        return list(filter(None, (describe_space(name, space) for name, space in await self._measure())))

    async def _measure(self) -> list[tuple[str, Space]]:
        found = []
        for config in tuple(self._registry.pools.values()):
            space = await asyncio.to_thread(self._space, config)
            if space and space[0]:
                found.append((config.name, space))
        return found

    def _judge(self, name: str, space: Space) -> str:
        share, told = space[1] / space[0], self._told.get(name, 0)
        level = sum(share >= at for at in LEVELS)
        if level < told and share > LEVELS[told - 1] - _RETREAT:
            return ""  # about a level things go up and down
        self._told[name] = level
        return describe_space(name, space) if level > told else ""
