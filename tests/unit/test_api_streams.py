"""Streams of events over the socket: exact bytes in their order, and readers that cannot harm anybody."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from crannog.api import connection as connection_module
from crannog.api.connection import MAX_QUEUED
from crannog.core.events import Event
from crannog.core.vms import QubeBase
from crannog.editing.population import NewVM
from crannog.errors import StorageError
from tests.unit.api_world import (
    CONNECTED,
    LIST,
    Client,
    World,
    ask,
    descriptor_limit,
    event,
    follow,
    on_disk,
    open_descriptors,
    serving_world,
    until,
)

WORK_EVENTS = b"admin.Events+ dom0 name work\0"


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with serving_world() as world:
        world.inside.inventory.editor.set_property(world.inside.registry, "default_template", "debian")
        yield world


async def told_at(world: World, request: bytes, reply: bytes = b"0\0") -> bytes:
    """Make a call; return what a reader of all events has got when the call is answered."""
    with await follow(world.path) as reader:
        assert await ask(world.path, request) == reply
        return reader.pending()


# -- what is told


async def test_the_first_bytes(world: World) -> None:
    with await follow(world.path) as reader:
        assert reader.pending() == b""
    assert CONNECTED == b"\x31\x00\x00connection-established\x00\x00"


async def test_a_property_that_is_set_and_reset(world: World) -> None:
    arguments = {"name": "memory", "newvalue": "500", "oldvalue": "400"}
    told = await told_at(world, b"admin.vm.property.Set+memory dom0 name work\x00500")
    assert told == event("work", "property-pre-set:memory", **arguments) + event(
        "work", "property-set:memory", **arguments
    )
    told = await told_at(world, b"admin.vm.property.Reset+memory dom0 name work\0")
    names = ("property-pre-reset", "property-pre-del", "property-reset", "property-del")
    assert told == b"".join(event("work", f"{name}:memory", name="memory", oldvalue="500") for name in names)


async def test_references_are_told_as_names(world: World) -> None:
    told = await told_at(world, b"admin.vm.property.Set+guivm dom0 name work\0")
    assert event("work", "property-set:guivm", name="guivm", newvalue="None", oldvalue="dom0") in told
    told = await told_at(world, b"admin.property.Set+default_template dom0 name dom0\0")
    arguments = {"name": "default_template", "newvalue": "None", "oldvalue": "debian"}
    assert told == event("", "property-pre-set:default_template", **arguments) + event(
        "", "property-set:default_template", **arguments
    )


async def test_a_label_takes_the_icon_along(world: World) -> None:
    told = await told_at(world, b"admin.vm.property.Set+label dom0 name work\0blue")
    arguments = {"name": "label", "newvalue": "blue", "oldvalue": "red"}
    assert told == (
        event("work", "property-pre-set:label", **arguments)
        + event("work", "property-set:label", **arguments)
        + event("work", "property-reset:icon", name="icon")
    )


async def test_features(world: World) -> None:
    told = await told_at(world, b"admin.vm.feature.Set+os dom0 name work\0Linux")
    assert told == (
        event("work", "domain-feature-pre-set:os", feature="os", value="Linux")
        + event("work", "domain-feature-set:os", feature="os", value="Linux")
    )
    told = await told_at(world, b"admin.vm.feature.Set+os dom0 name work\0")
    assert told == (
        event("work", "domain-feature-pre-set:os", feature="os", value="", oldvalue="Linux")
        + event("work", "domain-feature-set:os", feature="os", value="", oldvalue="Linux")
    )
    told = await told_at(world, b"admin.vm.feature.Remove+os dom0 name work\0")
    assert told == (
        event("work", "domain-feature-pre-delete:os", feature="os")
        + event("work", "domain-feature-delete:os", feature="os")
    )


async def test_tags(world: World) -> None:
    request = b"admin.vm.tag.Set+t1 dom0 name work\0"
    assert await told_at(world, request) == event("work", "domain-tag-add:t1", tag="t1")
    assert await told_at(world, request) == b""
    request = b"admin.vm.tag.Remove+t1 dom0 name work\0"
    assert await told_at(world, request) == event("work", "domain-tag-delete:t1", tag="t1")


async def test_vms_that_come_and_go(world: World) -> None:
    told = await told_at(world, b"admin.vm.Create.AppVM+ dom0 name dom0\0name=bank label=green")
    tags = sorted(world.inside.registry.find_vm("bank").tags)
    assert "created-by-dom0" in tags
    assert told == (
        event("", "domain-add", vm="bank")
        + b"".join(event("bank", f"domain-tag-add:{tag}", tag=tag) for tag in tags)
        + event("bank", "domain-create-on-disk")
    )
    told = await told_at(world, b"admin.vm.Remove+ dom0 name bank\0")
    assert told == (
        event("", "domain-pre-delete", vm="bank")
        + event("", "domain-delete", vm="bank")
        + event("bank", "domain-remove-from-disk")
    )


async def test_a_new_name_is_one_vm_less_and_one_more(world: World) -> None:
    with await follow(world.path, WORK_EVENTS) as of_work:
        told = await told_at(world, b"admin.vm.property.Set+name dom0 name work\0job")
        assert told.endswith(event("", "domain-delete", vm="work") + event("", "domain-add", vm="job"))
        of_work.pending()
        assert await ask(world.path, b"admin.vm.tag.Set+t dom0 name job\0") == b"0\0"
        assert of_work.pending() == event("job", "domain-tag-add:t", tag="t")


async def test_what_fails_is_not_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_registry: object) -> None:
        raise StorageError("no space")

    for request in (
        b"admin.vm.property.Set+memory dom0 name work\0none",
        b"admin.vm.feature.Remove+absent dom0 name work\0",
        b"admin.vm.Remove+ dom0 name debian\0",
    ):
        with await follow(world.path) as reader:
            assert (await ask(world.path, request)).startswith(b"2\0")
            assert reader.pending() == b""
    monkeypatch.setattr(world.inside.store, "save", refuse)
    refused = b"2\0StoragePoolException\0StorageError\0no space\0"
    assert await told_at(world, b"admin.vm.tag.Set+t dom0 name work\0", refused) == b""
    assert world.inside.registry.find_vm("work").tags == set()


async def test_events_are_told_when_the_file_holds_the_change(world: World) -> None:
    held: list[tuple[str, bool]] = []

    def note(told: Event) -> None:
        registry = on_disk(world.inside)
        vm = registry.by_name("bank")
        held.append((told.name, vm is not None and "t" in vm.tags))

    await world.inside.inventory.population.create(NewVM("AppVM", "bank", "", None), created_by="dom0")
    world.inside.inventory.editor.listen(note)
    for request in (b"admin.vm.tag.Set+t dom0 name bank\0", b"admin.vm.tag.Remove+t dom0 name bank\0"):
        assert await ask(world.path, request) == b"0\0"
    assert await ask(world.path, b"admin.vm.Remove+ dom0 name bank\0") == b"0\0"
    assert held == [
        ("domain-tag-add:t", True),
        ("domain-tag-delete:t", False),
        ("domain-pre-delete", False),
        ("domain-delete", False),
        ("domain-remove-from-disk", False),
    ]


async def test_a_reader_has_the_event_before_the_caller_has_the_answer(world: World) -> None:
    with await follow(world.path) as reader, Client(world.path, b"admin.vm.tag.Set+t dom0 name work\0") as caller:
        caller.end_request()
        assert await caller.receive(1) == b"0"
        assert reader.pending() == event("work", "domain-tag-add:t", tag="t")


# -- to whom


async def test_a_vms_stream_has_that_vms_events_only(world: World) -> None:
    with await follow(world.path, WORK_EVENTS) as of_work, await follow(world.path) as of_all:
        await ask(world.path, b"admin.vm.tag.Set+a dom0 name debian\0")
        await ask(world.path, b"admin.vm.tag.Set+b dom0 name work\0")
        await ask(world.path, b"admin.property.Set+default_template dom0 name dom0\0")
        await ask(world.path, b"admin.vm.feature.Set+c dom0 name dom0\x001")
        await ask(world.path, b"admin.vm.tag.Set+d dom0 name work\0")
        b, d = (event("work", f"domain-tag-add:{tag}", tag=tag) for tag in "bd")
        assert of_work.pending() == b + d
        arguments = {"name": "default_template", "newvalue": "None", "oldvalue": "debian"}
        assert of_all.pending() == (
            event("debian", "domain-tag-add:a", tag="a")
            + b
            + event("", "property-pre-set:default_template", **arguments)
            + event("", "property-set:default_template", **arguments)
            + event("dom0", "domain-feature-pre-set:c", feature="c", value="1")
            + event("dom0", "domain-feature-set:c", feature="c", value="1")
            + d
        )


async def test_readers_get_the_same(world: World) -> None:
    readers = [await follow(world.path) for _ in range(3)]
    requests = [f"admin.vm.feature.Set+f{number} dom0 name work\0{number}".encode() for number in range(30)]
    await asyncio.gather(*(ask(world.path, request) for request in requests))
    streams = [reader.pending() for reader in readers]
    assert streams[0].count(b"domain-feature-set:") == 30
    assert streams[1:] == streams[:1] * 2
    for reader in readers:
        reader.close()


async def test_other_callers_than_dom0_hear_of_nothing_without_a_policy(world: World) -> None:
    readers = [
        await follow(world.path, f"admin.Events+ work name {vm}\0".encode()) for vm in ("dom0", "work", "debian")
    ]
    await ask(world.path, b"admin.vm.tag.Set+t dom0 name work\0")
    await ask(world.path, b"admin.vm.tag.Set+t dom0 name debian\0")
    await ask(world.path, b"admin.vm.Create.AppVM+ dom0 name dom0\0name=bank label=green")
    assert [reader.pending() for reader in readers] == [b""] * 3
    for vm in (b"dom0", b"work", b"debian"):
        assert await ask(world.path, b"admin.vm.List+ work name %s\0" % vm) == b"0\0"
    for reader in readers:
        reader.close()


async def test_the_policy_is_asked_for_each_event(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, str, str]] = []

    def permits(source: QubeBase, method: str, argument: str, vm: QubeBase) -> bool:
        asked.append((source.name, method, argument, vm.name))
        return vm.name == "debian"

    monkeypatch.setattr(world.inside.inventory, "permits", permits)
    with await follow(world.path, b"admin.Events+ work name dom0\0") as reader:
        for vm in (b"work", b"debian"):
            await ask(world.path, b"admin.vm.tag.Set+t dom0 name %s\0" % vm)
        world.tell(Event("", "domain-add", {"vm": "debian"}), Event("", "property-set:maxmem", {"name": "maxmem"}))
        told = event("debian", "domain-tag-add:t", tag="t") + event("", "domain-add", vm="debian")
        assert reader.pending() == told
    assert asked == [
        ("work", "admin.Events", "domain-tag-add_t", "work"),
        ("work", "admin.Events", "domain-tag-add_t", "debian"),
        ("work", "admin.Events", "domain-add", "debian"),
        ("work", "admin.Events", "property-set_maxmem", "dom0"),
    ]


@pytest.mark.parametrize(
    ("request_", "reply"),
    [
        (b"admin.Events+x dom0 name dom0\0", b"2\0ProtocolError\0ProtocolError\0unexpected argument\0"),
        (b"admin.Events+ dom0 name dom0\0x", b"2\0ProtocolError\0ProtocolError\0unexpected payload\0"),
        (b"admin.Events+ dom0 name nobody\0", b"2\0QubesVMNotFoundError\0VMNotFoundError\0there is no VM "),
        (b"admin.Events+ nobody name dom0\0", b"2\0QubesVMNotFoundError\0VMNotFoundError\0there is no VM "),
    ],
)
async def test_what_is_no_stream(world: World, request_: bytes, reply: bytes) -> None:
    assert (await ask(world.path, request_)).startswith(reply)
    assert world.listeners == 0


# -- readers that come, stay and go


async def test_a_reader_stays_though_it_can_send_nothing_more(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "REQUEST_TIMEOUT", 0.05)
    monkeypatch.setattr(connection_module, "REPLY_TIMEOUT", 0.05)
    with await follow(world.path) as reader:
        await asyncio.sleep(0.2)
        assert (world.listeners, len(world.server.connections)) == (1, 1)
        world.tell(Event("work", "domain-paused"))
        assert reader.pending() == event("work", "domain-paused")


async def test_a_reader_that_goes_while_nothing_happens_is_noticed(world: World) -> None:
    before = open_descriptors()
    readers = [await follow(world.path) for _ in range(10)]
    stays = await follow(world.path)
    world.tell(Event("work", "domain-paused"))  # half of them leave with something unread
    for reader in readers[:5]:
        reader.pending()
    assert world.listeners == 11
    for reader in readers:
        reader.close()
    async with asyncio.timeout(30):
        await until(lambda: world.listeners == 1)
    assert (len(world.server.connections), open_descriptors()) == (1, before + 2)
    world.tell(Event("work", "domain-unpaused"))
    assert stays.pending() == event("work", "domain-paused") + event("work", "domain-unpaused")
    stays.close()
    await until(lambda: world.listeners == 0)
    assert (open_descriptors(), world.server.hangups._callbacks) == (before, {})


async def test_a_reader_that_goes_before_it_is_taken(world: World) -> None:
    before = open_descriptors()
    for _ in range(20):
        Client(world.path, b"admin.Events+ dom0 name dom0\0").end_request().close()
    await ask(world.path, LIST)
    await until(lambda: not world.server.connections)
    assert (world.listeners, open_descriptors()) == (0, before)


async def test_a_reader_that_goes_in_the_middle_of_being_told(world: World) -> None:
    """The first one's end is found out while the others are still to be told."""
    gone, stays = await follow(world.path), await follow(world.path)
    gone.close()
    world.tell(Event("work", "domain-paused"), Event("work", "domain-unpaused"))
    assert stays.pending() == event("work", "domain-paused") + event("work", "domain-unpaused")
    assert world.listeners == 1
    stays.close()


async def test_two_hundred_readers(world: World) -> None:
    with descriptor_limit(1000):
        before = open_descriptors()
        readers = [await follow(world.path) for _ in range(200)]
        async with asyncio.timeout(30):
            assert await ask(world.path, b"admin.vm.tag.Set+t dom0 name work\0") == b"0\0"
        assert {reader.pending() for reader in readers} == {event("work", "domain-tag-add:t", tag="t")}
        for reader in readers:
            reader.close()
        await until(lambda: world.listeners == 0)
        assert open_descriptors() == before


async def test_streams_end_with_the_server(world: World) -> None:
    before = open_descriptors()
    readers = [await follow(world.path) for _ in range(5)]
    await world.server.stop()
    assert [await reader.read() for reader in readers] == [b""] * 5
    assert world.listeners == 0
    world.tell(Event("work", "domain-paused"))
    for reader in readers:
        reader.close()
    assert open_descriptors() <= before


# -- readers that do not read


def large(number: int) -> Event:
    return Event("work", "large", {"number": f"{number:04}", "filling": "x" * 1000})


async def test_a_reader_that_is_slow_gets_all_in_order(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "REPLY_TIMEOUT", 0.05)
    with await follow(world.path) as reader:
        told = [large(number) for number in range(900)]
        world.tell(*told)
        await asyncio.sleep(0.2)
        expected = b"".join(event("work", "large", **each.arguments) for each in told)
        assert await reader.read_exactly(len(expected)) == expected
        (connection,) = world.server.connections
        assert not connection._is_writing  # else it would be looked at all the time
        world.tell(Event("work", "domain-paused"))
        assert await reader.receive() == event("work", "domain-paused")


async def test_a_reader_that_never_reads_is_dropped_and_others_are_not(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    before = open_descriptors()
    never, other = await follow(world.path), await follow(world.path)
    held, count = 0, 0
    while world.listeners == 2:
        assert count < 10_000
        world.tell(large(count))
        assert other.pending() == event("work", "large", **large(count).arguments)
        count += 1
        held = max(held, *(len(connection._queue) for connection in world.server.connections))
    assert MAX_QUEUED - 2000 < held <= MAX_QUEUED
    assert "a reader of events was dropped" in caplog.text
    assert await ask(world.path, LIST) != b""
    assert open_descriptors() == before + 3
    assert len(await never.read()) < count * 1000  # the kernel's part of it
    world.tell(Event("work", "domain-paused"))
    assert other.pending() == event("work", "domain-paused")
    never.close()
    other.close()
    await until(lambda: world.listeners == 0)
    assert (open_descriptors(), world.server.hangups._callbacks) == (before, {})


async def test_a_reader_that_goes_while_much_waits_for_it(world: World) -> None:
    before = open_descriptors()
    reader = await follow(world.path)
    world.tell(*(large(number) for number in range(700)))
    reader.close()
    await until(lambda: world.listeners == 0)
    assert open_descriptors() == before


async def test_one_event_larger_than_what_is_kept(world: World) -> None:
    with await follow(world.path) as reader:
        world.tell(Event("work", "huge", {"filling": "x" * (MAX_QUEUED + 1)}))
        assert await reader.read() == b""
        assert world.listeners == 0


async def test_readers_that_never_read_delay_no_writer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "MAX_QUEUED", 1 << 16)
    readers = [await follow(world.path) for _ in range(20)]
    async with asyncio.timeout(30):
        for number in range(20):
            value = f"{number:02}" + "v" * 4000
            request = f"admin.vm.feature.Set+f dom0 name work\0{value}".encode()
            assert await ask(world.path, request) == b"0\0"
            world.tell(*(large(number) for number in range(20)))
    await until(lambda: world.listeners == 0)
    for reader in readers:
        reader.close()


# -- the watch


async def test_the_watch_tells_of_each_end_once(world: World) -> None:
    """Descriptors are numbers that are used again: what was forgotten is not told for who has the number next."""
    told: list[int] = []
    readers = [await follow(world.path) for _ in range(4)]
    connections = sorted(world.server.connections, key=lambda connection: connection._socket.fileno())
    for number, connection in enumerate(connections):
        descriptor = connection._socket.fileno()
        world.server.hangups.forget(descriptor)
        world.server.hangups.forget(descriptor)
        if number:
            world.server.hangups.watch(descriptor, lambda number=number: told.append(number))  # type: ignore[misc]
    for reader in readers:
        reader.close()
    await until(lambda: len(told) == 3)
    await asyncio.sleep(0.05)
    assert sorted(told) == [1, 2, 3]
