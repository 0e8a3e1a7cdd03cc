"""What a path of this host leads to."""

import os
from pathlib import Path

import pytest

from crannog.adapters.storage.drive_files import look_at_drive
from crannog.core.drives import DriveFile, FileKind


def test_an_image(tmp_path: Path) -> None:
    (tmp_path / "i").touch()
    assert look_at_drive(f"{tmp_path}/i", ["/srv"]) == DriveFile(f"{tmp_path}/i", FileKind.FILE)


@pytest.mark.parametrize("path", ["{}/nope", "{}/nope/i", "{}/i/below", "{}/\0", "{}/loop"])
def test_nothing_there(path: str, tmp_path: Path) -> None:
    (tmp_path / "i").touch()
    (tmp_path / "loop").symlink_to("loop")
    assert look_at_drive(path.format(tmp_path), []).kind is FileKind.ABSENT


def test_what_is_no_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (str(tmp_path), f"{tmp_path}/pipe", "/dev/null"):
        assert look_at_drive(path, []).kind is FileKind.OTHER


def test_a_block_device(tmp_path: Path) -> None:
    try:
        os.mknod(tmp_path / "device", 0o600 | 0o060000, os.makedev(7, 250))
    except PermissionError:
        pytest.skip("this user may not make devices")
    assert look_at_drive(f"{tmp_path}/device", []).kind is FileKind.DEVICE


def test_links_are_followed_before_it_is_asked_whose_the_file_is(tmp_path: Path) -> None:
    home, outside = tmp_path / "home", tmp_path / "outside"
    for folder in (home, outside, tmp_path / "home2"):
        folder.mkdir()
        (folder / "i").touch()
    (outside / "link").symlink_to(home / "i")
    (tmp_path / "alias").symlink_to(home)
    folders = [str(tmp_path / "alias")]
    assert look_at_drive(f"{outside}/link", folders) == DriveFile(f"{home}/i", FileKind.FILE, owner=folders[0])
    assert look_at_drive(f"{outside}/../home/i", folders).owner == folders[0]
    assert look_at_drive(f"{outside}/i", folders).owner == ""
    assert look_at_drive(f"{tmp_path}/home2/i", [str(home)]).owner == ""


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")
def test_rights(tmp_path: Path) -> None:
    (tmp_path / "i").touch(mode=0o400)
    file = look_at_drive(f"{tmp_path}/i", [])
    assert (file.is_readable, file.is_writable) == (True, False)
