"""VMs that run although no daemon does: they outlive it, and offline mode must not pull the disk from under them."""

import contextlib
import os
from itertools import pairwise

from crannog.errors import StorageError

_UUID_OPTION = b"-uuid"


class LeftRunning:
    """What can be known of running VMs without a hypervisor (see core.runtime): by QEMU's pid files, once."""

    def __init__(self, folder: str) -> None:
        self._running = _find(folder)

    def power_state(self, uuid: str) -> str:
        """Return Running for a VM whose QEMU was found, else Halted."""
        return "Running" if uuid in self._running else "Halted"

    def active_states(self) -> dict[str, str]:
        """Return Running for each VM whose QEMU was found."""
        return dict.fromkeys(self._running, "Running")

    def xid(self, uuid: str) -> int:
        """Return -1: the hypervisor's numbers are not known here."""
        del uuid
        return -1

    def stubdom_xid(self, uuid: str) -> int:
        """Return -1, for the same reason."""
        del uuid
        return -1


def _find(folder: str) -> frozenset[str]:
    """Return the UUIDs on the command lines of the processes that the pid files in `folder` name."""
    found = set()
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        entries = []
    except OSError as error:
        raise StorageError(f"whether VMs run cannot be found out: {folder}: {error.strerror}") from error
    for entry in entries:
        if entry.name.endswith(".pid"):
            with contextlib.suppress(OSError, ValueError):
                found |= _uuids_of(entry.path)
    return frozenset(found)


def _uuids_of(pid_file: str) -> set[str]:
    with open(pid_file) as file:
        pid = int(file.read(20))
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        words = file.read().split(b"\0")
    return {value.decode("ascii", "replace") for word, value in pairwise(words) if word == _UUID_OPTION}
