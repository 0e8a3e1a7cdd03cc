"""The server over a real unix socket: exact replies, and silence where the specification asks for it."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from crannog.api import connection as connection_module
from crannog.api.framing import MAX_REQUEST
from crannog.api.server import Server
from tests.fakes import Inside, build_inside, short_folder, template_and_app

Running = tuple[Inside, Server]
LIST = b"admin.vm.List+ dom0 name work\0"


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    with short_folder() as home:
        inside = build_inside(home)
        template_and_app(inside.registry)
        server = Server(inside.inventory, inside.paths.daemon_socket)
        await server.start()
        yield inside, server
        await server.stop()


async def ask(inside: Inside, *pieces: bytes, half_close: bool = True) -> bytes:
    """Return all that the server answers to the pieces."""
    reader, writer = await asyncio.open_unix_connection(inside.paths.daemon_socket)
    reply = b""
    with contextlib.suppress(ConnectionError):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if half_close:
            writer.write_eof()
        reply = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    return reply


async def test_a_reply(running: Running) -> None:
    inside, _ = running
    work = inside.registry.find_vm("work")
    assert await ask(inside, LIST) == f"0\0work class=AppVM state=Halted uuid={work.uuid}\n".encode()


async def test_an_empty_reply(running: Running) -> None:
    assert await ask(running[0], b"admin.vm.feature.Set+a dom0 name work\x001") == b"0\0"


async def test_a_request_in_pieces(running: Running) -> None:
    inside, _ = running
    assert await ask(inside, *(LIST[i : i + 1] for i in range(len(LIST)))) == await ask(inside, LIST)


@pytest.mark.parametrize(
    ("request_", "reply"),
    [
        (
            b"admin.vm.Nonsense+ dom0 name dom0\0",
            b"2\0ProtocolError\0ProtocolError\0no such method: 'admin.vm.Nonsense'\0",
        ),
        (b"admin.vm.List+x dom0 name dom0\0", b"2\0ProtocolError\0ProtocolError\0unexpected argument\0"),
        (b"admin.vm.List+ dom0 name dom0\0x", b"2\0ProtocolError\0ProtocolError\0unexpected payload\0"),
        (b"admin.vm.feature.Get+ dom0 name dom0\0", b"2\0ProtocolError\0ProtocolError\0expected an argument\0"),
        (
            b"admin.vm.feature.Get+a%b dom0 name dom0\0",
            b"2\0QubesFeatureNotFoundError\0FeatureNotFoundError\0dom0 has no feature 'a%%b'\0",
        ),
        (
            b"admin.vm.List+ nobody name dom0\0",
            b"2\0QubesVMNotFoundError\0VMNotFoundError\0there is no VM 'nobody'; qvm-ls lists the VMs that there are\0",
        ),
        (
            b"admin.vm.List+ dom0 name uuid:12\0",
            b"2\0QubesVMInvalidUUIDError\0UUIDRefusedError\0'12' is not the UUID of a VM\0",
        ),
        (
            b"internal.GetSystemInfo+ dom0 name dom0\0",
            b"2\0ProtocolError\0ProtocolError\0no such method: 'internal.GetSystemInfo'\0",
        ),
        (
            b"admin.vm.feature.Get+a dom0 name work\0",
            b"2\0QubesFeatureNotFoundError\0FeatureNotFoundError\0work has no feature 'a'\0",
        ),
        (
            b"admin.vm.volume.Info+odd dom0 name work\0",
            b"2\0PermissionDenied\0DeniedError\0Argument not in 'work volumes'\0",
        ),
    ],
)
async def test_exact_replies_to_wrong_calls(running: Running, request_: bytes, reply: bytes) -> None:
    assert await ask(running[0], request_) == reply


async def test_percent_in_a_refused_value_is_doubled(running: Running) -> None:
    reply = await ask(running[0], b"admin.vm.property.Set+memory dom0 name work\x0050%")
    assert b"'50%%' is not a whole number" in reply


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"\0",
        b"admin.vm.List+ dom0 name work",
        b"admin.vm.List+ dom0 name\0",
        b"admin.vm.List+ dom0 keyword work\0",
        b"admin.vm.List+ dom0 name w\xc3\xb6rk\0",
        LIST + b"x" * MAX_REQUEST,
        b"x" * (20 * MAX_REQUEST),
    ],
)
async def test_what_is_no_request_gets_no_byte(running: Running, request_: bytes) -> None:
    assert await ask(running[0], request_) == b""
    assert (await ask(running[0], LIST)).startswith(b"0\0work ")


async def test_a_request_that_never_ends_is_given_up(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "REQUEST_TIMEOUT", 0.05)
    assert await ask(running[0], LIST, half_close=False) == b""


async def test_a_client_that_goes_away_harms_nobody(running: Running) -> None:
    inside, _ = running
    for _ in range(5):
        _, writer = await asyncio.open_unix_connection(inside.paths.daemon_socket)
        writer.write(LIST)
        writer.transport.abort()
    assert (await ask(inside, LIST)).startswith(b"0\0work ")


async def test_many_clients_at_once(running: Running) -> None:
    replies = await asyncio.gather(*(ask(running[0], LIST) for _ in range(100)))
    assert len(set(replies)) == 1
    assert replies[0].startswith(b"0\0work ")


async def test_an_error_of_our_own_is_told_and_logged(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    inside, _ = running
    monkeypatch.setattr(inside.machines, "active_states", lambda: 1 // 0)
    reply = await ask(inside, LIST)
    assert reply.startswith(b"2\0QubesException\0CrannogError\0crannogd failed inside admin.vm.List")
    assert b"ZeroDivisionError" not in reply
    assert "ZeroDivisionError" in caplog.text


async def test_other_users_get_no_answer(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer is this process, run by root; for a daemon of another user any other uid is refused."""
    inside, _ = running
    monkeypatch.setattr(running[1], "admits", lambda _transport: False)
    assert await ask(inside, LIST) == b""


async def test_the_socket_is_for_its_user_only_and_goes_with_the_server(running: Running) -> None:
    inside, server = running
    path = Path(inside.paths.daemon_socket)
    assert path.stat().st_mode & 0o777 == 0o600
    await server.stop()
    assert not path.exists()
    await server.stop()


async def test_a_socket_that_a_dead_daemon_left_is_replaced(running: Running) -> None:
    inside, first = running
    os.rename(inside.paths.daemon_socket, inside.paths.daemon_socket + ".old")
    Path(inside.paths.daemon_socket).touch()
    second = Server(inside.inventory, inside.paths.daemon_socket)
    await second.start()
    assert (await ask(inside, LIST)).startswith(b"0\0work ")
    await second.stop()
    assert first is not second
