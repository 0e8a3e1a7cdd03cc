"""Images that were damaged or changed behind our back: what a start is told of each, with the real qemu-img."""

import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crannog.adapters.storage import checks_images, process, seals
from crannog.adapters.storage.chains import Chains, ImageError
from crannog.adapters.storage.plain import PlainPool
from crannog.adapters.storage.qcow2 import Qcow2Pool
from crannog.core.findings import Finding, Kind, Stake
from crannog.core.volumes import Location, Volume
from crannog.errors import StorageError
from tests.contract.benches import see, session

SIZE = 8 * 2**20
TEMPLATE = Volume("root", "p", "debian-1/root", SIZE, save_on_stop=True, revisions_to_keep=2)
LAYER = Volume("root", "p", "work-2/root", SIZE, snap_on_start=True, source=TEMPLATE.vid)
ALONE = Volume("private", "p", "alone-3/private", SIZE, save_on_stop=True)
COPY = replace(ALONE, vid="copy-4/private")
ALL = (TEMPLATE, LAYER, ALONE, COPY)


class Furnished:
    """A pool with a template that has two layers, and a VM whose private volume is a layer over another VM's."""

    def __init__(self, pool: Qcow2Pool, folder: Path) -> None:
        self.pool = pool
        self.folder = folder

    def path(self, volume: Volume) -> str:
        return self.pool.newest(volume.vid).path

    def again(self) -> Qcow2Pool:
        """Return the pool as the next daemon has it, which remembers nothing."""
        return Qcow2Pool("p", self.pool.folder)

    async def examine(self, volume: Volume) -> list[Finding]:
        """Look by a daemon that remembers, and by one that has just started: both must say the same."""
        found = await self.again().examine(volume)
        assert [(f.kind, f.path, f.is_fatal) for f in await self.pool.examine(volume)] == [
            (f.kind, f.path, f.is_fatal) for f in found
        ]
        return found

    async def refusal(self, volume: Volume) -> str:
        """Return the one reason why a volume must not be used."""
        (found,) = await self.examine(volume)
        assert (found.kind, found.is_fatal) == (Kind.BROKEN, True)
        return found.sentence.replace(self.pool.folder + "/", "")

    async def check(self) -> list[Finding]:
        return await self.again().check(lambda: [Stake(volume) for volume in ALL])


@pytest.fixture
async def furnished(tmp_path: Path) -> Furnished:
    pool = Qcow2Pool("p", str(tmp_path / "pool"))
    for volume in ALL:
        await pool.create((volume,))
    await pool.claim(ALL)
    for volume in (TEMPLATE, ALONE):
        image = tmp_path / f"image-{volume.name}"
        image.write_bytes(os.urandom(SIZE))
        await pool.import_file(volume, str(image))
    for letter in "ab":
        await session(pool, TEMPLATE, letter)
    await pool.clone(ALONE, COPY)
    await session(pool, COPY, "c")
    return Furnished(pool, tmp_path)


def edit(path: str, place: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(data)


def number(path: str, place: int) -> int:
    """Return a number in a qcow2 header: 40 is where the offset of the L1 table is (QEMU's docs/interop/qcow2.txt)."""
    with open(path, "rb") as file:
        file.seek(place)
        return int(struct.unpack(">Q", file.read(8))[0])


def rebase(path: str, *options: str) -> None:
    subprocess.run(["qemu-img", "rebase", "-u", "-f", "qcow2", *options, path], check=True, timeout=20)


def damage_magic(path: str) -> None:
    edit(path, 0, b"\0\0\0\0")


def damage_version(path: str) -> None:
    edit(path, 4, b"\0\0\0\x63")


def cut_header(path: str) -> None:
    os.truncate(path, 50)


def cut_data(path: str) -> None:
    """Cut a cluster off: qemu-img check takes less for an image whose last one was never written to its end."""
    os.truncate(path, os.stat(path).st_size - 2**17)


def damage_l1(path: str) -> None:
    edit(path, number(path, 40), b"\x80" + b"\xff" * 7)


def mark_corrupt(path: str) -> None:
    edit(path, 72, struct.pack(">Q", 2))


def name_passwd(path: str) -> None:
    rebase(path, "-F", "raw", "-b", "/etc/passwd")


def name_other_pool(path: str) -> None:
    Path(path).parents[2].joinpath("other.img").write_bytes(b"x")
    rebase(path, "-F", "raw", "-b", "../../other.img")


def name_passwd_by_protocol(path: str) -> None:
    rebase(path, "-F", "raw", "-b", "file:/etc/passwd")


def name_server(path: str) -> None:
    rebase(path, "-F", "raw", "-b", "nbd://127.0.0.1:1/x")


def name_json(path: str) -> None:
    rebase(path, "-F", "raw", "-b", 'json:{"driver":"file","filename":"/etc/passwd"}')


def name_nothing(path: str) -> None:
    rebase(path, "-b", "")


def name_itself(path: str) -> None:
    rebase(path, "-F", "qcow2", "-b", os.path.basename(path))


def name_absent(path: str) -> None:
    rebase(path, "-F", "raw", "-b", "private.7.img")


def name_link(path: str) -> None:
    os.symlink("/etc/passwd", os.path.join(os.path.dirname(path), "x.img"))
    rebase(path, "-F", "raw", "-b", "x.img")


def name_other_vm(path: str) -> None:
    """Name what nobody ever copied: the newest root of a template."""
    rebase(path, "-F", "qcow2", "-b", "../debian-1/root.4.qcow2")


def name_wrong_format(path: str) -> None:
    rebase(path, "-F", "qcow2", "-b", "../alone-3/private.img")


def use_data_file(path: str) -> None:
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={path}.data,data_file_raw=on", path]
    subprocess.run([*create, str(SIZE)], check=True, timeout=20)


DAMAGES: dict[Callable[[str], None], str] = {
    damage_magic: "cannot be read: Image is not in qcow2 format",
    damage_version: "cannot be read: Unsupported qcow2 version 99",
    cut_header: "cannot be read: qcow2 header too short",
    cut_data: "is damaged in 1 places, which 'qemu-img check' lists",
    damage_l1: "is damaged in ",
    mark_corrupt: "is damaged: QEMU found that out while it was in use",
    name_passwd: "is damaged: it stands on '/etc/passwd', which is not in its pool",
    name_other_pool: "is damaged: it stands on '../../other.img', which is not in its pool",
    name_passwd_by_protocol: "is damaged: it stands on 'file:/etc/passwd', which is not in its pool",
    name_server: "is damaged: it stands on 'nbd://127.0.0.1:1/x', which is not in its pool",
    name_json: "is damaged: it stands on 'json:",
    name_nothing: "is damaged: it does not name the image that it stands on",
    name_itself: "is damaged: the images below it stand on one another in a ring",
    name_absent: "stands on copy-4/private.7.img, which does not exist",
    name_link: "stands on copy-4/x.img, which is a link, and no image may be one",
    name_other_vm: "is damaged: it stands on debian-1/root.4.qcow2 of another VM, which no copy was made of",
    name_wrong_format: "is damaged: it takes alone-3/private.img for an image of format 'qcow2'",
    use_data_file: "is damaged: it names another file that its data were in",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
async def test_a_private_volume_whose_layer_is_damaged_is_refused(
    furnished: Furnished, damage: Callable[[str], None]
) -> None:
    path = furnished.path(COPY)
    assert path.endswith("private.1.qcow2")
    assert await furnished.examine(COPY) == []
    damage(path)
    before = Path(path).read_bytes()
    assert (await furnished.refusal(COPY)).startswith(f"copy-4/private.1.qcow2 {DAMAGES[damage]}")
    told = [found for found in await furnished.check() if found.kind is Kind.BROKEN]
    assert [found.path for found in told] == [path]
    assert Path(path).read_bytes() == before  # nothing is repaired
    assert await furnished.examine(ALONE) == await furnished.examine(LAYER) == []


OPENING = [damage for damage in DAMAGES if damage.__name__.startswith("name_")]


@pytest.mark.parametrize("damage", OPENING, ids=lambda damage: damage.__name__)
async def test_what_an_image_names_wrongly_is_never_opened(
    furnished: Furnished, damage: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No tool is even started on it: but qemu-img info, which without --backing-chain opens what it is given alone."""
    path = furnished.path(TEMPLATE)
    damage(path)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    ran: list[tuple[str, ...]] = []

    async def note(purpose: str, command: tuple[str, ...], *more: Any) -> bytes:  # noqa: ANN401
        ran.append(command)
        assert command[:2] == ("qemu-img", "info")
        assert "--backing-chain" not in command
        return await real(purpose, command, *more)

    real = process._run
    monkeypatch.setattr(process, "_run", note)
    for act in (
        lambda: furnished.again().start(LAYER),
        lambda: furnished.again().start(TEMPLATE),
        lambda: furnished.again().clone(TEMPLATE, COPY),
    ):
        with pytest.raises(StorageError, match=r"root\.4\.qcow2 (is damaged|stands on)"):
            await act()
    assert ran
    after = sorted(path.name for path in tmp_path.rglob("*"))
    assert [name for name in after if name not in before and not name.endswith(".seal")] == []


async def test_the_same_damage_in_what_is_below(furnished: Furnished) -> None:
    below = os.path.join(furnished.pool.folder, "debian-1/root.3.qcow2")
    damage_l1(below)
    assert (await furnished.refusal(LAYER)).startswith("debian-1/root.3.qcow2 is damaged in ")
    assert (await furnished.refusal(TEMPLATE)).startswith("debian-1/root.3.qcow2 is damaged in ")


async def test_a_session_that_was_never_stopped_and_is_damaged(furnished: Furnished) -> None:
    pool = furnished.pool
    await pool.start(TEMPLATE)
    name_passwd(pool.locate(TEMPLATE).path)
    assert (await furnished.refusal(TEMPLATE)).startswith("debian-1/root.dirty.qcow2 is damaged: it stands on")


async def test_a_layer_that_is_kept_and_damaged(furnished: Furnished) -> None:
    kept = replace(LAYER, keeps_layer=True)
    await session(furnished.pool, kept, "k")
    assert await furnished.examine(kept) == []
    assert await see(furnished.pool, kept) == "k"
    layer = furnished.pool.locate(kept).path
    name_passwd(layer)
    assert (await furnished.refusal(kept)).startswith("work-2/root.volatile.qcow2 is damaged: it stands on '/etc")
    os.unlink(layer)
    await session(furnished.pool, kept, "k")
    damage_l1(layer)
    assert (await furnished.refusal(kept)).startswith("work-2/root.volatile.qcow2 is damaged in ")
    assert await furnished.examine(LAYER) == []  # that drops it


# -- changed images


def change(path: str) -> None:
    edit(path, os.stat(path).st_size - 1, b"\1")
    os.utime(path, ns=(1, os.stat(path).st_mtime_ns + 1))


async def test_a_changed_template_is_told_and_taken_as_it_is(furnished: Furnished) -> None:
    path = furnished.path(TEMPLATE)
    assert await furnished.examine(LAYER) == []
    change(path)
    for _ in range(2):
        (found,) = await furnished.examine(LAYER)
        assert (found.kind, found.path, found.is_fatal) == (Kind.CHANGED, path, False)
        assert found.reason == "was written to after it was finished"
    assert [(found.kind, found.path) for found in await furnished.check()] == [(Kind.CHANGED, path)]
    await furnished.pool.accept(TEMPLATE)
    assert await furnished.examine(LAYER) == await furnished.check() == []


async def test_a_template_goes_on_from_what_it_was_changed_to(furnished: Furnished) -> None:
    change(furnished.path(TEMPLATE))
    (found,) = await furnished.pool.examine(TEMPLATE)
    assert (found.kind, found.is_fatal) == (Kind.CHANGED, False)
    await session(furnished.pool, TEMPLATE, "n")
    assert await furnished.examine(TEMPLATE) == await furnished.examine(LAYER) == await furnished.check() == []


async def test_data_over_a_changed_image_are_not_mixed_with_it(furnished: Furnished) -> None:
    below = os.path.join(furnished.pool.folder, "debian-1/root.2.img")
    change(below)
    for volume in (LAYER, TEMPLATE):
        (found,) = await furnished.examine(volume)
        assert (found.kind, found.path, found.is_fatal) == (Kind.CHANGED, below, True)
    await furnished.pool.accept(TEMPLATE)
    assert await furnished.examine(LAYER) == await furnished.examine(TEMPLATE) == []


async def test_a_layer_that_is_kept_over_a_changed_image(furnished: Furnished) -> None:
    kept = replace(LAYER, keeps_layer=True)
    await session(furnished.pool, kept, "k")
    path = furnished.path(TEMPLATE)
    shutil.copy2(path, furnished.folder / "backup")
    change(path)
    (found,) = await furnished.examine(kept)
    assert (found.kind, found.path, found.is_fatal) == (Kind.CHANGED, path, True)
    shutil.copy2(furnished.folder / "backup", path)
    assert await furnished.examine(kept) == []
    assert await see(furnished.pool, kept) == "k"


async def test_a_base_that_was_changed(furnished: Furnished) -> None:
    """The VM that it belongs to and the one that was copied from it both have data over it."""
    base = furnished.path(ALONE)
    assert os.stat(base).st_mode & 0o777 == 0o400
    assert await furnished.examine(COPY) == await furnished.examine(ALONE) == []
    change(base)
    for volume in (COPY, ALONE):
        (found,) = await furnished.examine(volume)
        assert (found.kind, found.path, found.is_fatal) == (Kind.CHANGED, base, True)
    await furnished.pool.accept(COPY)
    assert await furnished.examine(COPY) == await furnished.examine(ALONE) == []


async def test_the_seal_of_a_base_stays_when_its_vm_goes(furnished: Furnished) -> None:
    base = furnished.path(ALONE)
    assert await furnished.examine(COPY) == []
    await furnished.pool.remove((ALONE,))
    assert sorted(os.listdir(os.path.dirname(base))) == [".removed", "private.img", "private.seal"]
    change(base)
    (found,) = await furnished.examine(COPY)
    assert (found.kind, found.path, found.is_fatal) == (Kind.CHANGED, base, True)


async def test_content_that_a_vm_writes_to_in_place_is_not_watched(furnished: Furnished) -> None:
    pool = furnished.pool
    own = replace(ALONE, vid="own-5/private")
    await pool.create((own,))
    await session(pool, own, "a")
    change(pool.newest(own.vid).path)
    assert await furnished.examine(own) == []
    layer = replace(LAYER, source=own.vid)
    assert await furnished.examine(layer) == []
    change(pool.newest(own.vid).path)
    (found,) = await furnished.examine(layer)
    assert (found.kind, found.is_fatal) == (Kind.CHANGED, False)
    for act in (lambda: session(pool, own, "b"), lambda: pool.resize(own, 2 * SIZE)):
        await pool.accept(own)
        assert await furnished.examine(layer) == []
        await act()
        assert await furnished.examine(layer) == []


async def test_a_volume_that_ceases_to_keep_revisions_is_written_in_place(furnished: Furnished) -> None:
    in_place = replace(TEMPLATE, revisions_to_keep=0)
    for letter in "xy":
        await session(furnished.pool, in_place, letter)
        assert await furnished.examine(in_place) == await furnished.check() == []
    await session(furnished.pool, TEMPLATE, "z")
    assert await furnished.examine(TEMPLATE) == await furnished.check() == []


async def test_content_that_has_lost_its_end(furnished: Furnished) -> None:
    own = replace(ALONE, vid="own-5/private")
    await furnished.pool.create((own,))
    path = furnished.path(own)
    os.truncate(path, SIZE - 1)
    (found,) = await furnished.examine(own)
    assert (found.kind, found.is_fatal) == (Kind.BROKEN, False)
    assert found.reason == f"has {SIZE - 1} bytes, but its volume {SIZE}: what was behind them is lost"


@pytest.mark.parametrize("volume", [LAYER, TEMPLATE, ALONE], ids=["layer", "template", "in place"])
async def test_a_volume_without_content_is_told(tmp_path: Path, volume: Volume) -> None:
    pool = Qcow2Pool("p", str(tmp_path / "pool"))
    with pytest.raises(StorageError, match=r"has no content: .*restore it from a backup"):
        await pool.examine(volume)


async def test_what_was_found_sound_is_not_looked_through_again(
    furnished: Furnished, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start of what nobody touched starts no tool at all."""
    assert await furnished.pool.examine(LAYER) == []

    async def refuse(*_words: str, **_more: object) -> bytes:
        raise AssertionError

    monkeypatch.setattr(checks_images, "read_tool", refuse)
    assert await furnished.again().examine(LAYER) == []
    monkeypatch.setattr("crannog.adapters.storage.chains.read_tool", refuse)
    assert await furnished.pool.examine(LAYER) == []


async def test_images_of_before_there_were_seals_are_sealed_at_the_next_start(furnished: Furnished) -> None:
    for seal in Path(furnished.pool.folder).rglob("*.seal"):
        seal.unlink()
    change(furnished.path(TEMPLATE))
    assert await furnished.examine(LAYER) == []
    assert seals.find(furnished.path(TEMPLATE)) is not None
    change(furnished.path(TEMPLATE))
    assert [found.kind for found in await furnished.examine(LAYER)] == [Kind.CHANGED]


async def test_a_broken_image_is_not_accepted(furnished: Furnished) -> None:
    damage_l1(furnished.path(TEMPLATE))
    with pytest.raises(ImageError, match=r"root\.4\.qcow2 is damaged in "):
        await furnished.pool.accept(TEMPLATE)


async def test_a_damaged_volume_can_go_back_or_get_other_content(furnished: Furnished) -> None:
    """What the refusals advise."""
    damage_magic(furnished.path(TEMPLATE))
    await furnished.pool.revert(TEMPLATE, furnished.pool.revisions(TEMPLATE)[-1])
    assert await furnished.examine(TEMPLATE) == []
    assert await see(furnished.pool, LAYER) == "a"
    damage_magic(furnished.path(COPY))
    await furnished.pool.import_file(COPY, str(furnished.folder / "image-private"))
    assert await furnished.examine(COPY) == []


async def test_raw_drivers_notice_changes_as_well(tmp_path: Path) -> None:
    pool = PlainPool("p", str(tmp_path / "pool"))
    for volume in (TEMPLATE, LAYER):
        await pool.create((volume,))
    await session(pool, TEMPLATE, "a")
    assert await pool.examine(LAYER) == []
    change(pool.newest(TEMPLATE.vid).path)
    (found,) = await pool.examine(LAYER)
    assert (found.kind, found.is_fatal) == (Kind.CHANGED, False)
    await pool.accept(TEMPLATE)
    assert await pool.examine(LAYER) == []


async def test_a_volume_that_is_made_empty_at_each_start_is_not_looked_at(furnished: Furnished) -> None:
    assert await furnished.examine(Volume("volatile", "p", "work-2/volatile", SIZE)) == []


async def test_a_chain_is_looked_at_once(furnished: Furnished, monkeypatch: pytest.MonkeyPatch) -> None:
    chains = Chains()
    top = Location(furnished.path(TEMPLATE), "qcow2")
    image = await chains.verify(top)
    assert [os.path.basename(path) for path in image.below] == ["root.3.qcow2", "root.2.img"]
    monkeypatch.setattr("crannog.adapters.storage.chains.read_tool", lambda *_: 1 // 0)
    assert await chains.verify(top) == await chains.look(top) == image
    change(top.path)
    assert await chains.look(top) == image
    with pytest.raises(ZeroDivisionError):
        await chains.verify(top)


@pytest.mark.parametrize("damage", [cut_data, damage_l1, name_passwd, damage_magic], ids=lambda damage: damage.__name__)
async def test_nothing_is_copied_from_what_is_damaged(furnished: Furnished, damage: Callable[[str], None]) -> None:
    """A copy of it would be sound, and not hold the data."""
    path = furnished.path(TEMPLATE)
    damage(path)
    for pool in (furnished.pool, furnished.again()):
        with pytest.raises(ImageError, match=r"root\.4\.qcow2 "):
            async with pool.reading(TEMPLATE.vid):
                pass
        with pytest.raises(StorageError, match=r"root\.4\.qcow2 "):
            await pool.clone(TEMPLATE, ALONE)
        other = PlainPool("other", str(furnished.folder / "other"))
        target = replace(ALONE, pool="other", vid="there-6/private")
        with pytest.raises(StorageError, match=r"root\.4\.qcow2 "):
            await other.clone(TEMPLATE, target, pool)
