"""Kills and random walks of the contract, made shorter: a program takes as long here as a whole test elsewhere.

The changes and the checks are those of the contract. It is set up anew only after something has changed, and what a
volume holds is read from where it is, without a start.
"""

import asyncio
from pathlib import Path
from random import Random

import pytest

from crannog.core.volumes import Volume
from crannog.ports.storage import Pool
from tests.contract import storage_kills
from tests.contract.benches import ALL, IN_PLACE, KEEPING, Bench, Contract, stored
from tests.contract.storage_kills import CHANGES, MOST_STEPS, check_new_vm, fill, prepare, run_killed
from tests.contract.storage_walk import COPY, Walk

LONG = pytest.mark.timeout(900)
STEPS = 25
"""Of a walk."""
CASES = [(name, KEEPING) for name in sorted(CHANGES)] + [(name, IN_PLACE) for name in ("import_file", "session")]


class ShortKills:
    """Kills, with SIGKILL, before each thing that the daemon does to files, and while each program runs."""

    @pytest.mark.parametrize(("name", "volume"), CASES, ids=[f"{name}-{volume.name}" for name, volume in CASES])
    @LONG
    def test_a_daemon_that_is_killed_leaves_old_or_new_content(
        self, bench: Bench, name: str, volume: Volume, tmp_path: Path
    ) -> None:
        change = CHANGES[name]
        asyncio.run(prepare(bench, volume, tmp_path))
        before: list[str] = []
        for number in range(MOST_STEPS):
            if bench.contents() != before:
                asyncio.run(fill(bench, volume, tmp_path))
                before = bench.contents()
            is_done = run_killed(lambda: change.act(bench.open(), volume, tmp_path), number, tmp_path)
            seen = asyncio.run(self.look(bench, volume))
            assert seen == change.after if is_done else seen in ("b", change.after), f"killed at step {number}"
            if is_done:
                assert number > 0
                assert asyncio.run(storage_kills.look(bench, volume)) == seen
                return
        pytest.fail("it never came to an end")

    @staticmethod
    async def look(bench: Bench, volume: Volume) -> str:
        """Do what the next daemon does; return what the volume holds."""
        pool = bench.open()
        await pool.recover(ALL)
        assert bench.half_made() == []
        await check_new_vm(bench, pool)
        # What a cut-short session wrote is kept at the next start, or when a daemon finds that the VM has ended.
        await pool.stop(volume)
        return await stored(pool, volume.vid)


class ShortWalks(Contract):
    """Random walks."""

    @pytest.mark.parametrize("seed", range(4))
    @LONG
    async def test_whatever_is_done_in_whatever_order(
        self, bench: Bench, pool: Pool, tmp_path: Path, seed: int
    ) -> None:
        await pool.create((COPY,))
        walk = Walk(bench, pool, tmp_path, Random(seed))  # noqa: S311
        done = []
        for _ in range(STEPS):
            done.append(await walk.step())
            try:
                await walk.check()
            except AssertionError:
                pytest.fail(f"after {done}")
