"""Kills and random walks of the contract, made shorter: a program takes as long here as a whole test elsewhere.

The changes and the checks are those of the contract. It is set up anew only after something has changed, and a layer
is looked at in the end only.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Protocol

import pytest

from crannog.core.volumes import LayerState, Volume
from crannog.ports.storage import Pool
from tests.contract import storage_kills
from tests.contract.benches import ALL, IN_PLACE, KEEPING, LAYER, Bench, Contract, furnish, image, see, session
from tests.contract.storage_kills import CHANGES, IDLE, MOST_STEPS, check_new_vm, prepare, run_killed
from tests.contract.storage_walk import COPY, Walk

LONG = pytest.mark.timeout(900)
STEPS = 25
"""Of a walk."""
OUTLIVED = ("import_file", "session")
"""Changes in which the daemon is also killed while each program runs, which ends by itself then."""
SOURCES = {letter: replace(IN_PLACE, vid=f"source-{letter}/private") for letter in "ab"}
PV_LAYER = replace(LAYER, rw=False)
KEPT = replace(LAYER, keeps_layer=True)
ONCE = replace(KEEPING, revisions_to_keep=1)


async def _revert(pool: Pool) -> None:
    await pool.revert(ONCE, pool.revisions(ONCE)[0])


async def _keep(pool: Pool) -> None:
    for _ in range(2):
        await session(pool, KEPT, "x")


async def _look(pool: Pool) -> None:
    await pool.start(PV_LAYER)
    await pool.stop(PV_LAYER)


ACTS: dict[str, Callable[[Pool], Awaitable[None]]] = {
    "former content": _revert,
    "kept layer": _keep,
    "read-only layer": _look,
}


class DeviceBench(Bench, Protocol):
    """Pools that make devices."""

    def active(self) -> list[str]:
        """Return what the kernel has of pool `p`: mapped devices, and loop devices."""


def changes(*cases: tuple[str, Volume]) -> pytest.MarkDecorator:
    """Have a class of kills go over some changes of the contract, each of a volume."""
    return pytest.mark.parametrize(("name", "volume"), cases, ids=[f"{name}-{volume.name}" for name, volume in cases])


class ShortKills:
    """Kills, with SIGKILL, before each thing that the daemon does to files, and before each program."""

    @LONG
    def test_a_daemon_that_is_killed_leaves_old_or_new_content(
        self, bench: DeviceBench, name: str, volume: Volume, tmp_path: Path
    ) -> None:
        change = CHANGES[name]
        if not bench.contents():
            asyncio.run(provide(bench, tmp_path))
        before: list[str] = []
        for number in range(MOST_STEPS):
            if bench.contents() != before:
                asyncio.run(fill(bench, volume))
                before = bench.contents()
            is_done = run_killed(
                lambda: change.act(bench.open(), volume, tmp_path), number, tmp_path, while_tools_run=name in OUTLIVED
            )
            seen = asyncio.run(self.look(bench, volume))
            assert seen == change.after if is_done else seen in ("b", change.after), f"killed at step {number}"
            if is_done:
                assert number > 0 or name in IDLE
                assert asyncio.run(storage_kills.look(bench, volume)) == seen
                return
        pytest.fail("it never came to an end")

    @staticmethod
    async def look(bench: DeviceBench, volume: Volume) -> str:
        """Do what the next daemon does; return what a VM finds at its next start."""
        pool = bench.open()
        await pool.recover(ALL)
        assert bench.half_made() == []
        await check_new_vm(bench, pool)
        # What a cut-short session wrote is kept when a daemon finds that the VM has ended.
        for one in (volume, LAYER):
            await pool.stop(one)
        assert bench.active() == []
        return await see(pool, volume)


async def provide(bench: DeviceBench, folder: Path) -> None:
    """Make the VMs, and two volumes of which others get their content, as that is the quickest way."""
    await prepare(bench, KEEPING, folder)
    pool = bench.open()
    for letter, source in SOURCES.items():
        await pool.create((source,))
        await pool.claim((source,))
        await pool.import_file(source, image(folder, letter))


async def fill(bench: DeviceBench, volume: Volume) -> None:
    pool = bench.open()
    for source in SOURCES.values():
        await pool.clone(source, volume)


def layers(*acts: str) -> pytest.MarkDecorator:
    """Have a class of kills go over some of ACTS."""
    return pytest.mark.parametrize("what", acts)


class LayerKills:
    """The same with what the contract does not kill: layers that are kept or only read, and a former content."""

    @LONG
    def test_a_daemon_that_is_killed_leaves_what_the_next_one_can_use(
        self, bench: DeviceBench, what: str, tmp_path: Path
    ) -> None:
        asyncio.run(prepare_layers(bench))
        for number in range(MOST_STEPS):
            is_done = run_killed(lambda: ACTS[what](bench.open()), number, tmp_path, while_tools_run=False)
            asyncio.run(check_layers(bench, number))
            if is_done:
                assert number > 0
                return
        pytest.fail("it never came to an end")


async def prepare_layers(bench: DeviceBench) -> None:
    pool = await furnish(bench.open())
    for letter in "rs":
        await session(pool, ONCE, letter)


async def check_layers(bench: DeviceBench, number: int) -> None:
    """Be the next daemon, after a kill or none; leave the template with former content for the next time."""
    pool = bench.open()
    await pool.recover(ALL)
    for volume in (ONCE, KEPT):
        await pool.stop(volume)
    assert (bench.active(), bench.half_made()) == ([], []), f"killed at step {number}"
    if await pool.layer_state(KEPT) is LayerState.CURRENT:
        assert await see(pool, KEPT) in "sx"
    content = await see(pool, PV_LAYER)
    assert content in ("r", "s"), f"killed at step {number}"
    if content == "r" or len(pool.revisions(ONCE)) != 1:
        for letter in "rs":
            await session(pool, ONCE, letter)


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
