"""A hostile agent of qrexec's own protocol: its daemon stays within bounds, and serves the next agent."""

import contextlib
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crannog.config import Paths
from crannog.rpc import qrexec_messages as qm
from crannog.rpc.guest_calls import CALLS_MAX
from tests.unit.guest_peer import policy_stand_in
from tests.unit.hostile_world import DESCRIPTORS_MAX, bounded, count_descriptors
from tests.unit.qrexec_world import Agent, Daemon, Server, daemon_and_agent, install, lend_folder

pytestmark = pytest.mark.timeout(60)

MEGABYTES = 10
LOG_MAX = 2_000_000
PIECES = 40


@pytest.fixture
def pair() -> Iterator[tuple[Daemon, Agent]]:
    for folder in lend_folder():
        (folder / "home").mkdir()
        option = f"--policy-socket={Paths(str(folder / 'home')).policy_socket}"
        with policy_stand_in(folder / "home"), daemon_and_agent(folder, option) as pair:
            yield pair


def wish(service: bytes, ident: bytes = b"SOCKET11") -> bytes:
    return qm.encode(qm.TRIGGER_SERVICE4, struct.pack("<64s64s32s", b"", b"dom0", ident) + service + b"\0")


TERMINATED = qm.CONNECTION_TERMINATED
FLOODS: dict[str, tuple[Callable[[int], bytes], bool]] = {
    "wishes whose answers are read": (lambda _: wish(b"denied") * 100, True),
    "wishes whose answers are not read": (lambda _: wish(b"denied") * 100, False),
    "wishes that are none": (lambda _: wish(b"denied", b"\xff" * 32) * 100, True),
    "services of 65,000 bytes": (lambda _: wish(b"denied+" + b"x" * 64_990), True),
    "ends of no calls": (lambda n: qm.encode(TERMINATED, struct.pack("<II", n, n)) * 1000, True),
    "lengths that are lies": (lambda _: qm.HEADER.pack(qm.TRIGGER_SERVICE4, 1 << 31) * 1000, True),
    "HELLO after HELLO": (lambda _: qm.encode_hello(4) * 1000, True),
}  # fmt: skip


def flood(agent: Agent, piece: Callable[[int], bytes], reads: bool) -> None:
    """Send so many pieces, or as much as is taken; what comes is forgotten."""
    connection = agent.peer.socket
    connection.settimeout(1)
    reader = threading.Thread(target=forget, args=(agent,))
    if reads:
        reader.start()
    with contextlib.suppress(OSError):  # the daemon has left it, or reads no more
        for number in range(PIECES):
            connection.sendall(piece(number))
    if reads:
        reader.join()


def forget(agent: Agent) -> None:
    with contextlib.suppress(OSError):
        while agent.peer.socket.recv(1 << 20):
            pass


@pytest.mark.parametrize("name", FLOODS)
def test_floods(pair: tuple[Daemon, Agent], name: str) -> None:
    daemon, agent = pair
    piece, reads = FLOODS[name]
    with bounded(daemon.process.pid, MEGABYTES):
        flood(agent, piece, reads)
        assert len(daemon.children()) <= CALLS_MAX + 1
        assert count_descriptors(daemon.process.pid) <= DESCRIPTORS_MAX
        agent.peer.close()
    daemon.wait_for_no_calls()
    another = Agent(daemon.folder)
    try:
        expect_health(daemon, another.accept())
    finally:
        another.close()


def expect_health(daemon: Daemon, agent: Agent) -> None:
    """Expect that the next agent is served."""
    install(daemon.folder, "test.Health", "cat")
    for _ in range(200):
        agent.trigger("test.Health")
        kind, body = agent.peer.next()
        if kind == qm.SERVICE_CONNECT:
            break
        time.sleep(0.05)
    assert kind == qm.SERVICE_CONNECT, "it is not refused for ever"
    domain, port = struct.unpack_from("<II", body)
    caller = meet_caller(agent, domain, port)
    assert caller == (b"", b"", 0)
    assert Path(daemon.log).stat().st_size < LOG_MAX
    assert "Traceback" not in daemon.log.read_text()


def meet_caller(agent: Agent, domain: int, port: int) -> tuple[bytes, bytes, int]:
    """Be the caller, who has nothing to say."""
    peer = Server(agent.folder, agent.domain, domain, port).accept()
    assert peer.hello(4) == 4
    peer.send(qm.DATA_STDIN)
    try:
        return peer.outcome()
    finally:
        peer.close()
