"""One at a time: whoever works on the store holds its lock (flock(2)), crannogd all its life, a tool for its call."""

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from crannog.errors import DaemonError, StorageError

DAEMON = "crannogd"
WAIT = 30
"""Seconds to wait for a tool that holds the lock."""
_GLANCE = 0.05


class StoreLock:
    """The lock file beside the store. The kernel lets go of it when its holder ends, however that comes about."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._descriptor = -1

    def acquire(self, role: str, wait: float = WAIT) -> None:
        """Take the lock, as `role` (DAEMON, or a tool's name); wait for another tool, never for a daemon.

        Raises DaemonError when a daemon has it, StorageError when a tool keeps it too long or the file cannot be made.
        """
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise StorageError(f"the lock {self.path} cannot be used: {error.strerror}") from error
        try:
            if not _try(descriptor):
                self._wait(descriptor, wait)
            self._sign(descriptor, role)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def _wait(self, descriptor: int, wait: float) -> None:
        self._refuse_daemon(descriptor)
        # In a thread, because it has to end: a waiting flock() gets its turn, where asking again and again may never.
        waiter = threading.Thread(target=fcntl.flock, args=(descriptor, fcntl.LOCK_EX), daemon=True)
        waiter.start()
        deadline = time.monotonic() + wait
        while waiter.is_alive() and time.monotonic() < deadline:
            waiter.join(_GLANCE)
            if waiter.is_alive():
                self._refuse_daemon(descriptor)
        if waiter.is_alive():
            raise StorageError(
                f"{self._holder(descriptor)} has been working on the store for {wait:.0f} s; wait for it, or end it"
            )

    def _refuse_daemon(self, descriptor: int) -> None:
        """Raise DaemonError when a daemon holds the lock. Who has just got it may not have signed yet: look twice."""
        for _ in range(2):
            if not self._holder(descriptor).startswith(DAEMON) or _try(descriptor):
                return
            time.sleep(_GLANCE / 5)
        raise DaemonError(
            f"{self._holder(descriptor)} runs for {os.path.dirname(self.path)} and owns the store; "
            f"stop it with 'crannog daemon stop', or let it do the work: leave out --offline where you gave it"
        )

    @staticmethod
    def _holder(descriptor: int) -> str:
        return os.pread(descriptor, 64, 0).decode("ascii", "replace").strip() or "a process"

    @staticmethod
    def _sign(descriptor: int, role: str) -> None:
        text = f"{role} (process {os.getpid()})"[:63]
        try:
            # In place and with a fixed width, which works on a full disk as well.
            os.pwrite(descriptor, f"{text:<63}\n".encode("ascii", "replace"), 0)
        except OSError as error:
            raise StorageError(f"the lock cannot be written: {error.strerror}; free some space") from error

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock for a block; it may be held already."""
        if self._descriptor >= 0:
            yield
            return
        self.acquire("a program")
        try:
            yield
        finally:
            self.release()

    def release(self) -> None:
        """Let go of the lock."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
