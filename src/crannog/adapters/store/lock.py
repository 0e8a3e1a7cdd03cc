"""One at a time: whoever works on the store holds its lock (flock(2)), crannogd all its life, a tool for its call."""

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from crannog.errors import DaemonError, StorageError

DAEMON = "crannogd"
WAIT = 30
"""Seconds to wait for a tool that holds the lock."""
_PAUSE = 0.003
"""Seconds between two looks."""
_SIGNED_BY_DAEMON = re.compile(DAEMON + r" \(process (\d+)\)")


class StoreLock:
    """The lock file beside the store. The kernel lets go of it when its holder ends, however that comes about."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._descriptor = -1

    def acquire(self, role: str, wait: float = WAIT) -> None:
        """Take the lock, as `role` (DAEMON, or a tool's name); wait for another tool, never for a daemon.

        Raises DaemonError when a daemon has it, StorageError when a tool keeps it too long or the file cannot be used.
        """
        if self._descriptor >= 0:
            raise StorageError(f"the lock {self.path} is held by this very process already")
        try:
            self._descriptor = self._take(time.monotonic() + wait, wait)
            self._sign(role)
        except OSError as error:
            self.release()
            raise StorageError(f"the lock {self.path} cannot be used: {error.strerror}") from error
        except BaseException:
            self.release()
            raise

    def _take(self, deadline: float, wait: float) -> int:
        """Return a descriptor that holds the lock of the file that is at the path."""
        with ExitStack() as stack:
            self._queue_up(stack, deadline)
            while True:
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                with ExitStack() as unless_taken:
                    unless_taken.callback(os.close, descriptor)
                    while not _try(descriptor):
                        self._refuse_daemon(descriptor)
                        if time.monotonic() >= deadline:
                            raise StorageError(
                                f"{self._holder(descriptor)} has been working on the store for {wait:g} s; "
                                f"wait for it, or end it"
                            )
                        time.sleep(_PAUSE)
                    if self._is_current(descriptor):
                        unless_taken.pop_all()
                        return descriptor
                    # Somebody deleted the file meanwhile: the one that is in its place now counts.

    def _queue_up(self, stack: ExitStack, deadline: float) -> None:
        """Become the next to get the lock: who waits holds a lock on the folder, so that nobody can push in.

        Without it, a process that lets go and takes again would leave the others no moment to look. A file system
        where a folder cannot be locked has no queue.
        """
        folder = os.open(os.path.dirname(self.path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, folder)
        with suppress(OSError):
            while not _try(folder) and time.monotonic() < deadline:
                time.sleep(_PAUSE)

    def _is_current(self, descriptor: int) -> bool:
        """Tell whether the file that is open is the one at the path."""
        try:
            return os.path.samestat(os.fstat(descriptor), os.lstat(self.path))
        except FileNotFoundError:
            return False

    def _refuse_daemon(self, descriptor: int) -> None:
        """Raise DaemonError when a daemon holds the lock.

        Who has just got it may not have signed yet: the signature of a daemon that is dead says nothing.
        """
        holder = self._holder(descriptor)
        signature = _SIGNED_BY_DAEMON.fullmatch(holder)
        if signature and os.path.exists(f"/proc/{signature[1]}"):
            raise DaemonError(
                f"{holder} runs for {os.path.dirname(self.path)} and owns the store; "
                f"stop it with 'crannog daemon stop', or let it do the work: leave out --offline where you gave it"
            )

    @staticmethod
    def _holder(descriptor: int) -> str:
        return os.pread(descriptor, 64, 0).decode("ascii", "replace").strip() or "a process"

    def _sign(self, role: str) -> None:
        text = f"{role} (process {os.getpid()})"[:63]
        try:
            # In place and with a fixed width, which works on a full disk as well.
            os.pwrite(self._descriptor, f"{text:<63}\n".encode("ascii", "replace"), 0)
        except OSError as error:
            raise StorageError(f"the lock {self.path} cannot be written: {error.strerror}; free some space") from error

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
