"""Short names for homes whose paths are too long for unix sockets."""

import os
import subprocess
import sys
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


def test_many_at_once_get_and_drop_short_names(aliases: str, tmp_path: Path) -> None:
    """Processes that find the same names of homes that are gone, and want the same name."""
    code = (
        "import sys; from crannog.shortpath import provide_short_path\n"
        "sys.stdin.readline()\n"
        "for _ in range(300): provide_short_path(sys.argv[1], sys.argv[2])"
    )
    home = tmp_path / LONG[1:90]
    home.mkdir()
    dropping = [subprocess.Popen([sys.executable, "-c", code, home, aliases], stdin=subprocess.PIPE) for _ in range(4)]
    os.mkdir(aliases, 0o700)
    for process in dropping:
        assert process.stdin
        process.stdin.write(b"\n")
        process.stdin.flush()
    number = 0
    while any(process.poll() is None for process in dropping):
        number += 1
        os.symlink("/nowhere", f"{aliases}/gone-{number}")
        if number % 50 == 0:
            Path(provide_short_path(str(home), aliases)).unlink(missing_ok=True)
    for process in dropping:
        process.communicate(timeout=30)
    assert [process.returncode for process in dropping] == [0] * 4
    assert os.readlink(provide_short_path(str(home), aliases)) == str(home)
    assert len(os.listdir(aliases)) == 1


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
