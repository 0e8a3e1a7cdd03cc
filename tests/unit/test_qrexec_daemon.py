"""crannog-qrexec-daemon between an agent and clients that others wrote."""

import os
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.qrexec_world import (
    CONNECT,
    DOMAIN,
    EXEC,
    EXIT,
    HELLO,
    JUST,
    NAME,
    SECONDS,
    STDERR,
    STDIN,
    STDOUT,
    TRIGGER2,
    UUID,
    Agent,
    Daemon,
    Peer,
    Server,
    ask,
    client,
    close_all,
    daemon_and_agent,
    meet,
    wait_until,
)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Give a folder with a short name: it is for sockets."""
    with tempfile.TemporaryDirectory(prefix="q-", dir="/tmp") as folder:
        yield Path(folder)
        for pid in daemons(Path(folder)):  # what a test that failed has left in the background
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(autouse=True)
def _everything_is_closed() -> Iterator[None]:
    yield
    close_all()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Daemon, Agent]]:
    with daemon_and_agent(tmp_path) as pair:
        yield pair


@pytest.mark.parametrize("version", [2, 3, 4])
def test_agents_of_all_versions(tmp_path: Path, version: int) -> None:
    with daemon_and_agent(tmp_path, version=version) as (daemon, _):
        assert daemon.sockets() == [f"qrexec.{DOMAIN}", f"qrexec.{NAME}", f"qrexec.uuid:{UUID[:-2]}{DOMAIN}"]
        for name in daemon.sockets():
            client(tmp_path / name).close()


@pytest.mark.parametrize(
    "first", [struct.pack("<III", HELLO, 4, 1), struct.pack("<II", EXIT, 4), b"GET / HTTP/1.0\r\n"]
)
def test_a_first_agent_that_cannot_be_served_ends_it(tmp_path: Path, first: bytes) -> None:
    """Nobody has to wait until time is up."""
    agent = Agent(tmp_path)
    daemon = Daemon(tmp_path)
    agent.accept(0)
    agent.peer.socket.sendall(first)
    assert agent.peer.is_closed()
    assert daemon.process.wait(SECONDS) != 0
    assert daemon.sockets() == []
    assert "the agent cannot be served" in daemon.log.read_text()
    agent.close()


def test_a_later_agent_that_cannot_be_served_is_left(tmp_path: Path) -> None:
    with daemon_and_agent(tmp_path) as (daemon, agent):
        agent.close()
        wait_until(lambda: not daemon.sockets(), "the sockets are gone")
        old = Agent(tmp_path)
        old.accept(0)
        old.peer.send(HELLO, struct.pack("<I", 1))
        assert old.peer.is_closed()
        old.close()
        Agent(tmp_path).accept()
        wait_until(daemon.path.exists, "the next one is served")
        assert "version 1" in daemon.log.read_text()


@pytest.mark.parametrize("kind", [EXEC, JUST])
def test_a_command_for_the_vm(pair: tuple[Daemon, Agent], kind: int) -> None:
    daemon, agent = pair
    peer = client(daemon.path)
    assert ask(peer, b"user:echo Hello world", kind) == (DOMAIN, 513)
    assert agent.next_command() == (kind, 0, 513, b"user:echo Hello world\0")
    agent.terminated(0, 513)
    assert peer.is_closed(), "who waits for the end of the call learns of it"


def test_default_user(tmp_path: Path) -> None:
    with daemon_and_agent(tmp_path) as (daemon, agent):
        ask(client(daemon.path), b"DEFAULT:x y")
        assert agent.next_command()[3] == b"user:x y\0"
        ask(client(daemon.path), b"DEFAULTS:x y")
        assert agent.next_command()[3] == b"DEFAULTS:x y\0"


@pytest.mark.parametrize("version", [0, 1, 2])
def test_clients_that_are_too_old_are_refused(pair: tuple[Daemon, Agent], version: int) -> None:
    assert client(pair[0].path, version).is_closed()


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<II", HELLO, 4) + b"\3\0",
        struct.pack("<II", HELLO, 0xFFFFFFFF),
        struct.pack("<II", EXEC, 12) + bytes(12),
        b"GET / HTTP/1.0\r\n\r\n",
        struct.pack("<III", HELLO, 4, 3) + struct.pack("<II", EXEC, 8) + bytes(8),
        struct.pack("<III", HELLO, 4, 3) + struct.pack("<IIII", EXEC, 14, 0, 513) + b"u:x\0\0\0",
        struct.pack("<III", HELLO, 4, 3) + struct.pack("<IIII", EXEC, 12, 0, 513) + b"u:x\0",
        struct.pack("<III", HELLO, 4, 3) + struct.pack("<IIII", EXEC, 10, 0, 0) + b"x\0",
        struct.pack("<III", HELLO, 4, 3) + struct.pack("<IIII", EXEC, 70000, 0, 0),
        struct.pack("<III", HELLO, 4, 3) + struct.pack("<III", HELLO, 4, 3),
        struct.pack("<III", HELLO, 4, 3) + struct.pack("<IIII", CONNECT, 40, 0, 0) + b"SOCKET1".ljust(32, b"\0"),
        struct.pack("<III", HELLO, 4, 3) + struct.pack("<IIII", EXEC, 20, 0, 0) + b"u:x",
    ],
)
def test_clients_that_talk_nonsense_or_go_away(pair: tuple[Daemon, Agent], data: bytes) -> None:
    """Whatever one does, at whatever point it goes, the next is served; nothing of it reaches the agent."""
    daemon, agent = pair
    peer = meet(daemon.path)
    peer.next()
    peer.socket.sendall(data)
    peer.socket.shutdown(1)
    assert peer.is_closed()
    assert ask(client(daemon.path), b"u:next") == (DOMAIN, 513)
    assert agent.next_command()[3] == b"u:next\0"


def test_two_clients_at_once_and_one_that_is_stuck(pair: tuple[Daemon, Agent]) -> None:
    daemon, agent = pair
    stuck = meet(daemon.path)
    stuck.socket.sendall(struct.pack("<II", HELLO, 4)[:5])
    one, two = client(daemon.path), client(daemon.path)
    assert {ask(one, b"u:1")[1], ask(two, b"u:2")[1]} == {513, 514}
    assert {agent.next_command()[3], agent.next_command()[3]} == {b"u:1\0", b"u:2\0"}


def test_ports_are_freed_and_used_again(pair: tuple[Daemon, Agent]) -> None:
    daemon, agent = pair
    ports = []
    for _ in range(256):
        peer = client(daemon.path)
        ports.append(ask(peer, b"u:x")[1])
        peer.close()
        agent.next_command()
    assert ports == list(range(513, 769))
    peer = client(daemon.path)
    peer.send(EXEC, bytes(8) + b"u:x\0")
    assert peer.is_closed(), "there is no port left"
    agent.terminated(0, 600)
    agent.terminated(9, 601)  # it is not used for calls with that domain
    wait_until(lambda: _allocates(daemon) == 600, "the freed port is used again")


def _allocates(daemon: Daemon) -> int:
    peer = client(daemon.path)
    peer.send(EXEC, bytes(8) + b"u:x\0")
    try:
        return int(struct.unpack("<II", peer.next()[1])[1])
    except (EOFError, ConnectionResetError):
        return 0
    finally:
        peer.close()


def test_ports_for_calls_between_vms_are_odd_or_even(pair: tuple[Daemon, Agent]) -> None:
    daemon, _ = pair
    higher = [ask(client(daemon.path), b"u:x", domain=DOMAIN + 1)[1] for _ in range(3)]
    lower = [ask(client(daemon.path), b"u:x", domain=DOMAIN - 1)[1] for _ in range(3)]
    assert (higher, lower) == ([514, 516, 518], [513, 515, 517])


def test_an_agent_that_restarts(pair: tuple[Daemon, Agent]) -> None:
    daemon, agent = pair
    waiting = client(daemon.path)
    ask(waiting, b"u:x")
    agent.close()
    assert waiting.is_closed()
    wait_until(lambda: daemon.sockets() == [], "the sockets are gone while there is no agent")
    again = Agent(daemon.folder).accept()
    wait_until(daemon.path.exists, "the sockets are there again")
    assert ask(client(daemon.path), b"u:again") == (DOMAIN, 513), "ports start anew"
    assert again.next_command()[3] == b"u:again\0"
    again.close()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(os.urandom(64).replace(b"\0", b"\1"), id="rubbish"),
        struct.pack("<II", 0x7777, 0),
        struct.pack("<III", HELLO, 4, 4),
        struct.pack("<II", EXEC, 8) + bytes(8),
        struct.pack("<II", 0x213, 0xFFFFFFFF),
        struct.pack("<II", TRIGGER2, 128) + bytes(128),
        struct.pack("<IIII", 0x211, 8, 0, 512),
        struct.pack("<IIII", 0x211, 8, 0, 769),
        struct.pack("<II", 0x211, 7),
    ],
)
def test_an_agent_that_talks_nonsense_is_left_and_may_come_again(pair: tuple[Daemon, Agent], data: bytes) -> None:
    daemon, agent = pair
    agent.peer.socket.sendall(data)
    assert agent.peer.is_closed()
    wait_until(lambda: daemon.sockets() == [], "the sockets are gone")
    again = Agent(daemon.folder).accept()
    wait_until(daemon.path.exists, "the sockets are there again")
    again.close()


def test_half_a_message_of_the_agent_holds_up_nobody(pair: tuple[Daemon, Agent]) -> None:
    daemon, agent = pair
    agent.peer.socket.sendall(struct.pack("<II", 0x213, 200) + bytes(50))
    assert ask(client(daemon.path), b"u:x") == (DOMAIN, 513)
    agent.peer.socket.shutdown(1)
    wait_until(lambda: daemon.sockets() == [], "half a message is no message")


def test_an_agent_that_reads_nothing_costs_little(pair: tuple[Daemon, Agent]) -> None:
    daemon, _ = pair
    line = b"u:" + b"x" * 65000
    answers = 0
    for _ in range(200):
        peer = client(daemon.path)
        peer.send(EXEC, bytes(8) + line + b"\0")
        try:
            peer.next()
            answers += 1
        except (EOFError, ConnectionResetError):
            break
        finally:
            peer.close()
    assert 10 < answers < 40, "a megabyte may wait, then clients are turned away"
    client(daemon.path).close()


# -- data between client and agent does not pass the daemon; here both are played


def test_megabytes_both_ways_while_the_daemon_is_elsewhere(pair: tuple[Daemon, Agent]) -> None:
    daemon, agent = pair
    _, port = ask(client(daemon.path), b"u:cat")
    server = Server(daemon.folder, 0, DOMAIN, port)
    _, domain, told, _ = agent.next_command()
    assert (domain, told) == (0, port)
    thread = threading.Thread(target=_echo, args=(agent, domain, port))
    thread.start()
    caller = server.accept()
    assert caller.hello(4) == 4
    data = os.urandom(1 << 20)
    writer = threading.Thread(target=_send_all, args=(caller, data))
    writer.start()
    assert caller.outcome() == (data, b"", 0)
    thread.join(SECONDS)
    writer.join(SECONDS)


def _send_all(caller: Peer, data: bytes) -> None:
    for at in range(0, len(data), 65536):
        caller.send(STDIN, data[at : at + 65536])
    caller.send(STDIN)


def _echo(agent: Agent, domain: int, port: int) -> None:
    service = agent.serve(domain, port)
    while True:
        kind, body = service.next()
        assert kind == STDIN
        service.send(STDOUT, body)
        if not body:
            break
    service.send(STDERR)
    service.send(EXIT, bytes(4))
    service.close()
    agent.terminated(domain, port)


# -- starting and ending


def start(folder: Path, *options: str, **environment: str) -> "subprocess.Popen[bytes]":
    words = [sys.executable, "-m", "crannog.rpc.qrexec_daemon", f"--uuid={UUID}", f"--socket-dir={folder}"]
    words += [f"--log-dir={folder}", *options, str(DOMAIN), NAME]
    base = os.environ | {"VCHAN_SOCKET_DIR": str(folder), "CRANNOG_HOME": str(folder / "home")}
    return subprocess.Popen(words, env=base | environment, stderr=subprocess.PIPE)


def daemons(folder: Path) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"--socket-dir={folder}".encode() in words:
            found.append(int(process.name))
    return found


def test_it_goes_into_the_background_when_the_agent_is_there(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    process = start(tmp_path)
    time.sleep(0.3)
    assert process.poll() is None, "it waits"
    agent.accept()
    _, text = process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    assert b"Waiting" in text
    assert ask(client(tmp_path / f"qrexec.{NAME}"), b"u:x") == (DOMAIN, 513)
    pid = min(daemons(tmp_path))
    assert os.getsid(pid) == pid
    os.kill(pid, 15)
    wait_until(lambda: not daemons(tmp_path), "it ends")
    assert not list(tmp_path.glob("qrexec.[0-9]*"))
    assert "connected to the agent" in (tmp_path / f"qrexec.{NAME}.log").read_text()
    agent.close()


def test_time_is_up(tmp_path: Path) -> None:
    process = start(tmp_path, "-q", QREXEC_STARTUP_TIMEOUT="1")
    _, text = process.communicate(timeout=SECONDS)
    assert process.returncode == 3
    assert b"did not come within 1 s" in text
    wait_until(lambda: not daemons(tmp_path), "nothing is left")


def test_it_does_not_wait_when_told_not_to(tmp_path: Path) -> None:
    process = start(tmp_path, QREXEC_STARTUP_NOWAIT="1")
    process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    agent = Agent(tmp_path).accept()
    wait_until((tmp_path / f"qrexec.{DOMAIN}").exists, "it serves when the agent has come")
    for pid in daemons(tmp_path):
        os.kill(pid, 15)
    agent.close()


def test_only_one_serves_a_vm(pair: tuple[Daemon, Agent]) -> None:
    daemon, _ = pair
    process = start(daemon.folder, "--direct")
    _, text = process.communicate(timeout=SECONDS)
    assert process.returncode == 4
    assert b"another process serves" in text
    assert ask(client(daemon.path), b"u:x") == (DOMAIN, 513)


def test_what_a_killed_one_leaves_is_replaced(tmp_path: Path) -> None:
    agent = Agent(tmp_path)
    daemon = Daemon(tmp_path)
    agent.accept()
    wait_until(daemon.path.exists, "it listens")
    daemon.process.kill()
    daemon.process.wait()
    agent.close()
    assert len(daemon.sockets()) == 3
    with daemon_and_agent(tmp_path) as (again, _):
        wait_until(lambda: ask(client(again.path), b"u:x") == (DOMAIN, 513), "the next one serves")


@pytest.mark.parametrize("words", [["42", "a/b"], ["0", "work"], ["x", "work"]])
def test_command_lines_that_are_wrong(words: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "crannog.rpc.qrexec_daemon", "--uuid=x", f"--socket-dir={tmp_path}", *words]
    assert subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 2


def test_the_uuid_is_needed() -> None:
    command = [sys.executable, "-m", "crannog.rpc.qrexec_daemon", "--direct", "42", "work"]
    assert subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 2
