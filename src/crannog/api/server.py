"""The server: unix sockets, and who may call there (Admin API, sections 1 and 2)."""

import asyncio
import contextlib
import logging
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

ACCEPTED_AT_ONCE = 64
ACCEPT_PAUSE = 0.5
"""Seconds without new clients after the last descriptor is gone."""

_SO_PEERGROUPS = 59
_GROUP = struct.Struct("I")
_CREDENTIALS = struct.Struct("3i")

log = logging.getLogger(__name__)

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
        self._socket: socket.socket | None = None

    async def start(self) -> None:
        """Listen; raises DaemonError when somebody else answers at the socket, or it cannot be made."""
        try:
            self._check_free()
            listener = self._listen()
        except OSError as error:
            raise DaemonError(f"crannogd cannot listen at {self._path}: {error.strerror or error}") from error
        listener.setblocking(False)
        self._socket = listener
        self.hangups = HangupWatch()
        self._accept_again()

    def _check_free(self) -> None:
        """Delete a socket that a dead daemon left. One that is too busy to take another client is not dead."""
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
            probe.setblocking(False)
            try:
                probe.connect(self._path)
            except BlockingIOError:
                pass
            except FileNotFoundError:
                return
            except ConnectionRefusedError:
                os.unlink(self._path)
                return
        raise DaemonError(f"socket already exists: {self._path} is served by another program; stop that one first")

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        before = os.umask(0o177 if self._group is None else 0o117)
        try:
            listener.bind(self._path)
            if self._group is not None:
                os.chown(self._path, -1, self._group)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
        finally:
            os.umask(before)
        return listener

    async def stop(self) -> None:
        """Stop listening, take the socket away and end what waits. Calls that run are not waited for."""
        if self._socket is None:
            return
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        self._socket = None
        for connection in tuple(self.connections):
            connection.close()
        self.hangups.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    def _accept_again(self) -> None:
        if self._socket:
            asyncio.get_running_loop().add_reader(self._socket, self._accept, self._socket)

    def _accept(self, listener: socket.socket) -> None:
        """Serve those that wait at the door, not too many in one turn."""
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                client, _address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                self._rest(listener, error)
                return
            client.setblocking(False)
            if self.admits(client):
                Connection(self, client).receive()
            else:
                client.close()

    def _rest(self, listener: socket.socket, error: OSError) -> None:
        """Let those at the door wait a moment: there are no descriptors left, or no memory."""
        log.error("%s: no client can be served for now: %s", self._path, error.strerror)
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener)
        loop.call_later(ACCEPT_PAUSE, self._accept_again)

    def admits(self, peer: socket.socket) -> bool:
        """Tell whether the peer is root, the daemon's own user or in the group (unix(7), SO_PEERCRED)."""
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
