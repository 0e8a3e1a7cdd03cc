"""The folder of qrexec services: links that are ours come and go, everything else stays."""

import os
from pathlib import Path

import pytest

from crannog.api.table import METHODS
from crannog.cli.services import PROGRAMS, main, read_methods
from crannog.errors import StorageError, UsageError

SOCKET = "/run/some.sock"


def run(folder: Path, action: str) -> int:
    return main([action, "--folder", str(folder), "--socket", SOCKET])


def test_the_methods_are_those_of_the_table() -> None:
    assert set(read_methods()) == {name for name in METHODS if name.startswith("admin.")}


def test_install_and_remove(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "qubes-rpc"
    assert run(folder, "install") == 0
    assert sorted(os.listdir(folder)) == sorted(read_methods())
    assert os.readlink(folder / "admin.vm.List") == SOCKET
    for name, program in PROGRAMS.items():
        assert os.path.basename(os.readlink(folder / name)) == program
    assert run(folder, "install") == 0
    assert "0 of" in capsys.readouterr().out.splitlines()[-1]
    assert run(folder, "remove") == 0
    assert os.listdir(folder) == []


def test_what_is_not_ours_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "admin.vm.List").write_text("#!/bin/sh\n")
    os.symlink("/bin/true", tmp_path / "admin.vm.Start")
    for action in ("install", "remove"):
        assert run(tmp_path, action) == 0
        assert (tmp_path / "admin.vm.List").read_text() == "#!/bin/sh\n"
        assert os.readlink(tmp_path / "admin.vm.Start") == "/bin/true"
    assert "admin.vm.List is there already and not ours" in capsys.readouterr().out


def test_a_former_socket_is_replaced(tmp_path: Path) -> None:
    os.symlink("/old/place.sock", tmp_path / "admin.vm.List")
    assert run(tmp_path, "install") == 0
    assert os.readlink(tmp_path / "admin.vm.List") == SOCKET


def test_listing_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "none", "list") == 0
    assert f"{tmp_path}/none/admin.vm.List -> {SOCKET}" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()


def test_failures_are_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_arguments: object) -> None:
        raise PermissionError(13, "Permission denied", "/etc/qubes-rpc/x")

    monkeypatch.setattr(os, "symlink", refuse)
    assert run(tmp_path, "install") == StorageError.exit_code
    assert run(tmp_path, "frobnicate") == UsageError.exit_code
    assert "are you root?" in capsys.readouterr().err
