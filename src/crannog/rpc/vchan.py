"""vchans over unix sockets: how two domains of this host meet for a stream of bytes (qrexec protocol, "vchan-socket").

The server of a vchan listens on a socket whose name has both domains and the port; whoever connects to it is the
client. Bytes are passed unchanged, and there is one connection only.
"""

import os
import select
import socket
import time
from contextlib import suppress

from crannog.errors import RpcError

DEFAULT_FOLDER = "/var/run/vchan"
QUICK, PATIENT = 0.0002, 0.01
"""Seconds between two attempts to connect: in the first moments, and later."""
QUICK_TIME = 0.1
PATH_MAX = 107


def folder() -> str:
    """Return where the sockets are: VCHAN_SOCKET_DIR of the environment, else the usual folder."""
    return os.environ.get("VCHAN_SOCKET_DIR") or DEFAULT_FOLDER


def own_domain() -> int:
    """Return this domain's number: VCHAN_DOMAIN of the environment, else 0, the host. Raises RpcError."""
    text = os.environ.get("VCHAN_DOMAIN") or "0"
    if not text.isascii() or not text.isdigit():
        raise RpcError(f"VCHAN_DOMAIN is '{text[:40]}', which is no domain's number; unset it on a host")
    return int(text)


def path_of(server: int, client: int, port: int) -> str:
    """Return the socket of one vchan."""
    return f"{folder()}/vchan.{server}.{client}.{port}.sock"


def listen(server: int, client: int, port: int) -> socket.socket:
    """Return a socket that listens as the server of a vchan; a left-over file is replaced. Raises RpcError."""
    path = path_of(server, client, port)
    listener = socket.socket(socket.AF_UNIX)
    try:
        with suppress(FileNotFoundError):
            os.unlink(path)
        listener.bind(path)
        listener.listen(1)
    except OSError as error:
        listener.close()
        raise RpcError(f"nobody can be met at {path}: {_explain(path, error)}") from error
    return listener


def accept(listener: socket.socket, patience: float) -> socket.socket:
    """Return the one connection to a listener, and close and remove that. Raises RpcError after `patience` seconds."""
    path = listener.getsockname()
    listener.settimeout(patience)
    try:
        connection, _ = listener.accept()
    except OSError as error:
        raise RpcError(f"nobody came to {path} in {patience:.0f} s") from error
    finally:
        close_listener(listener)
    connection.setblocking(True)
    return connection


def close_listener(listener: socket.socket) -> None:
    """Close a listener and remove its file."""
    path = listener.getsockname()
    listener.close()
    with suppress(FileNotFoundError):
        os.unlink(path)


def try_connect(path: str) -> socket.socket | None:
    """Return a connection that does not block, None while nobody listens. Raises RpcError when nobody ever can."""
    connection = socket.socket(socket.AF_UNIX)
    connection.setblocking(False)
    try:
        connection.connect(path)
    except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
        connection.close()
        return None
    except OSError as error:
        connection.close()
        raise RpcError(f"{path} cannot be used: {_explain(path, error)}") from error
    return connection


def pause(since_start: float) -> float:
    """Return the seconds until the next attempt to connect is due."""
    return QUICK if since_start < QUICK_TIME else PATIENT


def connect(path: str, patience: float, watched: int = -1) -> socket.socket:
    """Return a connection that blocks, to a server that may still be on its way.

    `watched` is a file whose end says that there is nothing to wait for. Raises RpcError after `patience` seconds, and
    at that end.
    """
    began = time.monotonic()
    while (connection := try_connect(path)) is None:
        now = time.monotonic()
        if now - began >= patience:
            raise RpcError(f"nobody listens at {path} (waited {patience:.0f} s)")
        if select.select([watched] if watched >= 0 else [], [], [], pause(now - began))[0]:
            raise RpcError(f"nobody will listen at {path}: the call is over")
    connection.setblocking(True)
    return connection


def _explain(path: str, error: OSError) -> str:
    if len(os.fsencode(path)) > PATH_MAX:
        return f"its path has more than {PATH_MAX} bytes; set VCHAN_SOCKET_DIR to a shorter folder"
    return str(error.strerror or error)
