"""Which accelerator runs guests here: KVM when it really runs one, else QEMU's own emulation (TCG).

The existence of /dev/kvm proves nothing: inside some virtual machines the device opens, and a guest then hangs at its
first instruction, or runs a hundred times slower than emulated, because the kernel has no hardware to run it on. So the
processor must say that it can virtualise (cpuinfo flags vmx or svm), and a guest of 512 bytes is run once, on the kind
of processor that guests get, with a time limit; the answer is kept for as long as kernel and emulator stay the same.
"""

import asyncio
import contextlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass

from crannog.errors import HypervisorError

_PROBE_SECONDS = 3.0
_KILL_SECONDS = 1.0
_VERSION_SECONDS = 5.0
_EXIT_PORT = 0xF4
_EXIT_VALUE = 0x21
PROBE_STATUS = _EXIT_VALUE << 1 | 1
"""What QEMU exits with when the guest writes `_EXIT_VALUE` to isa-debug-exit (QEMU, hw/misc/debugexit.c)."""

_PROBE = "2"
"""Raised whenever the probe asks for something else: an older one's answer is void then."""

_PROCESSORS = {"kvm": "host"}
"""What processors guests get (adapters.libvirt.xml.qemu): a host can have features that its own KVM refuses."""

_EMULATORS = ("qemu-system-x86_64", "/usr/libexec/qemu-kvm")


@dataclass(frozen=True)
class AccelChoice:
    """The accelerator (`kvm` or `tcg`), and a sentence that says why."""

    accel: str
    reason: str


def find_emulator(configured: str) -> str:
    """Return the absolute path of QEMU: `configured`, or the first one found when that is empty.

    Raises HypervisorError when there is none.
    """
    for name in (configured,) if configured else _EMULATORS:
        path = shutil.which(name)
        if path:
            return os.path.abspath(path)
    if configured:
        raise HypervisorError(f"the emulator {configured} (setting 'emulator') is not a program that can be run")
    raise HypervisorError("qemu-system-x86_64 is not installed: install QEMU for x86 (Debian: qemu-system-x86)")


async def check_emulator(emulator: str) -> None:
    """Raise HypervisorError unless the program says within 5 s that it is QEMU.

    libvirt asks it for its capabilities without any time limit, and answers nobody else meanwhile.
    """
    process = await asyncio.create_subprocess_exec(
        *(emulator, "--version"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), _VERSION_SECONDS)
    except TimeoutError:
        raise HypervisorError(
            f"the emulator {emulator} (setting 'emulator') did not tell its version within {_VERSION_SECONDS:.0f} s"
        ) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode or b"QEMU" not in output:
        raise HypervisorError(
            f"the emulator {emulator} (setting 'emulator') is not QEMU: '{emulator} --version' ended with "
            f"{process.returncode}; correct the setting, or leave it out"
        )


def boot_sector() -> bytes:
    """Return a boot sector whose real-mode code ends QEMU with the status `PROBE_STATUS`."""
    # mov al, value; out port, al; then cli; hlt; jmp back to hlt, in case the device is missing
    code = bytes((0xB0, _EXIT_VALUE, 0xE6, _EXIT_PORT, 0xFA, 0xF4, 0xEB, 0xFD))
    return code.ljust(510, b"\0") + b"\x55\xaa"


async def runs_guest(emulator: str, accel: str, seconds: float = _PROBE_SECONDS) -> str:
    """Run the boot sector under `accel`; return "" when it ran, else why not, as the end of a sentence."""
    with tempfile.NamedTemporaryFile(prefix="crannog-probe-") as disk:
        disk.write(boot_sector())
        disk.flush()
        device = f"isa-debug-exit,iobase={_EXIT_PORT:#x},iosize=1"
        drive = f"file={disk.name},format=raw,if=ide,readonly=off,snapshot=on"
        quiet = ("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-m", "16")
        try:
            process = await asyncio.create_subprocess_exec(
                emulator, *quiet, "-machine", "pc", "-accel", accel, "-cpu", _PROCESSORS.get(accel, "max"),
                "-device", device, "-drive", drive,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
        except OSError as error:
            return f"{emulator} does not start: {error.strerror}"
        return await _judge(process, seconds)


async def _judge(process: asyncio.subprocess.Process, seconds: float) -> str:
    try:
        _, errors = await asyncio.wait_for(process.communicate(), seconds)
    except TimeoutError:
        return f"a guest of 512 bytes did not run within {seconds:g} s"
    finally:
        if process.returncode is None:
            process.kill()
            # A guest stuck inside the kernel may not die at once; the answer is known without it.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), _KILL_SECONDS)
    if process.returncode == PROBE_STATUS:
        return ""
    lines = errors.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"QEMU ended with status {process.returncode}"


def _conditions(emulator: str) -> dict[str, str]:
    system = os.uname()
    status = os.stat(emulator)
    program = f"{os.path.realpath(emulator)} {status.st_size} {status.st_mtime_ns}"
    return {"kernel": f"{system.release} {system.version}", "emulator": program, "probe": _PROBE}


def _recall(path: str, conditions: dict[str, str]) -> str | None:
    try:
        with open(path, encoding="utf-8") as file:
            known = json.load(file)
    except (OSError, ValueError):
        return None
    if not isinstance(known, dict) or known.get("conditions") != conditions:
        return None
    obstacle = known.get("kvm_obstacle")
    return obstacle if isinstance(obstacle, str) else None


def _remember(path: str, conditions: dict[str, str], obstacle: str) -> None:
    # A cache that cannot be written costs the next start a probe; it is no reason to fail this one.
    with contextlib.suppress(OSError):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".accel-")
        with open(handle, "w", encoding="utf-8") as file:
            json.dump({"conditions": conditions, "kvm_obstacle": obstacle}, file, indent=1)
        os.replace(temporary, path)


def _device_obstacle(device: str, cpuinfo: str) -> str:
    if not os.path.exists(device):
        return f"there is no {device}"
    if not os.access(device, os.R_OK | os.W_OK):
        return f"this user may not open {device}"
    return "" if _can_virtualise(cpuinfo) else f"the processor has no hardware virtualisation (vmx or svm, {cpuinfo})"


def _can_virtualise(cpuinfo: str) -> bool:
    """Tell whether the processor has what KVM needs (proc_cpuinfo(5), flags); who cannot say that may try."""
    try:
        with open(cpuinfo, encoding="utf-8", errors="replace") as file:
            flags = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        flags = ""
    return not flags or not {"vmx", "svm"}.isdisjoint(flags.split())


async def _kvm_obstacle(emulator: str, cache_dir: str) -> str:
    path = os.path.join(cache_dir, "accel.json")
    conditions = _conditions(emulator)
    obstacle = _recall(path, conditions)
    if obstacle is None:
        obstacle = await runs_guest(emulator, "kvm")
        _remember(path, conditions, obstacle)
    return obstacle


async def choose_accel(
    settings_accel: str,
    emulator: str,
    cache_dir: str,
    *,
    kvm_device: str = "/dev/kvm",
    cpuinfo: str = "/proc/cpuinfo",
) -> AccelChoice:
    """Return the accelerator for guests run by `emulator`; `settings_accel` is `auto`, `kvm` or `tcg`.

    `auto` tries KVM once (at most 4 s) and keeps the answer in `cache_dir`/accel.json.
    """
    if settings_accel != "auto":
        return AccelChoice(settings_accel, f"guests run under {settings_accel}, because the settings say so")
    obstacle = _device_obstacle(kvm_device, cpuinfo) or await _kvm_obstacle(emulator, cache_dir)
    if obstacle:
        return AccelChoice("tcg", f"guests are emulated (slow), because KVM does not run here: {obstacle}")
    return AccelChoice("kvm", "guests run under KVM: a trial guest ran")
