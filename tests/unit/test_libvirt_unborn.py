"""What a start leaves that was cut short inside libvirt."""

import subprocess
import sys
from pathlib import Path

import pytest

from crannog.adapters.libvirt.unborn import discard_unborn

STATUS = "<domstatus state='{state}' pid='{pid}'><monitor path='{root}/lib/qemu/{folder}/monitor.sock'/></domstatus>"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("run/qemu", "lib/qemu/domain-1-alive", "lib/qemu/domain-2-unborn", "lib/qemu/domain-3-early"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "some-file").touch()
    run = tmp_path / "run/qemu"
    (run / "some-file").unlink()
    (run / "driver.pid").write_text("1")
    (run / "alive.pid").write_text("1")
    (run / "alive.xml").write_text(STATUS.format(state="running", pid=1, root=tmp_path, folder="domain-1-alive"))
    (run / "unborn.xml").write_text(STATUS.format(state="paused", pid=0, root=tmp_path, folder="domain-2-unborn"))
    (run / "early.xml.new").write_text("<domst")
    (run / "alive.xml.new").write_text("<domst")
    (run / "odd.xml").write_text("not XML")
    return tmp_path


def test_the_unborn_go_and_the_others_stay(root: Path) -> None:
    assert discard_unborn(str(root), str(root)) == {"unborn", "early"}
    assert sorted(path.name for path in (root / "run/qemu").iterdir()) == [
        "alive.pid",
        "alive.xml",
        "driver.pid",
        "odd.xml",
    ]
    assert [path.name for path in (root / "lib/qemu").iterdir()] == ["domain-1-alive"]
    assert discard_unborn(str(root), str(root)) == set()


@pytest.mark.parametrize("is_ours", [True, False])
def test_only_an_emulator_of_this_folder_is_ended(root: Path, is_ours: bool) -> None:
    place = root if is_ours else "/elsewhere"
    words = [
        sys.executable,
        "-c",
        "import time; print(flush=True); time.sleep(60)",
        "guest=unborn,x=y",
        f"{place}/lib/qemu/domain-2-unborn",
    ]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as emulator:
        assert emulator.stdout
        emulator.stdout.readline()
        try:
            (root / "run/qemu/unborn.pid").write_text(str(emulator.pid))
            discard_unborn(str(root), str(root))
            assert (emulator.poll() is not None) is is_ours
        finally:
            emulator.kill()


def test_a_folder_in_use_is_not_touched(root: Path) -> None:
    code = "import fcntl, sys; f = open(sys.argv[1], 'rb+'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    words = [sys.executable, "-c", code, str(root / "run/qemu/driver.pid")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        other.stdout.readline()
        assert discard_unborn(str(root), str(root)) == set()
        other.communicate(b"\n")
    assert (root / "run/qemu/unborn.xml").exists()


@pytest.mark.parametrize("is_ours", [True, False])
@pytest.mark.parametrize("has_number", [True, False])
def test_a_probe_that_was_cut_short_is_ended(root: Path, is_ours: bool, has_number: bool) -> None:
    folder = root / "lib/qemu/qmp-ABCDEF"
    folder.mkdir()
    place = folder if is_ours else "/elsewhere/lib/qemu/qmp-ABCDEF"
    words = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)", "-pidfile", f"{place}/qmp.pid"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as emulator:
        assert emulator.stdout
        emulator.stdout.readline()
        try:
            if has_number:  # else it has just begun
                (folder / "qmp.pid").write_text(str(emulator.pid))
            discard_unborn(str(root), str(root))
            assert (emulator.poll() is not None, folder.exists()) == (is_ours, False)
        finally:
            emulator.kill()
