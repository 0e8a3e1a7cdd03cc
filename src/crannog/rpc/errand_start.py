"""Starting the process of a guest's call: a child of the VM's RPC process, which has nothing of it but its streams."""

import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from crannog.errors import CrannogError, RpcError
from crannog.rpc.guest_call import Errand

TROUBLE = 125
_VERDICT, LOG_FD = 3, 4
_ABOVE = 100
"""Numbers of files that nobody wants for a stream."""
LOG_MAX = 2**20
"""Bytes of a log after which calls add nothing to it: a guest can make as many as it likes, one after the other."""
LOG_LINE_MAX = 300
SERVED, KEEPS_ERRORS = b"+", b"h"
"""What a child says on its pipe `verdict`: the service is there; before that, its stderr is for this host alone."""

Run = Callable[[Callable[[], None], Callable[[str], None]], int]
"""What a child does: it is given how it tells that the service is there, and how it logs; it returns its exit code."""


def start_errand(run: Run, log_fd: int = 2) -> Errand:
    """Fork a child that does `run`. Bytes on its pipe `verdict` say that the service is there (SERVED), and how.

    `log_fd` is the file that it logs to. Raises OSError when there can be no process.
    """
    pipes = [os.pipe() for _ in range(4)]
    (stdin, our_stdin), (our_stdout, stdout), (our_stderr, stderr), (our_verdict, verdict) = pipes
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until the child has a handler of its own
    try:
        pid = os.fork()
        if pid == 0:
            _be_child(run, (stdin, stdout, stderr, verdict, log_fd), mask)
    except OSError:
        for fd in [fd for pipe in pipes for fd in pipe]:
            os.close(fd)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    for fd in (stdin, stdout, stderr, verdict):
        os.close(fd)
    return Errand(pid, os.pidfd_open(pid), our_stdin, our_stdout, our_stderr, our_verdict)


def spawn_program(path: str, arguments: list[str], environment: dict[str, str]) -> Errand:
    """Start a program that is a service, with pipes as its streams: quicker than a child that becomes the program.

    Raises RpcError when it cannot be run.
    """
    pipes = [os.pipe() for _ in range(3)]
    (stdin, our_stdin), (our_stdout, stdout), (our_stderr, stderr) = pipes
    actions = [(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate((stdin, stdout, stderr))]
    try:
        pid = os.posix_spawn(
            *(path, arguments, environment),
            file_actions=actions,
            setsid=True,
            setsigmask=(),
            setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),
        )
    except OSError as error:
        for fd in (our_stdin, our_stdout, our_stderr):
            os.close(fd)
        raise RpcError(f"{path} cannot be run: {error.strerror}") from error
    finally:
        for fd in (stdin, stdout, stderr):
            os.close(fd)
    return Errand(pid, os.pidfd_open(pid), our_stdin, our_stdout, our_stderr, -1)


def _be_child(run: Run, streams: tuple[int, int, int, int, int], mask: Iterable[int]) -> None:
    """Do the errand. Never returns; nothing of the RPC process but these five files is open here."""
    code = TROUBLE
    try:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(TROUBLE))  # its parent's does not end it
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.setsid()
        # High first: among the numbers that are wanted, some may be in use for another stream.
        high = [_dup_above(fd) for fd in streams]
        for target, fd in enumerate(high):
            os.dup2(fd, target, inheritable=target <= 2)
        os.closerange(LOG_FD + 1, os.sysconf("SC_OPEN_MAX"))
        code = run(_tell, _log)
    except CrannogError as error:
        _log(str(error))
    except Exception as error:  # noqa: BLE001 - a child must never go on as its parent
        _log(f"a call ended by a mistake of ours: {error!r}")
    finally:
        os._exit(code)


def _dup_above(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _ABOVE)


def _tell() -> None:
    os.write(_VERDICT, SERVED)


def keep_errors() -> None:
    """Have what comes on this child's stderr stay on this host; to be said before the service is told to be there."""
    os.write(_VERDICT, KEEPS_ERRORS)


def _log(sentence: str) -> None:
    """Write a line to the log, while there is room; a pipe or terminal has no size, and its reader sees to that."""
    with suppress(OSError):
        if os.fstat(LOG_FD).st_size < LOG_MAX:
            line = f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {sentence[:LOG_LINE_MAX]}\n"
            os.write(LOG_FD, line.encode(errors="replace"))
