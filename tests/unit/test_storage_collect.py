"""Collecting waste: whatever was done, and wherever it was cut short, nothing that anybody needs is ever deleted."""

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crannog.adapters.storage.folders import FolderPool
from crannog.adapters.storage.plain import PlainPool
from crannog.adapters.storage.qcow2 import Qcow2Pool
from crannog.core.findings import Finding, Kind, Stake
from crannog.core.volumes import Volume
from crannog.errors import NotFoundError, StorageError
from crannog.ports.upkeep import TendedPool
from tests.contract.benches import peek, see, session
from tests.contract.storage_kills import run_killed

SIZE = 2**20
OWN = Volume("root", "p", "", SIZE, save_on_stop=True)


class QuickCopies(Qcow2Pool):
    """Copies nothing, however little it is."""

    copied_whole = 0


class Store:
    """A store whose volumes all lie in one pool, and what each of them should hold."""

    def __init__(self, driver: type[FolderPool], folder: Path, random: Random) -> None:
        self.driver = driver
        self.folder = folder
        self.random = random
        self.pool = self.open()
        self.volumes: dict[str, Volume] = {}
        self.letters: dict[str, str] = {}
        self.running: dict[str, str] = {}
        """Layers that are in use, by their ids, with what they show."""
        self.importing: set[str] = set()
        self.count = 0

    def open(self) -> TendedPool:
        """Return the pool as a daemon has it that has just started."""
        pool = self.driver("p", str(self.folder / "p"))
        assert isinstance(pool, TendedPool)
        return pool

    def stakes(self) -> list[Stake]:
        return [Stake(v, v.vid in self.running or v.vid in self.importing) for v in self.volumes.values()]

    def own(self) -> list[Volume]:
        """Return volumes that a halted VM has, and nobody works on."""
        return [v for v in self.volumes.values() if v.save_on_stop and v.vid not in self.importing]

    def steady(self) -> list[Volume]:
        """Return those that no running layer would be disturbed by."""
        sources = {self.volumes[vid].source for vid in self.running}
        return [v for v in self.own() if v.revisions_to_keep > 0 or v.vid not in sources]

    def new_vid(self) -> str:
        self.count += 1
        return f"vm{self.count}-{self.count:08x}/root"

    async def add(self) -> None:
        volume = replace(OWN, vid=self.new_vid(), revisions_to_keep=self.random.randrange(3))
        await self.pool.create((volume,))
        self.volumes[volume.vid], self.letters[volume.vid] = volume, "\0"
        await self.pool.claim((volume,))

    async def add_layer(self) -> None:
        if self.own():
            source = self.random.choice(self.own())
            layer = replace(OWN, vid=self.new_vid(), save_on_stop=False, snap_on_start=True, source=source.vid)
            await self.pool.create((layer,))
            self.volumes[layer.vid] = layer
            await self.pool.claim((layer,))

    async def use(self) -> None:
        if self.steady():
            volume, letter = self.random.choice(self.steady()), self.random.choice("abcdef")
            await session(self.pool, volume, letter)
            self.letters[volume.vid] = letter

    async def copy(self) -> None:
        sources = [volume for volume in self.own() if self.letters[volume.vid] != "\0"]
        source = self.random.choice(sources) if sources else None
        targets = [volume for volume in self.steady() if volume != source]
        if source and targets:
            target = self.random.choice(targets)
            await self.pool.clone(source, target)
            self.letters[target.vid] = self.letters[source.vid]

    async def go_back(self) -> None:
        for volume in self.steady():
            with suppress(NotFoundError, IndexError):
                await self.pool.revert(volume, self.pool.revisions(volume)[0])
                self.letters[volume.vid] = await see(self.pool, volume)

    async def keep_less(self) -> None:
        if self.steady():
            volume = self.random.choice(self.steady())
            self.volumes[volume.vid] = replace(volume, revisions_to_keep=self.random.randrange(3))

    async def run_layer(self) -> None:
        for layer in [v for v in self.volumes.values() if v.snap_on_start and v.vid not in self.running]:
            if layer.source in self.volumes:
                await self.pool.start(layer)
                self.running[layer.vid] = self.letters[layer.source]

    async def end_layers(self) -> None:
        for vid in list(self.running):
            await self.pool.stop(self.volumes[vid])
            del self.running[vid]

    async def begin_import(self) -> None:
        if self.steady():
            volume = self.random.choice(self.steady())
            await self.pool.begin_import(volume, SIZE)
            self.importing.add(volume.vid)

    def removable(self) -> list[Volume]:
        """Return what the store would let go: nothing is a layer over it, and its VM does not run."""
        sources = {volume.source for volume in self.volumes.values()}
        stay = sources | set(self.running) | self.importing
        return [volume for volume in self.volumes.values() if volume.vid not in stay]

    def forget(self, volume: Volume) -> None:
        del self.volumes[volume.vid]
        self.letters.pop(volume.vid, None)

    async def remove(self) -> None:
        if self.removable():
            volume = self.random.choice(self.removable())
            self.forget(volume)
            await self.pool.remove((volume,))

    # -- what crashes leave

    async def die(self) -> None:
        """End without a word: imports are given up, and the next daemon does not know what was going on."""
        self.pool = self.open()
        self.importing.clear()

    async def die_after_removal_from_the_store(self) -> None:
        if self.removable():
            self.forget(self.random.choice(self.removable()))
        await self.die()

    async def die_before_a_vm_is_in_the_store(self) -> None:
        await self.pool.create((replace(OWN, vid=self.new_vid()),))
        await self.die()

    async def die_in_a_session(self) -> None:
        for volume in self.steady()[:1]:
            if volume.revisions_to_keep:
                await self.pool.start(volume)
                await self.die()

    async def leave_half_made(self) -> None:
        for volume in self.own()[:2]:
            base = os.path.join(self.folder, "p", volume.vid)
            for end in (".new", ".9.qcow2.new", ".import.new", ".seal.new"):
                Path(base + end).write_bytes(b"x" * 5000)
        Path(self.folder, "p", ".new-x").mkdir(exist_ok=True)
        await self.die()

    def die_at_any_step(self) -> None:
        """Be killed at a step of something, and look what has become of it."""
        acts: list[Callable[[Store], Awaitable[None]]] = [Store.use, Store.copy, Store.add, Store.remove]
        act, step, seed = self.random.choice(acts), self.random.randrange(1, 12), self.random.randrange(10**6)
        self.random.seed(seed)
        run_killed(lambda: act(self), step, self.folder)
        self.random.seed(seed)
        self.count += 1  # no two VMs ever have the same ids
        if act is Store.remove and self.removable():
            self.forget(self.random.choice(self.removable()))
        asyncio.run(self.die())
        asyncio.run(self.learn())

    async def learn(self) -> None:
        """Find out what the volumes hold."""
        for volume in self.steady():
            self.letters[volume.vid] = await see(self.pool, volume)

    # -- looking

    def needed(self) -> set[str]:
        """Return all files that the store's volumes stand on, found without any of our own code."""
        found: set[str] = set()
        for vid in self.volumes:
            base = Path(self.folder, "p", vid)
            images = [path for path in base.parent.glob("*") if path.suffix in (".img", ".qcow2")]
            kept = sorted((p for p in images if p.name.split(".")[1].isdigit()), key=_number)[-1:]
            sessions = [p for p in images if not p.name.split(".")[1].isdigit()]
            for path in [*kept, *sessions]:
                found |= _chain(path)
        return found

    async def collect(self) -> list[Finding]:
        try:
            needed: set[str] | None = await self.pool.reach(self.stakes)
        except StorageError:
            needed = None
        found = await self.pool.find_waste(self.stakes, needed)
        return [finding for finding in found if await self.pool.discard(self.stakes, finding, needed)]

    async def check_all(self) -> None:
        """See that each VM starts, and finds what it should."""
        for vid, letter in self.running.items():
            assert peek(self.pool.locate(self.volumes[vid])) == letter
        for volume in self.volumes.values():
            if volume.vid in self.running or volume.vid in self.importing:
                continue
            if volume.snap_on_start:
                if volume.source in self.volumes:
                    assert await see(self.pool, volume) == self.letters[volume.source]
            elif volume in self.steady():
                assert [f for f in await self.pool.examine(volume) if f.is_fatal] == []
                assert await see(self.pool, volume) == self.letters[volume.vid]


def _number(path: Path) -> int:
    return int(path.name.split(".")[1])


def _chain(path: Path) -> set[str]:
    if path.suffix == ".img":
        return {os.path.realpath(path)}
    command = ["qemu-img", "info", "--force-share", "--backing-chain", "--output=json", "-f", "qcow2", str(path)]
    said = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=20).stdout)
    return {os.path.realpath(image["filename"]) for image in said}


def _identities(paths: set[str]) -> dict[str, tuple[int, int, int]]:
    return {path: (os.stat(path).st_ino, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in paths}


STEPS = [
    "add", "add", "add_layer", "use", "use", "use", "copy", "copy", "go_back", "keep_less", "run_layer", "end_layers",
    "begin_import", "remove", "die", "die_after_removal_from_the_store", "die_after_removal_from_the_store",
    "die_before_a_vm_is_in_the_store", "die_in_a_session", "leave_half_made", "die_at_any_step",
]  # fmt: skip


def walk(store: Store, steps: list[str]) -> None:
    for step in ["add", "use", "add", "copy", *steps]:
        done = getattr(store, step)()
        if done is not None:
            asyncio.run(done)


@pytest.mark.parametrize("driver", [QuickCopies, PlainPool])
@pytest.mark.timeout(240)
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(st.sampled_from(STEPS), min_size=4, max_size=14), seed=st.integers(0, 10**6))
def test_nothing_that_is_needed_is_ever_deleted(
    tmp_path_factory: pytest.TempPathFactory, driver: type[FolderPool], steps: list[str], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("collect")
    store = Store(driver, folder, Random(seed))  # noqa: S311
    walk(store, steps)
    needed = store.needed()
    imports = [folder / "p" / f"{vid}.import.new" for vid in store.importing]
    before = _identities(needed)
    asyncio.run(store.collect())
    assert _identities(needed) == before
    assert all(path.exists() for path in imports)
    assert asyncio.run(store.pool.find_waste(store.stakes, asyncio.run(store.pool.reach(store.stakes)))) == []
    asyncio.run(store.check_all())
    asyncio.run(store.collect())
    asyncio.run(store.check_all())
    shutil.rmtree(folder)


# -- single cases


@pytest.fixture
async def store(tmp_path: Path) -> Store:
    store = Store(QuickCopies, tmp_path, Random(1))  # noqa: S311
    for _ in range(2):
        await store.add()
    first, second = store.own()
    await session(store.pool, first, "a")
    await store.pool.clone(first, second)
    store.letters |= {first.vid: "a", second.vid: "a"}
    return store


def paths(found: list[Finding], store: Store) -> list[str]:
    return [f"{finding.kind} {os.path.relpath(finding.path, store.folder / 'p')}" for finding in found]


async def test_what_another_vm_stands_on_stays_of_an_orphan(store: Store) -> None:
    first, second = store.own()
    folder = Path(store.folder, "p", os.path.dirname(first.vid))
    Path(folder, "root.new").write_bytes(b"x" * 9000)
    assert await store.pool.examine(second) == []
    store.forget(first)
    (found,) = await store.collect()
    assert (found.kind, found.path, found.size >= 8192) == (Kind.ORPHAN, str(folder), True)
    assert ".removed" in os.listdir(folder)
    assert any(name.endswith(".img") for name in os.listdir(folder))
    await store.check_all()
    assert await store.collect() == []
    assert await store.pool.check(store.stakes) == []
    store.forget(second)
    assert len(await store.collect()) == 2
    assert os.listdir(store.folder / "p") == []


async def test_what_somebody_has_open_stays(store: Store) -> None:
    first, second = store.own()
    store.forget(second)
    with Path(store.pool.newest(second.vid).path).open("rb"):  # noqa: ASYNC230 - it takes microseconds
        assert await store.collect() == []
    assert paths(await store.collect(), store) == [f"orphan {os.path.dirname(second.vid)}"]
    assert first.vid in store.volumes


async def test_what_is_read_right_now_stays(store: Store) -> None:
    _, second = store.own()
    async with store.pool.reading(second.vid):
        store.forget(second)
        assert await store.collect() == []
    assert len(await store.collect()) == 1


async def test_what_others_put_there_is_told_of_and_stays(store: Store) -> None:
    first, second = store.own()
    pool = store.folder / "p"
    (pool / "notes.txt").write_text("mine")
    (pool / "stuff").mkdir()
    (pool / "old-12345678").mkdir()
    (pool / "old-12345678" / "thesis.odt").write_text("mine")
    (pool / os.path.dirname(first.vid) / "mine.txt").write_text("mine")
    found = [f for f in await store.pool.check(store.stakes) if f.kind is Kind.ORPHAN]
    expected = ["notes.txt", "old-12345678", "stuff", f"{os.path.dirname(first.vid)}/mine.txt"]
    assert sorted(os.path.relpath(f.path, pool) for f in found) == expected
    assert await store.collect() == []
    assert second.vid in store.volumes


async def test_an_image_that_cannot_be_read_keeps_all_but_what_is_half_made(store: Store) -> None:
    first, second = store.own()
    await store.die_before_a_vm_is_in_the_store()
    Path(store.pool.newest(second.vid).path).write_bytes(b"nonsense")
    store.forget(first)
    with pytest.raises(StorageError, match="not in qcow2 format"):
        await store.pool.reach(store.stakes)
    assert [finding.kind for finding in await store.collect()] == [Kind.HALF_MADE]
    assert os.path.exists(store.pool.newest(first.vid).path)


async def test_a_vm_that_is_just_being_made_is_no_waste(store: Store) -> None:
    new = replace(OWN, vid=store.new_vid())
    await store.pool.create((new,))
    assert await store.pool.check(store.stakes) == await store.collect() == []
    await store.pool.remove((new,))
    await store.pool.create((new,))
    await store.die()
    assert [finding.kind for finding in await store.pool.check(store.stakes)] == [Kind.HALF_MADE]
    assert [finding.kind for finding in await store.collect()] == [Kind.HALF_MADE]


async def test_former_contents_that_nobody_can_go_back_to(store: Store) -> None:
    """A clean-up that failed is made up for."""
    keeping = replace(OWN, vid=store.new_vid(), revisions_to_keep=2)
    await store.pool.create((keeping,))
    image = store.folder / "image"
    for letter in "abcd":
        image.write_bytes(letter.encode() * SIZE)
        await store.pool.import_file(keeping, str(image))
    await store.pool.claim((keeping,))
    store.volumes[keeping.vid] = replace(keeping, revisions_to_keep=1)
    store.letters[keeping.vid] = "d"
    (found,) = await store.collect()
    assert (found.kind, found.vid, found.size) == (Kind.UNNEEDED, keeping.vid, SIZE)
    await store.check_all()


async def test_a_thing_that_is_needed_by_now_is_not_deleted(store: Store) -> None:
    _, second = store.own()
    store.forget(second)
    needed = await store.pool.reach(store.stakes)
    (found,) = await store.pool.find_waste(store.stakes, needed)
    store.volumes[second.vid] = second
    assert not await store.pool.discard(store.stakes, found, needed)
    await store.pool.examine(second)


async def test_a_pool_that_is_not_there(tmp_path: Path) -> None:
    pool = Qcow2Pool("p", str(tmp_path / "none"))
    volume = replace(OWN, vid="a-00000001/root")
    assert await pool.check(list) == []
    (found,) = await pool.check(lambda: [Stake(volume)])
    assert (found.kind, found.path) == (Kind.MISSING, str(tmp_path / "none"))
    assert await pool.find_waste(lambda: [Stake(volume)], set()) == []
    assert await pool.reach(lambda: [Stake(volume)]) == set()
    elsewhere = Qcow2Pool("p", str(tmp_path), is_elsewhere=True)
    assert [f.kind for f in await elsewhere.check(list)] == [Kind.MISSING]


async def _bring(store: Store, volume: Volume) -> None:
    image = store.folder / "image"
    image.write_bytes(b"n" * SIZE)
    await store.pool.import_file(volume, str(image))


async def _copy(store: Store, volume: Volume) -> None:
    (source,) = [other for other in store.own() if other is not volume][:1]
    await session(store.pool, source, "n")
    await store.pool.clone(source, volume)


@pytest.mark.parametrize("bring", [_bring, _copy])
async def test_content_that_came_after_a_crash_is_the_newest(
    store: Store, bring: Callable[[Store, Volume], Awaitable[None]]
) -> None:
    """What a session wrote that nobody stopped is kept, as older content."""
    keeping = replace(OWN, vid=store.new_vid(), revisions_to_keep=2)
    await store.pool.create((keeping,))
    await session(store.pool, keeping, "a")
    await store.pool.start(keeping)
    await store.die()
    await bring(store, keeping)
    assert await see(store.pool, keeping) == "n"
    await store.pool.revert(keeping, store.pool.revisions(keeping)[-1])
    assert await see(store.pool, keeping) == "a"
