"""Processes of calls, one of which is ready while there are calls: starting it takes longer than much of what it does.

The spare one waits for its order on its stdin, and ends with the process that started it, or when no call has come for
a while: a daemon without work has no children.
"""

import os
import signal
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from crannog.rpc.errand_start import Run, start_errand
from crannog.rpc.guest_call import Errand
from crannog.rpc.triggers import Trigger

KEPT = 0.5
"""Seconds after a call for which a process is kept for the next one."""
_LENGTH = struct.Struct("<I")
_IDENT_SIZE = 32


class SpareErrands:
    """Starts processes for calls."""

    def __init__(self, make: Callable[[Trigger], Run]) -> None:
        """`make` says what the process of a call does."""
        self._make = make
        self._spare: Errand | None = None
        self._end = 0.0

    @property
    def is_wanted(self) -> bool:
        """Whether there should be a process that waits, and is none."""
        return self._spare is None and time.monotonic() < self._end

    @property
    def deadline(self) -> float | None:
        """When `expire` has something to do."""
        return self._end if self._spare else None

    def expire(self, now: float) -> None:
        """End the process that waits if no call has come for it."""
        if self._spare and now >= self._end:
            signal.pidfd_send_signal(self._spare.pidfd, signal.SIGKILL)  # it has done nothing yet
            _bury(self._spare)
            self._spare = None

    def prepare(self) -> None:
        """Start a process that waits; without one, calls take longer."""

        def run(tell: Callable[[], None], log: Callable[[str], None]) -> int:
            return self._make(_read_order())(tell, log)

        with suppress(OSError):
            self._spare = start_errand(_with_own_signals(run))

    def start(self, trigger: Trigger) -> Errand:
        """Return the process of a call; raises OSError when there can be none."""
        self._end = time.monotonic() + KEPT
        spare, self._spare = self._spare, None
        if spare:
            try:
                os.write(spare.stdin, encode_order(trigger))
            except OSError:
                _bury(spare)
            else:
                return spare
        return start_errand(_with_own_signals(self._make(trigger)))

    def close(self) -> None:
        """Let the process that waits end."""
        if self._spare:
            _close(self._spare)
            self._spare = None


def _with_own_signals(run: Run) -> Run:
    """Return what a child does that must not act on signals as its parent, until it says how."""

    def begin(tell: Callable[[], None], log: Callable[[str], None]) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        return run(tell, log)

    return begin


def encode_order(trigger: Trigger) -> bytes:
    """Return a call as an order. It fits an empty pipe (pipe(7)), as a service has at most 65,000 bytes."""
    texts = (trigger.target, trigger.source, trigger.service)
    order = b"\0".join([trigger.ident.rstrip(b"\0"), *(text.encode("ascii") for text in texts)])
    return _LENGTH.pack(len(order)) + order


def decode_order(order: bytes) -> Trigger:
    """Return the call of an order, without its length."""
    ident, *texts = order.split(b"\0")
    target, source, service = (text.decode("ascii") for text in texts)
    return Trigger(ident.ljust(_IDENT_SIZE, b"\0"), target, service, source)


def _read_order() -> Trigger:
    """Wait for the order; without one there is nothing to do."""
    (length,) = _LENGTH.unpack(_read(_LENGTH.size))
    return decode_order(_read(length))


def _read(count: int) -> bytes:
    data = b""
    while len(data) < count:
        block = os.read(0, count - len(data))
        if not block:
            sys.exit(0)
        data += block
    return data


def _bury(errand: Errand) -> None:
    with suppress(ChildProcessError):
        os.waitid(os.P_PIDFD, errand.pidfd, os.WEXITED)
    _close(errand)


def _close(errand: Errand) -> None:
    for fd in errand.fds():
        os.close(fd)
