"""A real RPC process on a host that has a XenStore, with the real agent at the other end of the channel."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog.adapters.guestdb.host import XenStoreHost
from crannog.adapters.guestdb.places import VARIABLE
from crannog.adapters.guestdb.tree import domain_folder
from crannog.client.rpc import read_status
from crannog.errors import RpcError
from crannog.rpc.link import RpcLink
from tests.fakes import short_folder
from tests.unit.rpc_world import World, wait_until
from tests.xenstore_fake import Store, serving

GUEST = 5
FOLDER = domain_folder(GUEST)
FACTS = {"version": "1", "os": "Windows", "qrexec": "1", "gui": "0"}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    with serving(tmp_path) as (store, path):
        store.add_domain(GUEST)
        XenStoreHost(lambda: path).prepare(GUEST)
        monkeypatch.setenv(VARIABLE, path)
        yield store


@pytest.fixture
def world(store: Store) -> Iterator[World]:
    del store
    with short_folder() as folder:
        world = World(folder)
        yield world
        world.close()


def announced(world: World) -> object:
    try:
        return read_status(world.rpc_socket, 5)["announced"]
    except RpcError:
        return None


async def test_xenstore_has_all_when_the_introduction_is_over(world: World, store: Store) -> None:
    world.start_relay()
    world.start_process()
    link = RpcLink(world.rpc_socket)
    await link.introduce(GUEST, {"/qubes-vm-type": b"AppVM", "/qubes-service/a.b": b"1", "/name": b"vm1"})
    assert store.values[f"{FOLDER}/qubes-vm-type"] == b"AppVM"
    assert f"{FOLDER}/qubes-service/a.b" not in store.values
    assert await link.list_entries("/qubes-service/") == {"/qubes-service/a.b": b"1"}, "the channel has it all the same"


async def test_an_introduction_that_nobody_answers_is_an_error(world: World) -> None:
    with pytest.raises(RpcError, match="no RPC process answers"):
        await RpcLink(world.rpc_socket).introduce(GUEST, {}, timeout=0.1)


async def test_tools_without_an_agent_are_heard(world: World, store: Store) -> None:
    world.start_relay()
    world.start_process()
    await RpcLink(world.rpc_socket).introduce(GUEST, {})
    for name, value in FACTS.items():
        store.write(GUEST, f"{FOLDER}/qubes-tools/{name}", value.encode())
    wait_until(lambda: announced(world))
    assert read_status(world.rpc_socket, 5) == {
        "agent": "waiting",
        "announced": {"version": "1", "os": "Windows", "qrexec": True, "gui": False, "default_user": ""},
    }


async def test_both_ends_find_each_other_again_whoever_was_killed(world: World) -> None:
    world.start_relay()
    process = world.start_process()
    await RpcLink(world.rpc_socket).introduce(GUEST, {})
    agent = world.start_agent()
    wait_until(world.is_ready)
    process.kill()
    process.wait()
    process = world.start_process()
    wait_until(world.is_serving)
    wait_until(world.is_ready)
    agent.kill()
    agent.wait()
    world.start_agent()
    wait_until(world.is_ready)
