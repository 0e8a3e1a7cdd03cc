"""Where memory images are kept: whole or not there, and what is damaged is found before it is used."""

import contextlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from crannog.adapters.storage.memory_shelf import MemoryShelf
from crannog.errors import StorageError
from tests.mounts import small_file_system

TEMPLATE = str(uuid4())
SIZE = 2**20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "images"


@pytest.fixture
def shelf(folder: Path) -> MemoryShelf:
    return MemoryShelf(str(folder))


def make(shelf: MemoryShelf, key: str = "key", recipe: str = "recipe") -> None:
    files = shelf.begin(TEMPLATE, SIZE)
    assert os.stat(files.memory).st_size == SIZE
    with open(files.memory, "r+b") as memory:
        memory.write(b"memory")
    Path(files.state).write_bytes(b"state of the machine")
    Path(shelf.layer(TEMPLATE, "root")).write_bytes(b"root")
    shelf.finish(TEMPLATE, key, recipe)


def test_an_image_is_what_was_saved(shelf: MemoryShelf, folder: Path) -> None:
    assert (shelf.find(TEMPLATE), shelf.templates(), shelf.read_recipe(TEMPLATE)) == (None, [], "")
    make(shelf)
    image = shelf.find(TEMPLATE)
    assert image
    assert (image.template, image.key, image.recipe) == (TEMPLATE, "key", "recipe")
    assert image.files.is_saved
    assert Path(image.files.state).read_bytes() == b"state of the machine"
    assert {name: Path(path).read_bytes() for name, path in image.layers.items()} == {"root": b"root"}
    assert (shelf.templates(), shelf.read_recipe(TEMPLATE)) == ([TEMPLATE], "recipe")
    modes = {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in (folder, folder / TEMPLATE)}
    assert modes == {0}
    assert stat.S_IMODE(os.stat(image.files.memory).st_mode) == 0o600


def test_a_new_one_takes_the_place_of_the_old(shelf: MemoryShelf, folder: Path) -> None:
    make(shelf, "old")
    make(shelf, "new")
    image = shelf.find(TEMPLATE)
    assert image
    assert image.key == "new"
    assert os.listdir(folder) == [TEMPLATE]


def _truncate(name: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


def _flip(name: str) -> Callable[[Path], None]:
    def flip(folder: Path) -> None:
        path = folder / name
        before = path.stat()
        path.write_bytes(bytes((path.read_bytes()[0] ^ 1,)) + path.read_bytes()[1:])
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    return flip


DAMAGE: dict[str, Callable[[Path], object]] = {
    "state cut short": _truncate("state"),
    "state changed, with its old time": _flip("state"),
    "layer changed, with its old time": _flip("root.layer"),
    "memory cut short": _truncate("memory"),
    "memory written to": lambda folder: (folder / "memory").open("r+b").write(b"x"),
    "memory gone": lambda folder: (folder / "memory").unlink(),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "manifest cut short": _truncate("manifest.json"),
    "manifest of nothing": lambda folder: (folder / "manifest.json").write_text("[]"),
    "manifest without files": lambda f: (f / "manifest.json").write_text('{"version": 1, "key": "", "files": {}}'),
    "another version": lambda folder: (folder / "manifest.json").write_text('{"version": 99}'),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_is_damaged_is_not_used(shelf: MemoryShelf, folder: Path, kind: str) -> None:
    make(shelf)
    if kind == "memory written to":
        os.utime(folder / TEMPLATE / "memory", (1, 1))
    else:
        DAMAGE[kind](folder / TEMPLATE)
    with pytest.raises(StorageError, match=r"damaged|cannot be used"):
        shelf.find(TEMPLATE)
    shelf.discard(TEMPLATE)
    assert shelf.find(TEMPLATE) is None


def test_a_start_deletes_what_is_half_made_or_nobodys(shelf: MemoryShelf, folder: Path) -> None:
    make(shelf)
    shelf.begin(TEMPLATE, SIZE)
    other = str(uuid4())
    (folder / other).mkdir()
    (folder / f"{other}.old").mkdir()
    said = shelf.recover(frozenset((TEMPLATE,)))
    assert len(said) == 3
    assert os.listdir(folder) == [TEMPLATE]
    assert shelf.find(TEMPLATE)
    assert shelf.recover(frozenset((TEMPLATE,))) == []
    assert MemoryShelf(str(folder / "nowhere")).recover(frozenset()) == []


def test_one_that_is_given_up_leaves_nothing(shelf: MemoryShelf, folder: Path) -> None:
    shelf.begin(TEMPLATE, SIZE)
    shelf.give_up(TEMPLATE)
    shelf.give_up(TEMPLATE)
    shelf.discard(TEMPLATE)
    assert os.listdir(folder) == []


def test_a_name_that_could_lead_elsewhere_is_refused(shelf: MemoryShelf) -> None:
    for name in ("..", "/etc", "a" * 35, ""):
        with pytest.raises(StorageError, match="no UUID"):
            shelf.find(name)


def fill(path: Path) -> None:
    with path.open("wb", 0) as hog, contextlib.suppress(OSError):
        while hog.write(bytes(4096)):
            pass


def test_a_full_disk_leaves_the_old_image_and_no_new_one(tmp_path: Path) -> None:
    with small_file_system(tmp_path / "small", "4m") as small:
        folder = Path(small) / "images"
        shelf = MemoryShelf(str(folder))
        make(shelf, "old")
        files = shelf.begin(TEMPLATE, SIZE)
        Path(files.state).write_bytes(b"state")
        fill(Path(small) / "all")
        with pytest.raises(StorageError, match="cannot be finished: No space left"):
            shelf.finish(TEMPLATE, "new" + "x" * 2**16, "recipe")
        image = shelf.find(TEMPLATE)
        assert image
        assert image.key == "old"
        assert os.listdir(folder) == [TEMPLATE]
