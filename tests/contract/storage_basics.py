"""What every driver keeps to, part one: sessions, layers, revisions, sizes."""

from dataclasses import replace
from pathlib import Path

import pytest

from crannog.core.volumes import Volume
from crannog.errors import NotFoundError
from crannog.ports.storage import Pool
from tests.contract.benches import (
    IN_PLACE,
    KEEPING,
    LAYER,
    OWN,
    SIZE,
    Bench,
    holds,
    image,
    own,
    peek,
    see,
    session,
    stored,
    write,
)
from tests.contract.storage_volatile import VolatileContract


class BasicContract(VolatileContract):
    """Sessions and what they leave; also those of volumes that leave nothing."""

    @own
    async def test_what_is_written_stays(self, pool: Pool, volume: Volume) -> None:
        for letter in "ab":
            await session(pool, volume, letter)
            await pool.stop(volume)
            assert await see(pool, volume) == letter
            assert await stored(pool, volume.vid) == letter

    async def test_a_layer_shows_its_source_and_keeps_nothing(self, pool: Pool) -> None:
        await session(pool, KEEPING, "t")
        await session(pool, LAYER, "a")
        assert await see(pool, LAYER) == "t"

    async def test_a_running_layer_is_outdated_by_new_content_only(self, pool: Pool) -> None:
        await session(pool, KEEPING, "t")
        assert not await pool.is_outdated(LAYER)
        await pool.start(LAYER)
        assert not await pool.is_outdated(LAYER)
        if pool.shares_live:
            await session(pool, KEEPING, "u")
        else:
            await pool.clear(KEEPING)
        assert await pool.is_outdated(LAYER)
        assert holds(pool.locate(LAYER), "t")
        await pool.stop(LAYER)
        assert not await pool.is_outdated(LAYER)
        assert not await pool.is_outdated(KEEPING)

    async def test_a_session_that_goes_on_is_no_content_yet(self, pool: Pool) -> None:
        if not pool.shares_live:
            return  # core.startup never lets anybody look then
        await session(pool, KEEPING, "t")
        await pool.start(LAYER)
        await pool.start(KEEPING)
        write(pool.locate(KEEPING), "u")
        assert not await pool.is_outdated(LAYER)
        assert await stored(pool, KEEPING.vid) == "t"
        async with pool.reading(KEEPING.vid) as content:
            await pool.stop(KEEPING)
            assert holds(content, "t")
        assert holds(pool.locate(LAYER), "t")
        assert await see(pool, LAYER) == "u"

    async def test_what_two_layers_hold_is_their_own(self, pool: Pool) -> None:
        await session(pool, KEEPING, "t")
        other = replace(LAYER, vid="other-4/root")
        await pool.create((other,))
        for layer, letter in ((LAYER, "a"), (other, "b")):
            await pool.start(layer)
            write(pool.locate(layer), letter)
        assert (peek(pool.locate(LAYER)), peek(pool.locate(other))) == ("a", "b")
        assert await stored(pool, KEEPING.vid) == "t"

    async def test_a_layer_is_as_large_as_its_volume(self, pool: Pool) -> None:
        await session(pool, KEEPING, "t")
        larger = replace(LAYER, size=3 * SIZE)
        await pool.start(larger)
        assert holds(pool.locate(larger), "t")
        assert holds(pool.locate(larger), "\0", 3 * SIZE - 4096)

    async def test_revisions_are_former_contents_oldest_first(self, pool: Pool) -> None:
        assert pool.revisions(KEEPING) == pool.revisions(IN_PLACE) == []
        for letter in "abc":
            await session(pool, KEEPING, letter)
        found = pool.revisions(KEEPING)
        assert len(found) == 2
        assert all(set(revision) <= set("0123456789ABCDEFTZ:._-") for revision in found)
        assert len(pool.revisions(replace(KEEPING, revisions_to_keep=1))) == 1
        assert pool.revisions(replace(KEEPING, revisions_to_keep=1)) == found[1:]
        for none in (0, -1):
            assert pool.revisions(replace(KEEPING, revisions_to_keep=none)) == []

    async def test_going_back_loses_nothing(self, pool: Pool) -> None:
        for letter in "abc":
            await session(pool, KEEPING, letter)
        oldest = pool.revisions(KEEPING)[0]
        assert (await pool.revert(KEEPING, oldest)).size == SIZE
        assert await see(pool, KEEPING) == "a"
        newest = pool.revisions(KEEPING)[-1]
        await pool.revert(KEEPING, newest)
        assert await see(pool, KEEPING) == "c"
        await session(pool, KEEPING, "d")
        assert await see(pool, KEEPING) == "d"

    async def test_there_is_no_going_back_to_what_was_not(self, bench: Bench, pool: Pool) -> None:
        await session(pool, KEEPING, "a")
        before = bench.contents()
        for revision in ("", "9", "../x", "1-1970-01-01T00:00:00Z", "9" * 300):
            for volume in OWN:
                with pytest.raises(NotFoundError, match="has no revision"):
                    await pool.revert(volume, revision)
        assert bench.contents() == before

    async def test_a_revision_that_a_running_vm_stands_on_stays(self, pool: Pool, tmp_path: Path) -> None:
        await session(pool, KEEPING, "t")
        await pool.start(LAYER)
        for letter in "abcd":
            await pool.import_file(KEEPING, image(tmp_path, letter))
        assert holds(pool.locate(LAYER), "t")
        usage = pool.usage(KEEPING)
        await pool.stop(LAYER)
        await pool.trim(KEEPING)
        assert pool.usage(KEEPING) <= usage
        assert len(pool.revisions(KEEPING)) == 2
        assert await see(pool, LAYER) == await see(pool, KEEPING) == "d"

    async def test_what_newer_content_stands_on_stays(self, pool: Pool) -> None:
        for letter in "abcde":
            await session(pool, KEEPING, letter)
        await pool.trim(replace(KEEPING, revisions_to_keep=0))
        assert await see(pool, KEEPING) == "e"
        left = pool.revisions(KEEPING)  # as few as newer content needs
        if left:
            await pool.revert(KEEPING, left[0])
            await pool.trim(replace(KEEPING, revisions_to_keep=0))
            assert await see(pool, KEEPING) == "dc"[len(left) - 1]

    async def test_a_volume_that_changes_how_it_is_written_keeps_its_content(self, pool: Pool, tmp_path: Path) -> None:
        """From revisions to in place and back, also over imports: the newest content is the newest content."""
        kept, plain = KEEPING, replace(KEEPING, revisions_to_keep=0)
        await session(pool, kept, "a")
        await session(pool, plain, "b")
        assert await see(pool, kept) == "b"
        await session(pool, kept, "c")
        assert await see(pool, replace(KEEPING, revisions_to_keep=-1)) == "c"
        await pool.import_file(plain, image(tmp_path, "i"))
        assert await see(pool, kept) == "i"
        once = replace(IN_PLACE, revisions_to_keep=3)
        await session(pool, IN_PLACE, "a")
        await session(pool, once, "b")
        assert (await see(pool, IN_PLACE), await see(pool, once)) == ("b", "b")
        await pool.revert(once, pool.revisions(once)[0])
        assert await see(pool, IN_PLACE) == "a"

    async def test_a_session_that_a_crash_cut_short_is_kept_whatever_is_kept_now(self, pool: Pool) -> None:
        await pool.start(KEEPING)
        write(pool.locate(KEEPING), "m")
        plain = replace(KEEPING, revisions_to_keep=0)
        path = pool.locate(plain).path
        await pool.start(plain)
        assert pool.locate(plain).path == path
        assert holds(pool.locate(plain), "m")

    @own
    async def test_clear(self, pool: Pool, volume: Volume) -> None:
        await session(pool, volume, "a")
        await pool.clear(volume)
        assert await see(pool, volume) == "\0"

    async def test_what_was_cleared_comes_back_from_a_revision(self, pool: Pool) -> None:
        await session(pool, KEEPING, "a")
        await pool.clear(KEEPING)
        await pool.revert(KEEPING, pool.revisions(KEEPING)[-1])
        assert await see(pool, KEEPING) == "a"

    @own
    async def test_a_larger_volume(self, pool: Pool, volume: Volume) -> None:
        await session(pool, volume, "a")
        larger = await pool.resize(volume, 4 * SIZE)
        assert larger == replace(volume, size=4 * SIZE)
        assert await see(pool, larger) == "a"
        await pool.start(larger)
        assert holds(pool.locate(larger), "\0", 4 * SIZE - 4096)
        await pool.stop(larger)
        copy = replace(IN_PLACE, vid="copy-3/private")
        await pool.create((copy,))
        assert (await pool.clone(larger, copy)).size == 4 * SIZE
        plain = await pool.resize(replace(larger, revisions_to_keep=0), 8 * SIZE)
        assert plain.size == 8 * SIZE
        await pool.start(plain)
        assert holds(pool.locate(plain), "\0", 8 * SIZE - 4096)

    async def test_a_revision_of_another_size(self, pool: Pool, tmp_path: Path) -> None:
        await pool.import_file(KEEPING, image(tmp_path, "a", 2 * SIZE))
        smaller = await pool.import_file(KEEPING, image(tmp_path, "b"))
        assert smaller.size == SIZE
        back = await pool.revert(smaller, pool.revisions(smaller)[-1])
        assert back.size == 2 * SIZE
        await pool.start(back)
        assert holds(pool.locate(back), "a", 2 * SIZE - 4096)

    async def test_usage_is_what_is_on_the_disk(self, pool: Pool, tmp_path: Path) -> None:
        assert all(0 <= pool.usage(volume) < SIZE // 2 for volume in (KEEPING, IN_PLACE, LAYER))
        await pool.import_file(IN_PLACE, image(tmp_path, "i"))
        assert SIZE <= pool.usage(IN_PLACE) < 2 * SIZE
        await pool.start(LAYER)
        assert 0 <= pool.usage(LAYER) < SIZE
        assert pool.usage(replace(LAYER, vid="absent-9/root")) == 0
