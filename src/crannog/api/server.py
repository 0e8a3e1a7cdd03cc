"""The server: unix sockets, and who may call there (Admin API, sections 1 and 2)."""

import asyncio
import contextlib
import os
import socket
import struct

from crannog.api import methods
from crannog.api.backend import Backend
from crannog.api.connection import Connection
from crannog.api.hangups import HangupWatch
from crannog.api.table import Family
from crannog.errors import DaemonError

BACKLOG = 1024
"""Connections that the kernel keeps for us while we are busy (listen(2))."""

_SO_PEERGROUPS = 59
_GROUP = struct.Struct("I")
_CREDENTIALS = struct.Struct("3i")

assert methods.METHODS  # noqa: S101 - importing them is what declares them


class Server:
    """Answers calls on one unix socket. Without a group only its own user and root can reach it."""

    def __init__(self, backend: Backend, path: str, family: Family = Family.PUBLIC, group: int | None = None) -> None:
        """`group` is the number of the group whose members may call as well."""
        self.backend = backend
        self.family = family
        self.connections: set[Connection] = set()
        self._path = path
        self._group = group
        self._user = os.geteuid()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen; raises DaemonError when somebody else answers at the socket, or it cannot be made."""
        self._check_free()
        self.hangups = HangupWatch()
        loop = asyncio.get_running_loop()
        before = os.umask(0o177 if self._group is None else 0o117)
        try:
            self._server = await loop.create_unix_server(lambda: Connection(self), self._path, backlog=BACKLOG)
            if self._group is not None:
                os.chown(self._path, -1, self._group)
        except OSError as error:
            self.hangups.close()
            raise DaemonError(f"crannogd cannot listen at {self._path}: {error.strerror}") from error
        finally:
            os.umask(before)

    def _check_free(self) -> None:
        """Delete a socket that a dead daemon left."""
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
            try:
                probe.connect(self._path)
            except OSError:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._path)
                return
        raise DaemonError(f"socket already exists: {self._path} is served by another program; stop that one first")

    async def stop(self) -> None:
        """Stop listening, take the socket away and end streams. Calls that run are not waited for."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        for connection in tuple(self.connections):
            connection.abort()
        self.hangups.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    def admits(self, transport: asyncio.Transport) -> bool:
        """Tell whether the peer is root, the daemon's own user or in the group (unix(7), SO_PEERCRED)."""
        peer: socket.socket = transport.get_extra_info("socket")
        credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _pid, user, group = _CREDENTIALS.unpack(credentials)
        return user in (0, self._user) or (self._group is not None and self._group in {group, *_groups_of(peer)})


def _groups_of(peer: socket.socket) -> list[int]:
    """Return the other groups of a peer, as they were when it connected (socket(7), SO_PEERGROUPS)."""
    try:
        data = peer.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 256 * _GROUP.size)  # all that Python takes
    except OSError:
        return []
    return [group for (group,) in _GROUP.iter_unpack(data)]
