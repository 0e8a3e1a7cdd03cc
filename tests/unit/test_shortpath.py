"""Short names for homes whose paths are too long for unix sockets."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog.errors import StorageError
from crannog.shortpath import HOME_MAX, LONGEST_SOCKET, SUN_PATH_MAX, provide_short_path, short_path

LONG = "/" + "x" * HOME_MAX


@pytest.fixture
def aliases() -> Iterator[str]:
    folder = Path(f"/tmp/cr-{os.getpid()}")
    yield str(folder)
    for name in folder.glob("*"):
        name.unlink()
    if folder.is_dir():
        folder.rmdir()


def test_a_short_folder_is_used_as_it_is(aliases: str) -> None:
    folder = "/" + "x" * (HOME_MAX - 1)
    assert provide_short_path(folder, aliases) == folder
    assert not os.path.exists(aliases)


def test_a_long_folder_gets_the_same_alias_each_time(aliases: str) -> None:
    alias = provide_short_path(LONG, aliases)
    assert len(alias) <= HOME_MAX
    assert os.readlink(alias) == LONG
    assert provide_short_path(LONG, aliases) == alias
    assert os.stat(aliases).st_mode & 0o777 == 0o700


def test_an_alias_that_points_elsewhere_is_replaced(aliases: str) -> None:
    alias = provide_short_path(LONG, aliases)
    os.unlink(alias)
    os.symlink("/elsewhere", alias)
    assert os.readlink(provide_short_path(LONG, aliases)) == LONG


def test_a_folder_that_others_can_write_to_is_refused(aliases: str) -> None:
    os.mkdir(aliases)
    os.chmod(aliases, 0o777)
    with pytest.raises(StorageError, match="not a folder of this user alone"):
        provide_short_path(LONG, aliases)


def test_a_planted_link_is_refused(aliases: str, tmp_path: Path) -> None:
    os.symlink(tmp_path, aliases)
    try:
        with pytest.raises(StorageError, match="not a folder of this user alone"):
            provide_short_path(LONG, aliases)
    finally:
        os.unlink(aliases)


def test_a_home_without_any_short_path_is_refused() -> None:
    with pytest.raises(StorageError, match="use a shorter one"):
        provide_short_path(LONG, LONG)


def test_the_longest_socket_fits() -> None:
    assert len("/" * HOME_MAX + LONGEST_SOCKET) == SUN_PATH_MAX


def test_looking_up_a_short_path_makes_nothing(aliases: str) -> None:
    assert short_path(LONG, aliases).startswith(aliases + "/")
    assert short_path("/short", aliases) == "/short"
    assert not os.path.exists(aliases)
