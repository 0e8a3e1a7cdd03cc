"""Processes as proc(5) shows them: one that ends while it is looked at is told as one that has ended."""

import contextlib
import os
from pathlib import Path


def read_words(pid: int) -> list[str]:
    """Return the words that a process was started with; none of one that has ended, be it buried or not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")[:-1]
    return []


def read_name(pid: int) -> str:
    """Return the name of the program that a process runs; an empty one for a process that is not there."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").removesuffix("\n")
    return ""


def list_children(pid: int) -> list[int]:
    """Return the processes that a process has started and not buried."""
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    return []


def list_below(pid: int) -> list[int]:
    """Return all processes below one."""
    children = list_children(pid)
    return children + [further for child in children for further in list_below(child)]


def list_all() -> dict[int, list[str]]:
    """Return the words of all processes of this machine that run."""
    found = {int(name): read_words(int(name)) for name in os.listdir("/proc") if name.isdigit()}
    return {pid: words for pid, words in found.items() if words}


def state_of(pid: int) -> str:
    """Return the letter of a process's state (proc(5), stat); empty when there is none."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    return ""


def is_alive(pid: int) -> bool:
    """Tell whether a process exists and is no zombie."""
    return state_of(pid) not in ("", "Z")


def memory_of(pid: int) -> int:
    """Return the resident memory of a process, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGESIZE")


def processor_seconds(pid: int) -> float:
    """Return the processor time that a process has used (proc(5), stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
