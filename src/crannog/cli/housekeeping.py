"""crannog daemon."""

import os
import signal
import time

from crannog.cli.options import Command, Operand, Values
from crannog.cli.tool import run, say
from crannog.config import Paths
from crannog.errors import DaemonError, UsageError

DAEMON = Command(
    "crannog daemon",
    "Show whether crannogd runs, or stop it. VMs go on running without it.",
    Operand("action", "status|stop", "what to do"),
)
STOP_TIMEOUT = 15


def find_daemon(paths: Paths) -> int | None:
    """Return the process number of the home's daemon; None when none runs.

    The number in the lock file counts only while the file is locked.
    """
    import fcntl

    try:
        with open(paths.daemon_lock, "r+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(lock.read().strip() or 0)
    except FileNotFoundError:
        return None
    return None


def _daemon(options: Values) -> None:
    paths = Paths()
    pid = find_daemon(paths)
    if options.action == "status":
        say(f"crannogd runs for {paths.home} (process {pid})" if pid else f"crannogd does not run for {paths.home}")
    elif options.action != "stop":
        raise UsageError(f"'{options.action}' is neither status nor stop")
    elif pid:
        os.kill(pid, signal.SIGTERM)
        _wait_for_end(paths, pid)


def _wait_for_end(paths: Paths, pid: int) -> None:
    deadline = time.monotonic() + STOP_TIMEOUT
    while find_daemon(paths) == pid:
        if time.monotonic() > deadline:
            raise DaemonError(
                f"crannogd (process {pid}) did not end within {STOP_TIMEOUT} s; its log is {paths.daemon_log}"
            )
        time.sleep(0.02)


def main_daemon(arguments: list[str]) -> int:
    """Run crannog daemon."""
    return run(DAEMON, _daemon, arguments)
