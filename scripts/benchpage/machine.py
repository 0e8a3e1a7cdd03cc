"""The machine that benchmarks ran on, as far as it matters for their figures."""

import asyncio
import os
import platform
import re
import subprocess

from crannog import __version__
from crannog.adapters.libvirt.accel import choose_accel, find_emulator
from crannog.config import Paths
from crannog.errors import HypervisorError


def describe() -> dict[str, str]:
    """Return what a reader must know of this machine, by what it is."""
    return {
        "Processor": f"{os.cpu_count()} x {_field('/proc/cpuinfo', 'model name')}",
        "Memory": f"{int(_field('/proc/meminfo', 'MemTotal').split()[0]) / 2**20:.0f} GiB",
        "System": f"{platform.freedesktop_os_release()['PRETTY_NAME']}, Linux {platform.release().partition('-')[0]}",
        "Guests run by": _acceleration(),
        "QEMU": _version("qemu-system-x86_64", "--version"),
        "libvirt": _version("libvirtd", "--version"),
        "Python": platform.python_version(),
        "Crannog": __version__,
    }


def _field(path: str, name: str) -> str:
    with open(path, encoding="utf-8") as file:
        match = re.search(rf"^{name}\s*: *(.*)$", file.read(), re.MULTILINE)
    return match[1] if match else "unknown"


def find_accelerator() -> str:
    """Return what runs guests here, `kvm` or `tcg`; raises HypervisorError where there is no QEMU."""
    return asyncio.run(choose_accel("auto", find_emulator(""), Paths().cache)).accel


def _acceleration() -> str:
    try:
        return {"tcg": "QEMU's emulation (TCG), no KVM", "kvm": "KVM"}[find_accelerator()]
    except HypervisorError as error:
        return str(error)


def _version(*command: str) -> str:
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return "none"
    match = re.search(r"\d+(\.\d+)+", said)
    return match[0] if match else "unknown"
