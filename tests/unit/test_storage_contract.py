"""What every driver for the volumes of VMs keeps to, whatever its files are: the same tests for each of them."""

import asyncio
import os
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from crannog.adapters.storage import files as storage_files
from crannog.adapters.storage.qcow2 import Qcow2Pool
from crannog.core.volumes import Volume
from crannog.errors import NotFoundError, StorageError
from crannog.ports.storage import Pool
from tests.fakes import Location
from tests.mounts import small_file_system

SIZE = 2**20
PLACE = 65536
"""Where the tests write 4096 bytes."""
DRIVERS: dict[str, Callable[[str, str], Pool]] = {"qcow2": Qcow2Pool}
KEEPING = Volume("root", "p", "debian-1/root", SIZE, save_on_stop=True, revisions_to_keep=2)
IN_PLACE = Volume("private", "p", "work-2/private", SIZE, save_on_stop=True)
LAYER = Volume("root", "p", "work-2/root", SIZE, snap_on_start=True, source=KEEPING.vid)
OWN = [KEEPING, IN_PLACE]
ALL = frozenset(volume.vid for volume in (KEEPING, IN_PLACE, LAYER))
own = pytest.mark.parametrize("volume", OWN, ids=["keeping", "in-place"])


@pytest.fixture(params=sorted(DRIVERS))
async def pool(request: pytest.FixtureRequest, tmp_path: Path) -> Pool:
    """Return a pool with a TemplateVM and an AppVM whose volumes are empty."""
    pool = DRIVERS[request.param]("p", str(tmp_path / "pool"))
    await pool.create((KEEPING,))
    await pool.create((IN_PLACE, LAYER))
    await pool.claim((KEEPING, IN_PLACE, LAYER))
    return pool


def io(location: Location, command: str) -> str:
    """Do what a guest would; -U because a test looks on while others have the image."""
    options = ["-r", "-U"] if command.startswith("read") else []
    run = ["qemu-io", "-f", location.format, *options, "-c", command, location.path]
    return subprocess.run(run, capture_output=True, text=True, check=False, timeout=20).stdout


def write(location: Location, letter: str) -> None:
    assert "wrote 4096/4096" in io(location, f"write -P {ord(letter)} {PLACE} 4096")


def holds(location: Location, letter: str, place: int = PLACE) -> bool:
    output = io(location, f"read -P {ord(letter)} {place} 4096")
    assert "read 4096/4096" in output
    return "Pattern verification failed" not in output


async def session(pool: Pool, volume: Volume, letter: str) -> None:
    """Have a VM start, write and stop."""
    await pool.start(volume)
    write(pool.locate(volume), letter)
    await pool.stop(volume)


async def see(pool: Pool, volume: Volume) -> str:
    """Return the letter that a VM would find at its next start."""
    await pool.start(volume)
    try:
        return next((letter for letter in "\0abcdefimt" if holds(pool.locate(volume), letter)), "?")
    finally:
        await pool.abandon(volume)


def image(folder: Path, letter: str, size: int = SIZE) -> str:
    path = folder / f"image-{letter}"
    path.write_bytes(letter.encode() * size)
    return str(path)


def tree(pool: Pool) -> list[str]:
    folder = Path(getattr(pool, "folder"))  # noqa: B009 - every driver so far has one; the port does not
    return sorted(f"{path.relative_to(folder)} {path.stat().st_size}" for path in folder.rglob("*") if path.is_file())


@own
async def test_what_is_written_stays(pool: Pool, volume: Volume) -> None:
    for letter in "ab":
        await session(pool, volume, letter)
        await pool.stop(volume)
        assert await see(pool, volume) == letter
        assert holds(pool.newest(volume.vid), letter)


async def test_a_layer_shows_its_source_and_keeps_nothing(pool: Pool) -> None:
    await session(pool, KEEPING, "t")
    await session(pool, LAYER, "a")
    assert await see(pool, LAYER) == "t"


async def test_a_running_layer_is_outdated_by_new_content_only(pool: Pool) -> None:
    await session(pool, KEEPING, "t")
    assert not await pool.is_outdated(LAYER)
    await pool.start(LAYER)
    assert not await pool.is_outdated(LAYER)
    await pool.start(KEEPING)
    assert not await pool.is_outdated(LAYER)
    await pool.stop(KEEPING)
    assert await pool.is_outdated(LAYER)
    assert holds(pool.locate(LAYER), "t")
    await pool.stop(LAYER)
    assert not await pool.is_outdated(LAYER)
    assert not await pool.is_outdated(KEEPING)


async def test_revisions_are_former_contents_oldest_first(pool: Pool) -> None:
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


async def test_going_back_loses_nothing(pool: Pool) -> None:
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


@pytest.mark.parametrize("revision", ["", "9", "../x", "1-1970-01-01T00:00:00Z", "9" * 300])
async def test_there_is_no_going_back_to_what_was_not(pool: Pool, revision: str) -> None:
    await session(pool, KEEPING, "a")
    before = tree(pool)
    for volume in OWN:
        with pytest.raises(NotFoundError, match="has no revision"):
            await pool.revert(volume, revision)
    assert tree(pool) == before


async def test_a_revision_that_a_running_vm_stands_on_stays(pool: Pool, tmp_path: Path) -> None:
    await session(pool, KEEPING, "t")
    await pool.start(LAYER)
    for letter in "abcd":
        await pool.import_file(KEEPING, image(tmp_path, letter))
    assert holds(pool.locate(LAYER), "t")
    usage = pool.usage(KEEPING)
    await pool.stop(LAYER)
    await pool.trim(KEEPING)
    assert pool.usage(KEEPING) < usage
    assert len(pool.revisions(KEEPING)) == 2
    assert await see(pool, LAYER) == await see(pool, KEEPING) == "d"


async def test_what_newer_content_stands_on_stays(pool: Pool) -> None:
    for letter in "abcde":
        await session(pool, KEEPING, letter)
    await pool.trim(replace(KEEPING, revisions_to_keep=0))
    assert await see(pool, KEEPING) == "e"
    await pool.revert(KEEPING, pool.revisions(KEEPING)[0])
    await pool.trim(replace(KEEPING, revisions_to_keep=0))
    assert await see(pool, KEEPING) == "c"


async def test_a_volume_that_changes_how_it_is_written_keeps_its_content(pool: Pool, tmp_path: Path) -> None:
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


async def test_a_session_that_a_crash_cut_short_is_kept_whatever_is_kept_now(pool: Pool) -> None:
    await pool.start(KEEPING)
    write(pool.locate(KEEPING), "m")
    plain = replace(KEEPING, revisions_to_keep=0)
    path = pool.locate(plain).path
    await pool.start(plain)
    assert pool.locate(plain).path == path
    assert holds(pool.locate(plain), "m")


async def test_a_start_that_fails_never_forgets_a_former_session(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Crannogd died while the VM ran; the next start cannot keep what it wrote, and is undone."""
    await pool.start(KEEPING)
    write(pool.locate(KEEPING), "m")
    again = type(pool)("p", getattr(pool, "folder"))  # type: ignore[call-arg]  # noqa: B009
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(StorageError, match="cannot be kept"):
            await again.start(KEEPING)
        await again.abandon(KEEPING)
    assert await see(again, KEEPING) == "m"


def fail(*_arguments: object) -> None:
    raise OSError(5, os.strerror(5))


@own
async def test_clear(pool: Pool, volume: Volume) -> None:
    await session(pool, volume, "a")
    await pool.clear(volume)
    assert await see(pool, volume) == "\0"
    assert pool.newest(volume.vid).format == "raw"


async def test_what_was_cleared_comes_back_from_a_revision(pool: Pool) -> None:
    await session(pool, KEEPING, "a")
    await pool.clear(KEEPING)
    await pool.revert(KEEPING, pool.revisions(KEEPING)[-1])
    assert await see(pool, KEEPING) == "a"


@own
async def test_a_larger_volume(pool: Pool, volume: Volume) -> None:
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
    plain = replace(larger, revisions_to_keep=0)
    assert (await pool.resize(plain, 8 * SIZE)).size == 8 * SIZE
    await pool.start(plain)
    assert holds(pool.locate(plain), "\0", 8 * SIZE - 4096)


async def test_a_revision_of_another_size(pool: Pool, tmp_path: Path) -> None:
    await pool.import_file(KEEPING, image(tmp_path, "a", 2 * SIZE))
    smaller = await pool.import_file(KEEPING, image(tmp_path, "b"))
    assert smaller.size == SIZE
    back = await pool.revert(smaller, pool.revisions(smaller)[-1])
    assert back.size == 2 * SIZE
    await pool.start(back)
    assert holds(pool.locate(back), "a", 2 * SIZE - 4096)


@own
async def test_an_import_from_another_program(pool: Pool, volume: Volume) -> None:
    await session(pool, volume, "a")
    path = await pool.begin_import(volume, 2 * SIZE)
    status = os.stat(path)
    assert (status.st_size, status.st_blocks, status.st_mode & 0o777) == (2 * SIZE, 0, 0o600)
    assert holds(pool.newest(volume.vid), "a")
    Path(path).write_bytes(b"i" * SIZE + b"\0" * SIZE)
    imported = await pool.finish_import(volume, 2 * SIZE)
    assert (imported, os.path.exists(path)) == (replace(volume, size=2 * SIZE), False)
    assert await see(pool, imported) == "i"


@own
@pytest.mark.parametrize("how", ["gives up", "writes too much", "writes too little", "deletes it", "dies", "again"])
async def test_an_import_that_comes_to_nothing(pool: Pool, volume: Volume, how: str) -> None:
    await session(pool, volume, "a")
    before = tree(pool)
    path = await pool.begin_import(volume, SIZE)
    if how == "gives up":
        await pool.give_up_import(volume)
        await pool.give_up_import(volume)
    elif how == "dies":
        assert len(await pool.recover(ALL)) == 1
    elif how == "again":
        Path(path).write_bytes(b"x")
        assert await pool.begin_import(volume, SIZE) == path
        assert (os.stat(path).st_size, os.stat(path).st_blocks) == (SIZE, 0)
        await pool.give_up_import(volume)
    else:
        os.truncate(path, SIZE + (1 if "much" in how else -1))
        if "deletes" in how:
            os.unlink(path)
        with pytest.raises(StorageError):
            await pool.finish_import(volume, SIZE)
    assert tree(pool) == before
    assert await see(pool, volume) == "a"


async def test_content_goes_from_one_pool_to_another(pool: Pool, tmp_path: Path) -> None:
    other = type(pool)("other", str(tmp_path / "other"))  # type: ignore[call-arg]
    target = Volume("root", "other", "copy-3/root", SIZE, save_on_stop=True, revisions_to_keep=1)
    await other.create((target,))
    for letter in "ab":
        await session(pool, KEEPING, letter)
        await other.clone(KEEPING, target, pool)
        assert await see(other, target) == letter
    await pool.remove((KEEPING,))
    assert await see(other, target) == "b"


async def test_usage_is_what_is_on_the_disk(pool: Pool, tmp_path: Path) -> None:
    assert [pool.usage(volume) for volume in (KEEPING, IN_PLACE, LAYER)] == [0, 0, 0]
    await pool.import_file(IN_PLACE, image(tmp_path, "i"))
    assert SIZE <= pool.usage(IN_PLACE) < 2 * SIZE
    await pool.start(LAYER)
    assert 0 < pool.usage(LAYER) < SIZE
    assert pool.usage(replace(LAYER, vid="absent-9/root")) == 0


class PowerCut(BaseException):
    """The power fails: nothing that comes after is done."""


CALLS = ("rename", "replace", "unlink", "fsync", "chmod", "ftruncate")


def cut_power(patch: pytest.MonkeyPatch, after: int) -> list[str]:
    """Have the power fail at the call to the system with that number; return the list that calls are noted in."""
    done: list[str] = []
    for name in CALLS:
        real = getattr(os, name)

        def act(*arguments: object, _real: Callable[..., object] = real, _name: str = name, **more: object) -> object:
            done.append(_name)
            if len(done) > after:
                raise PowerCut
            return _real(*arguments, **more)

        patch.setattr(os, name, act)
    return done


async def _finish_import(pool: Pool, volume: Volume) -> None:
    path = await pool.begin_import(volume, SIZE)
    Path(path).write_bytes(b"i" * SIZE)
    await pool.finish_import(volume, SIZE)


Change = Callable[[Pool, Volume, str], Awaitable[object]]
CHANGES: dict[str, tuple[Change, str]] = {
    "import_file": (lambda pool, volume, path: pool.import_file(volume, path), "i"),
    "finish_import": (lambda pool, volume, _path: _finish_import(pool, volume), "i"),
    "clear": (lambda pool, volume, _path: pool.clear(volume), "\0"),
    "resize": (lambda pool, volume, _path: pool.resize(volume, 2 * SIZE), "b"),
    "session": (lambda pool, volume, _path: session(pool, volume, "i"), "i"),
    "revert": (lambda pool, volume, _path: pool.revert(volume, pool.revisions(volume)[-1]), "a"),
    "trim": (lambda pool, volume, _path: pool.trim(replace(volume, revisions_to_keep=0)), "b"),
}


@own
@pytest.mark.parametrize("change", sorted(CHANGES))
async def test_a_power_cut_leaves_the_old_content_or_the_new_one(
    pool: Pool, volume: Volume, change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    act, after = CHANGES[change]
    if change == "revert" and volume is IN_PLACE:
        return
    path = image(tmp_path, "i")
    for number in range(20):
        await pool.import_file(volume, image(tmp_path, "a"))
        await pool.import_file(volume, image(tmp_path, "b"))
        with monkeypatch.context() as patch:
            cut_power(patch, number)
            try:
                await act(pool, volume, path)
                is_done = True
            except PowerCut:
                is_done = False
        fresh = type(pool)("p", getattr(pool, "folder"))  # type: ignore[call-arg]  # noqa: B009
        await fresh.recover(ALL)
        seen = await see(fresh, volume)
        assert seen == after if is_done else seen in ("b", after)
        assert not [line for line in tree(pool) if ".new" in line]
        if is_done:
            return
    pytest.fail("it never came to an end")


@own
@pytest.mark.parametrize("change", ["import_file", "finish_import", "clear", "resize", "revert"])
async def test_what_cannot_be_written_changes_nothing(
    pool: Pool, volume: Volume, change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if change in ("revert", "resize") and volume is (IN_PLACE if change == "revert" else KEEPING):
        return
    await pool.import_file(volume, image(tmp_path, "a"))
    await pool.import_file(volume, image(tmp_path, "b"))
    before = tree(pool)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(StorageError, match="Input/output error"):
            await CHANGES[change][0](pool, volume, image(tmp_path, "i"))
    if change != "resize":
        assert tree(pool) == before
    assert await see(pool, volume) == "b"


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of 1 MiB."""
    with small_file_system(tmp_path / "tiny", "1m") as folder:
        yield folder


@pytest.mark.parametrize("driver", sorted(DRIVERS))
async def test_on_a_full_disk_nothing_half_made_stays(driver: str, tiny_disk: Path, tmp_path: Path) -> None:
    pool = DRIVERS[driver]("p", str(tiny_disk / "pool"))
    await pool.create((KEEPING,))
    await pool.create((IN_PLACE,))
    for volume in (*OWN, KEEPING):
        await session(pool, volume, "a")
    (tiny_disk / "ballast").write_bytes(b"x" * os.statvfs(tiny_disk).f_bfree * 4096)
    before = tree(pool)
    for volume in OWN:
        with pytest.raises(StorageError, match="No space left on device; free some space"):
            await pool.import_file(volume, image(tmp_path, "i"))
        assert tree(pool) == before
    with pytest.raises(StorageError, match="No space left on device; free some space"):
        await pool.revert(KEEPING, pool.revisions(KEEPING)[0])
    assert tree(pool) == before


async def test_images_that_are_read_are_never_deleted(pool: Pool, tmp_path: Path) -> None:
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


def test_the_files_module_never_follows_a_link(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for act in (storage_files.grow, storage_files.make_empty):
        with pytest.raises(OSError, match=r"link|exists"):
            act(str(tmp_path / "link"), 4096)
    assert (tmp_path / "target").read_bytes() == b"x"


class Walk:
    """Takes one random step after the other with a volume and a layer over it, and knows what must be in them."""

    def __init__(self, pool: Pool, folder: Path, random: Random) -> None:
        self.pool = pool
        self.folder = folder
        self.random = random
        self.volume = KEEPING
        self.content = "\0"
        self.history = {"\0"}
        self.shown = ""
        self.is_running = False

    async def step(self) -> str:
        """Do something; return what it was."""
        acts = [self.use, self.use, self.bring, self.clear, self.go_back, self.grow, self.keep, self.crash]
        acts += [self.end_layer] if self.is_running else [self.begin_layer, self.begin_layer]
        act = self.random.choice(acts)
        await act()
        self.history.add(self.content)
        return act.__name__

    async def use(self) -> None:
        # A volume that is written in place is not started while a VM runs on a layer over it (core.startup).
        if self.is_running and self.volume.is_in_place:
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
        folder = getattr(self.pool, "folder")  # noqa: B009
        self.pool = type(self.pool)("p", folder)  # type: ignore[call-arg]
        assert await self.pool.recover(ALL) == []

    async def begin_layer(self) -> None:
        await self.pool.start(replace(LAYER, size=self.volume.size))
        self.is_running, self.shown = True, self.content

    async def end_layer(self) -> None:
        await self.pool.stop(LAYER)
        self.is_running = False

    async def check(self) -> None:
        newest = self.pool.newest(self.volume.vid)
        assert holds(newest, self.content)
        assert not self.is_running or holds(self.pool.locate(LAYER), self.shown)
        is_current = self.is_running and not await self.pool.is_outdated(LAYER)
        assert not is_current or self.shown == self.content or self.volume.is_in_place


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_is_done_in_whatever_order(pool: Pool, tmp_path: Path, seed: int) -> None:
    walk = Walk(pool, tmp_path, Random(seed))  # noqa: S311
    done = []
    for _ in range(40):
        done.append(await walk.step())
        try:
            await walk.check()
        except AssertionError:
            pytest.fail(f"after {done}")
