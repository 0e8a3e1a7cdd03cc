"""Programs that others wrote call a VM of ours; and a VM of ours calls one that somebody else serves."""

import asyncio
import os
import signal
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog.config import Paths
from crannog.rpc import frames
from crannog.rpc.agents import VMProcesses
from crannog.rpc.strays import discard_dead_sockets
from tests.unit.guest_peer import GuestPeer, guest_peer, policy_stand_in
from tests.unit.qrexec_world import (
    CONNECT,
    EXEC,
    EXIT,
    HELLO,
    JUST,
    SECONDS,
    STDIN,
    STDOUT,
    Agent,
    Daemon,
    Peer,
    Server,
    ask,
    client,
    close_all,
    daemon_and_agent,
    install,
    meet,
    wait_until,
)
from tests.unit.rpc_world import World
from tests.unit.rpc_world import wait_until as wait_for

XID, VM_UUID = 7, "99999999-2222-3333-4444-555555555555"


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Give a folder with a short name: it is for sockets."""
    with tempfile.TemporaryDirectory(prefix="q-", dir="/tmp") as folder:
        (Path(folder) / "log").mkdir()
        yield Path(folder)


@pytest.fixture(autouse=True)
def _everything_is_closed() -> Iterator[None]:
    yield
    close_all()


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[GuestPeer]:
    with guest_peer(tmp_path, f"--xid={XID}", f"--uuid={VM_UUID}") as peer:
        yield peer
    assert not list(tmp_path.glob("qrexec.*")), "nothing is left"


def door(peer: GuestPeer) -> Path:
    return peer.home / f"qrexec.{XID}"


def call(peer: GuestPeer, command: bytes, kind: int = EXEC, version: int = 4) -> tuple[Peer, int]:
    """Call as qrexec-client does; return the data, and the guest's stream."""
    asker = client(door(peer))
    domain, port = ask(asker, command, kind)
    assert domain == XID
    asker.close()  # qrexec-client does that, and the call goes on
    data = Server(peer.home, 0, XID, port).accept()
    assert data.hello(version) == 4
    frame = peer.next_frame()
    assert (frame.type, frame.body) == (frames.EXEC_CMDLINE, command + b"\0")
    return data, frame.stream


def finish(peer: GuestPeer, stream: int, code: int) -> None:
    for kind in (frames.DATA_STDOUT, frames.DATA_STDERR):
        peer.send(stream, kind)
    peer.send(stream, frames.DATA_EXIT_CODE, frames.NUMBER.pack(code))


def test_all_names_lead_to_the_vm(peer: GuestPeer) -> None:
    names = sorted(path.name for path in peer.home.glob("qrexec.*"))
    assert names == [f"qrexec.{XID}", f"qrexec.uuid:{VM_UUID}", "qrexec.work"]
    for name in names:
        client(peer.home / name).close()


@pytest.mark.parametrize(("folder_mode", "socket_mode"), [(0o755, 0o600), (0o770, 0o777), (0o700, 0o777)])
def test_who_may_call(tmp_path: Path, folder_mode: int, socket_mode: int) -> None:
    """Where everybody can go, the owner alone; else whoever can go there."""
    (tmp_path / "doors").mkdir()
    (tmp_path / "doors").chmod(folder_mode)
    with guest_peer(tmp_path, f"--xid={XID}", f"--qrexec-dir={tmp_path}/doors"):
        assert (tmp_path / "doors" / f"qrexec.{XID}").stat().st_mode & 0o777 == socket_mode


def test_a_command(peer: GuestPeer) -> None:
    data, stream = call(peer, b"user:echo Hello")
    data.send(STDIN, b"question")
    assert peer.next_frame() == (stream, frames.DATA_STDIN, b"question")
    data.send(STDIN)
    assert peer.next_frame() == (stream, frames.DATA_STDIN, b"")
    peer.send(stream, frames.DATA_STDOUT, b"answer")
    peer.send(stream, frames.DATA_STDERR, b"remark")
    finish(peer, stream, 258)
    assert data.outcome() == (b"answer", b"remark", 258)
    assert data.is_closed()


def test_a_command_that_nobody_waits_for(peer: GuestPeer) -> None:
    data, stream = call(peer, b"user:sleep 60", JUST)
    assert data.next() == (EXIT, bytes(4)), "and nothing else"
    assert data.is_closed()
    assert peer.next_frame() == (stream, frames.DATA_STDIN, b"")
    for _ in range(12):  # more than a window: it is given back, as nobody reads it
        peer.send(stream, frames.DATA_STDOUT, bytes(60000))
    finish(peer, stream, 0)
    call(peer, b"user:next")  # no CLOSE came for the first


def test_the_default_user_is_the_agents_choice(peer: GuestPeer) -> None:
    call(peer, b"DEFAULT:id")


def test_an_old_client_gets_short_messages(peer: GuestPeer) -> None:
    data, stream = call(peer, b"user:x", version=2)
    peer.send(stream, frames.DATA_STDOUT, bytes(60000))
    longest = 0
    received = 0
    while received < 60000:
        _, body = data.next()
        longest, received = max(longest, len(body)), received + len(body)
    assert longest == 4096


@pytest.mark.parametrize("version", [0, 1, 2])
def test_clients_that_are_too_old_are_refused(peer: GuestPeer, version: int) -> None:
    assert client(door(peer), version).is_closed()


def test_data_of_a_version_that_is_too_old(peer: GuestPeer) -> None:
    _, port = ask(client(door(peer)), b"user:x")
    data = Server(peer.home, 0, XID, port).accept()
    data.send(HELLO, struct.pack("<I", 1))
    assert data.is_closed()
    wait_until(lambda: ask(client(door(peer)), b"user:x")[1] == port, "the port is free again")


def test_ports_between_vms(peer: GuestPeer) -> None:
    assert ask(client(door(peer)), b"u:x", domain=XID + 1) == (XID, 514)
    assert ask(client(door(peer)), b"u:x", domain=XID - 1) == (XID, 513)
    data = Server(peer.home, XID + 1, XID, 514).accept()
    assert data.hello(4) == 4


def test_who_waits_for_the_end_learns_of_it(peer: GuestPeer) -> None:
    waiting = client(door(peer))
    _, port = ask(waiting, b"user:x")
    data = Server(peer.home, 0, XID, port).accept()
    data.hello(3)
    finish(peer, peer.next_frame().stream, 0)
    assert data.outcome() == (b"", b"", 0)
    assert waiting.is_closed()


def test_a_caller_that_goes_away_ends_the_command(peer: GuestPeer) -> None:
    data, stream = call(peer, b"user:sleep 60")
    data.close()
    assert peer.next_frame() == (stream, frames.CLOSE, b"")
    _, port = ask(client(door(peer)), b"user:x")
    assert port == 513, "its port is free again"


def test_a_caller_that_talks_nonsense_ends_the_command(peer: GuestPeer) -> None:
    data, stream = call(peer, b"user:sleep 60")
    data.send(STDOUT, b"x")
    assert peer.next_frame() == (stream, frames.CLOSE, b"")
    assert data.is_closed()


def test_nobody_meets_whom_nobody_listens_for(peer: GuestPeer) -> None:
    """A hundred clients that go away before the data: others are served meanwhile, at once."""
    for _ in range(100):
        asker = client(door(peer))
        ask(asker, b"user:x")
        asker.close()
    began = time.monotonic()
    call(peer, b"user:real")
    assert time.monotonic() - began < SECONDS / 2


def test_half_messages_and_silence(peer: GuestPeer) -> None:
    stuck = [meet(door(peer)) for _ in range(20)]
    for number, one in enumerate(stuck):
        one.socket.sendall(struct.pack("<III", HELLO, 4, 3)[:number])
    asker = client(door(peer))
    asker.socket.sendall(struct.pack("<IIII", EXEC, 500, 0, 0) + b"user:half")
    asker.socket.shutdown(socket.SHUT_WR)
    assert asker.is_closed()
    call(peer, b"user:real")


def test_calls_of_the_guest_are_not_for_others_to_connect(peer: GuestPeer) -> None:
    asker = client(door(peer))
    asker.send(CONNECT, bytes(8) + b"SOCKET7".ljust(32, b"\0"))
    assert asker.is_closed()


def test_megabytes_both_ways_at_once(peer: GuestPeer) -> None:
    data, stream = call(peer, b"user:cat")
    sent = os.urandom(3 << 20)
    writer = threading.Thread(target=_send_all, args=(data, sent))
    writer.start()
    guest = threading.Thread(target=_echo, args=(peer, stream))
    guest.start()
    assert data.outcome() == (sent, b"", 0)
    for thread in (writer, guest):
        thread.join(SECONDS)


def _send_all(data: Peer, content: bytes) -> None:
    for at in range(0, len(content), 65536):
        data.send(STDIN, content[at : at + 65536])
    data.send(STDIN)


def _echo(peer: GuestPeer, stream: int) -> None:
    """Be `cat` in the guest, which keeps to the windows."""
    waiting: list[bytes] = []
    spent = 0
    has_ended = False
    while waiting or not has_ended:
        size = frames.HEADER.size + len(waiting[0]) if waiting else 0
        if size and spent + size <= peer.credit(stream):
            spent += size
            peer.send(stream, frames.DATA_STDOUT, waiting.pop(0))
            peer.send(stream, frames.CREDIT, frames.NUMBER.pack(size))
            continue
        frame = peer.next_frame(with_credit=True)
        if frame.type == frames.DATA_STDIN:
            has_ended = not frame.body
            waiting += [frame.body] if frame.body else []
    finish(peer, stream, 0)


def test_a_reader_that_stops_holds_up_nobody(peer: GuestPeer) -> None:
    data, stream = call(peer, b"user:yes")
    peer.send(stream, frames.DATA_STDOUT, bytes(60000))
    other, second = call(peer, b"user:quick")
    finish(peer, second, 0)
    assert other.outcome()[2] == 0
    data.close()


def test_an_agent_that_breaks_off(peer: GuestPeer) -> None:
    data, _ = call(peer, b"user:x")
    peer.connection.sendall(frames.PADDING)
    _, remark, code = data.outcome()
    assert code == 125
    assert b"was restarted" in remark


def test_the_number_is_told_later(tmp_path: Path) -> None:
    with guest_peer(tmp_path) as peer:
        assert not list(tmp_path.glob("qrexec.*"))
        with socket.socket(socket.AF_UNIX) as daemon:
            daemon.connect(peer.listen_path)
            follow = frames.encode_message(frames.STATUS_FOLLOW)
            number = frames.encode_message(frames.DOMAIN_NUMBER, frames.NUMBER.pack(XID))
            daemon.sendall(frames.encode_message(frames.HELLO, frames.NUMBER.pack(3)) + follow + number)
            wait_until(door(peer).exists, "it listens")
            call(peer, b"user:x")
            daemon.sendall(number)  # again, as after a restart of the daemon: nothing changes
            call(peer, b"user:y")


def test_only_one_serves_a_vm(peer: GuestPeer, tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.mkdir()
    rival = GuestPeer(second, f"--xid={XID}", f"--qrexec-dir={tmp_path}")
    with pytest.raises(TimeoutError):
        _start_quickly(rival)
    assert rival.process.wait(SECONDS) == 4
    assert "another process serves" in rival.log.read_text()
    call(peer, b"user:x")


def _start_quickly(rival: GuestPeer) -> None:
    import tests.unit.guest_peer as module

    module.SECONDS, before = 2, module.SECONDS
    try:
        rival.start()
    finally:
        module.SECONDS = before


def test_what_a_killed_one_leaves_is_replaced(tmp_path: Path) -> None:
    first = GuestPeer(tmp_path, f"--xid={XID}", f"--uuid={VM_UUID}")
    first.start()
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    first.connection.close()
    (tmp_path / "channel").unlink()
    assert len(list(tmp_path.glob("qrexec.*"))) == 3
    with guest_peer(tmp_path, f"--xid={XID}", f"--uuid={VM_UUID}") as peer:
        call(peer, b"user:x")


def test_a_terminated_one_takes_its_sockets_away(tmp_path: Path) -> None:
    peer = GuestPeer(tmp_path, f"--xid={XID}")
    peer.start()
    peer.process.terminate()
    assert peer.process.wait(SECONDS) == 0
    peer.connection.close()
    assert not list(tmp_path.glob("qrexec.*"))
    assert not (tmp_path / "rpc.sock").exists()


# -- the other way


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Path]:
    with policy_stand_in(tmp_path) as log:
        yield log


def test_our_vm_calls_one_that_somebody_else_serves(tmp_path: Path, asked: Path) -> None:
    del asked
    with (
        guest_peer(tmp_path, f"--xid={XID}") as peer,
        daemon_and_agent(tmp_path) as (_, agent),
    ):
        peer.trigger("test.There+a", "domain-42")
        kind, domain, port, line = agent.next_command()
        assert (kind, domain, line) == (EXEC, XID, b"user:QUBESRPC test.There+a work\0")
        stream = peer.connected()
        service = agent.serve(domain, port)
        peer.send(stream, frames.DATA_STDIN, b"question")
        assert service.next() == (STDIN, b"question")
        peer.send(stream, frames.DATA_STDIN)
        assert service.next() == (STDIN, b"")
        service.send(STDOUT, b"answer")
        service.send(STDOUT)
        service.send(EXIT, struct.pack("<I", 5))
        assert peer.outcome(stream) == (b"answer", b"", 5)
        peer.wait_for_no_children()


def test_somebody_elses_vm_calls_ours(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    with policy_stand_in(tmp_path / "home"), guest_peer(tmp_path, f"--xid={XID}") as peer:
        agent = Agent(tmp_path)
        daemon = Daemon(tmp_path, f"--policy-socket={tmp_path}/home/run/policy.sock")
        agent.accept()
        wait_until(daemon.path.exists, "the daemon listens")
        agent.trigger("test.Here+a", "work")
        domain, port = agent.connected()
        assert (domain, port) == (XID, 514), "ours has the lower number: it takes the odd offsets"
        data = Server(tmp_path, 42, XID, port).accept()
        data.hello(4)
        frame = peer.next_frame()
        assert frame.body == b"DEFAULT:QUBESRPC test.Here+a domain-42\0"
        peer.send(frame.stream, frames.DATA_STDOUT, b"answer")
        finish(peer, frame.stream, 0)
        assert data.outcome() == (b"answer", b"", 0)
        daemon.wait_for_no_calls()
        daemon.close()
        agent.close()


# -- with the agent of our guests


def test_with_a_real_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VCHAN_SOCKET_DIR", str(tmp_path))
    install(tmp_path, "unused", "")
    world = World(tmp_path)
    try:
        world.start_relay()
        names = ["--name", "work", "--channel", world.host_port, "--listen", world.rpc_socket, f"--xid={XID}"]
        world.start("-m", "crannog.rpc.vm_process", *names)
        world.start_agent()
        wait_for(world.is_ready)
        for number in range(3):
            _, port = ask(client(tmp_path / "qrexec.work"), b"DEFAULT:cat; echo problem >&2; exit %d" % number)
            data = Server(tmp_path, 0, XID, port).accept()
            assert data.hello(4) == 4
            content = os.urandom(1 << 20)
            writer = threading.Thread(target=_send_all, args=(data, content))
            writer.start()
            assert data.outcome() == (content, b"problem\n", number)
            writer.join(SECONDS)
    finally:
        world.close()


async def test_the_daemon_says_the_number_when_the_agent_is_there(tmp_path: Path) -> None:
    """Its process is started before the VM, which has no number then; afterwards nothing is left."""
    paths = Paths(str(tmp_path))
    (tmp_path / "run").mkdir()
    numbers: dict[str, int] = {}
    processes = VMProcesses(paths, lambda uuid: numbers.get(uuid, -1))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(paths.channel_socket(VM_UUID))
        listener.listen(1)
        await processes.start(VM_UUID, "work", "")
        connection = await asyncio.to_thread(lambda: listener.accept()[0])
    numbers[VM_UUID] = XID
    guest = GuestPeer(tmp_path)
    guest.connection = connection
    connection.settimeout(SECONDS)
    await asyncio.to_thread(guest.shake_hands)
    await asyncio.to_thread(wait_until, (tmp_path / "run" / "qrexec.work").exists, "it listens")
    names = sorted(path.name for path in (tmp_path / "run").glob("qrexec.*"))
    assert names == [f"qrexec.{XID}", f"qrexec.uuid:{VM_UUID}", "qrexec.work"]
    killed = processes._followers[VM_UUID].process
    assert killed
    killed.send_signal(signal.SIGKILL)
    await killed.wait()
    connection.close()
    await processes.stop(VM_UUID)
    await processes.close()
    assert not list((tmp_path / "run").glob("qrexec.*"))


def test_dead_sockets_are_thrown_away_and_others_kept(tmp_path: Path, peer: GuestPeer) -> None:
    del peer
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "qrexec.9"))
    (tmp_path / "qrexec.gone").symlink_to("qrexec.9")
    (tmp_path / "qrexec.uuid:x").symlink_to("qrexec.8")
    discard_dead_sockets(str(tmp_path))
    assert sorted(path.name for path in tmp_path.glob("qrexec.*")) == [
        f"qrexec.{XID}",
        f"qrexec.uuid:{VM_UUID}",
        "qrexec.work",
    ]
