"""What every driver keeps to, part five: whatever is done, in whatever order."""

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from crannog.ports.storage import Pool
from tests.contract.benches import (
    ALL,
    IN_PLACE,
    KEEPING,
    LAYER,
    Bench,
    Contract,
    holds,
    image,
    see,
    session,
    stored,
)

COPY = replace(IN_PLACE, vid="copy-0/private")


class Walk:
    """Takes one random step after the other with a volume, a layer over it and a copy, and knows what is in them."""

    def __init__(self, bench: Bench, pool: Pool, folder: Path, random: Random) -> None:
        self.bench = bench
        self.pool = pool
        self.folder = folder
        self.random = random
        self.volume = KEEPING
        self.content = "\0"
        self.history = {"\0"}
        self.shown = ""
        self.is_running = False
        self.copy = COPY
        self.copied = "\0"
        self.copies = 0

    async def step(self) -> str:
        """Do something; return what it was."""
        acts = [self.use, self.use, self.bring, self.clear, self.go_back, self.grow, self.keep, self.crash]
        acts += [self.use_copy, self.copy_it, self.copy_back, self.make_copy_anew]
        acts += [self.end_layer] if self.is_running else [self.begin_layer, self.begin_layer]
        act = self.random.choice(acts)
        await act()
        self.history.add(self.content)
        return act.__name__

    async def use(self) -> None:
        can_run = self.volume.can_be_used_beside(shares_live=self.pool.shares_live)
        if self.is_running and not can_run:  # core.startup refuses that
            return
        self.content = self.random.choice("abcdef")
        await session(self.pool, self.volume, self.content)

    async def bring(self) -> None:
        self.content = self.random.choice("abcdef")
        self.volume = await self.pool.import_file(self.volume, image(self.folder, self.content, self.volume.size))

    async def clear(self) -> None:
        self.content = "\0"
        await self.pool.clear(self.volume)

    async def go_back(self) -> None:
        listed = self.pool.revisions(self.volume)
        assert len(listed) <= max(self.volume.revisions_to_keep, 0)
        if listed:
            self.volume = await self.pool.revert(self.volume, self.random.choice(listed))
            self.content = await see(self.pool, self.volume)
            assert self.content in self.history

    async def grow(self) -> None:
        if not self.is_running:  # qemu-img does not change what another process has open
            self.volume = await self.pool.resize(self.volume, self.volume.size + 65536)

    async def keep(self) -> None:
        self.volume = replace(self.volume, revisions_to_keep=self.random.randrange(-1, 4))
        await self.pool.trim(self.volume)

    async def crash(self) -> None:
        self.pool = self.bench.open()
        done = await self.pool.recover(ALL | {self.copy.vid})
        assert not [sentence for sentence in done if "half-made" in sentence]

    async def begin_layer(self) -> None:
        await self.pool.start(replace(LAYER, size=self.volume.size))
        self.is_running, self.shown = True, self.content

    async def end_layer(self) -> None:
        await self.pool.stop(LAYER)
        self.is_running = False

    async def copy_it(self) -> None:
        self.copy = await self.pool.clone(self.volume, self.copy)
        self.copied = self.content

    async def copy_back(self) -> None:
        self.volume = await self.pool.clone(self.copy, self.volume)
        self.content = self.copied

    async def use_copy(self) -> None:
        self.copied = self.random.choice("abcdef")
        await session(self.pool, self.copy, self.copied)

    async def make_copy_anew(self) -> None:
        await self.pool.remove((self.copy,))
        self.copies += 1  # no two VMs ever have the same ids
        keeps = self.random.randrange(-1, 3)
        self.copy = replace(COPY, vid=f"copy-{self.copies}/private", revisions_to_keep=keeps)
        self.copied = "\0"
        await self.pool.create((self.copy,))
        await self.pool.claim((self.copy,))

    async def check(self) -> None:
        assert await stored(self.pool, self.volume.vid) == self.content
        assert await stored(self.pool, self.copy.vid) == self.copied
        assert not self.is_running or holds(self.pool.locate(LAYER), self.shown)
        is_current = self.is_running and not await self.pool.is_outdated(LAYER)
        assert not is_current or self.shown == self.content or self.volume.is_in_place


class WalkContract(Contract):
    """Random walks."""

    @pytest.mark.parametrize("seed", range(6))
    async def test_whatever_is_done_in_whatever_order(
        self, bench: Bench, pool: Pool, tmp_path: Path, seed: int
    ) -> None:
        await pool.create((COPY,))
        walk = Walk(bench, pool, tmp_path, Random(seed))  # noqa: S311
        done = []
        for _ in range(60):
            done.append(await walk.step())
            try:
                await walk.check()
            except AssertionError:
                pytest.fail(f"after {done}")
