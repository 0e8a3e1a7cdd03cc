"""Starting crannogd on demand, as gpg-agent and adb start theirs.

Two tools may try at once: the daemon's lock lets one daemon win, and both tools then find it.
"""

import os
import sys
import time
from collections.abc import Callable
from typing import TypeVar

from crannog.config import Paths
from crannog.errors import DaemonError

T = TypeVar("T")

READY_TIMEOUT = 90
"""Seconds: the first start on a host asks every QEMU what it can do, which takes about 10 s."""
PATIENCE = 2
"""Seconds after which the user is told why nothing happens yet."""


def start_daemon(paths: Paths, connect: Callable[[], T | None]) -> T:
    """Start the daemon of a home and return what `connect` returns once it answers.

    Raises DaemonError with the daemon's own reason when it ends, or does not answer in time.
    """
    ready_read, ready_write = os.pipe()
    error_read, error_write = os.pipe()
    os.set_inheritable(ready_write, True)
    try:
        pid = _spawn(paths, ready_write, error_write)
    except OSError as error:
        os.close(ready_read)
        os.close(error_read)
        raise DaemonError(f"crannogd did not start: {sys.executable}: {error.strerror}") from error
    finally:
        os.close(ready_write)
        os.close(error_write)
    try:
        is_ready = _wait_until_ready(paths, ready_read)
        if not is_ready:
            _, status = os.waitpid(pid, 0)
            if os.waitstatus_to_exitcode(status) != DaemonError.exit_code:
                raise DaemonError(_reason(paths, error_read))
    finally:
        os.close(ready_read)
        os.close(error_read)
    return _connect_soon(paths, connect)


def _spawn(paths: Paths, ready: int, error: int) -> int:
    """Start the daemon of a home, also one that no variable names, in a session of its own; return its process."""
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-m", "crannog.daemon", "--ready-fd", str(ready)],
        {**os.environ, "CRANNOG_HOME": paths.home, "CRANNOG_CACHE": paths.cache},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, error, 2),
        ],
        setsid=True,
    )


def _wait_until_ready(paths: Paths, ready: int) -> bool:
    """Return True when the daemon says it is ready, False when it ends without."""
    import select

    for timeout, then in (
        (PATIENCE, "crannogd starts; the first time on a host it asks QEMU what it can do ..."),
        (READY_TIMEOUT, ""),
    ):
        readable, _, _ = select.select([ready], [], [], timeout)
        if readable:
            return os.read(ready, 1) == b"1"
        if then:
            print(then, file=sys.stderr)
    raise DaemonError(f"crannogd did not get ready within {READY_TIMEOUT} s; its log is {paths.daemon_log}")


def _reason(paths: Paths, error: int) -> str:
    text = os.read(error, 65536).decode("utf-8", "replace").strip()
    last = text.splitlines()[-1].removeprefix("crannogd: ") if text else "it gave no reason"
    where = "" if paths.daemon_log in last else f"; its log is {paths.daemon_log}"
    return f"crannogd did not start: {last}{where}"


def _connect_soon(paths: Paths, connect: Callable[[], T | None]) -> T:
    """Connect, also to a daemon that another tool is just starting."""
    deadline = time.monotonic() + READY_TIMEOUT
    while time.monotonic() < deadline:
        connection = connect()
        if connection is not None:
            return connection
        time.sleep(0.05)
    raise DaemonError(f"a crannogd holds {paths.daemon_lock} but does not answer; its log is {paths.daemon_log}")
