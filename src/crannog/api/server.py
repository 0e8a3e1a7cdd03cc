"""The server: one connection, one call (Admin API, section 2)."""

import asyncio
import contextlib
import logging
import os
import socket
import struct

from crannog.api.backend import Backend
from crannog.api.framing import MAX_REQUEST, encode_error, encode_ok, parse_request
from crannog.api.methods import find_method
from crannog.errors import CrannogError, ProtocolError

log = logging.getLogger(__name__)

REQUEST_TIMEOUT = 30
"""Seconds a client has to send its whole request."""


class Server:
    """Answers calls on a unix socket that only this user can reach."""

    def __init__(self, backend: Backend, path: str) -> None:
        self._backend = backend
        self._path = path
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen. The caller holds the daemon's lock, so a socket that is there is left from a dead daemon."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        self._server = await asyncio.start_unix_server(self._serve, self._path, limit=MAX_REQUEST + 1, backlog=512)
        os.chmod(self._path, 0o600)

    async def stop(self) -> None:
        """Stop listening and take the socket away. Calls that run are not waited for."""
        if self._server:
            self._server.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            reply = await self._answer(reader, writer)
            if reply is not None:
                writer.write(reply)
                await writer.drain()
        except (ConnectionError, TimeoutError):
            log.debug("a client went away before its answer")
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes | None:
        """Return the response's bytes, or None where the specification says: abort without an answer."""
        async with asyncio.timeout(REQUEST_TIMEOUT):
            untrusted_data = await _read_to_end(reader)
        try:
            if not _is_same_user(writer):
                return None
            request = parse_request(untrusted_data)
        except ProtocolError as error:
            log.warning("a request was refused: %s", error)
            return None
        log.debug("%s+%s of %s", request.method, request.argument, request.destination)
        try:
            return encode_ok(await find_method(request.method).call(self._backend, request))
        except CrannogError as error:
            log.info("%s of %s: %s", request.method, request.destination, error)
            return encode_error(error)
        except Exception:
            log.exception("%s of %s ended with an error of our own", request.method, request.destination)
            return encode_error(
                CrannogError(f"crannogd failed inside {request.method}; its log says where: see 'crannog doctor'")
            )


async def _read_to_end(reader: asyncio.StreamReader) -> bytes:
    """Return what the client sent up to EOF, or up to one byte more than is allowed."""
    untrusted_data = b""
    while len(untrusted_data) <= MAX_REQUEST:
        untrusted_chunk = await reader.read(MAX_REQUEST + 1 - len(untrusted_data))
        if not untrusted_chunk:
            break
        untrusted_data += untrusted_chunk
    return untrusted_data


def _is_same_user(writer: asyncio.StreamWriter) -> bool:
    """Tell whether the peer is root or the daemon's own user (unix(7), SO_PEERCRED)."""
    peer: socket.socket = writer.get_extra_info("socket")
    _pid, uid, _gid = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return uid in (0, os.geteuid())
