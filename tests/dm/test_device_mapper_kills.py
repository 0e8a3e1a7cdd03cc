"""Driver device-mapper when its daemon is killed between any two steps, and whatever is done in whatever order."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from crannog.core.volumes import LayerState
from crannog.ports.storage import Pool
from tests.contract.benches import ALL, KEEPING, LAYER, furnish, see, session
from tests.contract.storage_kills import MOST_STEPS, run_killed
from tests.dm.dm_bench import DmBench, WithDevices
from tests.dm.kills import LONG, ShortKills, ShortWalks

PV_LAYER = replace(LAYER, rw=False)
KEPT = replace(LAYER, keeps_layer=True)
ONCE = replace(KEEPING, revisions_to_keep=1)


class TestKills(WithDevices, ShortKills):
    """What all drivers do."""


class TestWalks(WithDevices, ShortWalks):
    """What all drivers do."""


async def _revert(pool: Pool) -> None:
    await session(pool, ONCE, "t")
    await pool.revert(ONCE, pool.revisions(ONCE)[0])


async def _keep(pool: Pool) -> None:
    for _ in range(2):
        await session(pool, KEPT, "x")


async def _look(pool: Pool) -> None:
    await pool.start(PV_LAYER)
    await pool.stop(PV_LAYER)


ACTS: dict[str, Callable[[Pool], Awaitable[None]]] = {
    "former content of devices": _revert,
    "kept layer": _keep,
    "read-only layer": _look,
}


class TestOwnKills(WithDevices):
    """What only this driver does."""

    @LONG
    @pytest.mark.parametrize("what", ACTS)
    def test_a_daemon_that_is_killed_leaves_what_the_next_one_can_use(
        self, bench: DmBench, what: str, tmp_path: Path
    ) -> None:
        asyncio.run(prepare(bench))
        for number in range(MOST_STEPS):
            is_done = run_killed(lambda: ACTS[what](bench.open()), number, tmp_path)
            asyncio.run(check_all(bench, number))
            if is_done:
                return
        pytest.fail("it never came to an end")


async def prepare(bench: DmBench) -> None:
    pool = await furnish(bench.open())
    for letter in "rs":
        await session(pool, ONCE, letter)


async def check_all(bench: DmBench, number: int) -> None:
    """Be the next daemon, after a kill or none; leave the template with former content for the next time."""
    pool = bench.open()
    await pool.recover(ALL)
    for volume in (ONCE, KEPT):
        await pool.stop(volume)
    assert (bench.devices(), bench.half_made()) == ({}, []), f"killed at step {number}"
    if await pool.layer_state(KEPT) is LayerState.CURRENT:
        assert await see(pool, KEPT) in "sx"
    content = await see(pool, PV_LAYER)
    assert content in ("s", "t"), f"killed at step {number}"
    if content == "t" or len(pool.revisions(ONCE)) != 1:
        await session(pool, ONCE, "s")
