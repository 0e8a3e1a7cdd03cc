"""Driver qcow2's copies that copy nothing: what stands on what, who may write, and what stays when a VM goes."""

import asyncio
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from crannog.adapters.storage.chains import Chains, Image
from crannog.adapters.storage.qcow2 import Qcow2Pool
from crannog.core.volumes import Location, Volume
from tests.contract.benches import see, session
from tests.contract.storage_kills import MOST_STEPS, run_killed

SIZE = 8 * 2**20
ALONE = Volume("root", "p", "alone-1/root", SIZE, save_on_stop=True)
COPY = replace(ALONE, vid="copy-2/root")
TEMPLATE = Volume("root", "p", "debian-3/root", SIZE, save_on_stop=True, revisions_to_keep=1)
LAYER = Volume("root", "p", "work-4/root", SIZE, snap_on_start=True, source=ALONE.vid)
KNOWN = frozenset(volume.vid for volume in (ALONE, COPY, TEMPLATE, LAYER))


@pytest.fixture
async def pool(tmp_path: Path) -> Qcow2Pool:
    """Return a pool with a StandaloneVM that has 8 MiB of data, and VMs whose volumes are empty."""
    pool = Qcow2Pool("p", str(tmp_path / "pool"))
    for volume in (ALONE, COPY, TEMPLATE, LAYER):
        await pool.create((volume,))
    await pool.claim((ALONE, COPY, TEMPLATE, LAYER))
    await pool.import_file(ALONE, whole(tmp_path, "a"))
    return pool


def whole(folder: Path, letter: str) -> str:
    path = folder / f"image-{letter}"
    path.write_bytes(letter.encode() * SIZE)
    return str(path)


def files(pool: Qcow2Pool, vm: str) -> list[str]:
    folder = Path(pool.folder, vm)
    return sorted(os.listdir(folder)) if folder.exists() else []


def mode(location: Location) -> int:
    return os.stat(location.path).st_mode & 0o777


async def test_a_copy_takes_no_room_and_has_all_of_its_source(pool: Qcow2Pool) -> None:
    assert await pool.clone(ALONE, COPY) == COPY
    assert pool.usage(COPY) < SIZE // 8
    assert (pool.newest(COPY.vid).format, mode(pool.newest(COPY.vid))) == ("qcow2", 0o600)
    assert mode(pool.newest(ALONE.vid)) == 0o400
    assert files(pool, "copy-2") == ["root.1.qcow2"]
    assert await see(pool, COPY) == "a"


async def test_what_is_a_base_is_never_written_again(pool: Qcow2Pool, tmp_path: Path) -> None:
    """Not by a session, a larger size, an import or a clear, of a volume that is written in place otherwise."""
    base = pool.newest(ALONE.vid).path
    await pool.clone(ALONE, COPY)
    assert (await pool.resize(ALONE, 2 * SIZE)).size == 2 * SIZE
    for letter in "bc":
        located = pool.locate(ALONE)
        await session(pool, ALONE, letter)
        assert pool.locate(ALONE) == located == pool.newest(ALONE.vid)
    assert files(pool, "alone-1") == ["root.1.qcow2", "root.img"]
    await pool.clear(ALONE)
    await pool.import_file(ALONE, whole(tmp_path, "i"))
    assert Path(base).read_bytes() == b"a" * SIZE
    assert (await see(pool, ALONE), await see(pool, COPY)) == ("i", "a")


async def test_many_copies_of_what_nobody_starts_stand_on_the_same_base(pool: Qcow2Pool) -> None:
    copies = [replace(COPY, vid=f"copy-{number}/root") for number in range(10, 30)]
    for copy in copies:
        await pool.create((copy,))
        await pool.clone(ALONE, copy)
    assert files(pool, "alone-1") == ["root.img"]
    assert await see(pool, copies[-1]) == "a"


async def test_copies_of_copies_are_copied_whole_in_the_end(pool: Qcow2Pool) -> None:
    """Chains do not grow without end: each image costs memory, and time at a start."""
    last, longest = ALONE, 0
    for number in range(10, 50):
        copy = replace(COPY, vid=f"copy-{number}/root")
        await pool.create((copy,))
        await pool.clone(last, copy)
        await session(pool, copy, "c")
        longest = max(longest, len((await Chains().look(pool.newest(copy.vid))).below))
        last = copy
    assert 8 < longest < 16
    assert await see(pool, last) == "c"


async def test_copies_of_a_template_keep_its_whole_chain(pool: Qcow2Pool, tmp_path: Path) -> None:
    await pool.import_file(TEMPLATE, whole(tmp_path, "t"))
    for letter in "uv":
        await session(pool, TEMPLATE, letter)
    await pool.clone(TEMPLATE, COPY)
    chain = (pool.newest(TEMPLATE.vid).path, *(await Chains().look(pool.newest(TEMPLATE.vid))).below)
    assert len(chain) == 3
    assert [os.stat(path).st_mode & 0o777 for path in chain] == [0o400] * 3
    for letter in "wxyz":
        await pool.import_file(TEMPLATE, whole(tmp_path, letter))
    assert all(map(os.path.exists, chain))
    assert await see(pool, COPY) == "v"
    await pool.remove((COPY,))
    await pool.trim(TEMPLATE)
    assert not any(map(os.path.exists, chain))


async def test_little_is_copied_whole(pool: Qcow2Pool, tmp_path: Path) -> None:
    for volume in (TEMPLATE, ALONE):
        path = tmp_path / "little"
        path.write_bytes(b"l" * 2**20)
        await pool.import_file(volume, str(path))
        await pool.clone(volume, COPY)
        assert pool.newest(COPY.vid).format == "raw"
        assert await see(pool, COPY) == "l"


async def test_a_base_outlives_its_vm(pool: Qcow2Pool) -> None:
    await pool.clone(ALONE, COPY)
    await session(pool, ALONE, "b")
    await pool.remove((ALONE,))
    await pool.remove((ALONE,))
    assert files(pool, "alone-1") == [".removed", "root.img"]
    assert await see(pool, COPY) == "a"
    again = Qcow2Pool("p", pool.folder)
    assert await again.recover(KNOWN - {ALONE.vid}) == []
    assert await see(again, COPY) == "a"
    await again.remove((COPY,))
    assert files(again, "alone-1") == files(again, "copy-2") == []
    assert not os.path.exists(os.path.join(again.folder, "alone-1"))


async def test_what_stands_on_a_removed_vm_can_get_other_content(pool: Qcow2Pool, tmp_path: Path) -> None:
    await pool.clone(ALONE, COPY)
    await pool.remove((ALONE,))
    await pool.import_file(COPY, whole(tmp_path, "i"))
    assert not os.path.exists(os.path.join(pool.folder, "alone-1"))
    assert await see(pool, COPY) == "i"


async def test_a_running_layer_over_a_base_stays_current(pool: Qcow2Pool) -> None:
    """A StandaloneVM that others start from is copied while one of them runs: nothing has changed for that one."""
    await pool.start(LAYER)
    await pool.clone(ALONE, COPY)
    assert not await pool.is_outdated(LAYER)
    await pool.stop(LAYER)
    await session(pool, ALONE, "b")
    assert await see(pool, LAYER) == "b"


async def test_the_pool_can_be_moved(pool: Qcow2Pool, tmp_path: Path) -> None:
    await pool.clone(ALONE, COPY)
    await session(pool, ALONE, "b")
    shutil.copytree(pool.folder, tmp_path / "elsewhere")
    shutil.rmtree(pool.folder)
    moved = Qcow2Pool("p", str(tmp_path / "elsewhere"))
    assert (await see(moved, ALONE), await see(moved, COPY)) == ("b", "a")
    await session(moved, ALONE, "c")
    assert await see(moved, COPY) == "a"


async def test_a_damaged_image_elsewhere_loses_no_base(pool: Qcow2Pool, caplog: pytest.LogCaptureFixture) -> None:
    await pool.clone(ALONE, COPY)
    Path(pool.folder, "debian-3", "root.9.qcow2").write_bytes(b"nonsense")
    await pool.remove((ALONE,))
    assert files(pool, "alone-1") == [".removed", "root.img"]
    assert "stays as it is" in caplog.text
    assert await see(pool, COPY) == "a"
    os.unlink(Path(pool.folder, "debian-3", "root.9.qcow2"))
    await pool.remove((COPY,))
    assert files(pool, "alone-1") == []


async def test_a_copy_that_is_made_while_old_content_is_looked_for(
    pool: Qcow2Pool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whoever deletes has looked at all images, and the copy comes after that look, from what shall be deleted."""
    other = replace(COPY, vid="copy-5/root")
    await pool.create((other,))
    await pool.clone(ALONE, other)
    base = pool.newest(ALONE.vid)
    real = Chains.look
    done: list[str] = []

    async def look(chains: Chains, location: Location) -> Image:
        image = await real(chains, location)
        if location.path.endswith("copy-5/root.1.qcow2") and not done:
            done.append("copied")
            await pool._clone_own(COPY, "it cannot be", base, SIZE)
            await pool.remove((other,))
        return image

    monkeypatch.setattr(Chains, "look", look)
    await pool.import_file(ALONE, whole(tmp_path, "i"))
    assert done == ["copied"]
    assert os.path.exists(base.path)
    assert (await see(pool, COPY), await see(pool, ALONE)) == ("a", "i")


@pytest.mark.parametrize(
    "goes", [(ALONE,), (ALONE, COPY), (COPY, ALONE)], ids=["source", "source, copy", "copy, source"]
)
@pytest.mark.timeout(120)
def test_a_daemon_that_is_killed_while_it_removes_a_source(goes: tuple[Volume, ...], tmp_path: Path) -> None:
    """However far it came, what stands on the base is whole; and all is gone when all that stands on it is."""
    for number in range(MOST_STEPS):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        asyncio.run(_prepare(folder))
        is_done = run_killed(lambda folder=folder: _remove(folder, goes), number, folder)  # type: ignore[misc]
        asyncio.run(_check(folder, goes))
        shutil.rmtree(folder)
        if is_done:
            return
    pytest.fail("it never came to an end")


OTHER = replace(COPY, vid="other-6/root")


async def _prepare(folder: Path) -> None:
    pool = Qcow2Pool("p", str(folder / "pool"))
    for volume in (ALONE, COPY, OTHER):
        await pool.create((volume,))
    await pool.claim((ALONE, COPY, OTHER))
    await pool.import_file(ALONE, whole(folder, "a"))
    for volume in (COPY, OTHER):
        await pool.clone(ALONE, volume)


async def _remove(folder: Path, goes: tuple[Volume, ...]) -> None:
    for volume in goes:
        await Qcow2Pool("p", str(folder / "pool")).remove((volume,))


async def _check(folder: Path, goes: tuple[Volume, ...]) -> None:
    pool = Qcow2Pool("p", str(folder / "pool"))
    stays = [volume for volume in (ALONE, COPY, OTHER) if volume not in goes]
    await pool.recover(frozenset(volume.vid for volume in stays))
    for volume in stays:
        assert await see(pool, volume) == "a"
    for volume in (*goes, *stays):
        await pool.remove((volume,))
    assert os.listdir(pool.folder) == []
