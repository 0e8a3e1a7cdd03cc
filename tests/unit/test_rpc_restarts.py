"""Each process of a call killed in the middle of its work, hostile guests, and the daemon's link."""

import asyncio
import os
import select
import socket
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog.client.rpc import read_status
from crannog.core.announcement import AgentState
from crannog.errors import RpcError
from crannog.rpc import call_end, frames
from crannog.rpc.channel import GuestChannel
from crannog.rpc.link import RpcLink
from crannog.rpc.local import LocalClient
from tests.processes import is_alive, memory_of
from tests.unit.rpc_world import World, wait_until
from tests.unit.test_rpc_channel import synced

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


def start_flood(world: World) -> tuple[subprocess.Popen[bytes], int]:
    """Start a call that writes without end; return its tool, and the command's pid."""
    mark = world.folder / f"flood-{len(world.children)}"
    child = world.call(f"echo $$ >{mark}; exec cat /dev/zero", stdout=subprocess.DEVNULL)
    wait_until(lambda: mark.exists() and mark.read_text(encoding="ascii").strip())
    return child, int(mark.read_text(encoding="ascii"))


def start_feed(world: World) -> subprocess.Popen[bytes]:
    """Start a call that reads without end; return its tool."""
    mark = world.folder / "feed"
    with Path("/dev/zero").open("rb") as zero:
        child = world.call(f"touch {mark}; exec cat >/dev/null", stdin=zero.fileno())
    wait_until(mark.exists)
    return child


def test_a_killed_rpc_process_is_succeeded_and_nothing_is_left_over(world: World) -> None:
    world.start_all()
    child, pid = start_flood(world)
    feeder = start_feed(world)
    world.children[1].kill()
    assert child.wait(60) == 1
    assert child.stderr is not None
    assert b"broke off" in child.stderr.read()
    assert feeder.wait(60) != 0
    world.start_process()
    wait_until(world.is_ready)
    wait_until(lambda: not is_alive(pid))
    assert world.run("cat", b"again" * 100000) == (0, b"again" * 100000, b"")


def test_a_killed_agent_is_succeeded_and_its_callers_get_125(world: World) -> None:
    world.start_all()
    child, _ = start_flood(world)
    feeder = start_feed(world)
    agent = world.children[2]
    agent.kill()
    agent.wait()
    world.start_agent()
    for call in (child, feeder):
        assert call.wait(60) == 125
        assert call.stderr is not None
        assert b"restarted or broke off; run the command again" in call.stderr.read()
    wait_until(world.is_ready)
    assert world.run("cat", b"again" * 100000) == (0, b"again" * 100000, b"")


def test_a_killed_host_end_many_times_over(world: World) -> None:
    world.start_all()
    process = world.children[1]
    for _ in range(4):
        start_flood(world)
        process.kill()
        process.wait()
        process = world.start_process()
        wait_until(world.is_ready)
    assert world.run("echo fine")[1] == b"fine\n"


def test_the_process_ends_with_the_vm(world: World) -> None:
    world.start_all()
    child, _ = start_flood(world)
    relay, process = world.children[:2]
    relay.kill()
    assert process.wait(60) == 0
    assert child.wait(60) == 125
    assert child.stderr is not None
    assert child.stderr.read() == b"the VM 'vm1' has ended\n"
    assert not os.path.exists(world.rpc_socket)


def test_the_socket_is_private_and_a_stale_one_is_replaced(world: World) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(world.rpc_socket)
    world.start_all()
    assert stat.S_IMODE(os.stat(world.rpc_socket).st_mode) == 0o600


def test_a_second_process_for_the_same_vm_is_refused(world: World) -> None:
    world.start_all()
    assert world.start_process().wait(60) == 4
    assert "serves" in world.log.read_text(encoding="utf-8")
    assert world.run("echo fine")[1] == b"fine\n"


def test_the_default_user_is_the_daemons_to_choose(world: World) -> None:
    world.start_relay()
    world.start_process("no-such-user")
    world.start_agent()
    wait_until(world.is_ready)
    assert world.run("true")[2] == b"the guest has no user 'no-such-user'\n"


def test_an_early_call_waits_for_the_agent(world: World) -> None:
    world.start_relay()
    world.start_process()
    wait_until(world.is_serving)
    child = world.call("echo served")
    assert read_status(world.rpc_socket, 5)["agent"] == "waiting"
    world.start_agent()
    assert child.communicate(timeout=60)[0] == b"served\n"


def test_a_call_without_an_agent_ends_with_a_sentence() -> None:
    ours, theirs = socket.socketpair()
    channel = GuestChannel("vm1", lambda _: None)
    client = LocalClient(theirs, channel, "DEFAULT")
    with ours:
        ours.sendall(frames.encode_message(frames.HELLO, frames.NUMBER.pack(3)))
        ours.sendall(frames.encode_message(frames.EXEC_CMDLINE, frames.EXEC_PARAMS + b"user:true\0"))
        client.serve(select.POLLIN)
        assert client.deadline is not None
        client.advance(client.deadline - call_end.AGENT_WAIT)
        assert client.deadline is not None
        client.advance(client.deadline)
        client.flush()
        told = ours.recv(65536)
    assert b"'vm1' has no agent that answers (waited 30 s)" in told
    assert told.endswith(frames.encode_message(frames.DATA_EXIT_CODE, frames.NUMBER.pack(125)))
    assert client.is_closed


def flood(guest: socket.socket, pattern: bytes) -> None:
    """Write `pattern` for ever, or until the other end is gone, and read nothing."""
    try:
        while True:
            guest.sendall(pattern)
    except OSError:
        return


@pytest.mark.parametrize(
    "pattern",
    [
        bytes(65536),
        b"\xffcrannog-sync\xff\xfeR" * 4000,
        b"".join(frames.MAGIC + b"R%08d" % number + bytes(8) for number in range(2000)),
        frames.encode_frame(1, frames.DATA_STDOUT, b"x") * 4000,
    ],
    ids=["zeros", "half-markers", "requests", "tiny-frames"],
)
def test_a_flooding_guest_costs_bounded_memory_and_log(world: World, pattern: bytes) -> None:
    world.start_relay()
    process = world.start_process()
    wait_until(world.is_serving)
    before = memory_of(process.pid)
    guest = socket.socket(socket.AF_UNIX)
    guest.connect(world.guest_port)
    thread = threading.Thread(target=flood, args=(guest, pattern))
    thread.start()
    for _ in range(5):
        assert read_status(world.rpc_socket, 5)["agent"] == "waiting"
        thread.join(0.05)
    assert memory_of(process.pid) - before < 6 << 20
    assert world.log.stat().st_size < 100000
    guest.shutdown(socket.SHUT_RDWR)
    thread.join()
    guest.close()
    world.start_agent()
    wait_until(world.is_ready)


def test_the_agent_survives_rubbish_from_the_host(world: World) -> None:
    world.start_relay()
    agent = world.start_agent()
    for rubbish in (
        os.urandom(200000),
        bytes(70000),
        frames.encode_frame(1, frames.EXEC_CMDLINE, b"root:true\0"),
    ):
        wait_until(lambda: os.path.exists(world.host_port))
        with socket.socket(socket.AF_UNIX) as host:
            host.connect(world.host_port)
            host.sendall(rubbish)
    world.start_process()
    wait_until(world.is_ready)
    assert agent.poll() is None


def test_a_guest_that_overruns_its_window_with_tiny_frames_loses_the_call() -> None:
    ours, theirs = socket.socketpair()
    channel = synced(GuestChannel("vm1", lambda _: None))
    client = LocalClient(theirs, channel, "DEFAULT")
    with ours:
        ours.sendall(frames.encode_message(frames.HELLO, frames.NUMBER.pack(3)))
        ours.sendall(frames.encode_message(frames.EXEC_CMDLINE, frames.EXEC_PARAMS + b"user:true\0"))
        client.serve(select.POLLIN)
        client.advance(0)
        channel.receive(frames.encode_frame(1, frames.DATA_STDOUT, b"x") * 100000)
        channel.receive(frames.encode_frame(1, frames.DATA_STDERR) * 100000)
        assert not channel.calls
        assert len(client._out) < frames.WINDOW + 1000
        assert client._out.endswith(frames.encode_message(frames.DATA_EXIT_CODE, frames.NUMBER.pack(125)))
        client.close()


async def test_the_link_follows_the_agent_and_its_end(world: World) -> None:
    world.start_relay()
    process = world.start_process()
    async with RpcLink(world.rpc_socket) as link:
        seen = []
        async with asyncio.timeout(30):
            async for status in link:
                seen.append(status)
                if len(seen) == 1:
                    world.start_agent()
                if status.announced:
                    process.kill()
    assert [status.agent for status in seen] == [AgentState.WAITING, AgentState.READY, AgentState.READY]
    assert seen[-1].announced is not None
    assert seen[-1].announced.os == "Linux"


async def test_the_link_shuts_the_guest_down_or_says_why_not(world: World) -> None:
    world.start_relay()
    world.start_process()
    link = RpcLink(world.rpc_socket)
    with pytest.raises(RpcError, match="has no agent"):
        await link.power_off()
    world.start_agent()
    await asyncio.to_thread(wait_until, world.is_ready)
    await link.power_off()
    await asyncio.to_thread(wait_until, world.poweroff_mark.exists)


async def test_the_link_tolerates_absence(tmp_path: Path) -> None:
    link = RpcLink(str(tmp_path / "none.sock"))
    with pytest.raises(RpcError, match="no RPC process answers"):
        await link.connect(timeout=0.1)
    await link.close()
