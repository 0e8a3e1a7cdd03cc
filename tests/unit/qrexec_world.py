"""Plays what others wrote for qrexec: agents, clients and callers, by the protocol's text alone."""

import contextlib
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.fakes import short_folder
from tests.processes import list_children

SECONDS = 60
OPEN: list[socket.socket] = []
"""Everything that a test has opened; it is closed after it."""
DOMAIN, NAME, UUID = 42, "domain-42", "11111111-2222-3333-4444-555555555555"
STDIN, STDOUT, STDERR, EXIT = 0x190, 0x191, 0x192, 0x193
EXEC, JUST, CONNECT, REFUSED = 0x200, 0x201, 0x202, 0x203
TRIGGER2, TERMINATED, TRIGGER3, TRIGGER4, HELLO = 0x210, 0x211, 0x212, 0x213, 0x300


def wait_until(condition: Callable[[], object], what: str, seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not in {seconds} s: {what}"
        time.sleep(0.005)


def close_all() -> None:
    while OPEN:
        OPEN.pop().close()


def lend_folder() -> Iterator[Path]:
    """Have a folder with a short name, as it is for sockets; then all is closed that the test has opened."""
    with short_folder() as folder:
        yield folder
        close_all()


class Peer:
    """One connection, as messages."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.socket.settimeout(SECONDS)
        OPEN.append(connection)

    def send(self, kind: int, body: bytes = b"") -> None:
        self.socket.sendall(struct.pack("<II", kind, len(body)) + body)

    def read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            block = self.socket.recv(count - len(data))
            if not block:
                raise EOFError
            data += block
        return data

    def next(self) -> tuple[int, bytes]:
        kind, length = struct.unpack("<II", self.read(8))
        return kind, self.read(length)

    def is_closed(self) -> bool:
        """Tell whether the other side closes it; what it says until then is dropped."""
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionResetError:
            pass
        return True

    def hello(self, version: int) -> int:
        """Say HELLO, and return the version that the other side says."""
        self.send(HELLO, struct.pack("<I", version))
        kind, body = self.next()
        assert kind == HELLO
        return int(struct.unpack("<I", body)[0])

    def outcome(self) -> tuple[bytes, bytes, int]:
        """Return all output of a service, and its exit code; both must have ended before that."""
        output = {STDOUT: b"", STDERR: b""}
        ended: set[int] = set()
        while True:
            kind, body = self.next()
            if kind == EXIT:
                assert ended == {STDOUT, STDERR}
                return output[STDOUT], output[STDERR], struct.unpack("<I", body)[0]
            assert kind not in ended
            output[kind] += body
            if not body:
                ended.add(kind)

    def close(self) -> None:
        self.socket.close()


def rest_of(data: Peer) -> list[tuple[int, bytes]]:
    """Return all messages up to the end of the connection."""
    messages = []
    with contextlib.suppress(EOFError):
        while True:
            messages.append(data.next())
    return messages


def meet(path: Path) -> Peer:
    """Connect to the server of a vchan, or to a daemon, that may still be on its way."""
    deadline = time.monotonic() + SECONDS
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            assert time.monotonic() < deadline, f"nobody listens at {path}"
            time.sleep(0.002)
        else:
            return Peer(connection)


class Server:
    """The server of a vchan."""

    def __init__(self, folder: Path, server: int, client: int, port: int) -> None:
        self.path = folder / f"vchan.{server}.{client}.{port}.sock"
        self.path.unlink(missing_ok=True)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.listener.listen(1)
        self.listener.settimeout(SECONDS)
        OPEN.append(self.listener)

    def accept(self) -> Peer:
        connection, _ = self.listener.accept()
        self.close()
        return Peer(connection)

    def close(self) -> None:
        self.listener.close()
        self.path.unlink(missing_ok=True)


def client(path: Path, version: int = 3) -> Peer:
    """Connect as qrexec-client does: hear HELLO first, then answer."""
    peer = meet(path)
    assert peer.next() == (HELLO, struct.pack("<I", 3))
    peer.send(HELLO, struct.pack("<I", version))
    return peer


def ask(peer: Peer, command: bytes, kind: int = EXEC, domain: int = 0) -> tuple[int, int]:
    """Ask a daemon for a command; return where its data is to be: domain and port."""
    peer.send(kind, struct.pack("<II", domain, 0) + command + b"\0")
    answered, body = peer.next()
    assert answered == kind
    assert len(body) == 8
    return struct.unpack("<II", body)


class Daemon:
    """A real crannog-qrexec-daemon."""

    def __init__(self, folder: Path, *options: str, domain: int = DOMAIN, name: str = NAME) -> None:
        self.folder = folder
        self.path = folder / f"qrexec.{domain}"
        self.log = folder / f"daemon-{domain}.log"
        environment = os.environ | {
            "VCHAN_SOCKET_DIR": str(folder),
            "CRANNOG_HOME": str(folder / "home"),
            "QREXEC_SERVICE_PATH": str(folder / "services"),
        }
        words = [sys.executable, "-m", "crannog.rpc.qrexec_daemon", f"--uuid={UUID[:-2]}{domain:02}"]
        words += [f"--socket-dir={folder}", f"--policy-socket={folder}/policy.sock"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*words, *options, "--direct", str(domain), name], env=environment, stderr=log, stdin=subprocess.DEVNULL
            )

    def children(self) -> list[int]:
        return list_children(self.process.pid)

    def wait_for_no_calls(self) -> None:
        """Wait until there is no process, also none that waits for the next call."""
        wait_until(lambda: not self.children(), "processes of calls are left")

    def sockets(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("qrexec.*"))

    def close(self) -> None:
        self.process.terminate()
        try:
            assert self.process.wait(SECONDS) == 0, self.log.read_text()
            assert str(self.path.name) not in self.sockets()
        finally:
            self.process.kill()
            self.process.wait()


class Agent:
    """An agent that somebody else wrote, as seen by a daemon."""

    def __init__(self, folder: Path, domain: int = DOMAIN) -> None:
        self.folder, self.domain = folder, domain
        self._server = Server(folder, domain, 0, 512)
        self.peer: Peer

    def accept(self, version: int = 4) -> "Agent":
        self.peer = self._server.accept()
        if version:
            assert self.peer.hello(version) == version
        return self

    def trigger(self, service: str, target: str = "dom0", ident: bytes = b"SOCKET11", source: str = "") -> None:
        fields = struct.pack("<64s64s32s", source.encode(), target.encode(), ident)
        self.peer.send(TRIGGER4, fields + service.encode() + b"\0")

    def connected(self, ident: bytes = b"SOCKET11") -> tuple[int, int]:
        kind, body = self.peer.next()
        assert (kind, body[8:]) == (CONNECT, ident.ljust(32, b"\0")), (kind, body)
        return struct.unpack_from("<II", body)

    def refused(self) -> bytes:
        kind, body = self.peer.next()
        assert (kind, len(body)) == (REFUSED, 32), (kind, body)
        return body.rstrip(b"\0")

    def caller(self, ident: bytes = b"SOCKET11") -> Peer:
        """Be qrexec-client-vm: let the service of the host come, and exchange HELLO."""
        domain, port = self.connected(ident)
        peer = Server(self.folder, self.domain, domain, port).accept()
        assert peer.hello(4) == 4
        return peer

    def next_command(self) -> tuple[int, int, int, bytes]:
        """Return type, domain and port of a command, and its line."""
        kind, body = self.peer.next()
        return (kind, *struct.unpack_from("<II", body), body[8:])

    def meet(self, domain: int, port: int) -> Peer:
        """Come to where the caller is the server."""
        return meet(self.folder / f"vchan.{domain}.{self.domain}.{port}.sock")

    def serve(self, domain: int, port: int) -> Peer:
        """Be the service."""
        peer = self.meet(domain, port)
        assert peer.hello(4) == 4
        return peer

    def terminated(self, domain: int, port: int) -> None:
        self.peer.send(TERMINATED, struct.pack("<II", domain, port))

    def close(self) -> None:
        self._server.close()
        if hasattr(self, "peer"):
            self.peer.close()


@contextlib.contextmanager
def daemon_and_agent(folder: Path, *options: str, version: int = 4) -> Iterator[tuple[Daemon, Agent]]:
    """Give a daemon whose agent is connected."""
    agent = Agent(folder)
    daemon = Daemon(folder, *options)
    try:
        agent.accept(version)
        wait_until(daemon.path.exists, "the daemon listens")
        yield daemon, agent
    finally:
        try:
            daemon.close()
        finally:
            agent.close()


def install(folder: Path, name: str, script: str) -> None:
    path = folder / "services" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(0o755)
