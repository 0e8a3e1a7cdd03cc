"""What a client in the sandbox writes: its status, of which only known lines are believed, and its log, cut short."""

import contextlib
import os
import re
import sys

_KNOWN = re.compile(r"connected|wrong-version|windows [0-9]{1,5}")
_LINE_MAX = 64
_READ = 4096
LOG_LINES_MAX = 200
"""Lines that a client may write to the log; what it writes can follow from what a guest sends."""
LOG_LINES_SUM_MAX = 5000
"""Lines of all clients of this process: a guest can end one after the other."""
_LOG_LINE_MAX = 200


class Output:
    """The two pipes of a client."""

    _logged_sum = 0

    def __init__(self, status_fd: int, log_fd: int) -> None:
        self._buffers = {status_fd: bytearray(), log_fd: bytearray()}
        self._status_fd = status_fd
        self._logged = 0
        self._open = {status_fd, log_fd}

    @property
    def has_ended(self) -> bool:
        """Whether the client has closed its status."""
        return self._status_fd not in self._open

    def filenos(self) -> list[int]:
        """Return what to wait for input on."""
        return sorted(self._open)

    def read(self, ready: list[int]) -> list[str]:
        """Take what is there at `ready`; return the known lines. Of several counts of windows the last one is left."""
        lines: list[str] = []
        for fd in self._open.intersection(ready):
            read = self._read_lines(fd)
            if fd == self._status_fd:
                lines = [line for line in read if _KNOWN.fullmatch(line)]
            else:
                self._log(read)
        counts = [line for line in lines if line.startswith("windows")]
        return [line for line in lines if not line.startswith("windows")] + counts[-1:]

    def _read_lines(self, fd: int) -> list[str]:
        data = os.read(fd, _READ)
        if not data:
            self._open.discard(fd)
        buffer = self._buffers[fd]
        buffer += data
        *lines, rest = buffer.split(b"\n")
        buffer[:] = rest[: _LINE_MAX if fd == self._status_fd else _LOG_LINE_MAX]
        return [line.decode("ascii", "replace") for line in lines]

    def _log(self, lines: list[str]) -> None:
        taken = lines[: min(LOG_LINES_MAX - self._logged, LOG_LINES_SUM_MAX - Output._logged_sum)]
        for line in taken:
            shown = "".join(character if " " <= character <= "~" else "?" for character in line[:_LOG_LINE_MAX])
            with contextlib.suppress(OSError):
                sys.stderr.write(f"client: {shown}\n")
                sys.stderr.flush()
        self._logged += len(taken)
        Output._logged_sum += len(taken)
