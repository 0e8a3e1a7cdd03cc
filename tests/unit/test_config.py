"""Paths and the settings file."""

import os
from pathlib import Path

import pytest

from crannog.config import Paths, Settings, find_cache, find_home
from crannog.errors import CrannogError, StorageError, ValueRefusedError


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CRANNOG_HOME", "CRANNOG_CACHE", "CRANNOG_ACCEL", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/anna")


def test_home_is_what_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CRANNOG_HOME", "here")
    monkeypatch.setenv("CRANNOG_CACHE", "there")
    assert find_home() == str(tmp_path / "here")
    assert find_cache() == str(tmp_path / "there")


@pytest.mark.parametrize(
    ("uid", "home", "cache"),
    [
        (0, "/var/lib/crannog", "/var/cache/crannog"),
        (1000, "/home/anna/.local/share/crannog", "/home/anna/.cache/crannog"),
    ],
)
def test_home_of_root_and_of_a_user(monkeypatch: pytest.MonkeyPatch, uid: int, home: str, cache: str) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setenv("CRANNOG_HOME", "")
    assert (find_home(), find_cache()) == (home, cache)


@pytest.mark.parametrize(("value", "home"), [("/data", "/data/crannog"), ("data", "/home/anna/.local/share/crannog")])
def test_xdg_counts_when_it_is_absolute(monkeypatch: pytest.MonkeyPatch, value: str, home: str) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_DATA_HOME", value)
    assert find_home() == home


def test_every_path_is_below_its_home() -> None:
    paths = Paths("/h", "/c")
    made = [paths.console_log("work"), paths.rpc_socket("work"), paths.channel_socket("0" * 36), paths.rpc_log("work")]
    known = [value for name, value in vars(paths).items() if isinstance(value, str) and name not in ("home", "cache")]
    assert all(path.startswith("/h/") for path in known + made)
    assert len({*known, *made}) == len(known + made)


def _write(tmp_path: Path, content: bytes) -> str:
    path = tmp_path / "crannog.toml"
    path.write_bytes(content)
    return str(path)


def test_settings_without_a_file_are_the_defaults(tmp_path: Path) -> None:
    assert vars(Settings.load(str(tmp_path / "absent"))) == vars(Settings())


def test_settings_from_file_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(tmp_path, b'accel = "kvm"\nemulator = "/opt/qemu"\n')
    assert (Settings.load(path).accel, Settings.load(path).emulator) == ("kvm", "/opt/qemu")
    monkeypatch.setenv("CRANNOG_ACCEL", "tcg")
    assert Settings.load(path).accel == "tcg"


@pytest.mark.parametrize(
    ("content", "kind", "named"),
    [
        (b"acel = 'kvm'", ValueRefusedError, "'acel'"),
        (b"accel = 1", ValueRefusedError, "'accel'"),
        (b"accel = 'xen'", ValueRefusedError, "'xen'"),
        (b"[accel]", ValueRefusedError, "'accel'"),
        (b"__class__ = 'x'", ValueRefusedError, "'__class__'"),
        (b"accel = \n", StorageError, "line 1"),
        (b"accel = '\xff'", StorageError, "settings file"),
    ],
)
def test_wrong_settings_are_refused_with_file_and_reason(
    tmp_path: Path, content: bytes, kind: type[CrannogError], named: str
) -> None:
    path = _write(tmp_path, content)
    with pytest.raises(kind) as caught:
        Settings.load(path)
    assert path in str(caught.value)
    assert named in str(caught.value)


def test_unknown_accelerator_in_the_environment_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRANNOG_ACCEL", "fast")
    with pytest.raises(ValueRefusedError, match="CRANNOG_ACCEL"):
        Settings.load(str(tmp_path / "absent"))


def test_settings_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        Settings.load(str(tmp_path))
