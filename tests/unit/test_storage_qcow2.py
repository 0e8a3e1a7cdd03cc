"""Driver qcow2 with the real qemu-img: one-layer semantics, revisions, imports, and failures that leave nothing."""

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crannog.adapters.storage.process import run_tool
from crannog.adapters.storage.qcow2 import Qcow2Pool
from crannog.core.volumes import Volume
from crannog.errors import StorageError
from tests.fakes import Location
from tests.mounts import small_file_system

SIZE = 2**20
TEMPLATE = Volume("root", "vm-pool", "debian-1/root", SIZE, save_on_stop=True, revisions_to_keep=1)
LAYER = Volume("root", "vm-pool", "work-2/root", SIZE, snap_on_start=True, source=TEMPLATE.vid)
PRIVATE = Volume("private", "vm-pool", "work-2/private", SIZE, save_on_stop=True)
KNOWN = frozenset({TEMPLATE.vid, LAYER.vid, PRIVATE.vid})


@pytest.fixture
def pool(tmp_path: Path) -> Qcow2Pool:
    return Qcow2Pool("vm-pool", str(tmp_path / "pool"))


@pytest.fixture
async def filled(pool: Qcow2Pool, tmp_path: Path) -> Qcow2Pool:
    """Return a pool with a template whose root is all `t`, and an AppVM that starts from it."""
    await pool.create((TEMPLATE,))
    await pool.create((LAYER, PRIVATE))
    image = tmp_path / "image"
    image.write_bytes(b"t" * SIZE)
    await pool.import_file(TEMPLATE, str(image))
    return pool


def io(location: Location, command: str) -> str:
    """Do what a guest would: read or write the disk. qemu-io succeeds also where it found another pattern."""
    result = subprocess.run(
        ["qemu-io", "-f", location.format, "-c", command, location.path],
        capture_output=True, text=True, check=True, timeout=20,
    )  # fmt: skip
    return result.stdout


def write(location: Location, letter: str) -> None:
    assert "wrote 4096/4096" in io(location, f"write -P {ord(letter)} 65536 4096")


def holds(location: Location, letter: str) -> bool:
    output = io(location, f"read -P {ord(letter)} 65536 4096")
    assert "read 4096/4096" in output
    return "Pattern verification failed" not in output


def own_parts(location: Location) -> list[tuple[int, int]]:
    """Return where an image holds data itself: begin and length."""
    command = ["qemu-img", "map", "--output=json", "-f", location.format, location.path]
    said = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=20).stdout)
    return [(part["start"], part["length"]) for part in said if part["depth"] == 0]


def files(pool: Qcow2Pool) -> list[str]:
    found = [path for path in Path(pool.folder).rglob("*") if path.is_file() and path.suffix != ".seal"]
    return sorted(str(path.relative_to(pool.folder)) for path in found)


async def test_what_a_guest_writes_to_a_layer_is_gone_at_the_next_start(filled: Qcow2Pool) -> None:
    """B1, one layer."""
    layer, source = filled.locate(LAYER), filled.newest(TEMPLATE.vid)
    before = Path(source.path).read_bytes()
    await filled.start(LAYER)
    assert holds(layer, "t")
    write(layer, "g")
    assert holds(layer, "g")
    await filled.stop(LAYER)
    assert not Path(layer.path).exists()
    await filled.start(LAYER)
    assert holds(layer, "t")
    assert Path(source.path).read_bytes() == before


async def test_a_small_write_of_a_guest_stays_small(filled: Qcow2Pool) -> None:
    """What is around it is not copied from below: that made random writes nearly twice as slow as on a plain file."""
    await filled.start(LAYER)
    layer = filled.locate(LAYER)
    write(layer, "g")
    assert own_parts(layer) == [(65536, 4096)]


async def test_a_layer_that_a_crash_left_is_dropped_at_the_next_start(filled: Qcow2Pool) -> None:
    await filled.start(LAYER)
    write(filled.locate(LAYER), "g")
    await filled.start(LAYER)
    assert holds(filled.locate(LAYER), "t")


async def test_own_data_stays(filled: Qcow2Pool) -> None:
    await filled.start(PRIVATE)
    write(filled.locate(PRIVATE), "p")
    await filled.stop(PRIVATE)
    await filled.start(PRIVATE)
    await filled.abandon(PRIVATE)
    assert holds(filled.locate(PRIVATE), "p")


async def test_a_running_vm_keeps_the_revision_of_its_start(filled: Qcow2Pool) -> None:
    """B12, with revisions."""
    layer, dirty = filled.locate(LAYER), filled.locate(TEMPLATE)
    await filled.start(LAYER)
    await filled.start(TEMPLATE)
    write(dirty, "n")
    assert holds(layer, "t")
    await filled.stop(TEMPLATE)
    assert holds(layer, "t")
    await filled.stop(LAYER)
    await filled.start(LAYER)
    assert holds(layer, "n")


async def test_sessions_of_a_template_add_up(filled: Qcow2Pool) -> None:
    for letter in "abc":
        await filled.start(TEMPLATE)
        write(filled.locate(TEMPLATE), letter)
        await filled.stop(TEMPLATE)
        await filled.stop(TEMPLATE)
        assert holds(filled.newest(TEMPLATE.vid), letter)
    await filled.start(TEMPLATE)
    assert holds(filled.locate(TEMPLATE), "c")


async def test_an_abandoned_session_of_a_template_is_forgotten(filled: Qcow2Pool) -> None:
    before = files(filled)
    await filled.start(TEMPLATE)
    write(filled.locate(TEMPLATE), "x")
    await filled.abandon(TEMPLATE)
    await filled.abandon(TEMPLATE)
    assert files(filled) == before
    await filled.start(TEMPLATE)
    assert holds(filled.locate(TEMPLATE), "t")


async def test_a_crashed_session_of_a_template_is_kept(filled: Qcow2Pool) -> None:
    await filled.start(TEMPLATE)
    write(filled.locate(TEMPLATE), "x")
    await filled.start(TEMPLATE)
    assert holds(filled.locate(TEMPLATE), "x")


async def test_a_half_made_layer_never_becomes_a_revision(filled: Qcow2Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut while qemu-img writes leaves a file, but not under the name of a session's layer."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", lambda _path: None)
        patch.setattr(os, "rename", lambda *_paths: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            await filled.start(TEMPLATE)
    assert not Path(filled.locate(TEMPLATE).path).exists()
    before = filled.newest(TEMPLATE.vid)
    await filled.recover(KNOWN)
    await filled.stop(TEMPLATE)
    assert filled.newest(TEMPLATE.vid) == before


async def test_revision_ten_is_newer_than_nine(filled: Qcow2Pool) -> None:
    base = Path(filled.folder) / TEMPLATE.vid
    for number in (9, 10):
        shutil.copy(filled.newest(TEMPLATE.vid).path, f"{base}.{number}.img")
    assert filled.newest(TEMPLATE.vid).path == f"{base}.10.img"


async def test_the_pool_can_be_moved(filled: Qcow2Pool, tmp_path: Path) -> None:
    await filled.start(TEMPLATE)
    await filled.stop(TEMPLATE)
    await filled.start(LAYER)
    os.rename(filled.folder, tmp_path / "elsewhere")
    assert holds(Qcow2Pool("vm-pool", str(tmp_path / "elsewhere")).locate(LAYER), "t")


async def test_a_layer_is_as_large_as_what_is_below(filled: Qcow2Pool) -> None:
    await filled.start(Volume("root", "vm-pool", "work-2/root", 4096, snap_on_start=True, source=TEMPLATE.vid))
    assert holds(filled.locate(LAYER), "t")


async def test_create_makes_private_sparse_images(pool: Qcow2Pool) -> None:
    await pool.create((Volume("private", "vm-pool", "a-1/private", 2**40, save_on_stop=True),))
    path = Path(pool.folder, "a-1/private.img")
    assert (path.stat().st_size, path.stat().st_blocks, path.stat().st_mode & 0o777) == (2**40, 0, 0o600)
    assert path.parent.stat().st_mode & 0o777 == 0o700


async def test_create_never_touches_a_vm_that_is_there(filled: Qcow2Pool) -> None:
    before = files(filled)
    with pytest.raises(StorageError, match="debian-1 cannot be made"):
        await filled.create((TEMPLATE,))
    assert files(filled) == before
    assert holds(filled.newest(TEMPLATE.vid), "t")


async def test_import_keeps_the_holes_and_tells_the_size(pool: Qcow2Pool, tmp_path: Path) -> None:
    await pool.create((PRIVATE,))
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(2**30)
        file.write(b"start")
    imported = await pool.import_file(PRIVATE, str(image))
    path = Path(pool.locate(PRIVATE).path)
    assert (imported.size, imported.vid) == (2**30, PRIVATE.vid)
    assert path.stat().st_size == 2**30
    assert path.stat().st_blocks * 512 < 2**20
    assert path.stat().st_mode & 0o777 == 0o600
    assert image.exists()


async def test_import_into_a_template_is_a_new_revision(filled: Qcow2Pool, tmp_path: Path) -> None:
    await filled.start(LAYER)
    image = tmp_path / "newer"
    image.write_bytes(b"n" * SIZE)
    await filled.import_file(TEMPLATE, str(image))
    assert holds(filled.locate(LAYER), "t")
    assert holds(filled.newest(TEMPLATE.vid), "n")


@pytest.mark.parametrize("path", ["/absent/image", "/etc"])
async def test_an_import_that_fails_changes_nothing(filled: Qcow2Pool, path: str) -> None:
    before = files(filled)
    with pytest.raises(StorageError, match=f"image {path} cannot be imported into volume work-2/private"):
        await filled.import_file(PRIVATE, path)
    assert files(filled) == before


async def test_remove_takes_the_folder_and_nothing_else(filled: Qcow2Pool) -> None:
    await filled.start(LAYER)
    await filled.remove((LAYER, PRIVATE))
    await filled.remove((LAYER, PRIVATE))
    assert {name.partition("/")[0] for name in files(filled)} == {"debian-1"}


async def test_recover_clears_what_was_half_made(filled: Qcow2Pool) -> None:
    await filled.claim((TEMPLATE, LAYER, PRIVATE))
    before = files(filled)
    Path(filled.folder, ".new-other-3").mkdir()
    Path(filled.folder, ".new-other-3", "root.img").touch()
    for file in ("private.new", "root.volatile.qcow2.new"):
        Path(filled.folder, "work-2", file).touch()
    sentences = await filled.recover(KNOWN)
    assert files(filled) == before
    assert any("other-3" in sentence for sentence in sentences)
    assert await filled.recover(KNOWN) == []


async def test_recover_makes_the_folder(pool: Qcow2Pool) -> None:
    assert await pool.recover(KNOWN) == []
    assert Path(pool.folder).is_dir()


@pytest.mark.parametrize(
    "vid",
    [
        "",
        "/",
        "a",
        "a/",
        "/a",
        "../a",
        "a/..",
        "a/../b",
        "./a",
        "a/b/c",
        "/etc/passwd",
        ".new-a/root",
        "a/.b",
        "../../x",
    ],
)
async def test_an_id_that_leaves_the_pool_is_refused(filled: Qcow2Pool, vid: str) -> None:
    volume = Volume("root", "vm-pool", vid, SIZE, save_on_stop=True)
    before = files(filled)
    with pytest.raises(StorageError, match="not the id of a volume"):
        filled.locate(volume)
    for act in (filled.start, filled.stop):
        with pytest.raises(StorageError, match="not the id of a volume"):
            await act(volume)
    for act_on_all in (filled.create, filled.remove):
        with pytest.raises(StorageError, match="not the id of a volume"):
            await act_on_all((volume,))
    with pytest.raises(StorageError, match="not the id of a volume"):
        filled.newest(vid)
    assert files(filled) == before


@given(st.text(st.sampled_from("a./\\ -"), max_size=12))
def test_no_id_leaves_the_pool(vid: str) -> None:
    pool = Qcow2Pool("vm-pool", "/srv/pool")
    try:
        location = pool.locate(Volume("root", "vm-pool", vid, SIZE))
    except StorageError:
        return
    assert os.path.normpath(location.path).startswith("/srv/pool/")
    assert os.path.dirname(os.path.dirname(os.path.normpath(location.path))) == "/srv/pool"


async def test_a_missing_source_is_named(pool: Qcow2Pool) -> None:
    await pool.create((LAYER, PRIVATE))
    await pool.claim((LAYER, PRIVATE))
    with pytest.raises(StorageError, match="debian-1/root of pool vm-pool has no content"):
        await pool.start(LAYER)
    Path(pool.locate(PRIVATE).path).unlink()
    with pytest.raises(StorageError, match="work-2/private of pool vm-pool has no content"):
        await pool.start(PRIVATE)
    assert files(pool) == []


async def test_a_missing_tool_is_named(filled: Qcow2Pool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StorageError, match="qemu-img is not installed"):
        await filled.start(LAYER)


async def test_a_tool_that_fails_silently_is_told_with_its_code() -> None:
    with pytest.raises(StorageError, match="it is not so: false ended with 1"):
        await run_tool("it is not so", "false")


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of 256 KiB."""
    with small_file_system(tmp_path / "tiny", "256k") as folder:
        yield folder


async def test_a_full_disk_leaves_nothing_half_made(tiny_disk: Path, tmp_path: Path) -> None:
    pool = Qcow2Pool("vm-pool", str(tiny_disk / "pool"))
    await pool.create((TEMPLATE,))
    await pool.create((LAYER, PRIVATE))
    before = files(pool)
    image = tmp_path / "image"
    image.write_bytes(os.urandom(SIZE))
    with pytest.raises(StorageError, match="No space left on device; free some space"):
        await pool.import_file(PRIVATE, str(image))
    assert files(pool) == before
    (tiny_disk / "ballast").write_bytes(b"x" * (256 * 1024 - 16 * 4096))
    for volume in (LAYER, TEMPLATE):
        with pytest.raises(StorageError, match="No space left on device; free some space"):
            await pool.start(volume)
        assert files(pool) == before


async def test_recover_keeps_what_the_store_knows_and_deletes_what_it_does_not(pool: Qcow2Pool) -> None:
    await pool.create((TEMPLATE,))
    await pool.create((LAYER, PRIVATE))
    sentences = await pool.recover(frozenset({TEMPLATE.vid}))
    assert [TEMPLATE.vid.partition("/")[0]] == os.listdir(pool.folder)
    assert len(sentences) == 1
    # From now on it is nobody's guess: a folder without the mark is never deleted.
    assert await pool.recover(frozenset()) == []
    assert os.path.exists(pool.newest(TEMPLATE.vid).path)


async def test_claimed_volumes_are_never_deleted(pool: Qcow2Pool) -> None:
    await pool.create((PRIVATE,))
    await pool.claim((PRIVATE,))
    assert await pool.recover(frozenset()) == []
    assert os.path.exists(pool.locate(PRIVATE).path)


COPY = Volume("root", "vm-pool", "copy-3/root", 4096, save_on_stop=True)
COPIED_TEMPLATE = Volume("root", "vm-pool", "other-4/root", 4096, save_on_stop=True, revisions_to_keep=1)


async def test_a_clone_has_the_content_and_the_size_of_its_source(filled: Qcow2Pool) -> None:
    await filled.create((COPY,))
    source = Path(filled.newest(TEMPLATE.vid).path)
    cloned = await filled.clone(TEMPLATE, COPY)
    path = Path(filled.locate(COPY).path)
    assert (cloned.size, cloned.vid, cloned.source) == (SIZE, COPY.vid, "")
    assert path.read_bytes() == source.read_bytes() == b"t" * SIZE
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_ino != source.stat().st_ino


async def test_a_clone_and_its_source_go_their_own_ways(filled: Qcow2Pool) -> None:
    target = Volume("private", "vm-pool", "copy-3/private", SIZE, save_on_stop=True)
    await filled.create((target,))
    write(filled.locate(PRIVATE), "p")
    await filled.clone(PRIVATE, target)
    write(filled.locate(PRIVATE), "q")
    assert holds(filled.locate(target), "p")
    write(filled.locate(target), "r")
    assert holds(filled.locate(PRIVATE), "q")


async def test_a_clone_keeps_the_holes(filled: Qcow2Pool) -> None:
    path = Path(filled.locate(PRIVATE).path)
    path.write_bytes(b"start")
    os.truncate(path, 2**30)
    await filled.create((COPY,))
    assert (await filled.clone(PRIVATE, COPY)).size == 2**30
    status = os.stat(filled.locate(COPY).path)
    assert (status.st_size, status.st_blocks * 512 < 2**20) == (2**30, True)


async def add_revisions(pool: Qcow2Pool, letters: str) -> None:
    for letter in letters:
        await pool.start(TEMPLATE)
        write(pool.locate(TEMPLATE), letter)
        await pool.stop(TEMPLATE)


async def test_a_clone_of_layers_is_one_image_that_stands_alone(filled: Qcow2Pool) -> None:
    await add_revisions(filled, "ab")
    assert filled.newest(TEMPLATE.vid).format == "qcow2"
    await filled.create((COPY,))
    assert (await filled.clone(TEMPLATE, COPY)).size == SIZE
    await filled.remove((TEMPLATE,))
    location = filled.newest(COPY.vid)
    assert (location.format, holds(location, "b")) == ("raw", True)
    assert Path(location.path).read_bytes()[:65536] == b"t" * 65536


async def test_what_a_session_has_written_so_far_is_not_cloned(filled: Qcow2Pool) -> None:
    await add_revisions(filled, "a")
    await filled.start(TEMPLATE)
    write(filled.locate(TEMPLATE), "x")
    await filled.create((COPY,))
    await filled.clone(TEMPLATE, COPY)
    assert holds(filled.locate(COPY), "a")


async def test_a_cloned_template_starts_with_one_revision_and_goes_on(filled: Qcow2Pool) -> None:
    await add_revisions(filled, "a")
    await filled.create((COPIED_TEMPLATE,))
    await filled.clone(TEMPLATE, COPIED_TEMPLATE)
    images = [name for name in files(filled) if name.startswith("other-4/root") and not name.endswith(".seal")]
    assert images == ["other-4/root.2.img"]
    await filled.start(COPIED_TEMPLATE)
    assert holds(filled.locate(COPIED_TEMPLATE), "a")
    write(filled.locate(COPIED_TEMPLATE), "n")
    await filled.stop(COPIED_TEMPLATE)
    assert holds(filled.newest(COPIED_TEMPLATE.vid), "n")
    assert holds(filled.newest(TEMPLATE.vid), "a")


async def test_a_clone_of_what_is_empty_is_empty(pool: Qcow2Pool) -> None:
    await pool.create((TEMPLATE,))
    await pool.create((COPIED_TEMPLATE,))
    assert (await pool.clone(TEMPLATE, COPIED_TEMPLATE)).size == SIZE
    content = Path(pool.newest(COPIED_TEMPLATE.vid).path)
    assert (content.stat().st_size, content.stat().st_blocks) == (SIZE, 0)


async def test_a_clone_of_what_has_no_content_changes_nothing(filled: Qcow2Pool) -> None:
    await filled.create((COPY,))
    before = files(filled)
    with pytest.raises(StorageError, match="volume gone-9/root of pool vm-pool has no content"):
        await filled.clone(Volume("root", "vm-pool", "gone-9/root", SIZE), COPY)
    assert files(filled) == before


async def test_a_damaged_source_is_named_and_nothing_half_made_stays(filled: Qcow2Pool) -> None:
    await add_revisions(filled, "a")
    await filled.create((COPY,))
    Path(filled.newest(TEMPLATE.vid).path).write_bytes(b"nonsense")
    before = files(filled), Path(filled.locate(COPY).path).read_bytes()
    with pytest.raises(
        StorageError, match=r"volume debian-1/root cannot be copied to copy-3/root: .*not in qcow2 format"
    ):
        await filled.clone(TEMPLATE, COPY)
    assert (files(filled), Path(filled.locate(COPY).path).read_bytes()) == before


async def test_a_cancelled_clone_leaves_nothing_half_made(filled: Qcow2Pool) -> None:
    await add_revisions(filled, "a")
    await filled.create((COPY,))
    before = files(filled)
    cloning = asyncio.ensure_future(filled.clone(TEMPLATE, COPY))
    await asyncio.sleep(0)
    cloning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cloning
    assert files(filled) == before


async def test_a_clone_on_a_full_disk_leaves_nothing_half_made(tiny_disk: Path) -> None:
    pool = Qcow2Pool("vm-pool", str(tiny_disk / "pool"))
    await pool.create((LAYER, PRIVATE))
    await pool.create((COPY,))
    Path(pool.locate(PRIVATE).path).write_bytes(os.urandom(150 * 1024))
    before = files(pool)
    with pytest.raises(StorageError, match=r"cannot be copied to copy-3/root: .*No space left on device; free some"):
        await pool.clone(PRIVATE, COPY)
    assert files(pool) == before
