"""Driver reflink on real btrfs and xfs: the contract, the sharing itself, content in many pieces, and refusals."""

import asyncio
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from crannog.adapters.storage import layout
from crannog.adapters.storage.drivers import Drivers
from crannog.adapters.storage.reflink import ReflinkPool
from crannog.adapters.storage.reflinks import count_extents, file_system_of
from crannog.config import Paths
from crannog.core.pools import PoolConfig
from crannog.core.volumes import Volume
from crannog.errors import StorageError
from tests.contract.benches import FolderBench, peek, session, write
from tests.contract.storage_contract import StorageContract
from tests.contract.storage_folders import FolderContract
from tests.mounts import disk_file_system

MANY_BYTES = 8 * 2**20
TEMPLATE = Volume("root", "p", "debian-1/root", MANY_BYTES, save_on_stop=True, revisions_to_keep=2)
LAYER = Volume("root", "p", "work-2/root", MANY_BYTES, snap_on_start=True, source=TEMPLATE.vid)
PRIVATE = Volume("private", "p", "work-2/private", MANY_BYTES, save_on_stop=True)


@pytest.fixture(scope="module")
def btrfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with disk_file_system(tmp_path_factory.mktemp("disk"), "btrfs") as folder:
        yield folder


@pytest.fixture(scope="module")
def xfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with disk_file_system(tmp_path_factory.mktemp("disk"), "xfs") as folder:
        yield folder


class TestBtrfs(StorageContract, FolderContract):
    @pytest.fixture
    def bench(self, btrfs: Path, tmp_path: Path) -> Iterator[FolderBench]:
        yield FolderBench(ReflinkPool, btrfs / tmp_path.name)
        shutil.rmtree(btrfs / tmp_path.name, ignore_errors=True)

    @pytest.fixture
    def small_bench(self, bench: FolderBench) -> FolderBench:
        return bench


class TestXfs(StorageContract, FolderContract):
    @pytest.fixture
    def bench(self, xfs: Path, tmp_path: Path) -> Iterator[FolderBench]:
        yield FolderBench(ReflinkPool, xfs / tmp_path.name)
        shutil.rmtree(xfs / tmp_path.name, ignore_errors=True)

    @pytest.fixture
    def small_bench(self, bench: FolderBench) -> FolderBench:
        return bench


@pytest.fixture(params=["btrfs", "xfs"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Return a folder on each of the two file systems."""
    folder = Path(request.getfixturevalue(request.param)) / tmp_path.name
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
async def pool(disk: Path) -> ReflinkPool:
    """Return a pool with a template whose root has 8 MiB of data, and an AppVM that starts from it."""
    pool = ReflinkPool("p", str(disk / "p"))
    await pool.recover(frozenset())
    await pool.create((TEMPLATE,))
    await pool.create((LAYER, PRIVATE))
    path = disk / "image"
    path.write_bytes(b"t" * MANY_BYTES)
    await pool.import_file(TEMPLATE, str(path))
    return pool


def taken(disk: Path) -> int:
    """Return the bytes that are taken on the disk, after all that is to be written was."""
    os.sync()
    status = os.statvfs(disk)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


async def test_layers_revisions_and_copies_take_no_room(pool: ReflinkPool, disk: Path) -> None:
    copy = replace(TEMPLATE, vid="copy-3/root")
    await pool.create((copy,))
    before = taken(disk)
    await pool.start(LAYER)
    for letter in "ab":
        await session(pool, TEMPLATE, letter)
    await pool.revert(TEMPLATE, pool.revisions(TEMPLATE)[0])
    await pool.clone(TEMPLATE, copy)
    assert taken(disk) - before < MANY_BYTES // 4
    assert peek(pool.locate(LAYER)) == "t"
    assert len(pool.revisions(TEMPLATE)) == 2
    assert not list((disk / "p").rglob("*.qcow2"))


def scatter(path: str, pieces: int) -> None:
    """Write 4096 bytes at many places, as a guest does to a disk that shares its data."""
    random = Random(1)  # noqa: S311
    descriptor = os.open(path, os.O_WRONLY)
    for place in random.sample(range(MANY_BYTES // 4096), pieces):
        os.pwrite(descriptor, b"w" * 4096, place * 4096)
    os.fsync(descriptor)
    os.close(descriptor)


async def scattered_session(pool: ReflinkPool) -> None:
    await pool.start(TEMPLATE)
    scatter(pool.locate(TEMPLATE).path, 400)
    await pool.stop(TEMPLATE)


async def test_content_in_many_pieces_is_laid_out_anew(pool: ReflinkPool) -> None:
    """In the background, with the same bytes and the same name; what runs from it stays current."""
    await scattered_session(pool)
    newest = pool.newest(TEMPLATE.vid).path
    pieces, content, idents = count_extents(newest), Path(newest).read_bytes(), pool.revisions(TEMPLATE)
    modified = os.stat(newest).st_mtime_ns
    assert pieces > layout.MANY
    await pool.start(LAYER)
    await pool.layout.finished()
    assert count_extents(newest) < 20
    assert (Path(newest).read_bytes() == content, pool.revisions(TEMPLATE)) == (True, idents)
    assert (os.stat(newest).st_mtime_ns, os.stat(newest).st_mode & 0o777) == (modified, 0o600)
    assert not await pool.is_outdated(LAYER)
    assert not list(Path(pool.folder).rglob("*.new"))


async def test_content_in_few_pieces_stays_as_it_is(pool: ReflinkPool) -> None:
    newest = pool.newest(TEMPLATE.vid).path
    inode = os.stat(newest).st_ino
    pool.layout.look_after(newest)
    pool.layout.look_after(newest)
    await pool.layout.finished()
    assert os.stat(newest).st_ino == inode


async def test_what_a_vm_writes_to_is_never_laid_out_anew(pool: ReflinkPool) -> None:
    """The template ceases to keep revisions, and starts while its content would be copied."""
    await scattered_session(pool)
    in_place = replace(TEMPLATE, revisions_to_keep=0)
    newest = pool.newest(TEMPLATE.vid).path
    inode = os.stat(newest).st_ino
    await pool.start(in_place)
    assert pool.locate(in_place).path == newest
    await pool.layout.finished()
    assert os.stat(newest).st_ino == inode
    assert not list(Path(pool.folder).rglob("*.new"))


async def test_a_copied_source_is_laid_out_anew(pool: ReflinkPool, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = [replace(PRIVATE, vid=f"copy-{number}/private") for number in (3, 4)]
    await pool.clone(TEMPLATE, PRIVATE)
    await pool.layout.finished()
    await pool.start(PRIVATE)
    scatter(pool.locate(PRIVATE).path, 400)
    await pool.stop(PRIVATE)
    for copy in copies:
        await pool.create((copy,))
        await pool.clone(PRIVATE, copy)
        await pool.layout.finished()
    found = [count_extents(pool.newest(copy.vid).path) for copy in (PRIVATE, copies[1])]
    assert max(found) < 20


@pytest.mark.parametrize("what", ["changes", "goes", "is another", "its copy fails"])
async def test_content_that_is_gone_or_changes_while_it_is_copied(
    pool: ReflinkPool, what: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """However late: nothing that was written is lost, and nothing that was deleted comes back."""
    await scattered_session(pool)
    newest = pool.newest(TEMPLATE.vid).path
    real = layout.Layout._copy

    async def copy(path: str, half_made: str) -> None:
        await real(path, half_made)
        if what == "changes":
            write(pool.newest(TEMPLATE.vid), "n")
        elif what == "goes":
            os.unlink(path)
        elif what == "is another":
            Path(path + "x").write_bytes(b"x" * 4096)
            os.replace(path + "x", path)
        else:
            raise StorageError("it is not so")

    monkeypatch.setattr(layout.Layout, "_copy", staticmethod(copy))
    await pool.layout.finished()
    if what == "changes":
        assert peek(pool.newest(TEMPLATE.vid)) == "n"
    elif what == "is another":
        assert Path(newest).read_bytes() == b"x" * 4096
    assert os.path.exists(newest) is (what != "goes")
    assert not list(Path(pool.folder).rglob("*.new"))
    assert ("stays in many pieces" in caplog.text) is (what == "its copy fails")


async def test_a_pool_that_closes_leaves_no_half_made_copy(pool: ReflinkPool) -> None:
    await scattered_session(pool)
    await asyncio.sleep(0.02)
    for task in [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]:
        task.cancel()
    await pool.layout.finished()
    assert not list(Path(pool.folder).rglob("*.new"))


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Path]:
    with disk_file_system(tmp_path, "ext4") as folder:
        yield folder


async def test_where_files_cannot_share_data_a_pool_is_refused(ext4: Path, tmp_path: Path) -> None:
    """At once, with a sentence, whatever is done first; nothing is copied instead, and nothing is left."""
    paths = Paths(str(tmp_path / "home"), str(tmp_path / "cache"))
    folder = ext4 / "vms" / "here"
    words = (
        f"^pool far of driver reflink cannot be in {folder}: files on ext4 cannot share data; choose a folder on "
        "btrfs or xfs, or driver qcow2$"
    )
    config = PoolConfig("far", "reflink", (("dir_path", str(folder)),))
    with pytest.raises(StorageError, match=words):
        Drivers(paths).make(config, [])
    assert sorted(os.listdir(ext4)) == ["lost+found"]
    folder.mkdir(parents=True)
    (folder / ".crannog-pool").touch()
    pool = Drivers(paths).open(config)
    assert pool is not None
    (sentence,) = await pool.recover(frozenset())
    assert re.match(words, sentence)
    with pytest.raises(StorageError, match=words):
        await pool.create((TEMPLATE,))
    assert sorted(os.listdir(folder)) == [".crannog-pool"]


async def test_a_pool_that_was_moved_to_where_files_cannot_share_data(ext4: Path, pool: ReflinkPool) -> None:
    shutil.copytree(pool.folder, ext4 / "p")
    moved = ReflinkPool("p", str(ext4 / "p"))
    with pytest.raises(StorageError, match="files on ext4 cannot share data"):
        await moved.start(LAYER)
    assert not list((ext4 / "p").rglob("*volatile*"))


def test_the_file_system_of_a_folder_is_named(btrfs: Path, xfs: Path) -> None:
    assert (file_system_of(str(btrfs)), file_system_of(str(xfs))) == ("btrfs", "xfs")
    assert file_system_of("/proc") == "proc"
    assert file_system_of("/nowhere") == "an unknown file system"
