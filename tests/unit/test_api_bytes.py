"""Whether each method has its bytes tested, streams, and that a stock client can read whatever is sent."""

import re

import pytest

from crannog.api.table import METHODS
from crannog.core.registry import Registry
from tests.unit import test_api_bytes_devices, test_api_bytes_policy, test_api_bytes_storage, test_api_bytes_vms
from tests.unit.api_world import CONNECTED, Client, ask, event, until
from tests.unit.bytes_client import (
    CLASSES,
    SERVER_ONLY,
    ClientError,
    NoAnswerError,
    Value,
    read,
    read_events,
    read_vms,
    take,
)
from tests.unit.bytes_world import (
    ONLY_DOM0,
    POPULATION,
    UNEXPECTED_ARGUMENT,
    UNEXPECTED_PAYLOAD,
    BytesWorld,
    Exchange,
    Talk,
    absent,
    bytes_world,
    error,
    ok,
    say,
)

TALKS = (
    *test_api_bytes_vms.TALKS,
    *test_api_bytes_storage.TALKS,
    *test_api_bytes_devices.TALKS,
    *test_api_bytes_policy.TALKS,
)
STREAMS = {"admin.Events", "admin.vm.Stats", "crannog.vm.Lease", "crannog.vm.volume.Export"}
# Methods that clients know and that always fail, with how they do.
UNSERVED = {
    "QubesNotImplementedError": {
        "admin.backup.Cancel", "admin.backup.Execute", "admin.backup.Info",
        "admin.vm.device.block.Attach", "admin.vm.device.block.Detach",
        "admin.vm.device.mic.Attach", "admin.vm.device.mic.Detach",
        "admin.vm.device.pci.Attach", "admin.vm.device.pci.Detach",
        "admin.vm.device.usb.Attach", "admin.vm.device.usb.Detach",
        "internal.SuspendPost", "internal.SuspendPre",
    },
    "ProtocolError": {"admin.vm.volume.Import", "admin.vm.volume.ImportWithSize"},
}  # fmt: skip
GUID = "<GUID>"


# -- each method


def test_every_method_has_a_case() -> None:
    said = [exchange for spoken in TALKS for exchange in spoken.exchanges]
    served = {exchange.method for exchange in said if exchange.reply.startswith(b"0\0")}
    unserved = {
        exchange.method
        for exchange in said
        for kind, methods in UNSERVED.items()
        if exchange.method in methods and exchange.reply.startswith(f"2\0{kind}\0".encode())
    }
    assert unserved == set().union(*UNSERVED.values())
    assert served & unserved == set()
    plain = {exchange.method for spoken in test_api_bytes_policy.PLAIN for exchange in spoken.exchanges}
    assert served | unserved | STREAMS | plain == set(METHODS)


def test_every_kind_of_error_of_the_cases_is_one_that_clients_know() -> None:
    replies = [exchange.reply for spoken in TALKS for exchange in spoken.exchanges]
    kinds = {reply.split(b"\0")[1].decode() for reply in replies if reply.startswith(b"2\0")}
    assert kinds <= set(CLASSES) | SERVER_ONLY
    assert len(kinds) > 15


# -- requests and errors as they are on the wire


@pytest.mark.parametrize(
    ("request_", "reply"),
    [
        (
            b"admin.vm.List+ dom0 name work\0",
            b"0\0work class=AppVM state=Halted uuid=00000003-0000-4000-8000-000000000000\n",
        ),
        (
            b"admin.vm.List+ dom0 keyword adminvm\0x",
            b"2\0ProtocolError\0ProtocolError\0unexpected payload\0",
        ),
        (
            b"admin.vm.feature.Get+a%b dom0 name work\0",
            b"2\0QubesFeatureNotFoundError\0FeatureNotFoundError\0work has no feature 'a%%b'\0",
        ),
        (b"admin.vm.feature.Set+a dom0 name work\x0050%", b"0\0"),
        (b"admin.%s+ dom0 name work\0", b"2\0ProtocolError\0ProtocolError\0no such method: 'admin.%%s'\0"),
        (b"internal.GetSystemInfo+ dom0 name dom0\0",
         b"2\0ProtocolError\0ProtocolError\0no such method: 'internal.GetSystemInfo'\0"),
        (b"qubes.NotifyTools+ work name dom0\0",
         b"2\0ProtocolError\0ProtocolError\0no such method: 'qubes.NotifyTools'\0"),
        (b"admin.vm.List+ dom0 keyword work\0", b""),
    ],
)  # fmt: skip
async def test_requests_to_the_public_socket(request_: bytes, reply: bytes) -> None:
    async with bytes_world() as world:
        assert await ask(world.inside.paths.daemon_socket, request_) == reply


@pytest.mark.parametrize("socket", ["internal_socket", "misc_socket"])
async def test_the_other_sockets_serve_no_public_method(socket: str) -> None:
    reply = b"2\0ProtocolError\0ProtocolError\0no such method: 'admin.vm.List'\0"
    async with bytes_world() as world:
        assert await ask(getattr(world.inside.paths, socket), b"admin.vm.List+ dom0 name dom0\0") == reply


async def test_a_hypervisor_that_fails() -> None:
    message = "work was not started: create_paused failed on purpose"
    async with bytes_world() as world:
        await world.have(say("admin.vm.property.Set+netvm work", ok(), b""))
        world.inside.hypervisor.failing = {"create_paused"}
        await world.have(say("admin.vm.Start+ work", error("QubesException", "HypervisorError", message)))


async def test_what_callers_compare_of_a_start_of_a_vm_that_runs() -> None:
    async with bytes_world() as world:
        await world.have(say("admin.vm.Start+ work", ok()))
        reply = await ask(world.inside.paths.daemon_socket, b"admin.vm.Start+ dom0 name work\0")
        assert reply[:24] == b"2\0QubesVMNotHaltedError\0"


# -- streams


CHANGES: tuple[tuple[Exchange, tuple[bytes, ...]], ...] = (
    (
        say("admin.vm.property.Set+memory work", ok(), b"640"),
        (
            b"1\0work\0property-pre-set:memory\0name\0memory\0newvalue\x00640\0oldvalue\x00400\0\0",
            b"1\0work\0property-set:memory\0name\0memory\0newvalue\x00640\0oldvalue\x00400\0\0",
        ),
    ),
    (
        say("admin.vm.property.Reset+memory work", ok()),
        (
            b"1\0work\0property-pre-reset:memory\0name\0memory\0oldvalue\x00640\0\0",
            b"1\0work\0property-pre-del:memory\0name\0memory\0oldvalue\x00640\0\0",
            b"1\0work\0property-reset:memory\0name\0memory\0oldvalue\x00640\0\0",
            b"1\0work\0property-del:memory\0name\0memory\0oldvalue\x00640\0\0",
        ),
    ),
    (
        say("admin.vm.property.Set+label work", ok(), b"blue"),
        (
            b"1\0work\0property-pre-set:label\0name\0label\0newvalue\0blue\0oldvalue\0green\0\0",
            b"1\0work\0property-set:label\0name\0label\0newvalue\0blue\0oldvalue\0green\0\0",
            b"1\0work\0property-reset:icon\0name\0icon\0\0",
        ),
    ),
    (
        say("admin.vm.property.Set+netvm work", ok()),
        (
            b"1\0work\0property-pre-set:netvm\0name\0netvm\0newvalue\0None\0oldvalue\0sys-net\0\0",
            b"1\0work\0property-set:netvm\0name\0netvm\0newvalue\0None\0oldvalue\0sys-net\0\0",
        ),
    ),
    (
        say("admin.vm.feature.Set+a work", ok(), b"50%"),
        (
            b"1\0work\0domain-feature-pre-set:a\0feature\0a\0value\x0050%\0\0",
            b"1\0work\0domain-feature-set:a\0feature\0a\0value\x0050%\0\0",
        ),
    ),
    (
        say("admin.vm.feature.Set+a work", ok()),
        (
            b"1\0work\0domain-feature-pre-set:a\0feature\0a\0value\0\0oldvalue\x0050%\0\0",
            b"1\0work\0domain-feature-set:a\0feature\0a\0value\0\0oldvalue\x0050%\0\0",
        ),
    ),
    (
        say("admin.vm.feature.Remove+a work", ok()),
        (
            b"1\0work\0domain-feature-pre-delete:a\0feature\0a\0\0",
            b"1\0work\0domain-feature-delete:a\0feature\0a\0\0",
        ),
    ),
    (say("admin.vm.tag.Set+t work", ok()), (b"1\0work\0domain-tag-add:t\0tag\0t\0\0",)),
    (say("admin.vm.tag.Remove+t work", ok()), (b"1\0work\0domain-tag-delete:t\0tag\0t\0\0",)),
    (say("admin.vm.firewall.Reload+ work", ok()), (b"1\0work\0firewall-changed\0\0",)),
    (
        say("admin.vm.device.block.Assign+sys-net+sda+_ work", ok(), b"mode='required'"),
        (
            b"1\0work\0device-pre-assign:block\0device\0sys-net:sda:*\0options\0{}\0\0",
            b"1\0work\0device-assign:block\0device\0sys-net:sda:*\0options\0{}\0\0",
        ),
    ),
    (
        say("admin.vm.device.block.Unassign+sys-net+sda+_ work", ok()),
        (b"1\0work\0device-unassign:block\0device\0sys-net:sda:*\0\0",),
    ),
    (
        say("admin.vm.Start+ work", ok()),
        (
            f"1\0work\0domain-pre-start\0start_guid\0{GUID}\0mem_required\000419430400\0\0".encode(),
            f"1\0work\0domain-pre-spawn\0start_guid\0{GUID}\0\0".encode(),
            f"1\0work\0domain-spawn\0start_guid\0{GUID}\0\0".encode(),
            b"1\0work\0domain-pre-unpaused\0\0",
            b"1\0work\0domain-unpaused\0\0",
            f"1\0work\0domain-start\0start_guid\0{GUID}\0\0".encode(),
        ),
    ),
    (say("admin.vm.Pause+ work", ok()), (b"1\0work\0domain-pre-paused\0\0", b"1\0work\0domain-paused\0\0")),
    (say("admin.vm.Unpause+ work", ok()), (b"1\0work\0domain-pre-unpaused\0\0", b"1\0work\0domain-unpaused\0\0")),
    (say("admin.vm.Kill+ work", ok()), (b"1\0work\0domain-stopped\0\0", b"1\0work\0domain-shutdown\0\0")),
)
COMING_AND_GOING: tuple[tuple[Exchange, tuple[bytes, ...]], ...] = (
    (
        say("admin.vm.Create.RemoteVM+ dom0", ok(), b"name=away label=red"),
        (
            b"1\0\0domain-add\0vm\0away\0\0",
            b"1\0away\0domain-tag-add:created-by-dom0\0tag\0created-by-dom0\0\0",
            b"1\0away\0domain-create-on-disk\0\0",
        ),
    ),
    (
        say("admin.vm.Remove+ away", ok()),
        (
            b"1\0\0domain-pre-delete\0vm\0away\0\0",
            b"1\0\0domain-delete\0vm\0away\0\0",
            b"1\0away\0domain-remove-from-disk\0\0",
        ),
    ),
    (
        say("admin.property.Set+stats_interval dom0", ok(), b"5"),
        (
            b"1\0\0property-pre-set:stats_interval\0name\0stats_interval\0newvalue\x005\0oldvalue\x003\0\0",
            b"1\0\0property-set:stats_interval\0name\0stats_interval\0newvalue\x005\0oldvalue\x003\0\0",
        ),
    ),
    (say("admin.pool.Add+qcow2 dom0", ok(), b"name=fast\n"), (b"1\0\0pool-add\0pool\0fast\0\0",)),
    (
        say("admin.pool.Remove+fast dom0", ok()),
        (b"1\0\0pool-pre-delete\0pool\0fast\0\0", b"1\0\0pool-delete\0pool\0fast\0\0"),
    ),
)


async def read_told(client: Client, told: tuple[bytes, ...]) -> bytes:
    """Return the bytes of as many events, which are as expected; a number that a start gets is any UUID."""
    wanted = b"".join(told)
    found = await client.read_exactly(len(wanted.replace(GUID.encode(), b"-" * 36)))
    guid = rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
    if not re.fullmatch(guid.join(map(re.escape, wanted.split(GUID.encode()))), found):
        assert found == wanted
    assert len(read_events(found)) == len(told)
    return found


async def test_events_of_the_whole_system() -> None:
    async with bytes_world() as world:
        with await world.follow(b"admin.Events+ dom0 name dom0\0") as client:
            for exchange, told in (*CHANGES, *COMING_AND_GOING):
                await world.have(exchange)
                await read_told(client, told)
            assert client.pending() == b""


@pytest.mark.parametrize("vm", ["work", "uuid:00000003-0000-4000-8000-000000000000"])
async def test_events_of_one_vm(vm: str) -> None:
    async with bytes_world() as world:
        with await world.follow(f"admin.Events+ dom0 name {vm}\0".encode()) as client:
            for exchange, _ in COMING_AND_GOING:
                await world.have(exchange)
            assert client.pending() == b""
            for exchange, told in CHANGES:
                await world.have(exchange)
                await read_told(client, told)
            assert client.pending() == b""


@pytest.mark.parametrize("vm", ["dom0", "work"])
async def test_statistics(vm: str) -> None:
    stats = event(
        "work", "vm-stats",
        memory_kb="409600", memory_assigned_total="409600", memory_assigned_usable="409600",
        memory_with_swap_used="409600", cpu_time="5000", cpu_usage="0", online_vcpus="2",
    )  # fmt: skip
    async with bytes_world() as world:
        await world.have(say("admin.vm.property.Set+netvm work", ok(), b""))
        await world.have(say("admin.vm.Start+ work", ok()))
        with await world.follow(f"admin.vm.Stats+ dom0 name {vm}\0".encode()) as client:
            await read_told(client, (stats,))


async def test_a_lease() -> None:
    """It says nothing; when the client goes, in whatever way, so does the disposable."""
    async with bytes_world() as world:
        await world.have(say("admin.vm.CreateDisposable+ dvm", ok("disp1")))
        with await world.follow(b"crannog.vm.Lease+ dom0 name disp1\0"):
            await world.have(say("admin.vm.property.Get+auto_cleanup disp1", ok("default=False type=bool True")))
        await until(lambda: world.inside.registry.by_name("disp1") is None)


async def test_an_export() -> None:
    """It lasts until the client goes: so long the VM does not start."""
    words = "work cannot be started: its volume private is being exported; wait until that is over, or end it"
    async with bytes_world() as world:
        place = f"raw {world.inside.paths.pools}/vm-pool/work-00000003/private.img"
        with await world.follow(b"crannog.vm.volume.Export+private dom0 name work\0") as client:
            await read_told(client, (event("work", "export-ready", place=place),))
            await world.have(say("admin.vm.Start+ work", error("QubesVMError", "StateError", words)))
        await until(lambda: not world.inside.machines.busy)
        await world.have(say("admin.vm.Start+ work", ok()))


@pytest.mark.parametrize("method", sorted(STREAMS - {"crannog.vm.volume.Export"}))
async def test_refused_streams(method: str) -> None:
    async with bytes_world() as world:
        await world.have(say(f"{method}+x dom0", UNEXPECTED_ARGUMENT))
        await world.have(say(f"{method}+ dom0", UNEXPECTED_PAYLOAD, b"x"))
        await world.have(say(f"{method}+ nobody", absent("nobody")))


# -- a stock client


@pytest.mark.parametrize("spoken", TALKS, ids=str)
async def test_a_client_reads_every_reply(spoken: Talk) -> None:
    async with bytes_world() as world:
        for exchange in spoken.exchanges:
            reply = await world.have(exchange)
            if reply.startswith(b"0\0"):
                read(exchange.method, reply)
            else:
                is_read_as_error(exchange.method, reply)


def is_read_as_error(method: str, reply: bytes) -> None:
    with pytest.raises(ClientError) as raised:
        read(method, reply)
    assert raised.value.kind in {*CLASSES, *SERVER_ONLY}
    assert str(raised.value).replace("%", "%%").encode() == reply.split(b"\0")[3]
    assert reply.count(b"\0") == 4


@pytest.mark.parametrize("exchange", POPULATION, ids=lambda exchange: exchange.method)
def test_a_client_reads_that_something_was_done(exchange: Exchange) -> None:
    assert take(exchange.reply) == b""


def test_a_client_takes_the_first_bytes_of_a_stream() -> None:
    assert read_events(CONNECTED) == [("", "connection-established", {})]


@pytest.mark.parametrize(
    ("request_", "caught"),
    [
        ("admin.vm.feature.Get+nope work", KeyError),
        ("admin.vm.tag.Remove+nope work", KeyError),
        ("admin.label.Get+nope dom0", KeyError),
        ("admin.vm.List+ nobody", KeyError),
        ("admin.vm.device.block.Unassign+sys-net+sda+_ work", KeyError),
        ("admin.vm.property.Get+nope work", AttributeError),
        ("admin.vm.property.Set+memory work", ValueError),
        ("admin.vm.Create.AppVM+work dom0", ValueError),
    ],
)
async def test_what_a_client_catches_errors_by(request_: str, caught: type[Exception]) -> None:
    payload = b"name=a label=red" if "Create" in request_ else b""
    async with bytes_world() as world:
        asked = say(request_, b"", payload)
        with pytest.raises(ClientError) as raised:
            read(asked.method, await ask(world.socket_of(asked.method), asked.request))
    assert caught in raised.value.is_caught_as


async def test_what_is_no_request_is_a_denial_to_a_client() -> None:
    async with bytes_world() as world:
        reply = await ask(world.inside.paths.daemon_socket, b"admin.vm.List+ dom0 keyword work\0")
    with pytest.raises(NoAnswerError):
        take(reply)


async def test_what_a_client_lists_is_what_there_is() -> None:
    async with bytes_world() as world:
        registry = world.inside.registry
        reply = await ask(world.inside.paths.daemon_socket, b"admin.vm.List+ dom0 name dom0\0")
        assert read_vms(take(reply)) == {vm.name: (vm.klass, vm.power_state, vm.uuid) for vm in registry}


async def read_from(world: BytesWorld, header: str) -> object:
    asked = say(header, b"")
    return read(asked.method, await ask(world.socket_of(asked.method), asked.request))


def as_client(registry: Registry, holder: str) -> dict[str, Value]:
    """Return all properties of a VM, of nobody for the global ones, as a client shall have them."""
    owner = registry.find_vm(holder) if holder else registry
    values = {}
    for name, declared in owner.declared().items():
        value, kind = owner.get(name), declared.kind.name
        if kind in ("vm", "label"):
            shown: object = None if value is None else value.name
        else:
            shown = "" if value is None and kind == "str" else value
        values[name] = Value(owner.is_default(name), kind, shown)
    return values


@pytest.mark.parametrize("vm", ["", "dom0", "debian", "work", "dvm", "sys-net", "far", "disp1"])
async def test_a_client_has_every_property_as_it_is(vm: str) -> None:
    prefix, destination = ("admin.vm.property", vm) if vm else ("admin.property", "dom0")
    async with bytes_world() as world:
        await world.have(say("admin.vm.CreateDisposable+ dvm", ok("disp1")))
        expected = as_client(world.inside.registry, vm)
        assert await read_from(world, f"{prefix}.GetAll+ {destination}") == expected
        for name, value in expected.items():
            assert await read_from(world, f"{prefix}.Get+{name} {destination}") == value
        assert await read_from(world, f"{prefix}.List+ {destination}") == list(expected)


@pytest.mark.parametrize("text", ["a\nb", "\\", "\\n", "a\\\nb\\\\n", "50% 'x' =", ""])
async def test_a_client_has_odd_texts_of_properties_as_they_are(text: str) -> None:
    """The file may say what no call can set."""
    async with bytes_world() as world:
        world.inside.registry.find_vm("work").values["kernelopts"] = text
        found = await read_from(world, "admin.vm.property.GetAll+ work")
        assert isinstance(found, dict)
        assert found["kernelopts"] == await read_from(world, "admin.vm.property.Get+kernelopts work")
        assert found["kernelopts"] == Value(is_default=False, kind="str", value=text)


async def test_a_client_knows_dom0_by_its_number() -> None:
    async with bytes_world() as world:
        assert await read_from(world, "admin.vm.property.Get+qid dom0") == Value(False, "int", 0)
        await world.have(say("admin.vm.property.List+x dom0", UNEXPECTED_ARGUMENT))
        await world.have(say("admin.label.List+ work", ONLY_DOM0))
