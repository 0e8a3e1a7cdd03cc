"""What trusted parts of the system and guests' services ask, each on the socket that is meant for it."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from crannog.api.server import Server
from crannog.api.table import METHODS, Family
from crannog.core.announcement import AgentState, AgentStatus, Announcement, QemuAgent
from crannog.core.startup import StartRequest
from crannog.core.vms import LocalVM
from crannog.errors import StorageError
from tests.fakes import Inside, add_vm, build_inside, short_folder, template_and_app
from tests.unit.api_world import ask, on_disk

ANNOUNCED = Announcement("4.1", "Linux", qrexec=True, gui=True, default_user="anna")


@pytest.fixture
async def inside() -> AsyncIterator[Inside]:
    """Serve all three sockets over a template and an AppVM."""
    with short_folder() as home:
        inside = build_inside(home)
        template_and_app(inside.registry)
        paths = inside.paths
        places = {
            Family.PUBLIC: paths.daemon_socket,
            Family.INTERNAL: paths.internal_socket,
            Family.MISC: paths.misc_socket,
        }
        servers = [Server(inside.inventory, path, family) for family, path in places.items()]
        for server in servers:
            await server.start()
        yield inside
        for server in servers:
            await server.stop()
            assert server.connections == set()


async def system_info(inside: Inside) -> dict[str, Any]:
    reply = await ask(inside.paths.internal_socket, b"internal.GetSystemInfo+ dom0 name dom0\0")
    assert reply.startswith(b"0\0")
    found = json.loads(reply[2:])
    assert list(found) == ["domains"]
    domains = found["domains"]
    assert isinstance(domains, dict)
    return domains


async def notify(inside: Inside, service: str, source: str, payload: bytes = b"") -> bytes:
    return await ask(inside.paths.misc_socket, f"qubes.{service}+ {source} name dom0\0".encode() + payload)


def vm(inside: Inside, name: str) -> LocalVM:
    found = inside.registry.find_vm(name)
    assert isinstance(found, LocalVM)
    return found


# -- internal.GetSystemInfo


async def test_system_info(inside: Inside) -> None:
    editor, registry = inside.inventory.editor, inside.registry
    editor.set_property(vm(inside, "work"), "template_for_dispvms", "True")
    editor.set_property(vm(inside, "work"), "label", "blue")
    editor.set_property(registry, "default_dispvm", "work")
    editor.set_feature(vm(inside, "debian"), "internal", "1")
    for tag in ("zebra", "ape"):
        editor.add_tag(vm(inside, "work"), tag)
    remote = registry.create("RemoteVM", "far", "00000000-0000-4000-8000-000000000077", None)
    remote.set("transport_rpc", "qubes.Relay")
    remote.set("relayvm", vm(inside, "work"))
    everything = {
        "dom0": {
            "internal": None,
            "tags": [],
            "type": "AdminVM",
            "template_for_dispvms": False,
            "default_dispvm": "work",
            "icon": "adminvm-black",
            "label": "0x000000",
            "guivm": None,
            "relayvm": None,
            "transport_rpc": None,
            "power_state": "Running",
            "uuid": "00000000-0000-0000-0000-000000000000",
        },
        "debian": {
            "internal": "1",
            "tags": [],
            "type": "TemplateVM",
            "template_for_dispvms": False,
            "default_dispvm": "work",
            "icon": "templatevm-red",
            "label": "0xcc0000",
            "guivm": "dom0",
            "relayvm": None,
            "transport_rpc": None,
            "power_state": "Halted",
            "uuid": vm(inside, "debian").uuid,
        },
        "work": {
            "internal": None,
            "tags": ["ape", "zebra"],
            "type": "AppVM",
            "template_for_dispvms": True,
            "default_dispvm": "work",
            "icon": "appvm-blue",
            "label": "0x3465a4",
            "guivm": "dom0",
            "relayvm": None,
            "transport_rpc": None,
            "power_state": "Halted",
            "uuid": vm(inside, "work").uuid,
        },
        "far": {
            "internal": None,
            "tags": [],
            "type": "RemoteVM",
            "template_for_dispvms": False,
            "default_dispvm": None,
            "icon": "remotevm-red",
            "label": "0xcc0000",
            "guivm": None,
            "relayvm": "work",
            "transport_rpc": "qubes.Relay",
            "power_state": "Running",
            "uuid": "00000000-0000-4000-8000-000000000077",
        },
    }
    found = await system_info(inside)
    assert found == everything
    assert list(found) == list(everything)


async def test_references_that_are_empty_are_null(inside: Inside) -> None:
    work = vm(inside, "work")
    inside.inventory.editor.set_property(work, "guivm", "")
    inside.registry.create("RemoteVM", "far", "00000000-0000-4000-8000-000000000077", None)
    found = await system_info(inside)
    assert (found["work"]["guivm"], found["work"]["default_dispvm"]) == (None, None)
    assert (found["far"]["relayvm"], found["far"]["transport_rpc"]) == (None, None)


async def test_power_states(inside: Inside) -> None:
    for each in inside.registry.local_vms():
        await inside.pool.create(tuple(each.volumes.values()))
    work = vm(inside, "work")
    await inside.inventory.power.start(work, StartRequest(wait=False))
    assert (await system_info(inside))["work"]["power_state"] == "Running"
    await inside.inventory.power.pause(work)
    assert (await system_info(inside))["work"]["power_state"] == "Paused"
    await inside.inventory.power.kill(work)
    assert (await system_info(inside))["work"]["power_state"] == "Halted"


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (b"internal.GetSystemInfo+x dom0 name dom0\0", b"unexpected argument"),
        (b"internal.GetSystemInfo+ dom0 name dom0\0x", b"unexpected payload"),
        (b"internal.GetSystemInfo+ dom0 name work\0", b"expected destination to be AdminVM"),
        (b"internal.Nonsense+ dom0 name dom0\0", b"no such method: 'internal.Nonsense'"),
    ],
)
async def test_wrong_calls(inside: Inside, request_: bytes, error: bytes) -> None:
    reply = await ask(inside.paths.internal_socket, request_)
    assert reply == b"2\0ProtocolError\0ProtocolError\0" + error + b"\0"


async def test_no_method_is_served_at_two_sockets(inside: Inside) -> None:
    places = {
        Family.PUBLIC: inside.paths.daemon_socket,
        Family.INTERNAL: inside.paths.internal_socket,
        Family.MISC: inside.paths.misc_socket,
    }
    assert {declared.family for declared in METHODS.values()} == set(Family)
    for name, declared in METHODS.items():
        families = {"internal": Family.INTERNAL, "qubes": Family.MISC}
        family = Family.MISC if declared.is_plain else families.get(name.split(".")[0], Family.PUBLIC)
        assert declared.family is family
        refusal = f"2\0ProtocolError\0ProtocolError\0no such method: '{name}'\0".encode()
        for family, path in places.items():
            if family is not declared.family:
                reply = await ask(path, f"{name}+ dom0 name dom0\0".encode())
                assert reply == (b"" if declared.is_plain else refusal)


# -- qubes.NotifyUpdates


async def test_updates_are_kept_with_the_vm_that_tells(inside: Inside) -> None:
    assert await notify(inside, "NotifyUpdates", "debian", b"12\n") == b"0\0"
    assert vm(inside, "debian").features == on_disk(inside).find_vm("debian").features == {"updates-available": "1"}
    assert vm(inside, "work").features == {}
    assert await notify(inside, "NotifyUpdates", "debian", b" 0 ") == b"0\0"
    assert vm(inside, "debian").features == {"updates-available": ""}
    assert await notify(inside, "NotifyUpdates", "dom0", b"3") == b"0\0"
    assert inside.registry.dom0.features == {"updates-available": "1"}


async def test_updates_of_a_vm_with_a_root_of_its_own_are_its_own(inside: Inside) -> None:
    add_vm(inside.registry, "StandaloneVM", "alone", mode="pvh")
    for count, found in ((b"7", "1"), (b"0", "")):
        assert await notify(inside, "NotifyUpdates", "alone", count) == b"0\0"
        assert vm(inside, "alone").features == on_disk(inside).find_vm("alone").features == {"updates-available": found}
    assert vm(inside, "debian").features == {}


@pytest.mark.parametrize("name", ["work", "disp1"])
async def test_updates_of_a_vm_from_a_template_are_kept_with_its_halted_template(inside: Inside, name: str) -> None:
    work = vm(inside, "work")
    inside.inventory.editor.set_property(work, "template_for_dispvms", "True")
    add_vm(inside.registry, "DispVM", "disp1", work)
    assert await notify(inside, "NotifyUpdates", name, b"4") == b"0\0"
    assert vm(inside, "debian").features == on_disk(inside).find_vm("debian").features == {"updates-available": "1"}
    assert (work.features, vm(inside, "disp1").features) == ({}, {})


@pytest.mark.parametrize("name", ["work", "disp1"])
@pytest.mark.parametrize("known", [{}, {"updates-available": "1"}])
async def test_a_vm_from_a_template_that_finds_no_updates_says_nothing_of_its_template(
    inside: Inside, name: str, known: dict[str, str]
) -> None:
    """It may run from an older root than the template has, or have looked before the template did."""
    work = vm(inside, "work")
    inside.inventory.editor.set_property(work, "template_for_dispvms", "True")
    add_vm(inside.registry, "DispVM", "disp1", work)
    inside.inventory.editor.set_features(vm(inside, "debian"), known)
    assert await notify(inside, "NotifyUpdates", name, b"0") == b"0\0"
    assert [vm(inside, each).features for each in ("debian", "work", "disp1")] == [known, {}, {}]


async def test_a_template_that_runs_speaks_for_itself(inside: Inside) -> None:
    debian, work = vm(inside, "debian"), vm(inside, "work")
    await inside.pool.create(tuple(debian.volumes.values()))
    await inside.inventory.power.start(debian, StartRequest(wait=False))
    for pause in (False, True):
        if pause:
            await inside.inventory.power.pause(debian)
        assert await notify(inside, "NotifyUpdates", "work", b"4") == b"0\0"
        assert (debian.features, work.features) == ({}, {})
    assert await notify(inside, "NotifyUpdates", "debian", b"4") == b"0\0"
    assert debian.features == {"updates-available": "1"}
    await inside.inventory.power.kill(debian)


async def test_a_dispvm_is_not_stopped_by_the_vm_that_it_started_from(inside: Inside) -> None:
    """Updates are installed in the TemplateVM; whether the AppVM between runs does not matter."""
    work = vm(inside, "work")
    inside.inventory.editor.set_property(work, "template_for_dispvms", "True")
    add_vm(inside.registry, "DispVM", "disp1", work)
    for each in inside.registry.local_vms():
        await inside.pool.create(tuple(each.volumes.values()))
    await inside.inventory.power.start(work, StartRequest(wait=False))
    assert await notify(inside, "NotifyUpdates", "disp1", b"4") == b"0\0"
    assert (vm(inside, "debian").features, work.features) == ({"updates-available": "1"}, {})
    await inside.inventory.power.kill(work)


async def test_known_news_are_not_saved_again(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_registry: object) -> None:
        raise StorageError("no space")

    assert await notify(inside, "NotifyUpdates", "debian", b"5") == b"0\0"
    monkeypatch.setattr(inside.store, "save", refuse)
    assert await notify(inside, "NotifyUpdates", "debian", b"6") == b"0\0"
    assert await notify(inside, "NotifyUpdates", "work", b"7") == b"0\0"
    assert await notify(inside, "NotifyUpdates", "work", b"0") == b"0\0"
    assert await notify(inside, "NotifyUpdates", "debian", b"0") == b"2\0StoragePoolException\0StorageError\0no space\0"
    assert vm(inside, "debian").features == {"updates-available": "1"}


@pytest.mark.parametrize(
    "payload",
    [b"-1", b"1.5", b"0x10", b"one", b" ", b"1 2", b"1\0", b"\xb2", "\u0663".encode(), b"+1", b"1_0", b"1" * 64],
)
async def test_what_is_no_number_of_updates(inside: Inside, payload: bytes) -> None:
    refused = b"2\0ProtocolError\0ProtocolError\0the payload is not a number of updates\0"
    assert await notify(inside, "NotifyUpdates", "debian", payload) == refused
    assert vm(inside, "debian").features == {}


@pytest.mark.parametrize("payload", [b"1" * 63, b"\t1\r\n", b"0000000001"])
async def test_odd_numbers_of_updates(inside: Inside, payload: bytes) -> None:
    assert await notify(inside, "NotifyUpdates", "debian", payload) == b"0\0"
    assert vm(inside, "debian").features == {"updates-available": "1"}


async def test_a_notification_must_say_something(inside: Inside) -> None:
    assert await notify(inside, "NotifyUpdates", "debian") == b"2\0ProtocolError\0ProtocolError\0expected payload\0"
    reply = await ask(inside.paths.misc_socket, b"qubes.NotifyUpdates+ debian name work\x001")
    assert reply == b"2\0ProtocolError\0ProtocolError\0expected destination to be AdminVM\0"
    assert (await notify(inside, "NotifyUpdates", "nobody", b"1")).startswith(b"2\0QubesVMNotFoundError\0")


# -- qubes.NotifyTools, qubes.FeaturesRequest


TOOLS = {
    "/qubes-tools/version": b"4.1",
    "/qubes-tools/os": b"Linux",
    "/qubes-tools/qrexec": b"1",
    "/qubes-tools/gui": b"1",
    "/qubes-tools/default-user": b"anna",
}


def announce(inside: Inside, name: str, status: AgentStatus) -> None:
    """Have the VM's agent be so, and its tools' entries be in its guest DB."""
    inside.agents.entries = dict(TOOLS)
    inside.agents.statuses[vm(inside, name).uuid] = status


async def test_tools_that_cannot_be_heard(inside: Inside) -> None:
    refused = (
        b"2\0QubesVMNotRunningError\0VMNotRunningError\0the tools in work cannot be heard: its agent is not connected\0"
    )
    assert await notify(inside, "NotifyTools", "work") == refused
    for status in (AgentStatus(), AgentStatus(AgentState.FALLBACK), AgentStatus(AgentState.WAITING, ANNOUNCED)):
        announce(inside, "work", status)
        assert await notify(inside, "NotifyTools", "work") == refused
    assert vm(inside, "work").features == {}


async def test_tools_that_can_be_heard(inside: Inside) -> None:
    announce(inside, "work", AgentStatus(AgentState.READY, ANNOUNCED))
    assert await notify(inside, "NotifyTools", "work", b"whatever") == b"0\0"
    for registry in (inside.registry, on_disk(inside)):
        work = registry.find_vm("work")
        assert work.features == {"qrexec": "1", "gui": "1", "os": "Linux"}
        assert work.get("default_user") == "anna"
        assert registry.find_vm("debian").features == {}


async def test_tools_that_change_what_they_said(inside: Inside) -> None:
    announce(inside, "work", AgentStatus(AgentState.READY, ANNOUNCED))
    inside.agents.entries |= {"/qubes-tools/gui": b"0", "/qubes-tools/os": b"Plan 9", "/qubes-tools/default-user": b""}
    assert await notify(inside, "NotifyTools", "work") == b"0\0"
    work = vm(inside, "work")
    assert work.features == {"qrexec": "1", "gui": "", "os": "Plan 9"}
    assert work.is_default("default_user")
    assert vm(inside, "debian").features == {}


NONSENSE = [
    ("qrexec", b"2"), ("gui", b"yes"), ("gui", None), ("os", b"\x1b[2J"), ("version", b""), ("version", b"1" * 65),
    ("default-user", b"../x"), ("default-user", b"Root"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), NONSENSE)
async def test_tools_that_talk_nonsense_change_nothing(
    inside: Inside, caplog: pytest.LogCaptureFixture, key: str, value: bytes | None
) -> None:
    announce(inside, "work", AgentStatus(AgentState.READY, ANNOUNCED))
    del inside.agents.entries[f"/qubes-tools/{key}"]
    if value is not None:
        inside.agents.entries[f"/qubes-tools/{key}"] = value
    assert (await notify(inside, "NotifyTools", "work")).startswith(b"2\0ProtocolError\0ProtocolError\0the guest")
    work = vm(inside, "work")
    assert work.features == {}
    assert work.is_default("default_user")
    assert "work: what its tools announced is refused, nothing is changed: " in caplog.text


# -- QEMU's guest agent, where ours is not there

QEMU = AgentStatus(AgentState.FALLBACK, None, QemuAgent("7.2.22", "Linux", "debian", "12"))


def tell(inside: Inside, name: str, status: AgentStatus) -> None:
    for listener in inside.agents.listeners:
        listener(vm(inside, name).uuid, status)


async def test_qemus_agent_is_announced_until_ours_comes(inside: Inside) -> None:
    work = vm(inside, "work")
    tell(inside, "work", QEMU)
    known = {"os": "Linux", "os-distribution": "debian", "os-version": "12"}
    assert work.features == {"qga": "1", **known}
    assert on_disk(inside).find_vm("work").features == work.features
    tell(inside, "work", AgentStatus())
    assert work.features["qga"] == "1", "what is known of a VM stays when it is halted"
    tell(inside, "work", AgentStatus(AgentState.READY))
    tell(inside, "work", AgentStatus(AgentState.READY, ANNOUNCED))
    assert work.features == {"qrexec": "1", "gui": "1", **known}
    assert vm(inside, "debian").features == {}


async def test_what_the_template_knows_of_a_system_is_not_said_again(inside: Inside) -> None:
    vm(inside, "debian").features |= {"qga": "1", "os": "Linux", "os-distribution": "debian", "os-version": "12"}
    tell(inside, "work", QEMU)
    assert vm(inside, "work").features == {"qga": "1"}
    tell(inside, "work", AgentStatus(AgentState.FALLBACK, None, QemuAgent("", "", "", "")))
    assert vm(inside, "work").features == {"qga": "1"}


async def test_tools_of_what_does_not_run_here(inside: Inside) -> None:
    assert (await notify(inside, "NotifyTools", "dom0")).startswith(b"2\0QubesVMError\0StateError\0dom0 is of class")


async def test_tools_whose_news_cannot_be_saved(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_registry: object) -> None:
        raise StorageError("no space")

    announce(inside, "work", AgentStatus(AgentState.READY, ANNOUNCED))
    monkeypatch.setattr(inside.store, "save", refuse)
    assert await notify(inside, "NotifyTools", "work") == b"2\0StoragePoolException\0StorageError\0no space\0"
    assert vm(inside, "work").features == {}


REQUEST = {"/features-request/gui": b"1", "/features-request/supported-rpc.x": b"1", "/qubes-tools/os": b"Linux"}


async def start(inside: Inside, name: str) -> LocalVM:
    for needed in ("debian", "work"):
        await inside.pool.create(tuple(vm(inside, needed).pool_volumes()))
    await inside.inventory.lifecycle.start(vm(inside, name), StartRequest(wait=False))
    return vm(inside, name)


async def test_features_that_a_template_asks_for(inside: Inside) -> None:
    template = await start(inside, "debian")
    template.features |= {"supported-rpc.old": "1", "mine": "x"}
    inside.agents.entries = dict(REQUEST)
    assert await notify(inside, "FeaturesRequest", "debian") == b"0\0"
    for registry in (inside.registry, on_disk(inside)):
        assert registry.find_vm("debian").features == {"gui": "1", "supported-rpc.x": "1", "mine": "x"}


async def test_features_that_a_template_based_vm_asks_for_are_its_templates(inside: Inside) -> None:
    await start(inside, "work")
    inside.agents.entries = dict(REQUEST)
    assert await notify(inside, "FeaturesRequest", "work") == b"0\0"
    assert vm(inside, "work").features == vm(inside, "debian").features == {}


async def test_nonsense_among_the_features_changes_nothing(inside: Inside) -> None:
    template = await start(inside, "debian")
    inside.agents.entries = {**REQUEST, "/features-request/qrexec": b"maybe"}
    assert (await notify(inside, "FeaturesRequest", "debian")).startswith(b"2\0ProtocolError\0ProtocolError\0")
    assert template.features == {}


async def test_features_of_a_vm_that_does_not_run(inside: Inside) -> None:
    refused = b"2\0QubesVMNotRunningError\0VMNotRunningError\0work has no guest DB: it is not running"
    assert (await notify(inside, "FeaturesRequest", "work")).startswith(refused)


# -- what running VMs are told


async def test_a_running_vm_is_told_what_changes(inside: Inside) -> None:
    work, editor = await start(inside, "work"), inside.inventory.editor
    told = inside.agents.describe(work.uuid)
    assert (told["/name"], told["/qubes-vm-type"], told["/qubes-base-template"]) == ("work", "AppVM", "debian")
    assert inside.agents.describe(work.uuid) == told, "the seed stays for as long as it runs"
    inside.agents.refreshed.clear()
    editor.set_feature(work, "service.crond", "1")
    editor.set_property(work, "debug", "True")
    editor.set_property(vm(inside, "debian"), "default_user", "anna")
    assert inside.agents.refreshed == [work.uuid] * 3
    told = inside.agents.describe(work.uuid)
    assert (told["/qubes-service/crond"], told["/qubes-debug-mode"], told["/default-user"]) == ("1", "1", "anna")
    editor.set_feature(work, "service." + "x" * 100, "1")
    assert not any("xxx" in path for path in inside.agents.describe(work.uuid)), "no entry can have that path"


async def test_a_halted_vm_is_told_nothing_and_gets_another_seed(inside: Inside) -> None:
    work = await start(inside, "work")
    first = inside.agents.describe(work.uuid)["/qubes-random-seed"]
    await inside.inventory.lifecycle.kill(work)
    for _ in range(200):
        if inside.agents.describe(work.uuid)["/qubes-random-seed"] != first:
            break
        await asyncio.sleep(0.01)
    else:
        raise AssertionError("the seed is the same")
    inside.agents.refreshed.clear()
    inside.inventory.editor.set_property(work, "debug", "True")
    assert inside.agents.refreshed == []
    assert inside.agents.describe("no-such-vm") == {}
