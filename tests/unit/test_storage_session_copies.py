"""What a session has written is copied, and other sessions begin with it: with the real qemu-img, holes stay holes."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from crannog.adapters.storage.lvm_pool import ThinPool
from crannog.adapters.storage.qcow2 import Qcow2Pool
from crannog.adapters.storage.session_copies import copy_file
from crannog.core.volumes import Volume
from crannog.errors import StorageError
from tests.mounts import disk_file_system, small_file_system
from tests.unit.test_storage_qcow2 import LAYER, PRIVATE, SIZE, TEMPLATE, holds, write

OTHER = Volume("root", "vm-pool", "disp-3/root", SIZE, snap_on_start=True, source=TEMPLATE.vid)
EMPTY = Volume("volatile", "vm-pool", "work-2/volatile", 10 * 2**30)
OTHERS_EMPTY = Volume("volatile", "vm-pool", "disp-3/volatile", 10 * 2**30)


@pytest_asyncio.fixture
async def pool(tmp_path: Path) -> AsyncIterator[Qcow2Pool]:
    """Return a pool with a template whose root is all `t`, a VM that has written `a` to its layer, and another VM."""
    pool = Qcow2Pool("vm-pool", str(tmp_path / "pool"))
    await pool.create((TEMPLATE,))
    await pool.create((LAYER, PRIVATE, EMPTY))
    await pool.create((OTHER, OTHERS_EMPTY))
    image = tmp_path / "image"
    image.write_bytes(b"t" * SIZE)
    await pool.import_file(TEMPLATE, str(image))
    await pool.start(LAYER)
    write(pool.locate(LAYER), "a")
    yield pool


async def test_another_session_begins_with_what_was_written(pool: Qcow2Pool, tmp_path: Path) -> None:
    copy = str(tmp_path / "root.layer")
    await pool.copy_session(LAYER, copy)
    await pool.start_from(OTHER, copy)
    assert holds(pool.locate(OTHER), "a")
    write(pool.locate(OTHER), "b")
    assert holds(pool.locate(LAYER), "a")
    await pool.start_from(OTHER, copy)  # the copy is still what it was
    assert holds(pool.locate(OTHER), "a")
    assert not await pool.is_outdated(OTHER)
    assert os.stat(pool.locate(OTHER).path).st_mode & 0o077 == 0
    await pool.stop(OTHER)
    assert not os.path.exists(pool.locate(OTHER).path)
    await pool.start(OTHER)
    assert holds(pool.locate(OTHER), "t")


async def test_what_stands_on_older_content_is_refused(pool: Qcow2Pool, tmp_path: Path) -> None:
    copy = str(tmp_path / "root.layer")
    await pool.copy_session(LAYER, copy)
    await pool.start(TEMPLATE)
    write(pool.locate(TEMPLATE), "u")
    await pool.stop(TEMPLATE)
    with pytest.raises(StorageError, match="does not hold any more"):
        await pool.start_from(OTHER, copy)
    assert not os.path.exists(pool.locate(OTHER).path)


@pytest.mark.parametrize("damage", ["gone", "cut short", "empty"])
async def test_a_copy_that_is_damaged_is_no_session(pool: Qcow2Pool, tmp_path: Path, damage: str) -> None:
    copy = tmp_path / "root.layer"
    await pool.copy_session(LAYER, str(copy))
    if damage == "gone":
        copy.unlink()
    else:
        os.truncate(copy, 100 if damage == "cut short" else 0)
    with pytest.raises(StorageError):
        await pool.start_from(OTHER, str(copy))
    assert [path for path in Path(pool.folder, "disp-3").iterdir() if "root" in path.name] == []


def put(path: str, place: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(data)


def get(path: str, place: int, count: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(place)
        return file.read(count)


async def test_a_large_empty_volume_takes_no_room(pool: Qcow2Pool, tmp_path: Path) -> None:
    await pool.start(EMPTY)
    for place in (0, 5 * 2**30, 10 * 2**30 - 4096):
        put(pool.locate(EMPTY).path, place, b"x" * 4096)
    copy = str(tmp_path / "volatile.layer")
    await pool.copy_session(EMPTY, copy)
    await pool.start_from(OTHERS_EMPTY, copy)
    for made in (copy, pool.locate(OTHERS_EMPTY).path):
        facts = os.stat(made)
        assert facts.st_size == EMPTY.size
        assert facts.st_blocks * 512 < 2**20
        assert get(made, 5 * 2**30, 4097) == b"x" * 4096 + b"\0"


async def test_only_what_is_dropped_is_copied(pool: Qcow2Pool) -> None:
    assert [pool.can_copy_session(volume) for volume in (LAYER, EMPTY, PRIVATE, TEMPLATE)] == [True, True, False, False]
    assert not ThinPool.can_copy_session(pool, LAYER)


async def test_a_full_disk_leaves_no_half_of_a_session(pool: Qcow2Pool, tmp_path: Path) -> None:
    copy = tmp_path / "root.layer"
    copy.write_bytes(b"x" * 2**20)
    with small_file_system(tmp_path / "small", "256k") as small:
        full = Qcow2Pool("vm-pool", str(small / "pool"))
        with pytest.raises(StorageError, match="No space left"):
            await full.start_from(OTHER, str(copy))
        assert [path for path in small.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("kind", ["ext4", "btrfs"])
def test_a_copy_is_the_same_where_data_can_be_shared_and_where_not(tmp_path: Path, kind: str) -> None:
    with disk_file_system(tmp_path, kind) as place:
        source, target = place / "source", place / "target"
        with source.open("wb") as file:
            file.truncate(2**20)
            file.seek(2**19 + 17)
            file.write(os.urandom(5000))
        copy_file(str(source), str(target))
        assert target.read_bytes() == source.read_bytes()
        with pytest.raises(FileExistsError):
            copy_file(str(source), str(target))
        assert target.read_bytes() == source.read_bytes()
