"""The tools' side of a call: what is sent, how replies are read, and what is said when there is none."""

import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crannog import errors
from crannog.client.connection import Client
from crannog.client.spawn import start_daemon
from crannog.config import Paths
from crannog.errors import CrannogError, DaemonError, VMNotFoundError
from tests.fakes import short_folder


class OneReply:
    """A server that reads one request to its end, sends `reply` and closes."""

    def __init__(self, path: str, reply: bytes, *, reads: bool = True) -> None:
        self.request = b""
        self._reply = reply
        self._reads = reads
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            while self._reads and (chunk := connection.recv(65536)):
                self.request += chunk
            connection.sendall(self._reply)

    def close(self) -> None:
        self._thread.join(10)
        self._listener.close()


@pytest.fixture
def home() -> Iterator[Path]:
    with short_folder() as folder:
        (folder / "run").mkdir()
        yield folder


@pytest.fixture
def client(home: Path) -> Client:
    return Client(Paths(str(home), str(home / "cache")), may_start_daemon=False)


@pytest.fixture
def answering(client: Client) -> Iterator[Callable[[bytes], OneReply]]:
    servers: list[OneReply] = []

    def answer(reply: bytes) -> OneReply:
        servers.append(OneReply(client.paths.daemon_socket, reply))
        return servers[-1]

    yield answer
    for server in servers:
        server.close()


def test_the_exact_request(client: Client, answering: Callable[[bytes], OneReply]) -> None:
    server = answering(b"0\0done")
    assert client.call("admin.vm.property.Set", "work", "memory", b"6\0\xff") == b"done"
    assert server.request == b"admin.vm.property.Set+memory dom0 name work\x006\0\xff"


def test_defaults_of_a_call(client: Client, answering: Callable[[bytes], OneReply]) -> None:
    server = answering(b"0\0")
    assert client.text("admin.vm.List") == ""
    assert server.request == b"admin.vm.List+ dom0 name dom0\0"


def test_paths_that_are_not_utf8_arrive_as_they_are(client: Client, answering: Callable[[bytes], OneReply]) -> None:
    server = answering(b"0\0")
    client.text("crannog.vm.Start", "work", payload="/srv/\udcff.iso")
    assert server.request.endswith(b"\0/srv/\xff.iso")


def test_large_replies(client: Client, answering: Callable[[bytes], OneReply]) -> None:
    answering(b"0\0" + b"x" * 3_000_000)
    assert len(client.call("crannog.vm.Screenshot", "work")) == 3_000_000


KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, CrannogError)]


@pytest.mark.parametrize("kind", KINDS)
def test_our_errors_come_back_as_themselves(
    kind: type[CrannogError], client: Client, answering: Callable[[bytes], OneReply]
) -> None:
    answering(f"2\0{kind.wire_name}\0{kind.__name__}\0it is 100%% gone\0".encode())
    with pytest.raises(kind) as caught:
        client.call("admin.vm.List")
    assert type(caught.value) is kind
    assert str(caught.value) == "it is 100% gone"


@pytest.mark.parametrize(
    ("reply", "kind", "sentence"),
    [
        (b"2\0QubesVMNotFoundError\0\0no a\0", VMNotFoundError, "no a"),
        (b"2\0QubesSomethingNew\0\0odd\0", CrannogError, "odd"),
        (b"2\0QubesException\0\0caf\xe9\0", CrannogError, "caf\ufffd"),
        (b"2\0QubesException\0\0%%s and %%%%\0", CrannogError, "%s and %%"),
        (b"", DaemonError, "gave no answer to admin.vm.List"),
        (b"0", DaemonError, "gave no answer"),
        (b"1\0", DaemonError, "gave no answer"),
        (b"nonsense", DaemonError, "gave no answer"),
        (b"2\0", DaemonError, "crannogd"),
        (b"2\0QubesVMNot", DaemonError, "crannogd"),
        (b"2\0QubesException\0\0cut of", DaemonError, "crannogd"),
    ],
)
def test_replies_of_others_and_broken_ones(
    reply: bytes, kind: type[CrannogError], sentence: str, client: Client, answering: Callable[[bytes], OneReply]
) -> None:
    answering(reply)
    with pytest.raises(kind) as caught:
        client.call("admin.vm.List")
    assert type(caught.value) is kind
    assert sentence in str(caught.value)


def test_a_daemon_that_does_not_read_is_told(client: Client) -> None:
    server = OneReply(client.paths.daemon_socket, b"", reads=False)
    with pytest.raises(DaemonError, match="log is"):
        client.call("admin.vm.List", payload=b"x" * 10_000_000)
    server.close()


@pytest.mark.parametrize("name", ["", "a b", "caf\u00e9", "a\nb", "a\0b", "\udcff"])
def test_a_name_that_no_vm_can_have_is_not_sent(client: Client, name: str) -> None:
    with pytest.raises(VMNotFoundError):
        client.call("admin.vm.Start", name)


@pytest.mark.parametrize("is_left_over", [False, True])
def test_no_daemon(client: Client, is_left_over: bool) -> None:
    if is_left_over:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(client.paths.daemon_socket)
    with pytest.raises(DaemonError, match="does not run for"):
        client.call("admin.vm.List")


def test_a_socket_that_may_not_be_reached(client: Client, home: Path) -> None:
    (home / "run").rmdir()
    (home / "run").write_text("a file in the place of the folder")
    with pytest.raises(DaemonError, match="cannot be reached"):
        client.call("admin.vm.List")


def test_the_daemon_that_is_started_is_that_of_the_home(
    home: Path, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program may name a home that no variable does."""
    program = home / "python"
    program.write_text(
        f"#!{sys.executable}\n"
        "import os, sys\n"
        f"open({str(home / 'said')!r}, 'w').write(os.environ['CRANNOG_HOME'] + ' ' + os.environ['CRANNOG_CACHE'])\n"
        "os.write(int(sys.argv[-1]), b'1')\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.delenv("CRANNOG_HOME", raising=False)
    start_daemon(client.paths, lambda: True)
    assert (home / "said").read_text() == f"{home} {home / 'cache'}"


def test_a_home_may_be_named_from_where_one_is(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    assert Paths("here").home == str(home / "here")
