"""What every driver keeps to, part two: content that comes from elsewhere, and goes there."""

import asyncio
import os
from dataclasses import replace
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
    SIZE,
    Bench,
    Contract,
    holds,
    image,
    own,
    peek,
    put,
    see,
    session,
    stored,
)


def is_empty(path: str, size: int) -> bool:
    """Tell whether a file or a device has that size, and only zeros."""
    with open(path, "rb") as file:
        return file.read() == bytes(size)


class ImportContract(Contract):
    """Imports, copies and clones."""

    @own
    async def test_an_import_from_another_program(self, pool: Pool, volume: Volume) -> None:
        await session(pool, volume, "a")
        path = await pool.begin_import(volume, 2 * SIZE)
        assert os.stat(path).st_mode & 0o077 == 0
        assert is_empty(path, 2 * SIZE)
        assert await stored(pool, volume.vid) == "a"
        put(path, b"i" * SIZE)
        imported = await pool.finish_import(volume, 2 * SIZE)
        assert (imported, os.path.exists(path)) == (replace(volume, size=2 * SIZE), False)
        assert await see(pool, imported) == "i"
        await pool.start(imported)
        assert holds(pool.locate(imported), "\0", 2 * SIZE - 4096)

    @own
    @pytest.mark.parametrize("how", ["gives up", "writes too much", "writes too little", "deletes it", "dies", "again"])
    async def test_an_import_that_comes_to_nothing(self, bench: Bench, pool: Pool, volume: Volume, how: str) -> None:
        await session(pool, volume, "a")
        before = bench.contents()
        path = await pool.begin_import(volume, SIZE)
        if how == "gives up":
            await pool.give_up_import(volume)
            await pool.give_up_import(volume)
        elif how == "dies":
            assert len(await pool.recover(ALL)) == 1
        elif how == "again":
            put(path, b"x")
            assert await pool.begin_import(volume, SIZE) == path
            assert is_empty(path, SIZE)
            await pool.give_up_import(volume)
        elif os.path.isfile(path):
            os.truncate(path, SIZE + (1 if "much" in how else -1))
            if "deletes" in how:
                os.unlink(path)
            with pytest.raises(StorageError):
                await pool.finish_import(volume, SIZE)
        else:  # nobody changes the size of a device, or deletes it, so
            await pool.give_up_import(volume)
        assert bench.contents() == before
        assert await see(pool, volume) == "a"

    async def test_content_goes_from_one_pool_to_another(self, bench: Bench, pool: Pool) -> None:
        other = bench.open("other")
        target = Volume("root", "other", "copy-3/root", SIZE, save_on_stop=True, revisions_to_keep=1)
        await other.create((target,))
        for letter in "ab":
            await session(pool, KEEPING, letter)
            await other.clone(KEEPING, target, pool)
            assert await see(other, target) == letter
        await pool.remove((KEEPING,))
        assert await see(other, target) == "b"

    @own
    async def test_a_copy_and_its_source_go_their_own_ways(self, pool: Pool, volume: Volume) -> None:
        await session(pool, volume, "a")
        copies = [replace(volume, vid=f"copy-{number}/{volume.name}") for number in range(3)]
        for copy in copies:
            await pool.create((copy,))
            assert await pool.clone(volume, copy) == copy
        await session(pool, volume, "b")
        await session(pool, copies[0], "c")
        assert [await see(pool, one) for one in (volume, *copies)] == ["b", "c", "a", "a"]
        await pool.clone(copies[0], copies[1])
        await pool.remove((volume,))
        await pool.remove((copies[0],))
        assert [await see(pool, one) for one in copies[1:]] == ["c", "a"]
        assert await pool.recover(frozenset(copy.vid for copy in copies[1:])) == []
        assert [await see(pool, one) for one in copies[1:]] == ["c", "a"]

    async def test_a_copy_of_what_others_are_layers_over(self, pool: Pool, tmp_path: Path) -> None:
        """In place, or with revisions: whoever runs from the source sees the same as before."""
        for source in (KEEPING, replace(KEEPING, revisions_to_keep=0)):
            await pool.import_file(source, image(tmp_path, "t"))
            await pool.start(LAYER)
            copy = replace(source, vid=f"copy-{source.revisions_to_keep}/root")
            await pool.create((copy,))
            await pool.clone(source, copy)
            await session(pool, copy, "c")
            assert holds(pool.locate(LAYER), "t")
            await pool.stop(LAYER)
            assert (await see(pool, LAYER), await see(pool, source)) == ("t", "t")

    async def test_a_copy_changes_its_settings_and_its_content(self, pool: Pool, tmp_path: Path) -> None:
        """What is copied is never written again, whatever becomes of the volumes that show it."""
        await pool.import_file(KEEPING, image(tmp_path, "t"))
        copy = replace(KEEPING, vid="copy-3/root")
        await pool.create((copy,))
        await pool.clone(KEEPING, copy)
        in_place = replace(KEEPING, revisions_to_keep=0)
        await session(pool, in_place, "a")
        assert await see(pool, copy) == "t"
        await pool.clone(in_place, copy)
        await pool.import_file(in_place, image(tmp_path, "b"))
        await pool.trim(in_place)
        assert (await see(pool, in_place), await see(pool, copy)) == ("b", "a")
        assert (await pool.resize(in_place, 3 * SIZE)).size == 3 * SIZE
        await pool.clone(replace(in_place, size=3 * SIZE), copy)
        await pool.clear(in_place)
        larger = replace(copy, size=3 * SIZE)
        await pool.start(larger)
        assert (peek(pool.locate(larger)), peek(pool.locate(larger), 3 * SIZE - 4096)) == ("b", "\0")

    async def test_images_that_are_read_are_never_deleted(self, pool: Pool, tmp_path: Path) -> None:
        """While a copy goes on, the content that it reads becomes old, and too old to be kept."""
        once = replace(KEEPING, revisions_to_keep=1)
        await session(pool, once, "a")
        copy = replace(IN_PLACE, vid="copy-3/private")
        await pool.create((copy,))
        copying = asyncio.ensure_future(pool.clone(once, copy))
        await asyncio.sleep(0)
        for letter in "bcd":
            await pool.import_file(once, image(tmp_path, letter))
        await copying
        assert await see(pool, copy) == "a"
