"""Processes of this host, as its kernel shows them (proc(5)), and how those that are nobody's are ended."""

import contextlib
import os
import select
import signal
from collections.abc import Callable, Iterable

UUID_OPTION = b"-uuid"
_END_SECONDS = 5.0


def list_processes(proc: str = "/proc") -> list[int]:
    """Return the numbers of all processes; none where the kernel does not show them."""
    with contextlib.suppress(OSError):
        return [int(name) for name in os.listdir(proc) if name.isdecimal()]
    return []


def read_command(process: int, proc: str = "/proc") -> list[bytes]:
    """Return the command line of a process, word by word; empty for one that has ended or is not to be looked at."""
    with contextlib.suppress(OSError), open(f"{proc}/{process}/cmdline", "rb") as file:
        return file.read().split(b"\0")[:-1]
    return []


def find_emulators(
    uuids: frozenset[str], processes: Iterable[int] | None = None, proc: str = "/proc"
) -> dict[str, int]:
    """Return the processes of this user's QEMUs among `processes` (None: all), by the UUIDs of their VMs.

    QEMU names its VM by `-uuid` on its command line, also under a libvirtd of its own.
    """
    candidates = (list_processes(proc) if processes is None else processes) if uuids else ()
    found = {find_option(read_command(process, proc), UUID_OPTION).lower(): process for process in candidates}
    return {uuid: process for uuid, process in found.items() if uuid in uuids and is_own(process, proc)}


def is_emulator(words: list[bytes], uuid: str) -> bool:
    """Tell whether a command line is that of the QEMU of the VM with that UUID."""
    return find_option(words, UUID_OPTION).lower() == uuid


def find_option(words: list[bytes], option: bytes) -> str:
    """Return the word that follows an option on a command line; empty without that option."""
    return os.fsdecode(words[words.index(option) + 1]) if option in words[:-1] else ""


def is_own(process: int, proc: str = "/proc") -> bool:
    """Tell whether a process runs as this user: whoever else runs one cannot pass it off as a VM's."""
    with contextlib.suppress(OSError):
        return os.stat(f"{proc}/{process}").st_uid == os.geteuid()
    return False


def kill(process: int, is_wanted: Callable[[list[bytes]], bool], seconds: float = _END_SECONDS) -> bool:
    """End a process that need not be a child by force, and wait until it has ended; return whether it was there.

    It is ended only if its command line `is_wanted`, which is looked at when its number can no longer be another's.
    """
    return signal_process(process, signal.SIGKILL, is_wanted, seconds) is not None


def signal_process(process: int, number: int, is_wanted: Callable[[list[bytes]], bool], seconds: float) -> bool | None:
    """Send a signal and return whether the process then ended within that time. None: it was not there, or not wanted.

    Blocks. Source of the way: pidfd_open(2).
    """
    try:
        handle = os.pidfd_open(process)
    except OSError:
        return None
    try:
        if not is_wanted(read_command(process)):
            return None
        signal.pidfd_send_signal(handle, number)
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        return bool(poll.poll(1000 * seconds))
    except OSError:
        return None
    finally:
        os.close(handle)
