"""Calls to crannogd (Admin API, sections 2 and 3).

`_socket` is what the standard library's `socket` wraps; importing the wrapper would cost each tool 7 ms, more than
everything else that a tool does.
"""

import _socket
import errno

from crannog.config import Paths
from crannog.errors import CrannogError, DaemonError, VMNotFoundError, from_wire

_CHUNK = 262144


_NAME_MARKS = frozenset("_.:-")


def check_destination(name: str) -> None:
    """Raise VMNotFoundError for what no request can carry as a destination: no VM can be called so."""
    if not name or not all((char.isascii() and char.isalnum()) or char in _NAME_MARKS for char in name):
        raise VMNotFoundError(f"there is no VM '{name[:80]}'; qvm-ls lists the VMs that there are")


class Client:
    """Calls the daemon of one home, and starts it when it does not run."""

    def __init__(self, paths: Paths | None = None, *, may_start_daemon: bool = True) -> None:
        self.paths = paths or Paths()
        self._may_start_daemon = may_start_daemon

    def call(self, method: str, destination: str = "dom0", argument: str = "", payload: bytes = b"") -> bytes:
        """Return the data of a method's reply.

        Raises the error that the daemon names, or DaemonError when there is no answer.
        """
        return self.take_reply(method, self._send(method, destination, argument, payload))

    def take_reply(self, method: str, connection: _socket.socket) -> bytes:
        """Return the data of the reply that comes on a connection, which is closed then. Raises what `call` raises."""
        try:
            reply = read_all(connection)
        except OSError as error:
            raise self._broken(method, error) from error
        finally:
            connection.close()
        return self._parse(method, reply)

    def open_stream(self, method: str, destination: str = "dom0", argument: str = "") -> _socket.socket:
        """Call a method, and return the connection on which the answer comes: a stream, or a reply that takes its time.

        crannog.client.events reads the one, `take_reply` the other. Raises DaemonError when there is no daemon.
        """
        return self._send(method, destination, argument, b"")

    def _send(self, method: str, destination: str, argument: str, payload: bytes) -> _socket.socket:
        check_destination(destination)
        header = f"{method}+{argument} dom0 name {destination}".encode("utf-8", "surrogateescape")
        connection = connect(self.paths, self.paths.daemon_socket, may_start_daemon=self._may_start_daemon)
        try:
            connection.sendall(header + b"\0" + payload)
            connection.shutdown(_socket.SHUT_WR)
        except OSError as error:
            connection.close()
            raise self._broken(method, error) from error
        return connection

    def _broken(self, method: str, error: OSError) -> DaemonError:
        return DaemonError(f"crannogd broke off during {method}: {error.strerror}; {self._where()}")

    def text(self, method: str, destination: str = "dom0", argument: str = "", payload: str = "") -> str:
        """Call a method whose payload and reply are text."""
        data = self.call(method, destination, argument, payload.encode("utf-8", "surrogateescape"))
        return data.decode("utf-8", "backslashreplace")

    def _parse(self, method: str, reply: bytes) -> bytes:
        if reply.startswith(b"0\0"):
            return reply[2:]
        if not reply.startswith(b"2\0"):
            raise DaemonError(f"crannogd gave no answer to {method}; {self._where()}")
        raise self.parse_error(reply)

    @staticmethod
    def parse_error(reply: bytes) -> CrannogError:
        """Return the error in a response of type 2; in the traceback's place our daemon puts the error's own name."""
        parts = reply.decode("utf-8", "replace").split("\0")
        if len(parts) < 5:
            return DaemonError("crannogd broke off in the middle of an answer; try again")
        return from_wire(parts[2] or parts[1], parts[3].replace("%%", "%"))

    def _where(self) -> str:
        return f"its log is {self.paths.daemon_log}"


def connect(paths: Paths, path: str, *, may_start_daemon: bool = True) -> _socket.socket:
    """Return a connection to the socket `path` of a home's daemon, which is started when it does not run.

    Raises DaemonError.
    """
    connection = _try_connect(path)
    if connection is None and may_start_daemon:
        from crannog.client.spawn import start_daemon

        connection = start_daemon(paths, lambda: _try_connect(path))
    if connection is None:
        raise DaemonError(f"crannogd does not run for {paths.home}; any qvm tool starts it")
    return connection


def _try_connect(path: str) -> "_socket.socket | None":
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC, 0)
    try:
        connection.connect(path)
    except OSError as error:
        connection.close()
        if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
            return None
        raise DaemonError(f"crannogd cannot be reached at {path}: {error.strerror}") from error
    return connection


def read_all(connection: "_socket.socket") -> bytes:
    """Return what comes on a connection up to its end; raises OSError."""
    chunks = []
    while chunk := connection.recv(_CHUNK):
        chunks.append(chunk)
    return b"".join(chunks)
