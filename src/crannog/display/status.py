"""What a display process says of itself to crannogd, and what it is told, on a unix socket of its own.

Lines of ASCII: one word, then perhaps a space and more. Who connects gets the last line of each word first, then each
new one, so that a daemon which was started anew knows at once how things are. The process that owns the socket is the
one whose number the kernel tells (SO_PEERCRED, unix(7)).
"""

import contextlib
import os
import select
import socket
from collections.abc import Callable

from crannog.client.rpc import is_served

LINE_MAX = 512
WATCHERS_MAX = 8


class StatusSocket:
    """The process's end. `wait` is called by the process's loop; `on_line` gets each line that a watcher sends."""

    def __init__(self, path: str, on_line: Callable[[str], None] = lambda _line: None) -> None:
        """Listen at `path`. Raises FileExistsError when another process does already, OSError."""
        self._path = path
        self.on_line = on_line
        self._watchers: dict[int, tuple[socket.socket, bytearray]] = {}
        self._said: dict[str, str] = {}
        self._listener = _listen(path)

    def filenos(self) -> list[int]:
        """Return what to wait for input on."""
        return [self._listener.fileno(), *self._watchers]

    def say(self, line: str) -> None:
        """Tell all watchers, now and those to come. A later line with the same first word replaces it."""
        self._said[line.split(" ", 1)[0]] = line
        for fd in list(self._watchers):
            self._send(fd, line)

    def unsay(self, word: str) -> None:
        """Forget a line: who comes later is not told of it."""
        self._said.pop(word, None)

    def serve(self, fd: int) -> None:
        """Take what is there at one of `filenos`."""
        if fd == self._listener.fileno():
            self._accept()
        elif fd in self._watchers:
            self._read(fd)

    def wait(self, timeout: float | None, others: list[int]) -> list[int]:
        """Serve watchers once; return which of `others`, descriptors, can be read. `timeout` is in seconds."""
        ready, _, _ = select.select([*self.filenos(), *others], [], [], timeout)
        for fd in ready:
            if fd not in others:
                self.serve(fd)
        return [fd for fd in ready if fd in others]

    def close(self) -> None:
        """End the socket and take it away."""
        for watcher, _ in self._watchers.values():
            watcher.close()
        self._watchers.clear()
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            watcher, _ = self._listener.accept()
            watcher.setblocking(False)
            if len(self._watchers) >= WATCHERS_MAX:
                watcher.close()
                return
            fd = watcher.fileno()
            self._watchers[fd] = watcher, bytearray()
            for line in self._said.values():
                self._send(fd, line)

    def _send(self, fd: int, line: str) -> None:
        """Send a line. A watcher that reads so little that it does not fit is let go: it can come again."""
        if fd not in self._watchers:
            return
        data = line.encode("ascii", "replace")[: LINE_MAX - 1] + b"\n"
        try:
            is_sent = self._watchers[fd][0].send(data) == len(data)
        except OSError:
            is_sent = False
        if not is_sent:
            self._drop(fd)

    def _read(self, fd: int) -> None:
        watcher, unread = self._watchers[fd]
        try:
            data = watcher.recv(LINE_MAX)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        unread += data
        *lines, rest = unread.split(b"\n")
        unread[:] = rest
        if not data or len(unread) > LINE_MAX:
            self._drop(fd)
        for line in lines:
            self.on_line(line.decode("ascii", "replace"))

    def _drop(self, fd: int) -> None:
        watcher, _ = self._watchers.pop(fd)
        watcher.close()


def _listen(path: str) -> socket.socket:
    """Return the listening socket; one that a killed process left is replaced."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if is_served(path):
            raise FileExistsError(f"another process serves {path}")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(WATCHERS_MAX)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener
