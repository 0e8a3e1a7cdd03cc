"""Driver lvm-thin when its daemon is killed between any two steps, and whatever is done in whatever order.

The changes and the checks are those of the contract. Here it is set up anew only after something has changed, and walks
are shorter: a program of lvm2 takes as long as everything that drivers for files do in one test.
"""

import asyncio
from pathlib import Path
from random import Random

import pytest

from crannog.core.volumes import Volume
from crannog.ports.storage import Pool
from tests.contract import storage_kills
from tests.contract.benches import ALL, Contract, own, stored
from tests.contract.storage_kills import CHANGES, MOST_STEPS, check_new_vm, fill, prepare, run_killed
from tests.contract.storage_walk import COPY, Walk
from tests.dm.lvm_bench import InThinPool, LvmBench

LONG = pytest.mark.timeout(900)


class TestKills(InThinPool):
    """Kills, with SIGKILL, before each thing that the daemon does to files, and while each program runs."""

    @own
    @pytest.mark.parametrize("name", sorted(CHANGES))
    @LONG
    def test_a_daemon_that_is_killed_leaves_old_or_new_content(
        self, bench: LvmBench, volume: Volume, name: str, tmp_path: Path
    ) -> None:
        change = CHANGES[name]
        if change.needs_revisions and volume.is_in_place:
            return
        asyncio.run(prepare(bench, volume, tmp_path))
        before: list[str] = []
        for number in range(MOST_STEPS):
            if bench.contents() != before:
                asyncio.run(fill(bench, volume, tmp_path))
                before = bench.contents()
            is_done = run_killed(lambda: change.act(bench.open(), volume, tmp_path), number, tmp_path)
            seen = asyncio.run(look(bench, volume))
            assert seen == change.after if is_done else seen in ("b", change.after), f"killed at step {number}"
            if is_done:
                assert number > 0
                assert asyncio.run(storage_kills.look(bench, volume)) == seen
                return
        pytest.fail("it never came to an end")


async def look(bench: LvmBench, volume: Volume) -> str:
    """Do what the next daemon does; return what the volume holds."""
    pool = bench.open()
    await pool.recover(ALL)
    assert bench.half_made() == []
    await check_new_vm(bench, pool)
    # What a session wrote that was cut short is kept at the next start, or when the next daemon finds that it ended.
    await pool.stop(volume)
    return await stored(pool, volume.vid)


class TestWalks(InThinPool, Contract):
    """Random walks."""

    @pytest.mark.parametrize("seed", range(4))
    @LONG
    async def test_whatever_is_done_in_whatever_order(
        self, bench: LvmBench, pool: Pool, tmp_path: Path, seed: int
    ) -> None:
        await pool.create((COPY,))
        walk = Walk(bench, pool, tmp_path, Random(seed))  # noqa: S311
        done = []
        for _ in range(25):
            done.append(await walk.step())
            try:
                await walk.check()
            except AssertionError:
                pytest.fail(f"after {done}")
