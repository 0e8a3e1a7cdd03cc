"""What driver lvm-thin makes of volumes: LVs, their rights, what is active when, what is left, what is not touched."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from crannog.adapters.storage.lvm_commands import Place
from crannog.adapters.storage.lvm_names import Owner, device_name
from crannog.adapters.storage.lvm_thin import LvmThinPool
from crannog.adapters.storage.qcow2 import Qcow2Pool
from crannog.core.volumes import Location, Volume
from crannog.errors import StorageError
from crannog.ports.storage import Pool
from tests.contract.benches import (
    ALL,
    IN_PLACE,
    KEEPING,
    LAYER,
    SIZE,
    furnish,
    holds,
    image,
    io,
    peek,
    see,
    session,
    stored,
    write,
)
from tests.dm.devices import read_at, run, write_at
from tests.dm.lvm_bench import InThinPool, LvmBench, list_active

VOLATILE = Volume("volatile", "p", "work-2/volatile", SIZE)


def list_foreign(place: Place) -> list[str]:
    fields = "lv_name,lv_uuid,lv_size,lv_tags,lv_attr"
    lines = run("lvs", "--noheadings", "--units", "b", "-o", fields, place.group).splitlines()
    return sorted(line for line in lines if "foreign" in line)


class TestVolumes(InThinPool):
    """Volumes of VMs as thin LVs."""

    @pytest.fixture
    async def pool(self, bench: LvmBench) -> Pool:
        return await furnish(bench.open())

    async def test_revisions_can_only_be_read_and_are_not_active(
        self, bench: LvmBench, pool: Pool, place: Place
    ) -> None:
        for letter in "ab":
            await session(pool, KEEPING, letter)
        assert list_active() == set()
        names = sorted(line.split()[0] for line, tags in bench.volumes().items() if f"vid={KEEPING.vid}" in tags)
        assert [line.split()[2] for line in sorted(bench.volumes()) if line.split()[0] in names] == ["r", "r"]
        run("lvchange", "--activate", "y", "-K", f"{place.group}/{names[0]}")
        try:
            assert "wrote" not in io(Location(f"/dev/{place.group}/{names[0]}", "raw"), "write 0 4096")
        finally:
            run("lvchange", "--activate", "n", f"{place.group}/{names[0]}")
        # A host that is started anew activates none of them.
        run("vgchange", "--activate", "ay", place.group)
        assert list_active() == set()

    async def test_what_is_active_while_vms_run(self, pool: Pool, place: Place) -> None:
        expected = set()
        for volume in (KEEPING, IN_PLACE, LAYER, VOLATILE):
            await pool.start(volume)
            path = pool.locate(volume).path
            assert path.startswith(f"/dev/{place.group}/crannog-")
            expected.add(device_name(place.group, os.path.basename(path)))
            assert list_active() == expected
        for volume in (KEEPING, IN_PLACE, LAYER, VOLATILE):
            await pool.stop(volume)
            await pool.stop(volume)
        assert list_active() == set()

    async def test_what_is_read_is_active_as_long_as_it_is(self, pool: Pool) -> None:
        await session(pool, KEEPING, "a")
        async with pool.reading(KEEPING.vid) as one:
            async with pool.reading(KEEPING.vid) as other:
                assert (one, holds(one, "a")) == (other, True)
            assert holds(one, "a")
            assert len(list_active()) == 1
        assert list_active() == set()

    async def test_what_a_killed_daemon_was_reading_is_put_away(self, bench: LvmBench, pool: Pool) -> None:
        await session(pool, KEEPING, "a")
        async with pool.reading(KEEPING.vid):
            assert await bench.open().recover(ALL) == []
            assert list_active() == set()

    async def test_a_volatile_volume_is_empty_at_every_start(self, bench: LvmBench, pool: Pool) -> None:
        before = bench.contents()
        for _ in range(2):
            await pool.start(VOLATILE)
            assert peek(pool.locate(VOLATILE)) == "\0"
            write(pool.locate(VOLATILE), "v")
        await pool.abandon(VOLATILE)
        assert bench.contents() == before

    async def test_a_layer_that_nobody_may_write_to(self, pool: Pool) -> None:
        readonly = replace(LAYER, rw=False)
        await session(pool, KEEPING, "t")
        await pool.start(readonly)
        assert holds(pool.locate(readonly), "t")
        assert "wrote" not in io(pool.locate(readonly), "write 0 4096")

    async def test_a_layer_that_is_kept_gets_larger(self, bench: LvmBench, pool: Pool) -> None:
        kept = replace(LAYER, keeps_layer=True)
        await session(pool, KEEPING, "t")
        await session(pool, kept, "a")
        assert list_active() == set()
        pool = bench.open()
        assert pool.usage(kept) > 0
        await pool.start(replace(kept, size=2 * SIZE))
        assert (peek(pool.locate(kept)), peek(pool.locate(kept), 2 * SIZE - 4096)) == ("a", "\0")

    async def test_nothing_of_a_vm_is_left(self, bench: LvmBench, pool: Pool) -> None:
        for volume in (KEEPING, IN_PLACE, LAYER, VOLATILE):
            await pool.start(volume)
        await pool.remove((KEEPING,))
        await pool.remove((IN_PLACE, LAYER, VOLATILE))
        assert (bench.contents(), list_active()) == ([], set())
        await pool.remove((KEEPING,))

    async def test_a_vm_whose_volumes_are_there_is_not_made_again(self, bench: LvmBench, pool: Pool) -> None:
        await session(pool, KEEPING, "a")
        before = bench.contents()
        with pytest.raises(
            StorageError, match=r"^the volumes of debian-1 cannot be made: there are some in thin pool dm-"
        ):
            await pool.create((KEEPING,))
        assert bench.contents() == before

    @pytest.mark.parametrize("is_cloned", [True, False], ids=["clone", "import"])
    async def test_a_vm_that_nobody_claimed_goes_with_all_content_that_it_got(
        self, bench: LvmBench, pool: Pool, is_cloned: bool, tmp_path: Path
    ) -> None:
        before = bench.contents()
        copy = replace(KEEPING, vid="copy-3/root", revisions_to_keep=0)
        await pool.create((copy,))
        if is_cloned:
            await pool.clone(KEEPING, copy)
        else:
            await pool.import_file(copy, image(tmp_path, "i"))
        assert len(bench.contents()) == len(before) + 1, "the LV that was marked at first is deleted"
        assert await bench.open().recover(ALL) == ["pool p: deleted half-made copy-3"]
        assert bench.contents() == before

    async def test_foreign_volumes_are_never_touched(self, bench: LvmBench, place: Place, tmp_path: Path) -> None:
        """A plain LV, one in the thin pool, one of another home, and ones of ours that somebody changed."""
        pool = await furnish(bench.open())
        lookalikes = {
            "foreign-tags": Owner(os.path.realpath(bench.home), "p").tags | {"vid": KEEPING.vid, "state": "half-made"},
            "foreign-home": Owner("/other", "p").tags | {"vid": KEEPING.vid, "state": "finished", "mark": "doomed"},
        }
        run("lvcreate", "--size", "64k", "--name", "foreign-plain", place.group)
        for name, tags in {"foreign-thin": {}, **lookalikes}.items():
            words = [f"--addtag=crannog.{key}={value}" for key, value in tags.items()]
            run("lvcreate", "--thin", "--virtualsize", "1m", "--name", name, *words, str(place))
            write_at(f"/dev/{place.group}/{name}", 0, b"mine" * 1024)
        other = LvmBench(place, tmp_path / "other-home")
        namesake = await furnish(other.open())
        await session(namesake, KEEPING, "o")
        before = list_foreign(place)
        try:
            for letter in "abcd":
                await session(pool, KEEPING, letter)
            assert await bench.open().recover(frozenset()) == []
            assert await bench.open().recover(ALL) == []
            await pool.remove((KEEPING,))
            await pool.remove((IN_PLACE, LAYER))
            assert [found for found in bench.contents() if " foreign-tags " not in found] == []
            assert list_foreign(place) == before
            assert await stored(namesake, KEEPING.vid) == "o"
            for name in ("foreign-thin", *lookalikes):
                assert read_at(f"/dev/{place.group}/{name}", 0, 4096) == b"mine" * 1024
        finally:
            other.close()
            names = run("lvs", "--noheadings", "-o", "lv_name", place.group).split()
            run("lvremove", "--yes", *(f"{place.group}/{name}" for name in names if name.startswith("foreign")))

    async def test_content_goes_to_a_pool_of_files_and_back(self, bench: LvmBench, pool: Pool, tmp_path: Path) -> None:
        files = Qcow2Pool("files", str(tmp_path / "files"))
        target = Volume("root", "files", "copy-3/root", SIZE, save_on_stop=True, revisions_to_keep=1)
        await files.create((target,))
        await session(pool, KEEPING, "a")
        await files.clone(KEEPING, target, pool)
        assert await see(files, target) == "a"
        await session(files, target, "b")
        back = await pool.clone(target, KEEPING, files)
        assert (back.size, await see(pool, back)) == (SIZE, "b")
        assert list_active() == set()

    async def test_what_holds_nothing_takes_no_room(self, bench: LvmBench, pool: Pool, tmp_path: Path) -> None:
        path = tmp_path / "sparse"
        with path.open("wb") as file:
            file.truncate(16 * SIZE)
            file.seek(8 * SIZE)
            file.write(b"x" * 65536)
        imported = await pool.import_file(KEEPING, str(path))
        assert imported.size == 16 * SIZE
        assert pool.usage(KEEPING) == bench.open().usage(KEEPING) == 65536

    async def test_a_size_that_no_lv_can_have(self, bench: LvmBench, pool: Pool, tmp_path: Path) -> None:
        imported = await pool.import_file(KEEPING, image(tmp_path, "i", SIZE - 4096 - 512))
        assert imported.size == SIZE
        async with pool.reading(KEEPING.vid) as content:
            assert holds(content, "i", SIZE - 65536)
            assert holds(content, "\0", SIZE - 4096)
        assert (await pool.resize(IN_PLACE, SIZE + 1)).size == SIZE + 65536

    async def test_a_copy_that_cannot_be_read_leaves_nothing(self, bench: LvmBench, pool: Pool, tmp_path: Path) -> None:
        before = bench.contents()
        with pytest.raises(
            StorageError, match=r"^image .*/absent cannot be imported into volume debian-1/root: No such"
        ):
            await pool.import_file(KEEPING, str(tmp_path / "absent"))
        assert bench.contents() == before

    async def test_whoever_gives_up_waits_for_lvm(
        self, bench: LvmBench, pool: Pool, place: Place, tmp_path: Path
    ) -> None:
        """A program of lvm2 that is killed half-way can leave all VMs of the thin pool without their disks."""
        await session(pool, KEEPING, "a")
        before = bench.contents()
        path = tmp_path / "large"
        with path.open("wb") as file:
            file.truncate(SIZE)
        for delay in (0.0, 0.05, 0.1, 0.2, 0.4, 0.8):
            acting = asyncio.ensure_future(pool.import_file(IN_PLACE, str(path)))
            await asyncio.sleep(delay)
            acting.cancel()
            await asyncio.wait([acting])
            starting = asyncio.ensure_future(pool.start(KEEPING))
            await asyncio.sleep(delay)
            starting.cancel()
            await asyncio.wait([starting])
            await pool.abandon(KEEPING)
            states = run("dmsetup", "info", "--columns", "--noheadings", "-o", "name,suspended").split()
            assert "Suspended" not in states
            assert [line for line in bench.contents() if "work-2" not in line] == before[:1]
        assert bench.half_made() == []
        assert await see(pool, KEEPING) == "a"
        assert bench.open().usage(KEEPING) == pool.usage(KEEPING)

    async def test_many_pools_in_one_thin_pool(self, bench: LvmBench) -> None:
        pools = [bench.open(name) for name in ("p", "q", "p.q")]
        for pool, letter in zip(pools, "abc", strict=True):
            await furnish(pool)
            await session(pool, KEEPING, letter)
        assert [await stored(pool, KEEPING.vid) for pool in pools] == ["a", "b", "c"]
        await pools[0].remove((KEEPING,))
        with pytest.raises(
            StorageError, match=r"^volume debian-1/root of pool p has no content: no LV in thin pool dm-test"
        ):
            await pools[0].start(KEEPING)
        assert [await stored(pool, KEEPING.vid) for pool in pools[1:]] == ["b", "c"]
        assert isinstance(pools[0], LvmThinPool)
