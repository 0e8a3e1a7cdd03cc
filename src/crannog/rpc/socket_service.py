"""Services of this host that listen on a socket: the data between one and a call, in a process of its own."""

import os
import select
from _socket import AF_UNIX, SHUT_WR, SOCK_STREAM
from _socket import socket as Socket  # noqa: N812
from collections.abc import Callable
from contextlib import suppress

from crannog.errors import RpcError
from crannog.rpc.service_config import ServiceConfig
from crannog.rpc.services import Caller

_BLOCK = 65536


def pass_to_socket(path: str, caller: Caller, config: ServiceConfig, tell: Callable[[], None]) -> int:
    """Pass data between a call, which has our standard streams, and a service; return its exit code, always 0.

    `tell` is called when the connection stands, or cannot be made, which raises RpcError.
    """
    connection = Socket(AF_UNIX, SOCK_STREAM)
    try:
        connection.connect(path)
        if not config.skip_service_descriptor:
            connection.sendall(caller.descriptor())
    except OSError as error:
        connection.close()
        tell()  # it was allowed: the caller gets an exit code, and no refusal
        raise RpcError(f"the service at {path} does not answer: {error.strerror}") from error
    os.close(2)  # it has no other output than one
    tell()
    try:
        with suppress(OSError):
            _relay(connection, config)
    finally:
        connection.close()
    return 0


def _relay(connection: Socket, config: ServiceConfig) -> None:
    """Move bytes both ways until both have ended, or the one that the configuration names.

    Who is slow makes the other wait. A service that has closed its socket takes no more input, though what it said
    before is still read. Raises OSError when the call's reader is gone.
    """
    has_input = has_output = True
    while has_input or has_output:
        ready = _wait(connection, has_input, has_output)
        events = ready.get(connection.fileno(), 0)
        if not has_output and events & select.POLLHUP:
            return
        if has_output and events:
            has_output = _pass_output(connection)
        if has_input and 0 in ready:
            has_input = _pass_input(connection)
        if (config.exit_on_client_eof and not has_input) or (config.exit_on_service_eof and not has_output):
            return


def _wait(connection: Socket, has_input: bool, has_output: bool) -> dict[int, int]:
    """Return which ways can go on; of a connection without output, its end."""
    poll = select.poll()
    poll.register(connection, select.POLLIN if has_output else 0)
    if has_input:
        poll.register(0, select.POLLIN)
    return dict(poll.poll())


def _pass_input(connection: Socket) -> bool:
    """Give the service what the caller has sent; return whether more can come."""
    data = os.read(0, _BLOCK)
    try:
        if data:
            connection.sendall(data)
        else:
            connection.shutdown(SHUT_WR)
    except OSError:  # it takes no more
        return False
    return bool(data)


def _pass_output(connection: Socket) -> bool:
    """Give the caller what the service has sent, or its end; return whether more can come."""
    try:
        data = connection.recv(_BLOCK)
    except ConnectionError:
        data = b""
    if data:
        _write_all(1, data)
    else:
        os.close(1)
    return bool(data)


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]
