"""Driver device-mapper without devices: names, tables, which file is what, and hosts that cannot serve it."""

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crannog.adapters.storage import dm_devices
from crannog.adapters.storage.device_mapper import DeviceMapperPool
from crannog.adapters.storage.dm_files import MappedFiles
from crannog.adapters.storage.dm_tables import (
    CHUNK,
    HEADER,
    Device,
    DeviceName,
    Fill,
    Role,
    layer_table,
    name_device,
    origin_line,
    parse_fill,
    parse_name,
    snapshot_line,
    store_size,
)
from crannog.adapters.storage.drivers import Drivers
from crannog.config import Paths
from crannog.core.pools import PoolConfig
from crannog.core.volumes import LayerState, Volume
from crannog.errors import StorageError

CONFIG = PoolConfig("dm", "device-mapper")
MOST_NAME = 127
"""Bytes of a device's name or UUID (DM_NAME_LEN and DM_UUID_LEN of linux/dm-ioctl.h, less one; the UUID has 128)."""
ROOT = Volume("root", "dm", "debian-1/root", 2**20, save_on_stop=True, revisions_to_keep=1)


# -- names and tables


@given(st.text(max_size=300), st.text(max_size=300), st.sampled_from(list(Role)))
def test_a_name_is_harmless_and_found_again(folder: str, vid: str, role: Role) -> None:
    name = name_device("/" + folder.replace("\0", ""), vid.encode(errors="ignore").decode(), role)
    text = Device(name, ("0 8 zero",)).describe()
    assert parse_name(str(name)) == name
    assert text == f"{name},{name.uuid},,rw,0 8 zero"
    assert set(f"{name}{name.uuid}") <= set("abcdefghijklmnopqrstuvwxyzCRANNOG-0123456789")
    assert len(name.uuid) == len(str(name)) <= MOST_NAME


def test_names_differ_by_folder_volume_and_role(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "a")
    names = [
        name_device(f"{tmp_path}/{folder}", vid, role) for folder in "ab" for vid in ("v/r", "v/q") for role in Role
    ]
    assert len({str(name) for name in names}) == len({name.uuid for name in names}) == len(names)
    assert name_device(f"{tmp_path}/link", "v/r", Role.DISK) == names[0], "a pool has one name, whatever leads to it"


@pytest.mark.parametrize("text", ["", "crannog", "crannog-1-2-disk", "vg-lv", "xcrannog-" + "0" * 16, "control"])
def test_what_is_not_ours_has_no_name(text: str) -> None:
    assert parse_name(text) is None


def test_tables() -> None:
    assert origin_line(2**20, "/dev/loop1") == "0 2048 snapshot-origin /dev/loop1"
    assert snapshot_line(2**20, "/dev/a", "/dev/b", lasts=True) == f"0 2048 snapshot /dev/a /dev/b P {CHUNK}"
    assert layer_table(2**20, 2**20, "/dev/a", "/dev/b", lasts=False) == (f"0 2048 snapshot /dev/a /dev/b N {CHUNK}",)
    begin = store_size(2**20) // 512
    assert layer_table(2**20, 3 * 2**20, "/dev/a", "/dev/b", lasts=False)[1] == f"2048 4096 linear /dev/b {begin}"
    assert Device(DeviceName("0" * 16, "1" * 16, "disk"), ("a", "b"), is_writable=False).describe().endswith(",ro,a,b")


@given(st.integers(min_value=1, max_value=2**45))
def test_a_store_has_room_for_all_chunks_and_their_entries(size: int) -> None:
    """The kernel puts one chunk of entries before as many chunks as it has entries for, behind its header."""
    chunk = CHUNK * 512
    chunks = -(-size // chunk)
    areas = -(-chunks // (chunk // 16))
    needed = chunk * (1 + areas + chunks)
    assert needed <= store_size(size) <= needed + 4 * chunk
    assert store_size(size) % chunk == 0
    assert store_size(size) > HEADER


@pytest.mark.parametrize(
    ("status", "fill"),
    [
        ("0 2048 snapshot 64/4096 64\n", Fill.NOTHING),
        ("0 2048 snapshot 0/4096 0\n", Fill.NOTHING),
        ("0 2048 snapshot 96/4096 64\n2048 8 linear \n", Fill.SOMETHING),
        ("0 2048 snapshot Invalid\n", Fill.TOO_MUCH),
        ("0 2048 snapshot Overflow\n", Fill.TOO_MUCH),
        ("0 2048 snapshot Invalid\n2048 8 linear \n", Fill.TOO_MUCH),
        ("", Fill.TOO_MUCH),
    ],
)
def test_how_much_is_in_a_store(status: str, fill: Fill) -> None:
    assert parse_fill(status) is fill


# -- files


@pytest.fixture
def files(tmp_path: Path) -> MappedFiles:
    made = MappedFiles(str(tmp_path / "root"), "raw")
    Path(made.only).write_bytes(b"t" * 4096)
    return made


def put(files: MappedFiles, *names: str) -> None:
    for name in names:
        Path(files.folder, name).write_bytes(b"x")


def numbers(files: MappedFiles) -> list[int]:
    return [revision.number for revision in files.revisions()]


def test_which_files_are_contents(files: MappedFiles) -> None:
    put(files, "root-cow.2.img", "root.3.img", "root-cow.4.img", "root-cow.img", "root.new", "root-cow.img.new")
    put(files, "root.import.new", "root-cow.session", "volatile.img", "root2.5.img", "root-x.6.img", "root.7.qcow2")
    assert numbers(files) == [2, 3, 4, 5]
    newest = files.newest()
    assert newest is not None
    assert (newest.number, newest.path) == (5, files.only)
    assert files.next_content(keeps_revisions=True) == files.only


def test_what_is_needed_to_show_a_former_content(files: MappedFiles) -> None:
    put(files, "root-cow.1.img", "root-cow.2.img", "root.3.img", "root-cow.4.img")
    needed = {r.number: [one.number for one in files.needed_for(r)] for r in files.revisions()}
    assert needed == {1: [3, 2, 1], 2: [3, 2], 3: [3], 4: [5, 4], 5: [5]}


def test_without_content_there_is_no_newest(files: MappedFiles) -> None:
    put(files, "root.3.img")
    os.unlink(files.only)
    assert files.newest() is None


def test_content_is_kept_under_two_names_until_another_takes_its_place(files: MappedFiles) -> None:
    files.keep_content()
    assert numbers(files) == [1]
    files.forget_kept_content()
    assert os.listdir(files.folder) == ["root.img"]
    files.keep_content()
    os.replace(shutil.copy(files.only, files.half_made), files.only)
    assert numbers(files) == [1, 2]
    files.forget_kept_content()
    assert numbers(files) == [1, 2]


def test_what_stands_on_lost_content_goes_with_it(files: MappedFiles) -> None:
    put(files, "root-cow.1.img", "root.2.img", "root-cow.3.img", "root-cow.4.img")
    assert files.has_stores()
    files.drop_stores()
    assert numbers(files) == [1, 2, 3]
    assert files.needed_for(files.revisions()[0])[0].path.endswith("root.2.img")


def test_a_layers_note_says_whose_store_it_is(files: MappedFiles) -> None:
    """The store of an HVM's layer is called as the file of a PV VM's own volatile volume is."""
    put(files, "volatile.img")
    files.drop_layer()
    assert os.path.exists(files.layer)
    files.note_layer(files.layer, "v 1", lasts=True)
    assert (files.layer_state("v 1"), files.layer_state("v 2")) == (LayerState.CURRENT, LayerState.OUTDATED)
    assert files.is_lasting()
    files.drop_layer()
    assert not os.path.exists(files.layer)
    assert files.layer_state("v 1") is LayerState.ABSENT


@pytest.mark.parametrize("note", ["", "\n", "volatile.img", "x\ny", "/etc/passwd\nv\nlasts", "../root.img\nv\nlasts"])
def test_a_note_that_is_damaged_deletes_nothing(files: MappedFiles, note: str) -> None:
    put(files, "volatile.img")
    Path(files.volatile_source).write_text(note)
    files.drop_layer()
    assert sorted(os.listdir(files.folder)) == ["root.img", "volatile.img"]


# -- hosts that cannot


@pytest.fixture
def drivers(tmp_path: Path) -> Drivers:
    paths = Paths(str(tmp_path / "home"), str(tmp_path / "cache"))
    os.makedirs(paths.pools)
    return Drivers(paths)


def refusal(drivers: Drivers) -> str:
    with pytest.raises(StorageError) as caught:
        drivers.make(CONFIG, [])
    assert drivers.folder(CONFIG)
    assert not os.path.exists(drivers.folder(CONFIG))
    return str(caught.value)


def test_who_is_not_root_is_told_so(drivers: Drivers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert refusal(drivers) == (
        "pool dm of driver device-mapper cannot be used: crannogd does not run as root; start it as root, or use "
        "another pool: driver qcow2 needs neither root nor device-mapper"
    )


def test_a_host_without_the_programs_is_told_so(drivers: Drivers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", "/nowhere")
    assert "cannot be used: dmsetup is not installed; install it, or use another pool" in refusal(drivers)


def test_a_kernel_without_device_mapper_is_told_so(
    drivers: Drivers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for program in ("dmsetup", "losetup"):
        (tmp_path / program).touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(dm_devices, "CONTROL", str(tmp_path / "control"))
    said = refusal(drivers)
    assert "control cannot be opened (No such file or directory): this kernel has no device-mapper" in said
    assert said.endswith("or use another pool: driver qcow2 needs neither root nor device-mapper")


async def test_a_pool_from_elsewhere_is_refused_at_its_first_use(
    drivers: Drivers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    pool = drivers.open(CONFIG)
    assert pool is not None
    (sentence,) = await pool.recover(frozenset())
    assert sentence.startswith("pool dm of driver device-mapper cannot be used: crannogd does not run as root")
    for act in (pool.create((ROOT,)), pool.start(ROOT)):
        with pytest.raises(StorageError, match="does not run as root"):
            await act


def test_what_the_pool_says_of_itself(tmp_path: Path) -> None:
    pool = DeviceMapperPool("dm", str(tmp_path))
    assert (pool.driver, pool.shares_live) == ("device-mapper", False)
    location = pool.locate(ROOT)
    assert location.is_block
    assert location.format == "raw"
    assert not pool.locate(Volume("private", "dm", "w-2/private", 1, save_on_stop=True)).is_block
