"""Clients that break off, send nonsense, never read or come in crowds: nobody else notices, and nothing is left."""

import asyncio
import contextlib
import errno
import itertools
import os
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from crannog.api import connection as connection_module
from crannog.api import server as server_module
from crannog.api.framing import MAX_REQUEST, parse_request
from crannog.api.server import Server
from crannog.core.events import Event
from crannog.core.registry import Registry
from crannog.core.startup import StartRequest
from crannog.errors import DaemonError, ProtocolError, StorageError
from tests.unit.api_world import (
    LIST,
    Client,
    World,
    ask,
    descriptor_limit,
    follow,
    on_disk,
    open_descriptors,
    serving_world,
    until,
)

CROWD = 1000
LARGE = 4 << 20
NOTES = b"admin.vm.notes.Get+ dom0 name work\0"


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with serving_world() as world:
        yield world


@pytest.fixture
def crowd() -> Iterator[int]:
    """Return how many clients there can be at once: both ends of each are in this process."""
    with descriptor_limit(2 * CROWD + 500) as allowed:
        yield min(CROWD, (allowed - 300) // 2)


async def is_answered(world: World) -> None:
    assert (await ask(world.path, LIST)).startswith(b"0\0work class=AppVM ")


async def come_in(world: World, count: int, data: bytes) -> list[Client]:
    clients = []
    for number in range(count):
        clients.append(Client(world.path, data))
        if number % 50 == 0:
            await asyncio.sleep(0)
    return clients


# -- half of a request


async def test_a_crowd_with_half_a_request_delays_nobody_and_leaves_nothing(world: World, crowd: int) -> None:
    before = open_descriptors()
    clients = await come_in(world, crowd, LIST[:9])
    await until(lambda: len(world.server.connections) == crowd)
    async with asyncio.timeout(60):
        for _ in range(20):
            await is_answered(world)
    for client in clients:
        client.close()
    await until(lambda: not world.server.connections)
    assert open_descriptors() == before


async def test_a_crowd_with_half_a_request_is_sent_away_in_time(
    world: World, crowd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "REQUEST_TIMEOUT", 0.2)
    before = open_descriptors()
    clients = await come_in(world, crowd, LIST[:-1])
    assert [await client.read() for client in clients] == [b""] * crowd
    assert world.server.connections == set()
    assert open_descriptors() == before + crowd
    for client in clients:
        client.close()
    await is_answered(world)


async def test_the_time_for_a_request_is_not_prolonged_by_sending_some_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "REQUEST_TIMEOUT", 0.1)
    with Client(world.path, b"a") as client:
        with contextlib.suppress(BrokenPipeError):
            for _ in range(2000):
                await client.send(b"a")
                await asyncio.sleep(0.01)
            pytest.fail("it is listened to for ever")
        assert await client.read() == b""


async def test_those_that_wait_for_their_answer_do_not_run_into_the_time_for_requests(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "REQUEST_TIMEOUT", 0.01)
    gate = asyncio.Event()

    async def wait(*_arguments: object) -> list[tuple[str, float]]:
        await gate.wait()
        return []

    monkeypatch.setattr(world.inside.inventory.power, "start", wait)
    with Client(world.path, b"admin.vm.Start+ dom0 name work\0").end_request() as client:
        await asyncio.sleep(0.1)
        assert len(world.server.connections) == 1
        gate.set()
        assert await client.read() == b"0\0"


# -- replies that are not taken


@pytest.fixture
def large_notes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a reply that no socket's buffer holds."""
    monkeypatch.setattr(world.inside.inventory.editor, "notes", lambda _vm: "n" * LARGE)


@pytest.mark.usefixtures("large_notes")
async def test_a_reply_that_is_not_taken_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "REPLY_TIMEOUT", 2)
    before = open_descriptors()
    clients = [Client(world.path, NOTES).end_request() for _ in range(20)]
    await until(lambda: len(world.server.connections) == len(clients))
    await is_answered(world)
    await until(lambda: not world.server.connections)
    assert open_descriptors() == before + len(clients)
    for client in clients:
        assert len(await client.read()) < LARGE
        client.close()


@pytest.mark.usefixtures("large_notes")
async def test_a_reply_that_is_taken_slowly_is_whole(world: World) -> None:
    clients = [Client(world.path, NOTES).end_request() for _ in range(3)]
    await until(lambda: len(world.server.connections) == len(clients))
    for client in clients:
        assert await client.read() == b"0\0" + b"n" * LARGE
        client.close()
    await until(lambda: not world.server.connections)


@pytest.mark.usefixtures("large_notes")
async def test_a_client_that_leaves_in_the_middle_of_its_reply(world: World) -> None:
    before = open_descriptors()
    for _ in range(20):
        with Client(world.path, NOTES).end_request() as client:
            assert await client.receive(10) == b"0\0nnnnnnnn"
    await until(lambda: not world.server.connections)
    assert open_descriptors() == before
    await is_answered(world)


async def test_a_client_that_leaves_before_its_answer_has_its_call_done(world: World) -> None:
    before = open_descriptors()
    for number in range(100):
        Client(world.path, b"admin.vm.feature.Set+f%d dom0 name work\x001" % number).end_request().close()
    await until(lambda: len(world.inside.registry.find_vm("work").features) == 100)
    await until(lambda: not world.server.connections)
    assert open_descriptors() == before
    assert len(on_disk(world.inside).find_vm("work").features) == 100


async def test_a_client_that_leaves_while_its_call_runs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = asyncio.Event()
    done: list[str] = []

    async def wait(vm: object, _request: StartRequest) -> list[tuple[str, float]]:
        await gate.wait()
        done.append(str(vm))
        return []

    monkeypatch.setattr(world.inside.inventory.power, "start", wait)
    before = open_descriptors()
    clients = [Client(world.path, b"admin.vm.Start+ dom0 name work\0").end_request() for _ in range(10)]
    await until(lambda: len(world.server.connections) == 10)
    for client in clients:
        client.close()
    await is_answered(world)
    gate.set()
    await until(lambda: not world.server.connections)
    assert done == ["work"] * 10
    assert open_descriptors() == before


async def test_a_call_that_runs_while_the_server_stops_is_done_to_its_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, done = asyncio.Event(), asyncio.Event()

    async def wait(*_arguments: object) -> list[tuple[str, float]]:
        await gate.wait()
        done.set()
        return []

    monkeypatch.setattr(world.inside.inventory.power, "start", wait)
    with Client(world.path, b"admin.vm.Start+ dom0 name work\0").end_request() as client:
        await until(lambda: len(world.server.connections) == 1)
        await world.server.stop()
        assert await client.read() == b""
        gate.set()
        await asyncio.wait_for(done.wait(), 5)


# -- what is no request


PIECES = (
    b"admin.vm.List",
    b"admin.vm.feature.Get",
    b"admin.vm.property.Set",
    b"internal.GetSystemInfo",
    b"+",
    b" ",
    b" dom0 name work",
    b"dom0",
    b"work",
    b"name",
    b"keyword",
    b"adminvm",
    b"uuid:",
    b"uuid:00000000-0000-0000-0000-000000000000",
    b"\0",
    b"\n",
    b"%s",
    b"\xff",
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300) | st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join))
@example(b"\0" * MAX_REQUEST)
@example(b" " * MAX_REQUEST)
@example(b"    \0")
@example(b"+ + + +\0")
async def test_nonsense_gets_an_error_or_nothing(world: World, untrusted_data: bytes) -> None:
    reply = await ask(world.path, untrusted_data)
    try:
        parse_request(untrusted_data)
    except ProtocolError:
        assert reply == b""
    else:
        assert reply.startswith((b"0\0", b"2\0"))
    assert world.server.connections == set()
    assert world.problems == []


@pytest.mark.parametrize(
    ("request_", "reply"),
    [
        (b"\0" + LIST, b""),
        (b"admin.vm.List+\0 dom0 name work\0", b""),
        (b"admin.vm.List+ dom0 name \0work\0", b"2\0QubesVMNotFoundError\0"),
        (LIST + b"\0", b"2\0ProtocolError\0ProtocolError\0unexpected payload\0"),
        (b"admin.vm.List+ dom0 keyword dom0\0", b""),
        (b"admin.vm.List+ dom0 keyword @adminvm\0", b""),
        (b"admin.vm.List+ dom0 name adminvm\0", b"2\0QubesVMNotFoundError\0"),
        (b"admin.vm.List+ dom0 keyword adminvm\0", b"0\0dom0 class=AdminVM "),
        (b"admin.vm.List dom0 name dom0\0", b"0\0dom0 class=AdminVM "),
        (b"admin.vm.List+ dom0 name uuid:00000000-0000-0000-0000-000000000000\0", b"0\0dom0 class=AdminVM "),
        (b"admin.vm.List+ dom0 name uuid:00000000-0000-0000-0000-00000000000\0", b"2\0QubesVMInvalidUUIDError\0"),
        (b"admin.vm.List+ dom0 name uuid:00000000-0000-0000-0000-000000000001\0", b"2\0QubesVMNotFoundError\0"),
        (b"admin.vm.List+ dom0 name UUID:00000000-0000-0000-0000-000000000000\0", b"2\0QubesVMNotFoundError\0"),
        (b"admin.vm.List+ dom0 name work \0", b"2\0QubesVMNotFoundError\0"),
        (b"admin.vm.List+  dom0 name work\0", b""),
    ],
)
async def test_odd_requests(world: World, request_: bytes, reply: bytes) -> None:
    answer = await ask(world.path, request_)
    assert answer.startswith(reply) if reply else answer == b""


async def test_a_vm_by_its_uuid(world: World) -> None:
    uuid = world.inside.registry.find_vm("work").uuid
    request = f"admin.vm.List+ dom0 name uuid:{uuid}\0"
    assert await ask(world.path, request.encode()) == await ask(world.path, LIST)
    refused = request.replace(uuid, uuid.upper()) if uuid.upper() != uuid else "x"
    assert (await ask(world.path, refused.encode())).startswith(b"2\0QubesVMInvalidUUIDError\0")


async def test_a_payload_with_nuls_sent_one_byte_at_a_time(world: World) -> None:
    request = b"admin.vm.notes.Set+ dom0 name work\0one\0two\n\0"
    with Client(world.path) as client:
        for number in range(len(request)):
            await client.send(request[number : number + 1])
            await asyncio.sleep(0)
            assert client.pending() == b""
        await until(lambda: len(world.server.connections) == 1)
        assert world.inside.inventory.editor.notes(world.inside.registry.find_vm("work")) == ""
        assert await client.end_request().read() == b"0\0"
    assert await ask(world.path, NOTES) == b"0\0one_two\n_"


async def test_the_largest_request_and_one_byte_more(world: World) -> None:
    header = b"admin.vm.notes.Set+ dom0 name work\0"
    largest = header + b"n" * (MAX_REQUEST - len(header))
    assert await ask(world.path, largest) == b"0\0"
    assert len(await ask(world.path, NOTES)) == 2 + MAX_REQUEST - len(header)
    assert await ask(world.path, largest.replace(b"n" * 20, b"m" * 20, 1) + b"n") == b""
    assert b"m" not in (await ask(world.path, NOTES))[2:]


async def test_too_long_a_request_is_refused_before_its_end(world: World) -> None:
    """A client that never stops sending is not listened to for the whole time that requests have."""
    with Client(world.path) as client:
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                await client.send(b"x" * 65536)
            pytest.fail("it is listened to for ever")
        assert await client.read() == b""
    await until(lambda: not world.server.connections)


# -- errors of our own


async def test_a_reply_that_cannot_be_written_as_text(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Names of files may hold bytes that are no UTF-8; Python keeps those as what cannot be encoded."""
    monkeypatch.setattr(world.inside.inventory.editor, "notes", lambda _vm: "\udcff")
    before = open_descriptors()
    assert (await ask(world.path, NOTES)).startswith(b"2\0QubesException\0CrannogError\0crannogd failed inside ")
    assert open_descriptors() == before
    assert "UnicodeEncodeError" in caplog.text
    await is_answered(world)


async def test_a_stream_that_cannot_be_followed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(world.inside.inventory.editor, "listen", refuse)
    reply = await ask(world.path, b"admin.Events+ dom0 name dom0\0")
    assert reply.startswith(b"2\0QubesException\0CrannogError\0crannogd failed inside admin.Events")
    assert world.server.connections == set()


# -- crowds


async def test_clients_at_the_door_are_served_when_there_are_descriptors_again(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server_module, "ACCEPT_PAUSE", 0.02)
    doors = [socket.socket(socket.AF_UNIX) for _ in range(30)]
    holes: list[int] = []
    while not holes or holes[-1] < doors[-1].fileno():
        holes.append(os.open(os.devnull, os.O_RDONLY))
    before = open_descriptors()
    with descriptor_limit(holes[-1] + 1 + 5):
        holders = [Client(world.path, LIST[:5], connected=door) for door in doors[:10]]
        await until(lambda: len(world.server.connections) == 5)
        late = [Client(world.path, LIST, connected=door).end_request() for door in doors[10:]]
        await until(lambda: caplog.text.count("no client can be served for now") >= 3)
        assert len(world.server.connections) == 5
        assert [client.pending() for client in late] == [b""] * 20
        for client in holders:
            client.close()
        replies = [await client.read() for client in late]
        await is_answered(world)
    await until(lambda: not world.server.connections)
    assert {reply[:7] for reply in replies} == {b"0\0work "}
    assert open_descriptors() == before - len(holders)
    for client in late:
        client.close()
    for hole in holes:
        os.close(hole)


async def test_a_server_that_stops_while_there_are_no_descriptors(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "ACCEPT_PAUSE", 0.02)
    rested: list[None] = []
    rest = world.server._rest
    monkeypatch.setattr(world.server, "_rest", lambda *arguments: rested.append(rest(*arguments)))
    with socket.socket(socket.AF_UNIX) as door, descriptor_limit(3):
        client = Client(world.path, LIST, connected=door)
        await until(lambda: bool(rested))
        await world.server.stop()
        assert await client.read() == b""
        await asyncio.sleep(0.05)
    assert world.problems == []


class Saves:
    """What each save put into the file, and which events came after which save."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.saved: list[dict[tuple[str, str], str]] = []
        self.told: list[tuple[int, str, str, str]] = []
        self._save = world.inside.store.save
        monkeypatch.setattr(world.inside.store, "save", self._note_save)
        world.inside.inventory.editor.listen(self._note_event)

    def _note_save(self, registry: Registry) -> None:
        self._save(registry)
        values = {(vm.name, key): value for vm in registry for key, value in vm.features.items()}
        self.saved.append(values | {(vm.name, "memory"): str(vm.get("memory")) for vm in registry.local_vms()})

    def _note_event(self, event: Event) -> None:
        if "-set:" in event.name and "-pre-" not in event.name:
            value = event.arguments.get("value", event.arguments.get("newvalue", ""))
            self.told.append((len(self.saved), event.subject, event.name.partition(":")[2], value))


async def read_names(reader: Client, count: int) -> list[str]:
    """Return what was set, as a reader of events has it; each is told before and after."""
    stream = b""
    while stream.count(b"-set:") < 2 * count:
        stream += await reader.receive()
    return [word.split(b"-set:")[1].decode() for word in stream.split(b"\0") if b"-set:" in word][1::2]


async def test_many_writers_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is answered after its own save, and told of in the order of the saves."""
    saves = Saves(world, monkeypatch)
    requests = [
        f"admin.vm.feature.Set+f{number % 7} dom0 name {name}\0{number}".encode()
        for number, name in zip(range(150), itertools.cycle(["dom0", "debian", "work"]), strict=False)
    ]
    requests += [f"admin.vm.property.Set+memory dom0 name work\0{1000 + number}".encode() for number in range(50)]
    reader = await follow(world.path)
    clients = [Client(world.path, request[:10]) for request in requests]
    await until(lambda: len(world.server.connections) == len(clients) + 1)
    for client, request in zip(clients, requests, strict=True):
        client.socket.sendall(request[10:])
        client.end_request()
    assert [await client.read() for client in clients] == [b"0\0"] * 200
    assert [number for number, *_ in saves.told] == list(range(1, 201))
    assert all(saves.saved[number - 1][vm, name] == value for number, vm, name, value in saves.told)
    assert await read_names(reader, 200) == [name for _, _, name, _ in saves.told]
    registry = on_disk(world.inside)
    for (vm, name), value in {(vm, name): value for _, vm, name, value in saves.told}.items():
        holder = registry.find_vm(vm)
        assert (str(holder.get(name)) if name == "memory" else holder.features[name]) == value
    for each in (reader, *clients):
        each.close()


async def test_a_write_that_cannot_be_saved_fails_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    save = world.inside.store.save
    counter = itertools.count()

    def save_some(registry: Registry) -> None:
        if next(counter) % 2:
            raise StorageError("no space")
        save(registry)

    monkeypatch.setattr(world.inside.store, "save", save_some)
    requests = [f"admin.vm.feature.Set+f{number} dom0 name work\0{number}".encode() for number in range(20)]
    replies = await asyncio.gather(*(ask(world.path, request) for request in requests))
    kept = on_disk(world.inside).find_vm("work").features
    assert kept == world.inside.registry.find_vm("work").features
    assert len(kept) == 10
    for number, reply in enumerate(replies):
        assert reply == (b"0\0" if f"f{number}" in kept else b"2\0StoragePoolException\0StorageError\0no space\0")


# -- sockets that cannot be served


def server_at(world: World, path: Path | str) -> Server:
    return Server(world.inside.inventory, str(path))


async def test_a_socket_in_a_folder_that_is_not_there(world: World) -> None:
    path = Path(world.path).parent / "absent" / "a.sock"
    with pytest.raises(DaemonError, match=f"crannogd cannot listen at {path}: {os.strerror(errno.ENOENT)}"):
        await server_at(world, path).start()


async def test_a_socket_whose_path_is_too_long(world: World) -> None:
    path = Path(world.path).parent / ("s" * 120)
    with pytest.raises(DaemonError, match=r"cannot listen at .*: .*too long"):
        await server_at(world, path).start()


async def test_a_socket_whose_path_is_a_folder(world: World) -> None:
    path = Path(world.path).parent / "folder"
    path.mkdir()
    with pytest.raises(DaemonError, match=r"cannot listen at .*folder"):
        await server_at(world, path).start()
    assert path.is_dir()


async def test_a_socket_below_a_file(world: World) -> None:
    path = Path(world.path).parent / "file"
    path.touch()
    with pytest.raises(DaemonError, match=r"cannot listen at .*file/a\.sock"):
        await server_at(world, path / "a.sock").start()


async def test_another_program_that_is_too_busy_to_answer_is_alive(world: World) -> None:
    path = Path(world.path).parent / "busy.sock"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
        busy.bind(str(path))
        busy.listen(0)
        first.connect(str(path))
        inode = path.stat().st_ino
        with pytest.raises(DaemonError, match="socket already exists"):
            await asyncio.wait_for(server_at(world, path).start(), 5)
        assert path.stat().st_ino == inode


async def test_a_server_can_be_started_again(world: World) -> None:
    before = open_descriptors()
    for _ in range(3):
        await world.server.stop()
        await world.server.start()
        await is_answered(world)
    assert open_descriptors() == before
