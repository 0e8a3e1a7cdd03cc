"""Seals: what is noticed of an image that was changed, and what is no change."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crannog.adapters.storage import seals
from crannog.adapters.storage.seals import Seal
from tests.mounts import disk_file_system, small_file_system

SECOND = 10**9


def make(folder: Path, name: str = "root.2.img") -> str:
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / name
    path.write_bytes(b"a" * 4096)
    return str(path)


def difference(path: str) -> str:
    sealed = seals.find(path)
    assert sealed is not None
    return sealed.difference(seals.take(path))


def rewrite(path: str) -> None:
    """Change a file without changing its size."""
    before = os.stat(path).st_mtime_ns
    Path(path).write_bytes(b"b" * 4096)
    if os.stat(path).st_mtime_ns == before:  # the clock of some file systems is slower than this test
        os.utime(path, ns=(before + SECOND, before + SECOND))


def swap(path: str) -> None:
    """Put another file in the place of one, as large and as old."""
    shutil.copy2(path, path + ".other")
    os.replace(path + ".other", path)


@contextmanager
def place(kind: str, folder: Path) -> Iterator[Path]:
    if kind == "tmpfs":
        with small_file_system(folder / "small", "8m") as found:
            yield found
    else:
        with disk_file_system(folder, kind) if kind else nullcontext(folder) as found:
            yield found


@pytest.mark.parametrize("kind", ["", "tmpfs", "ext4", "btrfs", "xfs"])
def test_each_file_system_keeps_what_a_seal_says(kind: str, tmp_path: Path) -> None:
    with place(kind, tmp_path) as folder:
        path = make(folder / "vm-1")
        seals.put(path, is_sound=True)
        assert difference(path) == ""
        os.chmod(path, 0o400)
        os.rename(folder / "vm-1", folder / "vm-2")
        assert difference(path.replace("vm-1", "vm-2")) == ""
        rewrite(path.replace("vm-1", "vm-2"))
        assert difference(path.replace("vm-1", "vm-2")) == "was written to after it was finished"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (rewrite, "was written to after it was finished"),
        (swap, "is another file than the one that was finished"),
        (lambda path: os.truncate(path, 5), "had 4096 bytes and has 5"),
        (lambda path: os.truncate(path, 8192), "had 4096 bytes and has 8192"),
    ],
)
def test_each_change_is_noticed(change: Callable[[str], None], told: str, tmp_path: Path) -> None:
    path = make(tmp_path / "vm-1")
    seals.put(path)
    change(path)
    assert difference(path) == told
    seals.put(path)
    assert difference(path) == ""


@pytest.mark.parametrize("whole_seconds", [False, True])
def test_a_home_that_was_moved_is_not_taken_for_changed(tmp_path: Path, whole_seconds: bool) -> None:
    path = make(tmp_path / "home/vm-1")
    seals.put(path)
    shutil.copytree(tmp_path / "home", tmp_path / "elsewhere", copy_function=shutil.copy2)
    moved = str(tmp_path / "elsewhere/vm-1/root.2.img")
    assert os.stat(moved).st_ino != os.stat(path).st_ino
    if whole_seconds:  # as tar keeps them by default
        seconds = os.stat(path).st_mtime_ns // SECOND * SECOND
        os.utime(moved, ns=(seconds, seconds))
    assert difference(moved) == ""
    rewrite(moved)
    assert difference(moved) != ""


def test_what_has_no_seal(tmp_path: Path) -> None:
    path = make(tmp_path / "vm-1")
    assert seals.find(path) is None
    seals.drop(path)
    for name in ("root.dirty.qcow2", "root.volatile.img", "root.new", "notes.txt", "root-cow.3.img.x"):
        other = make(tmp_path / "vm-1", name)
        seals.put(other)
        assert seals.find(other) is None
    assert sorted(os.listdir(tmp_path / "vm-1")) == sorted(
        ["root.2.img", "root.dirty.qcow2", "root.volatile.img", "root.new", "notes.txt", "root-cow.3.img.x"]
    )


def test_seals_of_one_volume_are_in_one_file_and_go_with_their_images(tmp_path: Path) -> None:
    paths = [make(tmp_path / "vm-1", name) for name in ("root.img", "root.1.img", "root.2.qcow2", "private.img")]
    for path in paths:
        seals.put(path, is_sound=path.endswith("img"))
    found = [seals.find(path) for path in paths]
    assert [seal.is_sound for seal in found if seal] == [True, True, False, True]
    os.unlink(paths[1])
    seals.put(paths[2], is_sound=True)
    assert len((tmp_path / "vm-1/root.seal").read_text().splitlines()) == 2
    assert os.stat(tmp_path / "vm-1/root.seal").st_mode & 0o777 == 0o600
    seals.drop(paths[0])
    assert [seals.find(path) is None for path in paths] == [True, True, True, False]
    assert not (tmp_path / "vm-1/root.seal").exists()


@given(st.binary(max_size=200))
def test_a_damaged_seal_is_none(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = make(tmp_path_factory.mktemp("seals") / "vm-1")
    Path(path).with_name("root.seal").write_bytes(data)
    assert seals.find(path) is None
    seals.put(path)
    assert difference(path) == ""


def test_a_seal_that_cannot_be_written_harms_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = make(tmp_path / "vm-1")
    (tmp_path / "vm-1/root.seal").mkdir()
    seals.put(path)
    assert "was not sealed" in caplog.text
    assert seals.find(path) is None
    assert sorted(os.listdir(tmp_path / "vm-1")) == ["root.2.img", "root.seal"]


@pytest.mark.parametrize("is_changed", [False, True])
def test_an_equal_file_in_the_place_of_a_sealed_one(tmp_path: Path, is_changed: bool) -> None:
    path = make(tmp_path / "vm-1")
    seals.put(path, is_sound=True)
    if is_changed:
        rewrite(path)
    with seals.equal_replacement(path):
        swap(path)
    sealed = seals.find(path)
    assert (sealed is None) is is_changed
    assert sealed is None or (sealed.is_sound and difference(path) == "")


@given(st.integers(0, 2**63 - 1), st.integers(-(2**62), 2**62), st.integers(0, 2**62), st.integers(0, 2**62))
def test_a_seal_is_read_as_it_was_written(size: int, when: int, inode: int, folder: int) -> None:
    written = {"root.2.img": Seal(size, when, inode, folder), "root.3.qcow2": Seal(1, 2, 3, 4, is_sound=True)}
    assert seals._parse(seals._render(written)) == written
