"""What calls cost over qrexec's own wire, vchans over unix sockets: an empty service, bulk data, many calls at once.

No VM is started. "to a VM": a client as others write it, the RPC process of a VM, a relay in QEMU's place, and our
guests' agent. "of a VM": an agent as others write it, `crannog-qrexec-daemon`, a policy that allows everything, and a
service of this host. A call's reference is what no call can do without: the service itself, started by a login shell
in a guest, or by a new process here. Other implementations are known to take 5.6 ms a call, and to pass 47 MB/s.
"""

import os
import shutil
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.unit import qrexec_world as qw
from tests.unit.guest_peer import policy_stand_in
from tests.unit.rpc_world import World, wait_until

from benchmarks import rpc_memory
from benchmarks.harness import Figure, Row, summarize

CALLS = 200
BULK = 64 << 20
MANY = 100
KNOWN_RATE = 47e6
"""Bytes a second."""
CALL, TOGETHER = 5, 3
"""A call over its reference, and one of many at once: with two processors these share them with what they measure."""
XID = 7


def once(action: Callable[[], object]) -> float:
    """Return the seconds that an action takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def send_all(peer: qw.Peer, count: int) -> None:
    """Send so many bytes as input, and its end."""
    block = bytes(65536)
    for _ in range(count // len(block)):
        peer.send(qw.STDIN, block)
    peer.send(qw.STDIN)


def receive(peer: qw.Peer) -> int:
    """Return how many bytes of output came before the exit code, which must be 0."""
    count = 0
    buffer = memoryview(bytearray(65536))
    while True:
        kind, length = struct.unpack("<II", peer.read(8))
        if kind == qw.EXIT:
            if peer.read(length) != bytes(4):
                raise RuntimeError("a call of the benchmark failed")
            return count
        rest = length
        while rest:
            rest -= peer.socket.recv_into(buffer[:rest])
        count += length


class ToVM:
    """Calls to a VM of ours by a client that others wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, service: str) -> qw.Peer:
        """Start a call."""
        return self.meet(self.ask(service))

    def ask(self, service: str) -> int:
        """Ask for a call; return its port."""
        client = qw.client(self.folder / "qrexec.work")
        _, port = qw.ask(client, b"DEFAULT:QUBESRPC %s+ bench" % service.encode())
        client.close()
        return port

    def meet(self, port: int) -> qw.Peer:
        """Wait for the agent at that port."""
        peer = qw.Server(self.folder, 0, XID, port).accept()
        peer.hello(4)
        return peer

    def many(self) -> None:
        """Make MANY calls at once."""
        peers = [self.meet(port) for port in [self.ask("bench.Empty") for _ in range(MANY)]]
        for peer in peers:
            receive(peer)
            peer.close()


class OfVM:
    """Calls of a VM with somebody else's agent."""

    def __init__(self, agent: qw.Agent) -> None:
        self.agent = agent

    def begin(self, service: str) -> qw.Peer:
        """Start a call."""
        self.agent.trigger(service)
        return self.agent.caller()

    def many(self) -> None:
        """Make MANY calls at once."""
        for number in range(MANY):
            self.agent.trigger("bench.Empty", ident=b"SOCKET%d" % number)
        servers = []
        for _ in range(MANY):
            kind, body = self.agent.peer.next()
            if kind != qw.CONNECT:
                raise RuntimeError("a call of the benchmark was refused")
            domain, port = struct.unpack_from("<II", body)
            servers.append((port, qw.Server(self.agent.folder, qw.DOMAIN, domain, port)))
        for port, server in servers:
            peer = server.accept()
            peer.hello(4)
            receive(peer)
            peer.close()
            self.agent.terminated(0, port)


def call(side: ToVM | OfVM, service: str, count: int = 0) -> int:
    """Make a call with so many bytes of input; return how many came out."""
    peer = side.begin(service)
    writer = threading.Thread(target=send_all, args=(peer, count)) if count else None
    if writer:
        writer.start()
    received = receive(peer)
    if writer:
        writer.join()
    peer.close()
    if isinstance(side, OfVM):
        side.agent.terminated(0, 513)
    return received


@contextmanager
def places() -> Iterator[tuple[ToVM, OfVM]]:
    """Give both ways, with all their processes."""
    folder = Path(tempfile.mkdtemp(prefix="q-bench-", dir="/tmp"))
    os.environ |= {"VCHAN_SOCKET_DIR": str(folder), "QREXEC_SERVICE_PATH": str(folder / "services")}
    (folder / "home").mkdir()
    qw.install(folder, "bench.Empty", "exit 0\n")
    qw.install(folder, "bench.Out", f"exec head -c {BULK} /dev/zero\n")
    qw.install(folder, "bench.In", "exec cat >/dev/null\n")
    world = World(folder)
    try:
        world.start_relay()
        names = ["--name", "work", "--channel", world.host_port, "--listen", world.rpc_socket, f"--xid={XID}"]
        world.start("-m", "crannog.rpc.vm_process", *names)
        world.start_agent()
        wait_until(world.is_ready)
        with (
            policy_stand_in(folder / "home"),
            qw.daemon_and_agent(folder, f"--policy-socket={folder}/home/run/policy.sock") as (_, agent),
        ):
            yield ToVM(folder), OfVM(agent)
    finally:
        world.close()
        qw.close_all()
        shutil.rmtree(folder)


def measure_calls(side: ToVM | OfVM) -> tuple[Figure, Figure]:
    """Return what an empty call takes, and what its service takes alone, in turn."""
    calls, services = [], []
    for _ in range(CALLS):
        calls.append(once(lambda: call(side, "bench.Empty")))
        services.append(once(lambda: run_service(side)))
        time.sleep(0.02)  # a guest may make 50 calls a second for long
    return summarize(calls), summarize(services)


def run_service(side: ToVM | OfVM) -> None:
    """Run the empty service without any call."""
    path = os.environ["QREXEC_SERVICE_PATH"] + "/bench.Empty"
    if isinstance(side, ToVM):
        process = os.posix_spawn("/bin/sh", ["-sh", "-c", f"exec {path}"], os.environ)
    else:
        process = os.fork()
        if process == 0:
            os.execv(path, [path])  # noqa: S606
    os.waitpid(process, 0)


def measure_bulk(side: ToVM | OfVM, service: str, count: int, runs: int) -> Figure:
    """Return the seconds in which BULK bytes pass."""
    return summarize([once(lambda: call(side, service, count)) for _ in range(runs)])


def rate(figure: Figure) -> str:
    """Return the bytes a second in words."""
    return f"{BULK / figure.median / 1e6:.0f} MB/s"


def fixed(seconds: float) -> Figure:
    """Return a fixed time as a reference."""
    return Figure(seconds, seconds, seconds, 1)


def measure(runs: int) -> list[Row]:
    """Return all rows."""
    rows = []
    known_bulk = fixed(BULK / KNOWN_RATE)
    socket.setdefaulttimeout(60)
    with places() as (to_vm, of_vm):
        for name, side in (("to a VM", to_vm), ("of a VM", of_vm)):
            figure, service = measure_calls(side)
            rows.append(Row(f"an empty call {name}", figure, "its service alone", service, CALL))
            for what, kind, count in (("output", "bench.Out", 0), ("input", "bench.In", BULK)):
                bulk = measure_bulk(side, kind, count, runs)
                rows.append(Row(f"64 MiB of {what}, call {name}: {rate(bulk)}", bulk, "at 47 MB/s", known_bulk, 1))
            time.sleep(3)
            together = summarize([once(side.many)])
            each = Figure(together.median / MANY, together.least / MANY, together.most / MANY, 1)
            rows.append(Row(f"each of {MANY} calls at once {name}", each, "one alone", figure, TOGETHER))
    return rows + rpc_memory.measure(runs)
