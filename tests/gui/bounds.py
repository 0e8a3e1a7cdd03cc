"""What the tests of hostile and broken displays measure: processes, their memory, and whether the desktop is of use."""

import contextlib
import subprocess
import time
from pathlib import Path

from tests.gui.desktop import Desktop, wait_for
from tests.processes import list_below, read_words

SCREEN_MEMORY = 64 << 20
"""Bytes that the process outside of the sandbox may take: it reads nothing of the guest."""


def measure(pid: int, fact: str) -> int:
    """Return a process's bytes of something (proc(5), status); 0 when it has ended."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith(f"{fact}:"):
                return int(line.split()[1]) << 10
    return 0


def list_clients(forwarder: int) -> list[int]:
    """Return what runs in the sandbox below a forwarder: xpra's client."""
    return [pid for pid in list_below(forwarder) if read_words(pid)[:1] == ["/usr/bin/python3"]]


def is_usable(desktop: Desktop, folder: Path) -> bool:
    """Tell whether somebody at the desktop can open a program and type into it."""
    mark = folder / f"typed-{time.monotonic()}"
    with subprocess.Popen(["xterm", "-T", "other", "-e", "sh"], env=desktop.environment) as terminal:
        desktop.type(desktop.wait_for_window("other"), f"touch {mark}")
        wait_for("what was typed", mark.exists)
        terminal.terminate()
    return mark.exists()
