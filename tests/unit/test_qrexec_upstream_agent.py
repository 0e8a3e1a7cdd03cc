"""What daemons that others wrote for qrexec count on, of our agent on vchans."""

import os
import pwd
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog.guest import qrexec_client_vm, vchan_agent
from tests.unit.qrexec_world import (
    CONNECT,
    DOMAIN,
    EXEC,
    EXIT,
    JUST,
    SECONDS,
    STDERR,
    STDIN,
    STDOUT,
    TERMINATED,
    TRIGGER4,
    Peer,
    Server,
    lend_folder,
    meet,
    rest_of,
    wait_until,
)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    yield from lend_folder()


ME = pwd.getpwuid(os.geteuid()).pw_name.encode()
PEER, PORT = 43, 1024


class Guest:
    """Our agent on vchans, and its daemon. The services of the first folder hide those of the second."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("local", "rpc", "config"):
            (folder / name).mkdir()
        environment = os.environ | {
            "VCHAN_SOCKET_DIR": str(folder),
            "QREXEC_SERVICE_PATH": f"{folder}/local:{folder}/rpc",
            "QUBES_RPC_CONFIG_PATH": str(folder / "config"),
            "QREXEC_REQUESTED_TARGET": "not unset",
        }
        words = [sys.executable, "-I", vchan_agent.__file__, str(DOMAIN), "--trigger-socket", str(folder / "trigger")]
        self.process = subprocess.Popen(words, env=environment)
        self.daemon = meet(folder / f"vchan.{DOMAIN}.0.512.sock")
        assert self.daemon.hello(4) == 4

    def install(self, name: str, script: str, folder: str = "rpc") -> None:
        (self.folder / folder / name).write_text(script)
        (self.folder / folder / name).chmod(0o755)

    def begin(self, command: bytes, kind: int = EXEC) -> Peer:
        server = Server(self.folder, PEER, DOMAIN, PORT)
        self.daemon.send(kind, struct.pack("<II", PEER, PORT) + ME + b":" + command + b"\0")
        data = server.accept()
        assert data.hello(4) == 4
        return data

    def is_over(self) -> None:
        assert self.daemon.next() == (TERMINATED, struct.pack("<II", PEER, PORT))

    def outcome(self, service: bytes) -> tuple[bytes, int]:
        """Return what a service says, and its exit code."""
        output, _, code = self.begin(b"QUBESRPC %s domX" % service).outcome()
        self.is_over()
        return output, code


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    guest = Guest(tmp_path)
    yield guest
    assert guest.process.poll() is None, "the agent lives"
    guest.process.kill()
    guest.process.wait()


@pytest.mark.parametrize(("service", "code"), [(b"test.Service+", 0), (b"test.None+", 127), (b"test.Plain+", 125)])
def test_a_service_that_nobody_waits_for(guest: Guest, service: bytes, code: int) -> None:
    """Its own exit code is not heard; whether it could be started is."""
    guest.install("test.Service", f"#!/bin/sh\nprintf %s $QREXEC_SERVICE_FULL_NAME > {guest.folder}/done\nexit 1\n")
    (guest.folder / "rpc" / "test.Plain").write_text("no program")
    data = guest.begin(b"QUBESRPC %s domX" % service, JUST)
    assert rest_of(data) == [(EXIT, struct.pack("<I", code))]
    guest.is_over()
    if code == 0:
        done = guest.folder / "done"
        wait_until(lambda: done.exists() and done.read_text() == "test.Service+", "it runs")


def test_no_argument_is_an_empty_one_for_the_search_alone(guest: Guest) -> None:
    guest.install(
        "test.Service+", "#!/bin/sh\necho $QREXEC_SERVICE_FULL_NAME ${QREXEC_SERVICE_ARGUMENT-none} ${1-none}\n"
    )
    guest.install("test.Service", "#!/bin/sh\necho general\n", "local")
    assert guest.outcome(b"test.Service") == (b"test.Service none none\n", 0)
    assert guest.outcome(b"test.Service+a") == (b"general\n", 0)


def test_no_argument_of_a_socket(guest: Guest) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(guest.folder / "rpc" / "test.Socket+"))
        listener.listen(1)
        data = guest.begin(b"QUBESRPC test.Socket domX")
        peer = Peer(listener.accept()[0])
    data.send(STDIN, b"question")
    assert peer.read(25) == b"test.Socket domX\0question"
    peer.close()
    assert data.outcome() == (b"", b"", 0)


def test_folders_that_cannot_be_searched(guest: Guest) -> None:
    """A configuration that is not known may forbid what is about to be done."""
    guest.install("test.Service", "#!/bin/sh\necho done\n")
    assert guest.outcome(b"test.Service+arg") == (b"done\n", 0)
    (guest.folder / "config").rmdir()
    assert guest.outcome(b"test.Service+arg") == (b"done\n", 0), "a folder that is not there has nothing"
    (guest.folder / "config").symlink_to("/dev/null/nothing")
    assert guest.outcome(b"test.Service+arg") == (b"", 125)


def test_links_that_lead_nowhere(guest: Guest) -> None:
    guest.install("test.Service", "#!/bin/sh\necho general\n")
    (guest.folder / "local" / "test.Service+arg").symlink_to("/dev/null/nothing")
    assert guest.outcome(b"test.Service+arg") == (b"", 125)
    (guest.folder / "config" / "test.Service+other").symlink_to("/dev/null/nothing")
    assert guest.outcome(b"test.Service+other") == (b"", 125)


def test_a_service_that_is_junk(guest: Guest) -> None:
    guest.install("test.Service", "\0")
    output, complaint, code = guest.begin(b"QUBESRPC test.Service+arg domX").outcome()
    assert (output, code) == (b"", 126), "which is the shell's"
    assert b"format error" in complaint


def test_outputs_that_end_early(guest: Guest) -> None:
    data = guest.begin(b"read a; echo one; exec >&-; read a; echo two >&2; exec 2>&-; read code; exit $code")
    data.send(STDIN, b"\n")
    assert [data.next(), data.next()] == [(STDOUT, b"one\n"), (STDOUT, b"")]
    data.send(STDIN, b"\n")
    assert [data.next(), data.next()] == [(STDERR, b"two\n"), (STDERR, b"")]
    data.send(STDIN, b"42\n")
    assert rest_of(data) == [(EXIT, struct.pack("<I", 42))]
    guest.is_over()


def test_input_that_a_command_does_not_take(guest: Guest) -> None:
    data = guest.begin(b"read a; exec </dev/null; echo closed; sleep 0.2")
    data.send(STDIN, b"one\n")
    assert data.next() == (STDOUT, b"closed\n")
    data.send(STDIN, b"two\n")
    data.send(STDIN)
    assert data.outcome() == (b"", b"", 0)


def test_input_that_waits(guest: Guest) -> None:
    """A quarter of a megabyte is taken while the command reads nothing yet."""
    os.mkfifo(guest.folder / "fifo")
    data = guest.begin(b"read a < %s/fifo; cat" % bytes(guest.folder))
    content = os.urandom(256 * 1024)
    for at in range(0, len(content), 32768):
        data.send(STDIN, content[at : at + 32768])
    data.send(STDIN)
    (guest.folder / "fifo").write_text("go\n")
    assert data.outcome() == (content, b"", 0)


def test_a_service_that_asks_for_a_socket_does_not_end_the_agent(guest: Guest) -> None:
    guest.install("test.Service", "#!/bin/sh\nkill -USR1 $QREXEC_AGENT_PID\necho $?\n")
    assert guest.outcome(b"test.Service+") == (b"0\n", 0)


def test_a_call_is_connected_with_a_short_ident(guest: Guest) -> None:
    """Daemons pass on what clients send, with less filling than a field has."""
    caller = subprocess.Popen(
        [sys.executable, qrexec_client_vm.__file__, f"--agent-socket={guest.folder}/trigger", "work", "test.There"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    kind, body = guest.daemon.next()
    assert kind == TRIGGER4
    guest.daemon.send(CONNECT, struct.pack("<II", PEER, 514) + body[128:160].rstrip(b"\0") + b"\0")
    service = meet(guest.folder / f"vchan.{DOMAIN}.{PEER}.514.sock")
    service.hello(4)
    service.send(STDOUT, b"answer")
    service.send(EXIT, bytes(4))
    assert caller.communicate(timeout=SECONDS)[0] == b"answer"
