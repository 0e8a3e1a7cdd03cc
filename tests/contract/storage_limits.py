"""What every driver keeps to, part three: ids that make no sense, and disks that run full."""

import os
import re
from collections.abc import Awaitable
from pathlib import Path

import pytest

from crannog.core.volumes import Volume
from crannog.errors import StorageError
from crannog.ports.storage import Pool
from tests.contract.benches import (
    ALL,
    IN_PLACE,
    KEEPING,
    LAYER,
    OWN,
    SIZE,
    Bench,
    Contract,
    furnish,
    image,
    io,
    own,
    peek,
    put,
    see,
    session,
    stored,
    write,
)

NO_VIDS = [
    "", "/", "a", "a/", "/a", "../a", "a/..", "a/../b", "./a", "a/b/c", "/etc/passwd", ".new-a/root", "a/.b", "../../x",
    "a/b\0", "a\0/b", "a/b\n", "a\x1b[2J/b", "a/root.volatile", "a/root.1", "a/" + "b" * 300, "a" * 5000 + "/b", "a/b ",
    "~/b/..", "a/-rf *", "a/$(id)",
]  # fmt: skip


class LimitContract(Contract):
    """Nonsense and shortage."""

    async def test_what_is_no_id_is_refused_and_changes_nothing(self, bench: Bench, pool: Pool) -> None:
        before = bench.contents()
        for vid in NO_VIDS:
            await refuse_all(pool, vid)
        assert bench.contents() == before

    @own
    async def test_an_import_into_a_full_pool_changes_nothing(
        self, small_bench: Bench, volume: Volume, tmp_path: Path
    ) -> None:
        pool = await furnish(small_bench.open())
        await session(pool, volume, "a")
        before = small_bench.contents()
        path = tmp_path / "image"
        path.write_bytes(os.urandom(SIZE))
        with small_bench.full():
            with pytest.raises(StorageError, match="No space left on device; free some space"):
                await pool.import_file(volume, str(path))
            assert small_bench.contents() == before
        assert await see(pool, volume) == "a"

    async def test_sessions_and_layers_in_a_full_pool(self, small_bench: Bench, tmp_path: Path) -> None:
        """What needs room is refused whole; where a driver needs none, all is as always."""
        pool = await furnish(small_bench.open())
        for letter in "ab":
            await pool.import_file(KEEPING, image(tmp_path, letter))
        before = small_bench.contents()
        with small_bench.full():
            for volume in (LAYER, KEEPING):
                if await is_refused(pool.start(volume)):
                    assert small_bench.contents() == before
                await pool.abandon(volume)
                assert small_bench.contents() == before
            if await is_refused(pool.revert(KEEPING, pool.revisions(KEEPING)[0])):
                assert small_bench.contents() == before
                await pool.stop(KEEPING)
                assert await stored(pool, KEEPING.vid) == "b"
        assert await see(pool, KEEPING) in "ab"
        assert await see(small_bench.open(), LAYER) in "ab"

    @own
    async def test_a_pool_that_gets_full_while_a_vm_writes(self, small_bench: Bench, volume: Volume) -> None:
        pool = await furnish(small_bench.open())
        await session(pool, volume, "a")
        await pool.start(volume)
        location = pool.locate(volume)
        write(location, "m")
        with small_bench.full():
            # A loop device has no other word for it.
            assert re.search("No space left|Input/output error", io(location, f"write -P 1 0 {SIZE}"))
            assert peek(location) in ("m", "\1")
            is_stopped = not await is_refused(pool.stop(volume))
        if not is_stopped:
            await pool.stop(volume)
        assert await see(small_bench.open(), volume) in ("m", "\1")
        assert await pool.recover(ALL) == []
        assert small_bench.half_made() == []

    async def test_an_import_from_another_program_into_a_full_pool(self, small_bench: Bench, tmp_path: Path) -> None:
        pool = await furnish(small_bench.open())
        for volume in OWN:
            await session(pool, volume, "a")
            before = small_bench.contents()
            path = await pool.begin_import(volume, SIZE)
            with small_bench.full():
                with pytest.raises(OSError, match="No space left on device"):
                    put(path, os.urandom(SIZE))
                await pool.give_up_import(volume)
            assert small_bench.contents() == before
            assert await see(pool, volume) == "a"


async def refuse_all(pool: Pool, vid: str) -> None:
    """See that a pool does nothing at all with what is no id."""
    volume = Volume("root", "p", vid, SIZE, save_on_stop=True)
    for ask in (pool.locate, pool.usage, pool.revisions):
        with pytest.raises(StorageError, match="not the id of a volume"):
            ask(volume)
    for act in (pool.start, pool.stop, pool.abandon, pool.clear, pool.trim, pool.give_up_import):
        with pytest.raises(StorageError, match="not the id of a volume"):
            await act(volume)
    for act_on_all in (pool.create, pool.claim, pool.remove):
        with pytest.raises(StorageError, match="not the id of a volume"):
            await act_on_all((volume,))
    for cloning in ((volume, IN_PLACE), (IN_PLACE, volume)):
        with pytest.raises(StorageError, match="not the id of a volume"):
            await pool.clone(*cloning)
    with pytest.raises(StorageError, match="not the id of a volume"):
        pool.newest(vid)


async def is_refused(act: Awaitable[object]) -> bool:
    """Do something; tell whether it was refused, which must have been for lack of room, with that sentence."""
    refusal = ""
    try:
        await act
    except StorageError as error:
        refusal = str(error)
    assert not refusal or "No space left on device; free some space" in refusal
    return bool(refusal)
