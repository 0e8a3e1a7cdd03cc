"""The choice of the accelerator, with programs that stand in for QEMU."""

import json
from pathlib import Path

import pytest

from crannog.adapters.libvirt.accel import PROBE_STATUS, boot_sector, choose_accel, find_emulator, runs_guest
from crannog.errors import HypervisorError

NO_CPUINFO = "/proc/no-cpuinfo"
"""Says nothing of the processor."""


@pytest.fixture
def device(tmp_path: Path) -> str:
    path = tmp_path / "kvm"
    path.touch()
    return str(path)


def make_emulator(folder: Path, script: str) -> str:
    path = folder / "qemu"
    path.write_text(f"#!/bin/sh\necho run >> {folder}/runs\n{script}\n")
    path.chmod(0o755)
    return str(path)


def count_runs(folder: Path) -> int:
    runs = folder / "runs"
    return len(runs.read_text().splitlines()) if runs.exists() else 0


def test_the_boot_sector_is_one() -> None:
    assert len(boot_sector()) == 512
    assert boot_sector()[510:] == b"\x55\xaa"


async def test_kvm_is_chosen_when_the_guest_ran_and_the_answer_is_kept(tmp_path: Path, device: str) -> None:
    emulator = make_emulator(tmp_path, f"exit {PROBE_STATUS}")
    for _ in range(3):
        choice = await choose_accel("auto", emulator, str(tmp_path / "cache"), kvm_device=device, cpuinfo=NO_CPUINFO)
        assert choice.accel == "kvm"
    assert count_runs(tmp_path) == 1


async def test_a_guest_that_hangs_means_tcg(tmp_path: Path) -> None:
    emulator = make_emulator(tmp_path, "exec sleep 20")
    assert await runs_guest(emulator, "kvm", 0.2) == "a guest of 512 bytes did not run within 0.2 s"


async def test_the_reason_is_what_qemu_said(tmp_path: Path, device: str) -> None:
    emulator = make_emulator(tmp_path, "echo 'first line' >&2; echo 'KVM: no VMX' >&2; exit 1")
    choice = await choose_accel("auto", emulator, str(tmp_path / "cache"), kvm_device=device, cpuinfo=NO_CPUINFO)
    assert choice.accel == "tcg"
    assert choice.reason.endswith("KVM does not run here: KVM: no VMX")


async def test_another_status_is_no_success(tmp_path: Path) -> None:
    assert await runs_guest(make_emulator(tmp_path, "exit 0"), "kvm") == "QEMU ended with status 0"


async def test_another_emulator_is_tried_anew(tmp_path: Path, device: str) -> None:
    cache = str(tmp_path / "cache")
    await choose_accel("auto", make_emulator(tmp_path, "exit 1"), cache, kvm_device=device, cpuinfo=NO_CPUINFO)
    emulator = make_emulator(tmp_path, f"# a newer QEMU\nexit {PROBE_STATUS}")
    assert (await choose_accel("auto", emulator, cache, kvm_device=device, cpuinfo=NO_CPUINFO)).accel == "kvm"
    assert count_runs(tmp_path) == 2


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", '{"conditions": 1}'])
async def test_a_damaged_cache_is_written_anew(tmp_path: Path, device: str, content: str) -> None:
    cache = tmp_path / "accel.json"
    cache.write_text(content)
    emulator = make_emulator(tmp_path, f"exit {PROBE_STATUS}")
    assert (await choose_accel("auto", emulator, str(tmp_path), kvm_device=device, cpuinfo=NO_CPUINFO)).accel == "kvm"
    assert json.loads(cache.read_text())["kvm_obstacle"] == ""


async def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, device: str) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    emulator = make_emulator(tmp_path, f"exit {PROBE_STATUS}")
    assert (
        await choose_accel("auto", emulator, str(blocked / "cache"), kvm_device=device, cpuinfo=NO_CPUINFO)
    ).accel == "kvm"


async def test_without_the_device_nothing_is_run(tmp_path: Path) -> None:
    emulator = make_emulator(tmp_path, f"exit {PROBE_STATUS}")
    choice = await choose_accel("auto", emulator, str(tmp_path), kvm_device="/dev/nothing")
    assert choice.accel == "tcg"
    assert "there is no /dev/nothing" in choice.reason
    assert count_runs(tmp_path) == 0


@pytest.mark.parametrize("accel", ["kvm", "tcg"])
async def test_the_settings_decide_without_a_trial(tmp_path: Path, device: str, accel: str) -> None:
    emulator = make_emulator(tmp_path, "exit 1")
    assert (await choose_accel(accel, emulator, str(tmp_path), kvm_device=device, cpuinfo=NO_CPUINFO)).accel == accel
    assert count_runs(tmp_path) == 0


def test_a_missing_emulator_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(HypervisorError, match="the emulator /no/qemu"):
        find_emulator("/no/qemu")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("crannog.adapters.libvirt.accel._EMULATORS", ("qemu-system-x86_64",))
    with pytest.raises(HypervisorError, match="qemu-system-x86_64 is not installed: install"):
        find_emulator("")


@pytest.mark.parametrize(
    ("text", "accel"),
    [
        ("flags\t\t: fpu vmx sse\n", "kvm"),
        ("processor\t: 0\nflags\t\t: fpu svm sse\n", "kvm"),
        ("Features\t: fp asimd\n", "kvm"),
        ("flags\t\t: fpu sse vmxnet\n", "tcg"),
    ],
)
async def test_kvm_needs_hardware(tmp_path: Path, device: str, text: str, accel: str) -> None:
    """A kernel that emulates what the processor lacks is slower than QEMU."""
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(text)
    emulator = make_emulator(tmp_path, f"exit {PROBE_STATUS}")
    choice = await choose_accel("auto", emulator, str(tmp_path), kvm_device=device, cpuinfo=str(cpuinfo))
    assert choice.accel == accel
    assert ("no hardware virtualisation" in choice.reason) is (accel == "tcg")


async def test_the_trial_guest_has_the_processor_that_guests_get(tmp_path: Path, device: str) -> None:
    emulator = make_emulator(tmp_path, f'case "$*" in *"-cpu host"*) exit 1;; esac; exit {PROBE_STATUS}')
    choice = await choose_accel("auto", emulator, str(tmp_path), kvm_device=device, cpuinfo=NO_CPUINFO)
    assert choice.accel == "tcg"
