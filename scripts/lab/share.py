"""The project's folder as a machine sees it: virtiofsd serves it, read-only, to one QEMU."""

import contextlib
import os
import socket
import subprocess
import tempfile
from types import TracebackType
from typing import IO, Self

from crannog.errors import HypervisorError
from crannog.images.tools import owner_prefix

_PROGRAM = "/usr/lib/qemu/virtiofsd"
"""Where Debian 12 has it: in the package qemu-system-common, which comes with every emulator."""

# The mount is made read-only where virtiofsd runs, out of reach of the machine: it may mount its side anew as it likes.
_SCRIPT = 'mount --bind -o ro "$1" "$1" && exec "$2" --fd="$3" -o "source=$1,cache=always,log_level=err"'

_END_TIMEOUT = 2.0

DIES_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")
"""Before a command: the kernel kills it when this process has gone, however that happened (setpriv(1))."""


class Share:
    """One folder, served to one machine. As a context manager; `link` is the connection that QEMU takes over.

    What virtiofsd complains of goes to the file `log`.
    """

    def __init__(self, folder: str, log: IO[bytes]) -> None:
        self.folder = os.path.realpath(folder)
        self._log = log
        self.link = socket.socket(socket.AF_UNIX)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        if not os.path.exists(_PROGRAM):
            raise HypervisorError(f"the lab needs {_PROGRAM}, which is not there: run scripts/setup test")
        with socket.socket(socket.AF_UNIX) as listener, tempfile.TemporaryDirectory(prefix="lab-") as folder:
            listener.bind(f"{folder}/socket")
            listener.listen(1)
            # Connected before anybody accepts, so that the socket's name is gone again at once.
            self.link.connect(f"{folder}/socket")
            self._process = self._start(listener.fileno())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.link.close()
        if self._process:
            # It ends when its machine has; killed, it would leave a second process of its own for init to bury.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_TIMEOUT)
            self._process.kill()
            self._process.wait()

    def _start(self, listener: int) -> "subprocess.Popen[bytes]":
        words = ["sh", "-c", _SCRIPT, "virtiofsd", self.folder, _PROGRAM, str(listener)]
        return subprocess.Popen(
            [*owner_prefix(), *DIES_WITH_PARENT, "unshare", "--mount", "--propagation", "private", *words],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            pass_fds=(listener,),
            process_group=0,
        )
