"""The image cache: keys, atomicity, locking, unfinished folders."""

import os
import threading
from collections.abc import Callable

import pytest

from crannog.errors import StorageError
from crannog.images.cache import ImageCache, compute_key, read_json, write_json

KEY = "0123456789abcdef"


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def cache(tmp_path: os.PathLike[str], told: list[str]) -> ImageCache:
    return ImageCache(os.fspath(tmp_path), told.append)


def write(text: str) -> Callable[[str], None]:
    def build(folder: str) -> None:
        with open(f"{folder}/root.img", "w", encoding="utf-8") as file:
            file.write(text)

    return build


def read(folder: str) -> str:
    with open(f"{folder}/root.img", encoding="utf-8") as file:
        return file.read()


def ignore(text: str) -> None:
    pass


def never(folder: str) -> None:
    raise AssertionError(f"built again: {folder}")


def test_key_depends_on_every_part() -> None:
    keys = [
        compute_key(parts)
        for parts in (
            ["a", 1, b"x"],
            ["b", 1, b"x"],
            ["a", 2, b"x"],
            ["a", 1, b"y"],
            ["a", 1],
            ["a", [1], b"x"],
        )
    ]
    assert len(set(keys)) == len(keys)
    assert compute_key({"a": 1, "b": 2}) == compute_key({"b": 2, "a": 1})


def test_key_refuses_what_has_no_stable_text() -> None:
    with pytest.raises(TypeError):
        compute_key([object()])


def test_second_call_builds_nothing(cache: ImageCache) -> None:
    path = cache.provide("x", KEY, write("one"))
    assert path == cache.entry("x", KEY)
    assert cache.provide("x", KEY, never) == path
    assert read(path) == "one"


def test_refresh_replaces(cache: ImageCache) -> None:
    cache.provide("x", KEY, write("one"))
    path = cache.provide("x", KEY, write("two"), refresh=True)
    assert read(path) == "two"
    assert sorted(os.listdir(cache.path)) == [f"x-{KEY}", "x.lock"]


def test_failed_build_leaves_nothing(cache: ImageCache) -> None:
    def fail(folder: str) -> None:
        write("half")(folder)
        raise StorageError("the disk is full")

    with pytest.raises(StorageError, match="the disk is full"):
        cache.provide("x", KEY, fail)
    assert os.listdir(cache.path) == ["x.lock"]


def test_failed_refresh_keeps_the_old_image(cache: ImageCache) -> None:
    cache.provide("x", KEY, write("one"))

    def fail(folder: str) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="No space left on device"):
        cache.provide("x", KEY, fail, refresh=True)
    assert read(cache.provide("x", KEY, never)) == "one"


def test_unfinished_folder_of_a_killed_build_is_removed(cache: ImageCache) -> None:
    for leftover in (f"x-{KEY}.tmp", "x-fedcba9876543210.tmp", f"x-{KEY}.old"):
        os.makedirs(f"{cache.path}/{leftover}/tree")
    os.makedirs(f"{cache.path}/x-pv-{KEY}.tmp")  # another name, which another process may be building
    path = cache.provide("x", KEY, write("whole"))
    assert read(path) == "whole"
    assert sorted(os.listdir(cache.path)) == [f"x-{KEY}", f"x-pv-{KEY}.tmp", "x.lock"]


def test_two_builds_at_once_build_once(cache: ImageCache, told: list[str]) -> None:
    started, proceed = threading.Event(), threading.Event()

    def slow(folder: str) -> None:
        started.set()
        assert proceed.wait(60)
        write("first")(folder)

    first = threading.Thread(target=cache.provide, args=("x", KEY, slow))
    first.start()
    assert started.wait(60)
    waiting = threading.Event()

    def note(text: str) -> None:
        told.append(text)
        waiting.set()

    other = ImageCache(os.path.dirname(cache.path), note)
    second = threading.Thread(target=other.provide, args=("x", KEY, never))
    second.start()
    assert waiting.wait(60)
    proceed.set()
    first.join(20)
    second.join(20)
    assert told == ["waiting for another build of x to end"]
    assert read(cache.entry("x", KEY)) == "first"


def test_unusable_cache_is_one_sentence(tmp_path: os.PathLike[str]) -> None:
    blocked = os.path.join(tmp_path, "file")
    with open(blocked, "wb"):
        pass
    with pytest.raises(StorageError, match=r"the image cache .*file/images cannot be used: Not a directory"):
        ImageCache(blocked, ignore).provide("x", KEY, never)


def test_damaged_facts_name_the_folder(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "facts.json")
    write_json(path, {"a": [1]})
    assert read_json(path) == {"a": [1]}
    with open(path, "w", encoding="utf-8") as file:
        file.write("{")
    with pytest.raises(StorageError, match=r"damaged.*remove that folder"):
        read_json(path)
