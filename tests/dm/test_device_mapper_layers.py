"""What driver device-mapper makes of its files: the layers of PV and HVM (design.md, B1), sessions, former contents."""

import logging
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from crannog.adapters.storage import dm_devices
from crannog.adapters.storage.dm_tables import digest
from crannog.core.volumes import LayerState
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
    put,
    see,
    session,
    stored,
    write,
)
from tests.contract.storage_volatile import VOLATILE
from tests.dm.devices import list_remains, loop_device, run
from tests.dm.dm_bench import DmBench, lend_bench, release
from tests.mounts import small_file_system

PV_LAYER = replace(LAYER, rw=False)
KEPT = replace(LAYER, keeps_layer=True)
ONCE = replace(KEEPING, revisions_to_keep=1)
FORGED = "01234567-89ab-cdef-0123-456789abcdef"
SNAPSHOT = r"0 2048 snapshot \d+:\d+ \d+:\d+ {} 32\n"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[DmBench]:
    yield from lend_bench(tmp_path / "pools")


@pytest.fixture
def small_bench(tmp_path: Path) -> Iterator[DmBench]:
    with small_file_system(tmp_path / "small", "8m") as folder:
        yield from lend_bench(folder)


@pytest.fixture
async def pool(bench: DmBench) -> Pool:
    """Return a pool with a template that has a former content, `s`, and a present one, `t`."""
    pool = await furnish(bench.open())
    for letter in "st":
        await session(pool, ONCE, letter)
    return pool


# -- B1


async def test_a_pv_vms_root_is_a_readonly_layer_and_its_volatile_disk_is_beside_it(bench: DmBench, pool: Pool) -> None:
    """The host makes one disk of root.img and root-cow.img; the VM's own initramfs lays volatile.img over it."""
    before = bench.images()
    template = describe_template(pool)
    await pool.start(PV_LAYER)
    await pool.start(VOLATILE)
    root, volatile = pool.locate(PV_LAYER), pool.locate(VOLATILE)
    assert bench.images() - before == {"work-2/root-cow.img", "work-2/volatile.img"}
    assert list(bench.devices()) == ["disk"]
    assert re.fullmatch(SNAPSHOT.format("N"), bench.devices()["disk"])
    assert bench.below("disk") == ["debian-1/root.img ro", "work-2/root-cow.img rw"]
    assert run("blockdev", "--getro", root.path).strip() == "1"
    assert (root.is_block, volatile.path) == (True, str(bench.folder / "p/work-2/volatile.img"))
    assert holds(root, "t")
    assert "wrote" not in io(root, f"write -P 120 0 {SIZE}")
    write(volatile, "v")
    assert (peek(root), peek(volatile)) == ("t", "v")
    for volume in (PV_LAYER, VOLATILE):
        await pool.stop(volume)
    assert (bench.images(), bench.devices(), describe_template(pool)) == (before, {}, template)


async def test_an_hvm_has_one_layer_and_no_root_cow(bench: DmBench, pool: Pool) -> None:
    """The host makes one writable disk of root.img and volatile.img; nothing is left for the guest to lay over it."""
    before = bench.images()
    template = describe_template(pool)
    await pool.start(LAYER)
    assert bench.images() - before == {"work-2/volatile.img"}
    assert not [path for path in bench.images() if path.endswith("root-cow.img")]
    assert list(bench.devices()) == ["disk"]
    assert re.fullmatch(SNAPSHOT.format("N"), bench.devices()["disk"])
    assert bench.below("disk") == ["debian-1/root.img ro", "work-2/volatile.img rw"]
    assert run("blockdev", "--getro", pool.locate(LAYER).path).strip() == "0"
    write(pool.locate(LAYER), "a")
    assert holds(pool.locate(LAYER), "a")
    assert describe_template(pool) == template
    await pool.stop(LAYER)
    assert (bench.images(), bench.devices(), describe_template(pool)) == (before, {}, template)
    assert await see(pool, LAYER) == "t"


def describe_template(pool: Pool) -> tuple[int, int, bytes]:
    """Return what changes with a template's file: which file it is, when it was written to, what it holds."""
    path = Path(pool.newest(KEEPING.vid).path)
    return path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()


async def test_a_whole_layer_has_room_for_all_of_its_disk(pool: Pool) -> None:
    """Of a layer that lasts as well, and of what is larger than the template's disk."""
    for layer in (replace(LAYER, size=3 * SIZE), replace(KEPT, size=3 * SIZE)):
        await pool.start(layer)
        for letter in "xy":
            assert f"wrote {3 * SIZE}/" in io(pool.locate(layer), f"write -P {ord(letter)} 0 {3 * SIZE}")
            assert all(holds(pool.locate(layer), letter, place) for place in (0, SIZE - 4096, SIZE, 3 * SIZE - 4096))
        await pool.stop(layer)


async def test_the_templates_own_session_is_in_its_file_at_once(bench: DmBench, pool: Pool) -> None:
    file = Path(pool.newest(KEEPING.vid).path)
    assert file.name == "root.img"
    await pool.start(ONCE)
    assert set(bench.devices()) == {"disk", "former"}
    assert re.fullmatch(r"0 2048 snapshot-origin \d+:\d+\n", bench.devices()["disk"])
    assert re.fullmatch(SNAPSHOT.format("P"), bench.devices()["former"])
    write(pool.locate(ONCE), "u")
    assert "debian-1/root-cow.img" in bench.images()
    assert file.read_bytes()[65536:69632] == b"u" * 4096
    await pool.stop(ONCE)
    assert bench.images() == {"debian-1/root.img", "debian-1/root-cow.2.img", "work-2/private.img"}


# -- former contents


async def test_going_back_to_before_the_last_session_and_forth(pool: Pool) -> None:
    changed = os.stat(pool.newest(KEEPING.vid).path).st_mtime
    await session(pool, ONCE, "u")
    (former,) = pool.revisions(ONCE)
    assert former.startswith("2-")
    when = os.stat(os.path.dirname(pool.newest(KEEPING.vid).path) + "/root-cow.2.img").st_mtime
    assert when == pytest.approx(changed, abs=0.01), "the time is that of the content, not of the session after it"
    await pool.revert(ONCE, former)
    assert await see(pool, ONCE) == "t"
    await pool.revert(ONCE, pool.revisions(ONCE)[0])
    assert await see(pool, ONCE) == "u"


async def test_former_contents_stand_on_one_another(bench: DmBench, pool: Pool, tmp_path: Path) -> None:
    many = replace(KEEPING, revisions_to_keep=9)
    await session(pool, many, "u")
    await pool.import_file(many, image(tmp_path, "v"))
    await session(pool, many, "w")
    names = pool.revisions(many)
    assert [name.partition("-")[0] for name in names] == ["1", "2", "3", "4"]
    for name, letter in zip(names, "stuv", strict=True):
        await pool.revert(many, name)
        assert await stored(pool, many.vid) == letter
        assert bench.devices() == {}


async def test_a_session_that_writes_nothing_makes_no_revision(bench: DmBench, pool: Pool) -> None:
    before = pool.revisions(ONCE), bench.contents()
    assert await see(pool, ONCE) == "t"
    await pool.start(ONCE)
    await pool.stop(ONCE)
    assert (pool.revisions(ONCE), bench.contents()) == before


async def test_what_a_failed_start_wrote_can_be_taken_back(pool: Pool) -> None:
    await pool.start(ONCE)
    write(pool.locate(ONCE), "u")
    await pool.abandon(ONCE)
    assert await see(pool, ONCE) == "u"
    await pool.revert(ONCE, pool.revisions(ONCE)[-1])
    assert await see(pool, ONCE) == "t"


async def test_a_host_that_crashes_keeps_content_and_former_content(bench: DmBench, pool: Pool) -> None:
    await pool.start(ONCE)
    write(pool.locate(ONCE), "u")
    await release(str(bench.folder / "p"))
    again = bench.open()
    assert await again.recover(ALL) == []
    assert await see(again, ONCE) == "u"
    await again.revert(ONCE, again.revisions(ONCE)[0])
    assert await see(again, ONCE) == "t"


async def test_content_that_a_crash_made_a_former_one_too_early(bench: DmBench, pool: Pool) -> None:
    """The daemon died between the two names of a content: sessions go on in it, and no revision shows them."""
    file = pool.newest(KEEPING.vid).path
    os.link(file, os.path.dirname(file) + "/root.2.img")
    many = replace(KEEPING, revisions_to_keep=9)
    assert len(pool.revisions(many)) == 1
    await session(pool, many, "u")
    await pool.clear(many)
    for name, letter in zip(pool.revisions(many), "stu", strict=True):
        await pool.revert(many, name)
        assert await see(pool, many) == letter


async def test_a_full_disk_costs_former_contents_and_no_present_one(
    small_bench: DmBench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool = await furnish(small_bench.open())
    for letter in "rst":
        await pool.import_file(KEEPING, image(tmp_path, letter))
    await session(pool, KEEPING, "u")
    await pool.start(KEEPING)
    with small_bench.full():
        assert f"wrote {SIZE}/" in io(pool.locate(KEEPING), f"write -P 118 0 {SIZE}")
        with caplog.at_level(logging.WARNING):
            await pool.stop(KEEPING)
    assert "the disk was full: former contents of volume debian-1/root are lost" in caplog.text
    assert await see(small_bench.open(), KEEPING) == "v"
    (left,) = pool.revisions(KEEPING)
    await pool.revert(KEEPING, left)
    assert await see(pool, KEEPING) == "s"


async def test_a_former_content_that_is_damaged_is_not_gone_back_to(bench: DmBench, pool: Pool) -> None:
    store = bench.folder / "p/debian-1/root-cow.1.img"
    with store.open("r+b") as file:
        file.write(b"x" * 4096)
    with pytest.raises(StorageError, match="debian-1/root cannot go back to 1-"):
        await pool.revert(ONCE, pool.revisions(ONCE)[0])
    assert await see(pool, ONCE) == "t"
    assert bench.devices() == {}


# -- B2


async def test_a_kept_layer_survives_the_hosts_reboot(bench: DmBench, pool: Pool) -> None:
    await pool.start(KEPT)
    assert re.fullmatch(SNAPSHOT.format("P"), bench.devices()["disk"])
    write(pool.locate(KEPT), "a")
    await release(str(bench.folder / "p"))
    again = bench.open()
    assert await again.layer_state(KEPT) is LayerState.CURRENT
    assert await see(again, KEPT) == "a"
    await session(again, ONCE, "u")
    assert await again.layer_state(KEPT) is LayerState.OUTDATED
    assert await see(again, KEPT) == "u"


# -- devices


async def test_names_cannot_do_harm_and_do_not_clash(bench: DmBench, pool: Pool) -> None:
    odd = [replace(KEEPING, vid=f"{name}/root") for name in ("-a;b,c d", "'$(id)`id`\"\\" + "é" * 60)]
    other = bench.open("other")
    for volume in odd:
        await pool.create((volume,))
        await session(pool, volume, "a")
        await pool.start(volume)
    await other.create((KEEPING,))
    await session(other, KEEPING, "o")
    await other.start(KEEPING)
    await pool.start(ONCE)
    paths = {place.locate(volume).path for place, volume in [(other, KEEPING), *((pool, one) for one in (ONCE, *odd))]}
    assert len(paths) == len(odd) + 2
    assert all(re.fullmatch(r"/dev/mapper/crannog-[0-9a-f]{16}-[0-9a-f]{16}-disk", path) for path in paths)
    assert [holds(pool.locate(volume), "a") for volume in odd] == [True] * len(odd)
    assert (holds(other.locate(KEEPING), "o"), holds(pool.locate(ONCE), "t")) == (True, True)


async def test_a_device_that_somebody_has_open_is_named_and_nothing_is_lost(bench: DmBench, pool: Pool) -> None:
    await pool.start(ONCE)
    path = pool.locate(ONCE).path
    descriptor = os.open(path, os.O_RDWR)
    try:
        with pytest.raises(
            StorageError, match=f"{path} .*end what has it open .'fuser {path}.*Device or resource busy"
        ):
            await pool.stop(ONCE)
        assert set(bench.devices()) == {"disk", "former"}, "what saves the content stays as long as somebody can write"
        os.pwrite(descriptor, b"u" * SIZE, 0)
    finally:
        os.close(descriptor)
    await pool.stop(ONCE)
    await pool.revert(ONCE, pool.revisions(ONCE)[0])
    assert await see(pool, ONCE) == "t"


async def test_the_host_does_not_look_into_what_guests_write(bench: DmBench, pool: Pool, tmp_path: Path) -> None:
    """A guest cannot have its disk taken for one of the host's."""
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(4 * SIZE))
    run("mkfs.ext4", "-q", "-U", FORGED, disk)
    await pool.import_file(ONCE, str(disk))
    large = replace(LAYER, size=4 * SIZE)
    for volume in (ONCE, large):
        await pool.start(volume)
        put(pool.locate(volume).path, disk.read_bytes()[:SIZE])
        run("udevadm", "settle")
        devices = [pool.locate(volume).path, *loops_over(bench.folder)]
        assert len(devices) == 3
        assert not re.search("ID_FS|ID_PART", "".join(run("udevadm", "info", device) for device in devices))
        assert not os.path.exists(f"/dev/disk/by-uuid/{FORGED}")
        await pool.stop(volume)
    with loop_device(disk) as device:
        run("udevadm", "settle")
        assert FORGED in run("udevadm", "info", device), "it would be seen"


def loops_over(folder: Path) -> list[str]:
    listed = run("losetup", "--list", "--noheadings", "--raw", "-O", "NAME,BACK-FILE").splitlines()
    return [line.split()[0] for line in listed if line.split()[1].startswith(f"{folder}/")]


async def test_a_vm_that_is_removed_takes_its_devices_along(bench: DmBench, pool: Pool) -> None:
    await pool.start(LAYER)
    await pool.start(ONCE)
    await pool.remove((IN_PLACE, LAYER))
    await pool.remove((ONCE,))
    assert bench.devices() == {}


async def test_what_a_dead_daemon_left_is_found_again(bench: DmBench, pool: Pool, tmp_path: Path) -> None:
    await pool.start(LAYER)
    await pool.start(ONCE)
    gone = replace(KEEPING, vid="gone-9/root")
    await pool.create((gone,))
    await pool.start(gone)
    with loop_device(tmp_path / "somebody's", SIZE):
        await dm_devices._attach("a test", str(bench.folder / "p/work-2/private.img"), is_writable=False)
        done = await bench.open().recover(ALL)
        assert any("somebody's" in line for line in list_remains()["loop devices"]), "only what is in the pool is ours"
    assert [re.sub(r"\S*/\S*", "X", line) for line in done] == [
        "pool p: deleted half-made gone-9",
        "pool p: removed X which no volume uses",
        "pool p: freed X which nothing used",
    ]
    assert sorted(name.role for name in dm_devices.list_devices(digest(str(bench.folder / "p")))) == [
        "disk", "disk", "former",
    ]  # fmt: skip
    assert holds(pool.locate(LAYER), "t")


async def test_links_are_not_followed(bench: DmBench, pool: Pool, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * SIZE)
    for name in ("debian-1/root-cow.img.new", "work-2/volatile.img", "work-2/root-cow.img"):
        (bench.folder / "p" / name).symlink_to(secret)
    for volume in (ONCE, LAYER, PV_LAYER):
        await pool.start(volume)
        io(pool.locate(volume), f"write -P 120 0 {SIZE}")
        await pool.stop(volume)
    (bench.folder / "p/debian-1/root.img").unlink()
    (bench.folder / "p/debian-1/root.img").symlink_to(secret)
    for volume in (ONCE, LAYER):
        with pytest.raises(StorageError, match=r"root\.img is a link, which no volume may be"):
            await pool.start(volume)
    assert secret.read_bytes() == b"s" * SIZE
