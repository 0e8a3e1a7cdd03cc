"""The QEMU processes that libvirt detaches: buried at once, also where init does not.

libvirt starts QEMU detached, so that init becomes its parent, and ends it by a signal followed by a look every 0.2 s
whether the process number is free. It is free when the parent has buried the process. Where init is slow with that
(often so in containers) ending a domain takes seconds, and so does a start that QEMU refuses. There, and only
there, this process makes itself the parent of what it detached (prctl(2), PR_SET_CHILD_SUBREAPER).
"""

import asyncio
import contextlib
import ctypes
import functools
import os
import signal
import subprocess
import time

_PR_SET_CHILD_SUBREAPER = 36
"""prctl(2), linux/prctl.h."""

_PROMPT_SECONDS = 0.05
_NAME_MAX = 15
"""What /proc/PID/stat keeps of a program's name, in bytes (proc(5))."""


@functools.cache
def is_init_prompt() -> bool:
    """Return whether init buries an orphan within 0.05 s. Tried once in a process's life, by making one. Blocks."""
    made = subprocess.run(["sh", "-c", "sleep 0 >&2 & echo $!"], capture_output=True, check=False)
    process = f"/proc/{made.stdout.decode().strip()}/stat"
    deadline = time.monotonic() + _PROMPT_SECONDS
    while time.monotonic() < deadline:
        if not os.path.exists(process):
            return True
        time.sleep(0.002)
    return False


def _is_detached_emulator(pid: int, name: str) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            before, _, after = file.read().rpartition(")")
    except OSError:
        return False
    state, _parent, _group, session = after.split()[:4]
    # One that this process started itself, and waits for, shares its session; libvirt gives each a new one.
    program = before.partition("(")[2]
    # An emulator that died before it was executed, or that is a script, has another name. libvirt detaches by making a
    # session and forking once more in it; no process that is started with Python's own means looks like that.
    is_emulator = program == name[:_NAME_MAX] or int(session) != pid
    return state == "Z" and is_emulator and int(session) != os.getsid(0)


def _children() -> list[int]:
    children: list[int] = []
    for thread in os.listdir("/proc/self/task"):
        with (
            contextlib.suppress(OSError),
            open(f"/proc/self/task/{thread}/children", encoding="ascii") as file,
        ):
            children += map(int, file.read().split())
    return children


def bury_emulators(name: str) -> None:
    """Bury every ended, detached child of this process whose program is called `name`."""
    for pid in _children():
        if _is_detached_emulator(pid, name):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def adopt_emulators(name: str) -> None:
    """Become the parent of detached programs called `name`, and bury each when it ends, until `release`.

    Has no effect outside the main thread, where signals cannot be taken: ending a domain is slower then.
    """
    loop = asyncio.get_running_loop()
    with contextlib.suppress(ValueError, RuntimeError):
        loop.add_signal_handler(signal.SIGCHLD, bury_emulators, name)
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def release() -> None:
    """Adopt no more processes."""
    with contextlib.suppress(ValueError, RuntimeError):
        asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
