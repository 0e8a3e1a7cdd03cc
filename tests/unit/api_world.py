"""A server on a real socket with a daemon's inside behind it, and clients as rude as a test wants them."""

import asyncio
import contextlib
import os
import resource
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

from crannog.adapters.store.file import FileStore
from crannog.api.server import Server
from crannog.core.events import Event
from crannog.core.registry import Registry
from tests.fakes import Inside, build_inside, short_folder, template_and_app

PATIENCE = 60
"""Seconds after which what a test waits for is taken to have failed."""
LIST = b"admin.vm.List+ dom0 name work\0"
CONNECTED = b"1\0\0connection-established\0\0"


@dataclass
class World:
    """What the tests of the server look at."""

    inside: Inside
    server: Server
    problems: list[dict[str, Any]] = field(default_factory=list)
    """What the event loop was not told to expect; a test ends with none."""

    @property
    def path(self) -> str:
        return self.inside.paths.daemon_socket

    @property
    def listeners(self) -> int:
        own = 3  # the guest DBs, the displays and what is ready before it is asked for follow the settings
        return len(self.inside.inventory.editor._listeners) - own

    def tell(self, *told: Event) -> None:
        self.inside.inventory.editor.tell(told)


@asynccontextmanager
async def serving_world() -> AsyncIterator[World]:
    """Serve a template `debian` and an AppVM `work`; afterwards nothing may be left of any connection."""
    with short_folder() as home:
        inside = build_inside(home)
        template_and_app(inside.registry)
        world = World(inside, Server(inside.inventory, inside.paths.daemon_socket))
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: world.problems.append(context))
        await world.server.start()
        yield world
        await world.server.stop()
        assert world.server.connections == set()
        assert world.problems == []


class Client:
    """One connection. Connecting needs nobody's answer: the kernel keeps it until the server takes it."""

    def __init__(self, path: str, data: bytes = b"", *, connected: socket.socket | None = None) -> None:
        self.socket = connected or socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.socket.setblocking(False)
        if data:
            self.socket.sendall(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def end_request(self) -> Self:
        self.socket.shutdown(socket.SHUT_WR)
        return self

    async def send(self, data: bytes) -> None:
        await asyncio.wait_for(asyncio.get_running_loop().sock_sendall(self.socket, data), PATIENCE)

    async def receive(self, most: int = 65536) -> bytes:
        return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.socket, most), PATIENCE)

    async def read(self) -> bytes:
        """Return all that comes up to the end; a reset is an end as well."""
        data = b""
        with contextlib.suppress(ConnectionError):
            while chunk := await self.receive():
                data += chunk
        return data

    async def read_exactly(self, count: int) -> bytes:
        """Return so many bytes, or less at the end."""
        data = b""
        while len(data) < count and (chunk := await self.receive(count - len(data))):
            data += chunk
        return data

    def pending(self) -> bytes:
        """Return what has come already."""
        try:
            return self.socket.recv(1 << 20)
        except BlockingIOError:
            return b""


async def ask(path: str, request: bytes) -> bytes:
    """Return all that the server answers."""
    with Client(path) as client:
        with contextlib.suppress(ConnectionError):
            await client.send(request)
            client.end_request()
        return await client.read()


async def follow(path: str, request: bytes = b"admin.Events+ dom0 name dom0\0") -> Client:
    """Return a reader of events that has had the first one."""
    client = Client(path, request).end_request()
    assert await client.read_exactly(len(CONNECTED)) == CONNECTED
    return client


def event(subject: str, name: str, /, **arguments: str) -> bytes:
    """Return an event's bytes (Admin API, section 9)."""
    words = [subject, name, *(word for pair in arguments.items() for word in pair)]
    return "".join(["1\0", *(word + "\0" for word in words), "\0"]).encode("ascii")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.002)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def on_disk(inside: Inside) -> Registry:
    """Return what the file holds now, read by somebody else."""
    return FileStore(inside.paths.store, inside.paths.kernels).load()


@contextmanager
def descriptor_limit(count: int) -> Iterator[int]:
    """Allow about so many descriptors meanwhile; yield how many it became."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = min(count, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    try:
        yield allowed
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
