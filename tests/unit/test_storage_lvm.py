"""The parts of driver lvm-thin that need no LVM: names, tags, options, reports, commands; what is said without it."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crannog.adapters.storage import lvm_commands
from crannog.adapters.storage.drivers import Drivers
from crannog.adapters.storage.lvm_commands import Place, alteration, creation, dooming
from crannog.adapters.storage.lvm_names import (
    DIRTY,
    GROUP,
    THIN_POOL,
    Mark,
    Owner,
    State,
    ThinVolume,
    device_name,
    parse_volume,
    vm_of,
)
from crannog.adapters.storage.lvm_report import Picture, parse_mapped, parse_report
from crannog.adapters.storage.lvm_thin import LvmThinPool
from crannog.config import Paths
from crannog.core.pools import PoolConfig
from crannog.core.volumes import Volume
from crannog.errors import StorageError, ValueRefusedError

OWNER = Owner("/home", "p")
PLACE = Place("vg", "tp")
MIB = 2**20
VID = "debian-1/root"
CONTENT = ThinVolume(OWNER.name(VID, 1), VID, State.FINISHED, MIB, changed="2026-11-24T18:02:01.123456", mapped=65536)


# -- names


@pytest.mark.parametrize("text", ["vg", "vg-1", "a_b.c+d", "0", "x" * 80, "dom0-root.2", "-".join("ab") * 10])
def test_names_that_lvm_takes(text: str) -> None:
    assert GROUP.check(text) == THIN_POOL.check(text) == text


@pytest.mark.parametrize(
    "text",
    ["", "-", "-vg", "--config", ".", "..", "a/b", "/dev/vg", "a b", "a\n", "a;b", "$(id)", "@tag", "ä", "a" * 100,
     "-".join("a" * 60), "vg\0", "a,b", "a=b"],
)  # fmt: skip
def test_names_that_lvm_would_not_take_or_take_for_something_else(text: str) -> None:
    for option in (GROUP, THIN_POOL):
        with pytest.raises(ValueRefusedError, match=f"cannot be the name of a {option.name.replace('_', ' ')} for LVM"):
            option.check(text)


@pytest.mark.parametrize("text", ["snapshot1", "pvmove0", "a_tdata", "a_tmeta_b", "x_mlog", "x_rimage_1", "_pmspare"])
def test_names_that_lvm_keeps_for_itself(text: str) -> None:
    with pytest.raises(ValueRefusedError):
        THIN_POOL.check(text)
    assert GROUP.check(text) == text


def test_a_device_has_the_longest_name_that_can_be() -> None:
    fitting = max(size for size in range(1, 128) if _is_taken("g" * size))
    own = OWNER.name(VID, 999_999_999)
    assert len(device_name("g" * fitting, own)) == 127
    assert len(device_name("g" * fitting, OWNER.name(VID, "volatile"))) < 127


def _is_taken(text: str) -> bool:
    try:
        return GROUP.check(text) == text
    except ValueRefusedError:
        return False


def test_hyphens_in_names_of_devices() -> None:
    assert device_name("a-b", "c--d") == "a--b-c----d"


def test_names_tell_homes_pools_and_volumes_apart() -> None:
    owners = [OWNER, Owner("/home", "q"), Owner("/homes", "p"), Owner("/home/p", "p")]
    vids = [VID, "debian-1/private", "debian-11/root", "debian/1-root"]
    assert len({owner.name(vid, role) for owner in owners for vid in vids for role in (1, 11, DIRTY)}) == 48


@given(st.text(), st.text(), st.text())
def test_names_are_harmless_whatever_they_stand_for(home: str, pool: str, vid: str) -> None:
    name = Owner(home.replace("\ud800", ""), pool).name(vid, 1)
    assert set(name) <= set("crannog-0123456789abcdef")
    assert len(name) == 26


@given(st.text())
def test_ids_of_volumes_are_harmless_in_tags(vid: str) -> None:
    if vm_of(vid):
        assert vid.isascii()
        assert set(vid) - set("+_.-/") <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")


# -- tags


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("mark", Mark)
@pytest.mark.parametrize("mapped", [None, 0, 65536])
def test_tags_say_all_that_there_is_to_know(state: State, mark: Mark, mapped: int | None) -> None:
    volume = replace(CONTENT, state=state, mark=mark, mapped=mapped)
    tags = ["other", *volume.tags(OWNER), "crannogx"]
    assert parse_volume(OWNER, volume.name, tags, MIB) == volume


def test_an_lv_that_is_not_ours_is_not_looked_at() -> None:
    tags = CONTENT.tags(OWNER)
    others = [Owner("/home", "q"), Owner("/other", "p")]
    for owner in others:
        assert parse_volume(owner, CONTENT.name, tags, MIB) is None
        assert parse_volume(owner, owner.name(VID, 1), tags, MIB) is None
    for name in ("root", "crannog", f"{CONTENT.name}0x", OWNER.name("other-2/root", 1), OWNER.name(VID, "0"), ""):
        assert parse_volume(OWNER, name, tags, MIB) is None
    for tag in tags:
        if not tag.startswith(("crannog.changed", "crannog.mapped")):
            assert parse_volume(OWNER, CONTENT.name, [one for one in tags if one != tag], MIB) is None
    assert parse_volume(OWNER, CONTENT.name, [*tags, "crannog.state=odd"], MIB) is None
    assert parse_volume(OWNER, CONTENT.name, [], MIB) is None


def test_a_revision_is_called_by_number_and_second() -> None:
    assert CONTENT.ident == "1-2026-11-24T18:02:01Z"
    assert replace(CONTENT, name=OWNER.name(VID, 12)).number == 12
    assert replace(CONTENT, name=OWNER.name(VID, DIRTY)).number == 0


# -- what lvs reports


def row(name: str, attributes: str, **more: str) -> dict[str, str]:
    """Return what lvs 2.03 says of an LV."""
    least = {
        "lv_size": str(MIB),
        "lv_tags": "",
        "pool_lv": "",
        "origin": "",
        "data_percent": "",
        "vg_extent_size": "65536",
    }
    return {"lv_name": name, "lv_attr": attributes, **least, **more}


POOL = row("tp", "twi-aotz--", lv_size=str(64 * MIB), data_percent="12.50")


def report(*rows: dict[str, str]) -> str:
    return json.dumps({"report": [{"lv": list(rows)}]})


def test_a_report() -> None:
    tags = ",".join(CONTENT.tags(OWNER))
    rows = [
        row("root", "-wi-ao----"),
        row(CONTENT.name, "Vri-a-tz-k", lv_tags=tags, pool_lv="tp", origin="x"),
        row(OWNER.name(VID, 2), "Vwi-aotz-k", lv_tags=tags, pool_lv="tp", data_percent="1.00"),
        row(OWNER.name(VID, 3), "Vwi---tz-k", lv_tags=tags, pool_lv="other"),
        row("foreign", "Vwi-a-tz--", pool_lv="tp"),
    ]
    picture = parse_report(report(*rows, POOL), "tp", OWNER)
    assert picture is not None
    assert (picture.size, picture.used, picture.extent, picture.is_zeroing) == (64 * MIB, 8 * MIB, 65536, True)
    assert list(picture.volumes) == [CONTENT.name, OWNER.name(VID, 2)]
    first, second = picture.volumes.values()
    assert first == replace(CONTENT, origin="x", is_readonly=True)
    assert (first.is_idle, second.is_idle, second.is_readonly) == (True, False, False)


def test_a_thin_pool_that_does_not_zero_or_is_none() -> None:
    odd = parse_report(report(row("tp", "twi-aot---", data_percent="")), "tp", OWNER)
    assert odd is not None
    assert (odd.is_zeroing, odd.used) == (False, 0)
    assert parse_report(report(), "tp", OWNER) is None
    assert parse_report(report(row("tp", "-wi-a-----"), row("tpx", "twi-aotz--")), "tp", OWNER) is None


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"report": []}', '{"report": [{"lv": [{}]}]}', "null", "x" * 99])
def test_a_report_that_makes_no_sense(text: str) -> None:
    with pytest.raises(StorageError, match="lvs reports nothing of thin pool tp that makes sense"):
        parse_report(text, "tp", OWNER)
    with pytest.raises(StorageError, match="makes sense"):
        parse_report(report(row("tp", "t")), "tp", OWNER)


@pytest.mark.parametrize(
    ("status", "mapped"),
    [
        ("0 2048 thin 256 255\n", 131072), ("0 2048 thin 0 -\n", 0), ("0 2048 thin Fail\n", None), ("", None),
        ("0 2048 thin Error\n", None), ("0 131072 thin-pool 3 62/512 0/1024 -", None), ("0 8 linear 253:1 0", None),
    ],
)  # fmt: skip
def test_what_the_kernel_says_of_a_thin_lv(status: str, mapped: int | None) -> None:
    assert parse_mapped(status) == mapped


# -- the picture


def numbered(number: int | str, state: State = State.FINISHED, **more: str) -> ThinVolume:
    return replace(CONTENT, name=OWNER.name(VID, number), state=state, **more)  # type: ignore[arg-type]


def picture_of(*volumes: ThinVolume) -> Picture:
    picture = Picture(64 * MIB, 0, 65536, is_zeroing=True)
    for volume in volumes:
        picture = picture.with_volume(volume)
    return picture


def test_contents_are_in_the_order_of_their_numbers() -> None:
    picture = picture_of(*(numbered(number) for number in (10, 9, 2, 11)), numbered(12, State.HALF_MADE))
    assert [content.number for content in picture.finished(VID)] == [2, 9, 10, 11]
    assert picture.next_number(VID) == 13
    assert picture.next_number("other-2/root") == 1
    assert picture.finished("other-2/root") == []


def test_a_session_that_was_cut_short_while_it_got_its_number() -> None:
    for name in (DIRTY, 3):
        dirty = numbered(name, State.DIRTY)
        picture = picture_of(numbered(1), numbered(2), dirty)
        assert picture.dirty(VID) == dirty
        assert [content.number for content in picture.finished(VID)] == [1, 2]


def test_snapshots_of_what_is_deleted_stand_alone() -> None:
    layer = replace(numbered("volatile", State.VOLATILE), vid="work-2/root", origin=CONTENT.name)
    left = picture_of(CONTENT, numbered(2), layer).without([CONTENT.name])
    assert {volume.name: volume.origin for volume in left.volumes.values()} == {OWNER.name(VID, 2): "", layer.name: ""}


def test_sizes_are_those_that_an_lv_can_have() -> None:
    assert [picture_of().round_up(size) for size in (1, 65536, 65537)] == [65536, 65536, 131072]


# -- commands


def test_an_empty_lv_and_a_snapshot() -> None:
    new = ThinVolume("n", VID, State.HALF_MADE, MIB)
    tags = ["--addtag", f"crannog.home={OWNER.tags['home']}", "--addtag", "crannog.pool=p"]
    tags += ["--addtag", f"crannog.vid={VID}", "--addtag", "crannog.state=half-made"]
    begin = ["lvcreate", "--name", "n", "--setactivationskip", "y"]
    assert creation(PLACE, OWNER, new, is_active=True) == [
        *begin, "--activate", "y", "-K", "--permission", "rw", *tags, "--thin", "--virtualsize", f"{MIB}b", "vg/tp",
    ]  # fmt: skip
    assert creation(PLACE, OWNER, replace(new, origin="o", is_readonly=True), is_active=False) == [
        *begin, "--activate", "n", "--permission", "r", *tags, "--snapshot", "vg/o",
    ]  # fmt: skip


def test_an_lv_is_changed_in_one_step() -> None:
    old = numbered(1, State.DIRTY)
    new = replace(old, state=State.FINISHED, is_readonly=True, mapped=None)
    assert alteration(PLACE, OWNER, old, new) == [
        "lvchange", "--deltag", "crannog.mapped=65536", "--deltag", "crannog.state=dirty",
        "--addtag", "crannog.state=finished", "--permission", "r", f"vg/{old.name}",
    ]  # fmt: skip
    assert alteration(PLACE, OWNER, old, old) == []


def test_what_is_doomed_is_not_provisional() -> None:
    assert dooming(PLACE, ["a", "b"]) == [
        "lvchange", "--deltag", "crannog.mark=provisional", "--addtag", "crannog.mark=doomed", "vg/a", "vg/b",
    ]  # fmt: skip


# -- the driver


def test_options(tmp_path: Path) -> None:
    known = Drivers(Paths(str(tmp_path), str(tmp_path))).options()["lvm-thin"]
    assert [option.name for option in known] == ["volume_group", "thin_pool", "revisions_to_keep", "ephemeral_volatile"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "pool p of driver lvm-thin needs option volume_group"),
        ({"volume_group": "vg"}, "pool p of driver lvm-thin needs option thin_pool"),
        ({"volume_group": "vg", "thin_pool": "-x"}, "'-x' cannot be the name of a thin pool for LVM"),
    ],
)
def test_a_pool_that_says_too_little(tmp_path: Path, options: dict[str, str], sentence: str) -> None:
    drivers = Drivers(Paths(str(tmp_path), str(tmp_path)))
    config = PoolConfig("p", "lvm-thin", tuple(options.items()))
    with pytest.raises(ValueRefusedError) as caught:
        drivers.make(config, [])
    assert str(caught.value).startswith(sentence)
    assert drivers.open(config) is None
    assert drivers.space(config) is None


CONFIG = PoolConfig("p", "lvm-thin", (("volume_group", "vg"), ("thin_pool", "tp")))


async def test_without_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    drivers = Drivers(Paths(str(tmp_path), str(tmp_path)))
    sentence = (
        "pool p of driver lvm-thin cannot be used: crannogd does not run as root; start it as root, "
        "or use driver qcow2, which needs neither root nor LVM"
    )
    with pytest.raises(StorageError) as caught:
        drivers.make(CONFIG, [])
    assert str(caught.value) == sentence
    pool = drivers.open(CONFIG)
    assert pool is not None
    assert await pool.recover(frozenset()) == [sentence]
    with pytest.raises(StorageError, match="does not run as root"):
        await pool.start(Volume("root", "p", VID, MIB, save_on_stop=True))
    assert drivers.space(CONFIG) is None


async def test_without_lvm2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda _program: None)
    pool = LvmThinPool("p", PLACE, str(tmp_path))
    (sentence,) = await pool.recover(frozenset())
    assert sentence == (
        "pool p of driver lvm-thin cannot be used: the programs of lvm2 are not there; install lvm2, "
        "or use driver qcow2, which needs neither root nor LVM"
    )


def fake_lvs(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put programs that only say something in the place of those of lvm2."""
    for program in ("lvs", "lvcreate", "dmsetup"):
        (folder / program).write_text(f"#!/bin/sh\n{script}\n")
        (folder / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(os, "geteuid", lambda: 0)


async def test_what_lvm_complains_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_lvs(tmp_path, "echo '  WARNING: odd' >&2; echo '  No idea' >&2; echo '  So no' >&2; exit 5", monkeypatch)
    pool = LvmThinPool("p", PLACE, str(tmp_path))
    assert await pool.recover(frozenset()) == ["pool p of driver lvm-thin cannot be used: No idea"]
    fake_lvs(tmp_path, "echo '  cannot create new thin volume, free space reached threshold.' >&2; exit 5", monkeypatch)
    with pytest.raises(StorageError) as caught:
        await lvm_commands.run_lvm("it fails", PLACE, ["lvcreate"])
    assert str(caught.value) == (
        "it fails: No space left on device; free some space in thin pool vg/tp, or make it larger with lvextend(8)"
    )


async def test_lvm_that_gives_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_lvs(tmp_path, "exec sleep 60", monkeypatch)
    monkeypatch.setattr(lvm_commands, "_TIMEOUT", 0.1)
    pool = LvmThinPool("p", PLACE, str(tmp_path))
    (sentence,) = await pool.recover(frozenset())
    assert sentence.startswith("pool p of driver lvm-thin cannot be used: lvs gives no answer: ")
