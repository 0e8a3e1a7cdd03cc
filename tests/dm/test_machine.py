"""What the machine of these tests can do: device-mapper, lvm2, file systems that share blocks."""

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.dm.devices import (
    MIB,
    count_sectors,
    list_remains,
    loop_device,
    mapped_device,
    mounted,
    read_at,
    run,
    write_at,
)

ROOT = Path(__file__).parents[2]
FICLONE = 0x40049409
"""ioctl_ficlone(2)."""
OLD, NEW = b"old!" * 1024, b"new!" * 1024


def clone(source: Path, target: Path) -> None:
    with source.open("rb") as old, target.open("wb") as new:
        fcntl.ioctl(new, FICLONE, old.fileno())


@contextmanager
def file_system(kind: str, folder: Path) -> Iterator[Path]:
    """Mount a new file system of 512 MiB, the least that mkfs.xfs makes being 300 MiB."""
    with loop_device(folder / "disk", 512 * MIB) as device:
        run(f"mkfs.{kind}", "-q", device)
        with mounted(device, folder / "mounted") as place:
            yield place


def test_snapshot_over_two_loop_devices(tmp_path: Path) -> None:
    (tmp_path / "origin").write_bytes(OLD * (8 * MIB // len(OLD)))
    with loop_device(tmp_path / "origin") as origin, loop_device(tmp_path / "cow", 4 * MIB) as cow:
        table = f"0 {count_sectors(origin)} snapshot {origin} {cow} P 8"
        with mapped_device("dm-test", table) as device:
            write_at(device, 5 * MIB, NEW)
            assert read_at(device, 5 * MIB, len(NEW)) == NEW
            assert read_at(device, 0, len(OLD)) == OLD
        assert read_at(origin, 5 * MIB, len(NEW)) == OLD
        with mapped_device("dm-test", table) as device:
            assert read_at(device, 5 * MIB, len(NEW)) == NEW, "a persistent snapshot keeps what was written"


def test_full_snapshot_is_invalid(tmp_path: Path) -> None:
    with (
        loop_device(tmp_path / "origin", 8 * MIB) as origin,
        loop_device(tmp_path / "cow", MIB // 4) as cow,
        mapped_device("dm-test", f"0 {count_sectors(origin)} snapshot {origin} {cow} P 8") as device,
    ):
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            write_at(device, 0, bytes(MIB))
        assert "Invalid" in run("dmsetup", "status", "dm-test")


def test_thin_pool(tmp_path: Path) -> None:
    with loop_device(tmp_path / "disk", 256 * MIB) as device:
        run("vgcreate", "dm-test", device)
        try:
            run("lvcreate", "--type", "thin-pool", "--size", "128M", "--name", "pool", "dm-test")
            run("lvcreate", "--thin", "--virtualsize", "1G", "--name", "old", "dm-test/pool")
            write_at("/dev/dm-test/old", 900 * MIB, OLD)
            run("lvcreate", "--snapshot", "--setactivationskip", "n", "--name", "new", "dm-test/old")
            write_at("/dev/dm-test/new", 900 * MIB, NEW)
            assert read_at("/dev/dm-test/old", 900 * MIB, len(OLD)) == OLD
            assert read_at("/dev/dm-test/new", 900 * MIB, len(NEW)) == NEW
            assert 0 < float(run("lvs", "--noheadings", "-o", "data_percent", "dm-test/pool")) < 5
        finally:
            run("vgremove", "--force", "--yes", "dm-test")


@pytest.mark.parametrize("kind", ["btrfs", "xfs"])
def test_clones_share_blocks(kind: str, tmp_path: Path) -> None:
    with file_system(kind, tmp_path) as place:
        old, new = place / "old", place / "new"
        old.write_bytes(os.urandom(16 * MIB))
        clone(old, new)
        os.sync()
        assert "shared" in run("filefrag", "-v", new)
        with new.open("r+b") as file:
            file.write(NEW)
        assert old.read_bytes()[: len(NEW)] != NEW
        assert old.read_bytes()[len(NEW) :] == new.read_bytes()[len(NEW) :]


def test_ext4_clones_nothing(tmp_path: Path) -> None:
    with file_system("ext4", tmp_path) as place:
        (place / "old").write_bytes(OLD)
        with pytest.raises(OSError, match=os.strerror(errno.EOPNOTSUPP)):
            clone(place / "old", place / "new")


def test_devices_are_named_by_udev(tmp_path: Path) -> None:
    with loop_device(tmp_path / "disk", MIB) as device, mapped_device("dm-test", f"0 2048 linear {device} 0") as node:
        assert Path(node).is_symlink(), "device-mapper's own nodes are made by hand where no udevd answers"
        assert "DM_NAME=dm-test" in run("udevadm", "info", node)


def test_remains_are_seen(tmp_path: Path) -> None:
    """The check after each test would notice each kind of thing that can be left."""
    before = list_remains()
    with file_system("ext4", tmp_path), loop_device(tmp_path / "other", 64 * MIB) as device:
        run("vgcreate", "dm-test", device)
        run("lvcreate", "--size", "8M", "--name", "volume", "dm-test")
        during = list_remains()
        run("vgremove", "--force", "--yes", "dm-test")
    assert [kind for kind in before if before[kind] == during[kind]] == []
    assert list_remains() == before


def test_project_is_read_only() -> None:
    for _ in range(2):
        with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
            (ROOT / "written-in-the-lab").touch()
        # Again when the machine has done its worst: what counts is the host's side.
        run("mount", "-o", "remount,rw", ROOT)
    run("mount", "-o", "remount,ro", ROOT)


def test_project_runs_with_its_own_environment() -> None:
    assert sys.prefix == str(ROOT / ".venv")
    done = subprocess.run([ROOT / ".venv/bin/crannog", "--help"], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
