"""What the RPC process of a VM has around it: its socket, the channel to the guest, its log, and its waits."""

import os
import select
import socket
import sys
import time
from collections.abc import Callable

from crannog.errors import InUseError, RpcError

CONNECT_PAUSE = 0.01
LOG_LINES_MAX = 500
COMPLAINTS_MAX = 2**20
"""Bytes of the log of what services complain of."""
LOG_LINE_MAX = 300
"""Longest sentence of the log, in characters: names of services may have 65,000."""
SHORT, STEP = 0.002, 0.0002
"""Waits shorter than the first, in seconds, are made of such steps, as poll(2) counts in milliseconds."""


def make_log(vm: str) -> Callable[[str], None]:
    """Return a function that logs a line to stderr. A guest cannot cause more than LOG_LINES_MAX, or long ones."""
    count = 0

    def log(sentence: str) -> None:
        nonlocal count
        count += 1
        if count <= LOG_LINES_MAX:
            sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {vm}: {sentence[:LOG_LINE_MAX]}\n")
        if count == LOG_LINES_MAX:
            sys.stderr.write(f"{vm}: further lines are left out\n")
        sys.stderr.flush()

    return log


def keep_complaints(path: str, text: bytes) -> None:
    """Add to a log what services of this host complain of, while there is room in it."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return
    try:
        os.write(fd, text[: max(0, COMPLAINTS_MAX - os.fstat(fd).st_size)])
    except OSError:
        return
    finally:
        os.close(fd)


def listen(path: str) -> socket.socket:
    """Return a socket that listens at `path`, for its owner only; a left-over file is replaced.

    Raises InUseError when a process serves that path already.
    """
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except FileNotFoundError:
            pass
        except ConnectionRefusedError:
            os.unlink(path)
        else:
            raise InUseError(f"another RPC process serves {path} already")
    listener = socket.socket(socket.AF_UNIX)
    old_mask = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(old_mask)
    listener.listen(128)
    listener.setblocking(False)
    return listener


def connect_channel(path: str, wait: float, starter: int | None = None) -> socket.socket:
    """Return a connection to the channel at `path`, which may appear within `wait` seconds.

    Raises RpcError when it does not, or when `starter`, the read end of a pipe, says by its end that who started this
    process, and was about to make the channel, is gone.
    """
    deadline = time.monotonic() + wait
    while True:
        channel = socket.socket(socket.AF_UNIX)
        try:
            channel.connect(path)
        except OSError as error:
            channel.close()
            if time.monotonic() >= deadline:
                raise RpcError(f"the channel {path} did not appear in {wait:.0f} s: {error}") from error
            if select.select([] if starter is None else [starter], [], [], CONNECT_PAUSE)[0]:
                raise RpcError(f"crannogd ended before it made the channel {path}") from error
        else:
            channel.setblocking(False)
            return channel


def wait(poll: select.poll, seconds: float | None) -> list[tuple[int, int]]:
    """Return what poll has found out, at the latest after so many seconds; None is for ever."""
    if seconds is None or seconds >= SHORT:
        return poll.poll(None if seconds is None else seconds * 1000 + 1)
    end = time.monotonic() + seconds
    while not (events := poll.poll(0)) and time.monotonic() < end:
        time.sleep(STEP)
    return events
