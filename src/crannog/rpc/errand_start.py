"""Starting the process of a guest's call: a child of the VM's RPC process, which has nothing of it but its streams."""

import fcntl
import os
import time
from collections.abc import Callable
from contextlib import suppress

from crannog.errors import CrannogError
from crannog.rpc.guest_calls import Errand

TROUBLE = 125
_VERDICT, _LOG = 3, 4
_ABOVE = 100
"""Numbers of files that nobody wants for a stream."""

Run = Callable[[Callable[[], None], Callable[[str], None]], int]
"""What a child does: it is given how it tells that the service is there, and how it logs; it returns its exit code."""


def start_errand(run: Run) -> Errand:
    """Fork a child that does `run`. One byte on its pipe `verdict` says that the service is there.

    Raises OSError when there can be no process.
    """
    pipes = [os.pipe() for _ in range(4)]
    (stdin, our_stdin), (our_stdout, stdout), (our_stderr, stderr), (our_verdict, verdict) = pipes
    try:
        pid = os.fork()
    except OSError:
        for fd in [fd for pipe in pipes for fd in pipe]:
            os.close(fd)
        raise
    if pid == 0:
        _be_child(run, (stdin, stdout, stderr, verdict, 2))
    for fd in (stdin, stdout, stderr, verdict):
        os.close(fd)
    return Errand(pid, os.pidfd_open(pid), our_stdin, our_stdout, our_stderr, our_verdict)


def _be_child(run: Run, streams: tuple[int, int, int, int, int]) -> None:
    """Do the errand. Never returns; nothing of the RPC process but these five files is open here."""
    code = TROUBLE
    try:
        os.setsid()
        # High first: among the numbers that are wanted, some may be in use for another stream.
        high = [_dup_above(fd) for fd in streams]
        for target, fd in enumerate(high):
            os.dup2(fd, target, inheritable=target <= 2)
        os.closerange(_LOG + 1, os.sysconf("SC_OPEN_MAX"))
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
    os.write(_VERDICT, b"+")


def _log(sentence: str) -> None:
    with suppress(OSError):
        os.write(_LOG, f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {sentence}\n".encode(errors="replace"))
