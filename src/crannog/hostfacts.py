"""What this host has, asked of its kernel."""

import contextlib
import os

from crannog.core.runtime import HostFacts
from crannog.hostprocesses import find_emulators

_MIB = 2**20


def read_host_facts() -> HostFacts:
    """Return memory and processors of this host (sysconf(3), sched_getaffinity(2))."""
    return HostFacts(
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // _MIB,
        processors=len(os.sched_getaffinity(0)),
    )


def read_boot_id(path: str = "/proc/sys/kernel/random/boot_id") -> str:
    """Return what names the time since the kernel was booted (random(4)); empty when it is not told."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def read_timezone(folder: str = "/etc") -> str:
    """Return the name of this host's time zone, such as Europe/Berlin (localtime(5)); empty when it is not known."""
    try:
        with open(f"{folder}/timezone", encoding="ascii") as file:
            return file.read().strip()
    except (OSError, UnicodeDecodeError):
        target = os.path.realpath(f"{folder}/localtime")
        return target.partition("/zoneinfo/")[2]


class HostMemory:
    """The host's memory, as its kernel shows it in the files below `proc` (proc(5))."""

    def __init__(self, proc: str = "/proc") -> None:
        self._proc = proc

    def available(self) -> int:
        """Return MemAvailable in MiB: what programs can get without others being swapped out. 0: not known."""
        try:
            with open(f"{self._proc}/meminfo", "rb") as file:
                amounts = dict(line.split(b":", 1) for line in file if b":" in line)
            return int(amounts[b"MemAvailable"].split()[0]) // 1024
        except (OSError, KeyError, ValueError, IndexError):
            return 0

    def resident(self, uuids: frozenset[str]) -> dict[str, int]:
        """Return how much of each VM is in the host's memory, in MiB; one that is not found is left out.

        It is not libvirt that is asked: that asks each QEMU in turn, and waits for one that hangs.
        """
        found: dict[str, int] = {}
        for uuid, process in find_emulators(uuids, proc=self._proc).items():
            with contextlib.suppress(OSError, ValueError, IndexError):  # it may end while it is looked at
                found[uuid] = self._read_resident(process)
        return found

    def _read_resident(self, process: int) -> int:
        with open(f"{self._proc}/{process}/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // _MIB
