"""The folder of the in-process driver, its short path, its caches and the logs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from crannog.adapters.libvirt import embed
from crannog.adapters.libvirt.console import shorten_log, start_log
from crannog.adapters.libvirt.embed import EmbeddedRoot, isolation_gaps
from crannog.errors import HypervisorError
from crannog.shortpath import short_path


def test_capabilities_travel_to_the_next_home(tmp_path: Path) -> None:
    first, second, cache = tmp_path / "a", tmp_path / "b", str(tmp_path / "cache")
    root = EmbeddedRoot(str(first), cache)
    assert root.prepare() == f"qemu:///embed?root={short_path(str(first))}/vmm"
    probed = first / "vmm/cache/qemu/capabilities/0123.xml"
    probed.write_text("<old/>")
    os.utime(probed, (1, 1))
    root.share_capabilities()
    EmbeddedRoot(str(second), cache).prepare()
    copy = second / "vmm/cache/qemu/capabilities/0123.xml"
    assert copy.read_text() == "<old/>"
    probed.write_text("<new/>")
    root.share_capabilities()
    EmbeddedRoot(str(tmp_path / "c"), cache).prepare()
    assert (tmp_path / "c/vmm/cache/qemu/capabilities/0123.xml").read_text() == "<new/>"


def test_a_home_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HypervisorError, match="file/vmm cannot be made ready for libvirt: Not a directory"):
        EmbeddedRoot(str(tmp_path / "file"), str(tmp_path)).prepare()


def test_the_sandbox_stays_on_and_no_daemon_is_needed() -> None:
    lines = embed._configuration().splitlines()
    assert 'stdio_handler = "file"' in lines
    assert not [line for line in lines if line.startswith("seccomp_sandbox")]


def test_root_and_missing_access_control_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed, "_is_root", lambda: True)
    monkeypatch.setattr(embed, "_has_mandatory_access_control", lambda: False)
    gaps = " ".join(isolation_gaps())
    assert "QEMU runs as root" in gaps
    assert "neither AppArmor nor SELinux" in gaps
    monkeypatch.setattr(embed, "_is_root", lambda: False)
    monkeypatch.setattr(embed, "_has_mandatory_access_control", lambda: True)
    gaps = " ".join(isolation_gaps())
    assert "as root:" not in gaps
    assert "AppArmor" not in gaps


def test_a_long_log_keeps_its_end_while_it_is_written(tmp_path: Path) -> None:
    path = str(tmp_path / "log/console.log")
    start_log(path)
    with open(path, "ab", buffering=0) as writer:
        writer.write(b"old" * 100 + b"new")
        assert not shorten_log(path, limit=303, kept=3)
        assert shorten_log(path, limit=302, kept=3)
        writer.write(b"er")
    assert Path(path).read_bytes() == b"newer"
    start_log(path)
    assert os.stat(path).st_size == 0
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert not shorten_log(str(tmp_path / "absent"))


def test_importing_the_adapter_loads_no_libvirt() -> None:
    code = "import sys, crannog.adapters.libvirt.connection; print('libvirt' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"
