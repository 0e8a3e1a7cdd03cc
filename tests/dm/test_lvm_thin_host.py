"""Driver lvm-thin and its host: thin pools that are not there, or full, or unsafe; udev; the tools."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from crannog.adapters.storage import lvm_commands
from crannog.adapters.storage.drivers import Drivers, open_pools
from crannog.adapters.storage.lvm_commands import Place
from crannog.adapters.storage.lvm_thin import LvmThinPool
from crannog.adapters.store.file import FileStore
from crannog.config import Paths
from crannog.core.pools import PoolConfig
from crannog.core.volumes import Location
from crannog.errors import StorageError
from crannog.ports.storage import Pool
from tests.contract.benches import IN_PLACE, KEEPING, LAYER, SIZE, furnish, image, io, see, session, stored
from tests.dm.devices import MIB, run
from tests.dm.lvm_bench import InThinPool, LvmBench, fails, list_active

BIN = os.path.dirname(sys.executable)
MAKE = "make it with 'lvcreate --type thin-pool --size 100G --name"
START = "pool p of driver lvm-thin cannot be used: "


def config_of(place: Place) -> PoolConfig:
    return PoolConfig("p", "lvm-thin", (("volume_group", place.group), ("thin_pool", place.thin_pool)))


@contextmanager
def no_udev() -> Iterator[None]:
    run("udevadm", "control", "--exit")
    Path(lvm_commands.UDEV).unlink()
    try:
        yield
    finally:
        run("/usr/lib/systemd/systemd-udevd", "--daemon", "--resolve-names=never")


class TestHost(InThinPool):
    """What a host has, and has not."""

    @pytest.fixture
    async def pool(self, bench: LvmBench) -> Pool:
        return await furnish(bench.open())

    @pytest.mark.parametrize(
        ("group", "thin_pool", "sentence"),
        [
            ("nix", "tp", "there is no volume group nix; connect its disk, or make it with 'vgcreate nix DEVICE'"),
            ("dm-test", "nix", f"volume group dm-test has no thin pool nix; {MAKE} nix dm-test'"),
            ("dm-test", "anchor", f"volume group dm-test has no thin pool anchor; {MAKE} anchor dm-test'"),
        ],
        ids=["no-group", "no-lv", "no-thin-pool"],
    )
    async def test_a_thin_pool_that_is_not_there(
        self, place: Place, tmp_path: Path, group: str, thin_pool: str, sentence: str
    ) -> None:
        drivers = Drivers(Paths(str(tmp_path), str(tmp_path)))
        config = config_of(Place(group, thin_pool))
        with pytest.raises(StorageError) as caught:
            drivers.make(config, [])
        assert str(caught.value) == START + sentence
        pool = drivers.open(config)
        assert pool is not None
        assert await pool.recover(frozenset()) == [START + sentence]
        with pytest.raises(StorageError, match=f"^{re.escape(START)}"):
            await pool.create((KEEPING,))
        assert drivers.space(config) is None

    async def test_a_thin_pool_that_shows_what_deleted_volumes_held(self, place: Place, tmp_path: Path) -> None:
        run("lvchange", "--zero", "n", str(place))
        try:
            (sentence,) = await LvmThinPool("p", place, str(tmp_path)).recover(frozenset())
            assert sentence == (
                f"{START}VMs could read in thin pool dm-test/thin.pool what deleted volumes held; "
                "have it filled with zeros with 'lvchange --zero y dm-test/thin.pool'"
            )
        finally:
            run("lvchange", "--zero", "y", str(place))

    async def test_size_and_usage(self, place: Place, pool: Pool, tmp_path: Path) -> None:
        drivers = Drivers(Paths(str(tmp_path), str(tmp_path)))
        before = drivers.space(config_of(place))
        await pool.import_file(KEEPING, image(tmp_path, "i", 8 * SIZE))
        after = drivers.space(config_of(place))
        assert before is not None
        assert after is not None
        assert before[0] == after[0] == 48 * MIB
        assert 7 * SIZE < after[1] - before[1] < 9 * SIZE

    async def test_a_full_thin_pool_is_told_of_in_a_sentence(self, bench: LvmBench, pool: Pool, tmp_path: Path) -> None:
        await session(pool, KEEPING, "a")
        before = bench.contents()
        cause = "No space left on device; free some space "
        with bench.full():
            for act, purpose in (
                (pool.start(LAYER), "volume work-2/root cannot be started"),
                (pool.start(KEEPING), "volume debian-1/root cannot be started"),
                (pool.clear(IN_PLACE), "volume work-2/private cannot be cleared"),
                (pool.clone(KEEPING, IN_PLACE), "volume debian-1/root cannot be copied to work-2/private"),
            ):
                with pytest.raises(StorageError) as caught:
                    await act
                advice = "in thin pool dm-test/thin.pool, or make it larger with lvextend(8)"
                assert str(caught.value) == f"{purpose}: {cause}{advice}"
                assert bench.contents() == before
            await pool.start(IN_PLACE)
            assert "No space left on device" in io(pool.locate(IN_PLACE), f"write 0 {SIZE}")
            await pool.stop(IN_PLACE)
        assert (bench.contents(), list_active()) == (before, set())

    async def test_room_that_comes_back(self, bench: LvmBench, pool: Pool, tmp_path: Path) -> None:
        """What a thin pool had no room for goes on where a larger one has."""
        await pool.start(IN_PLACE)
        location: Location = pool.locate(IN_PLACE)
        with bench.full():
            assert "No space left on device" in io(location, f"write -P 65 0 {SIZE}")
        assert "wrote" in io(location, f"write -P 65 0 {SIZE}")
        await pool.stop(IN_PLACE)
        assert await stored(pool, IN_PLACE.vid) == "A"

    def test_lvm_refuses_what_we_refuse(self, place: Place) -> None:
        """Names that could be options, or that LVM keeps for itself, are not known to make LVs."""
        for name in ("-x", "a/b/c", "snapshot1", "a_tdata", ".", "a b"):
            assert fails("lvcreate", "--thin", "--virtualsize", "1m", f"--name={name}", str(place))

    async def test_a_guest_cannot_pass_its_disk_off_as_another(self, pool: Pool, place: Place) -> None:
        uuid = "11111111-2222-3333-4444-555555555555"
        link = Path("/dev/disk/by-uuid", uuid)
        await pool.start(IN_PLACE)
        await pool.start(KEEPING)
        for path in (pool.locate(IN_PLACE).path, pool.locate(KEEPING).path):
            run("mke2fs", "-q", "-t", "ext4", "-U", uuid, path)
        for act in (pool.stop, pool.start, pool.stop):
            await act(IN_PLACE)
            await act(KEEPING)
            run("udevadm", "settle")
            assert not link.exists()
        run("mke2fs", "-q", "-t", "ext4", "-U", uuid, f"/dev/{place.group}/anchor")
        run("udevadm", "settle")
        assert link.exists(), "udev looks into everybody else's"

    async def test_where_no_udevd_makes_the_files_of_devices(self, bench: LvmBench) -> None:
        with no_udev():
            pool = await furnish(bench.open())
            await session(pool, KEEPING, "a")
            await session(pool, IN_PLACE, "b")
            assert [await see(pool, volume) for volume in (LAYER, IN_PLACE)] == ["a", "b"]
            assert await stored(pool, KEEPING.vid) == "a"
            await pool.remove((KEEPING,))
            await pool.remove((IN_PLACE, LAYER))
            assert (bench.contents(), list_active()) == ([], set())

    def test_tools(self, place: Place, tmp_path: Path) -> None:
        """VMs come, are copied, changed and go, as a user has it."""
        home = Paths(str(tmp_path / "home"), str(tmp_path / "cache"))
        os.makedirs(home.home)
        ok(home, "qvm-pool", "add", "p", "lvm-thin", "-o", f"volume_group={place.group},thin_pool={place.thin_pool}")
        bench = LvmBench(place, Path(home.home))
        try:
            ok(
                home,
                "qvm-create",
                "--class",
                "TemplateVM",
                "-P",
                "p",
                "--root-copy-from",
                image(tmp_path, "a"),
                "debian",
            )
            ok(home, "qvm-volume", "import", "debian:root", image(tmp_path, "b"))
            ok(home, "qvm-clone", "debian", "copy")
            ok(home, "qvm-volume", "revert", "debian:root")
            ok(home, "qvm-volume", "resize", "debian:private", f"{3 * 2**30}")
            assert [content(home, name) for name in ("debian", "copy")] == ["a", "b"]
            info = dict(line.split(maxsplit=1) for line in ok(home, "qvm-pool", "info", "p").splitlines())
            assert (info["driver"], info["volume_group"], info["size"]) == ("lvm-thin", place.group, str(48 * MIB))
            for name in ("debian", "copy"):
                ok(home, "qvm-remove", "--force", name)
            assert (bench.contents(), list_active()) == ([], set())
            ok(home, "qvm-pool", "remove", "p")
        finally:
            bench.close()

    def test_a_pool_that_cannot_be_is_refused_by_the_tools(self, place: Place, tmp_path: Path) -> None:
        home = Paths(str(tmp_path / "home"), str(tmp_path / "cache"))
        os.makedirs(home.home)
        done = tool(home, "qvm-pool", "add", "p", "lvm-thin", "-o", f"volume_group={place.group},thin_pool=nix")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (9, "", 1)
        assert "has no thin pool nix; make it with 'lvcreate --type thin-pool " in done.stderr


def tool(home: Paths, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run one of the tools without a daemon."""
    variables = {**os.environ, "CRANNOG_HOME": home.home, "CRANNOG_CACHE": home.cache}
    command = [f"{BIN}/{words[0]}", "--offline", *words[1:]]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=60)


def ok(home: Paths, *words: str) -> str:
    done = tool(home, *words)
    assert (done.returncode, done.stderr) == (0, ""), words
    return done.stdout


def content(home: Paths, name: str) -> str:
    """Return the letter that the root of a VM holds."""
    vm = FileStore(home.store, home.kernels).load().find_vm(name)
    root = vm.volumes["root"]
    return asyncio.run(stored(open_pools(home, vm.registry.pools.values())[root.pool], root.vid))
