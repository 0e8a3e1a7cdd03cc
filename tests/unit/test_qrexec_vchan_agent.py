"""Our guests' agent on vchans: with a daemon by the protocol's text, and with crannog-qrexec-daemon."""

import os
import pwd
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog.guest import qrexec_client_vm, vchan_agent
from tests.processes import is_alive
from tests.unit.guest_peer import policy_stand_in
from tests.unit.qrexec_world import (
    CONNECT,
    DOMAIN,
    EXEC,
    EXIT,
    HELLO,
    JUST,
    REFUSED,
    SECONDS,
    STDERR,
    STDIN,
    STDOUT,
    TERMINATED,
    TRIGGER2,
    TRIGGER3,
    TRIGGER4,
    Daemon,
    Peer,
    Server,
    ask,
    client,
    install,
    lend_folder,
    meet,
    wait_until,
)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    yield from lend_folder()


@pytest.fixture
def process(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    environment = os.environ | {
        "VCHAN_SOCKET_DIR": str(tmp_path),
        "QREXEC_SERVICE_PATH": str(tmp_path / "guest" / "services"),
    }
    words = [sys.executable, "-I", vchan_agent.__file__, str(DOMAIN), "--trigger-socket", str(tmp_path / "trigger")]
    with subprocess.Popen(words, env=environment) as process:
        yield process
        process.kill()


@pytest.fixture
def daemon(tmp_path: Path, process: object) -> Peer:
    """Be the daemon: the agent says HELLO first."""
    del process
    peer = meet(control(tmp_path))
    assert peer.next() == (HELLO, struct.pack("<I", 4))
    peer.send(HELLO, struct.pack("<I", 4))
    return peer


def control(folder: Path) -> Path:
    return folder / f"vchan.{DOMAIN}.0.512.sock"


def begin(folder: Path, daemon: Peer, command: bytes, kind: int = EXEC, port: int = 513, version: int = 4) -> Peer:
    server = Server(folder, 0, DOMAIN, port)
    daemon.send(kind, struct.pack("<II", 0, port) + command + b"\0")
    data = server.accept()
    assert data.hello(version) == 4
    return data


def ended(daemon: Peer, domain: int = 0, port: int = 513) -> None:
    assert daemon.next() == (TERMINATED, struct.pack("<II", domain, port))


def test_a_command(tmp_path: Path, daemon: Peer) -> None:
    data = begin(tmp_path, daemon, b"DEFAULT:cat; echo problem >&2; exit 3")
    data.send(STDIN, b"hello\0\xff")
    data.send(STDIN)
    assert data.outcome() == (b"hello\0\xff", b"problem\n", 3)
    ended(daemon)


def test_a_service_and_one_that_is_not_there(tmp_path: Path, daemon: Peer) -> None:
    (tmp_path / "guest").mkdir()
    install(tmp_path / "guest", "test.S", "echo $1 $QREXEC_REMOTE_DOMAIN")
    assert begin(tmp_path, daemon, b"DEFAULT:QUBESRPC test.S+arg work").outcome() == (b"arg work\n", b"", 0)
    ended(daemon)
    assert begin(tmp_path, daemon, b"DEFAULT:QUBESRPC test.None+ work").outcome()[2] == 127
    ended(daemon)


def test_a_command_that_nobody_waits_for(tmp_path: Path, daemon: Peer) -> None:
    data = begin(tmp_path, daemon, b"DEFAULT:head -c 1000000 /dev/zero; touch %s/done" % bytes(tmp_path), JUST)
    assert data.next() == (EXIT, bytes(4))
    ended(daemon)
    wait_until((tmp_path / "done").exists, "it runs to its end")


def test_megabytes_both_ways(tmp_path: Path, daemon: Peer) -> None:
    data = begin(tmp_path, daemon, b"DEFAULT:cat")
    content = os.urandom(5 << 20)
    writer = threading.Thread(target=send_all, args=(data, content))
    writer.start()
    assert data.outcome() == (content, b"", 0)
    writer.join(SECONDS)


def send_all(data: Peer, content: bytes) -> None:
    for at in range(0, len(content), 65536):
        data.send(STDIN, content[at : at + 65536])
    data.send(STDIN)


def test_an_old_peer_gets_short_messages(tmp_path: Path, daemon: Peer) -> None:
    data = begin(tmp_path, daemon, b"DEFAULT:head -c 100000 /dev/zero", version=2)
    sizes = []
    while (message := data.next())[0] != EXIT:
        sizes.append(len(message[1]))
    assert (sum(sizes), max(sizes)) == (100000, 4096)


def test_a_caller_that_goes_away_ends_the_command(tmp_path: Path, daemon: Peer) -> None:
    data = begin(tmp_path, daemon, b"DEFAULT:echo $$; exec sleep 60")
    kind, body = data.next()
    assert kind == STDOUT
    data.close()
    ended(daemon)
    wait_until(lambda: not is_alive(int(body)), "the command ends")


def test_a_caller_that_talks_nonsense_ends_the_command(tmp_path: Path, daemon: Peer) -> None:
    for number, nonsense in enumerate((struct.pack("<II", STDIN, 70000), struct.pack("<II", STDOUT, 0))):
        data = begin(tmp_path, daemon, b"DEFAULT:exec sleep 60", port=600 + number)
        data.socket.sendall(nonsense)
        assert data.is_closed()
        ended(daemon, 0, 600 + number)


def test_two_at_once_and_one_that_does_not_read(tmp_path: Path, daemon: Peer) -> None:
    begin(tmp_path, daemon, b"DEFAULT:exec cat /dev/zero", port=513)
    assert begin(tmp_path, daemon, b"DEFAULT:echo quick", port=514).outcome() == (b"quick\n", b"", 0)


def test_the_daemon_comes_again(tmp_path: Path, daemon: Peer) -> None:
    data = begin(tmp_path, daemon, b"DEFAULT:exec sleep 60")
    daemon.close()
    assert data.is_closed()
    again = meet(control(tmp_path))
    assert again.hello(3) == 4
    assert begin(tmp_path, again, b"DEFAULT:echo again").outcome()[0] == b"again\n"


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<II", 0x7777, 0),
        struct.pack("<II", EXEC, 0xFFFFFFF),
        struct.pack("<III", REFUSED, 4, 0),
        b"\0" * 64,
    ],
)
def test_a_daemon_that_talks_nonsense(tmp_path: Path, daemon: Peer, data: bytes) -> None:
    daemon.socket.sendall(data)
    assert daemon.is_closed()
    assert meet(control(tmp_path)).hello(4) == 4


def call_out(folder: Path, *words: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, qrexec_client_vm.__file__, f"--agent-socket={folder}/trigger", *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)


@pytest.mark.parametrize("version", [2, 3, 4])
def test_a_call_of_the_guest(tmp_path: Path, process: object, version: int) -> None:
    del process
    daemon = meet(control(tmp_path))
    daemon.hello(version)
    caller = call_out(tmp_path, "work", "test.There+a")
    kind, body = daemon.next()
    assert kind == {2: TRIGGER2, 3: TRIGGER3, 4: TRIGGER4}[version]
    if version == 2:
        name, target, ident = struct.unpack("<64s32s32s", body)
    else:
        target, ident, name = body[-45 - 64 : -45][:64], body[-45:-13], body[-13:]
    assert (name.rstrip(b"\0"), target.rstrip(b"\0")) == (b"test.There+a", b"work")
    daemon.send(CONNECT, struct.pack("<II", 43, 514) + ident)
    service = meet(tmp_path / f"vchan.{DOMAIN}.43.514.sock")
    assert service.hello(4) == 4
    service.send(STDOUT, b"x" * 60000)
    service.send(STDERR, b"remark")
    service.send(STDOUT)
    service.send(STDERR)
    service.send(EXIT, struct.pack("<I", 5))
    service.close()
    assert caller.communicate(b"", timeout=SECONDS) == (b"x" * 60000, b"remark")
    assert caller.returncode == 5
    ended(daemon, 43, 514)


def test_a_call_that_is_refused(tmp_path: Path, daemon: Peer) -> None:
    caller = call_out(tmp_path, "work", "test.There")
    _, body = daemon.next()
    daemon.send(REFUSED, body[128:160])
    caller.communicate(b"", timeout=SECONDS)
    assert caller.returncode == 126


def test_a_caller_in_the_guest_that_is_killed(tmp_path: Path, daemon: Peer) -> None:
    caller = call_out(tmp_path, "work", "test.There")
    _, body = daemon.next()
    daemon.send(CONNECT, struct.pack("<II", 0, 513) + body[128:160])
    service = meet(tmp_path / f"vchan.{DOMAIN}.0.513.sock")
    service.hello(4)
    caller.send_signal(signal.SIGKILL)
    caller.communicate(timeout=SECONDS)
    assert service.is_closed()
    ended(daemon)


def test_the_whole_way_with_our_daemon(tmp_path: Path, process: object) -> None:
    """Commands, calls of services of the host, megabytes; and in the end all ports are free."""
    del process
    me = pwd.getpwuid(os.geteuid()).pw_name
    (tmp_path / "home").mkdir()
    install(tmp_path, "test.Cat", "cat; echo problem >&2; exit 4")
    content = os.urandom(3 << 20)
    with policy_stand_in(tmp_path / "home"):
        daemon = Daemon(tmp_path, f"--policy-socket={tmp_path}/home/run/policy.sock")
        wait_until(daemon.path.exists, "the daemon listens")
        for _ in range(3):
            caller = call_out(tmp_path, "dom0", "test.Cat+x")
            assert caller.communicate(content, timeout=SECONDS) == (content, b"problem\n")
            assert caller.returncode == 4
            domain, port = ask(client(daemon.path), f"{me}:cat".encode())
            data = Server(tmp_path, 0, domain, port).accept()
            data.hello(4)
            data.send(STDIN, b"to the guest")
            data.send(STDIN)
            assert data.outcome() == (b"to the guest", b"", 0)
        denied = call_out(tmp_path, "dom0", "denied")
        denied.communicate(b"", timeout=SECONDS)
        assert denied.returncode == 126
        wait_until(lambda: ask(client(daemon.path), f"{me}:true".encode())[1] == 513, "all ports are free")
        daemon.wait_for_no_calls()
        daemon.close()
