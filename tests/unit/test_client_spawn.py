"""Starting the daemon on demand, with a small script in the daemon's place."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crannog.client import spawn
from crannog.client.connection import Client
from crannog.config import Paths
from crannog.errors import DaemonError
from tests.fakes import short_folder

# What stands in for crannogd: called as `SCRIPT -m crannog.daemon --ready-fd N`, it leaves its process id behind.
HEAD = f"""#!{sys.executable}
import fcntl, os, socket, sys, time
assert sys.argv[1:4] == ["-m", "crannog.daemon", "--ready-fd"], sys.argv
home, ready = os.path.dirname(sys.argv[0]), int(sys.argv[4])
with open(home + "/pids", "a") as file:
    print(os.getpid(), file=file)
def fail(code, text=""):
    sys.stderr.write(text)
    sys.exit(code)
def serve(calls):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(home + "/run/crannogd.sock")
    listener.listen()
    listener.settimeout(60)
    os.write(ready, b"1")
    os.close(ready)
    for _ in range(calls):
        connection = listener.accept()[0]
        while connection.recv(65536):
            pass
        connection.sendall(b"0\\0served by " + str(os.getpid()).encode())
        connection.close()
"""
LOCKED = """
lock = os.open(home + "/run/crannogd.lock", os.O_RDWR | os.O_CREAT)
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    fail(11, "crannogd: crannogd runs already")
time.sleep(0.2)
serve(4)
"""
TOOL = """
import sys
sys.executable = sys.argv[1]
from crannog.client.connection import Client
print(Client().text("admin.vm.List"))
"""


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with short_folder() as folder:
        (folder / "run").mkdir()
        monkeypatch.setattr(sys, "executable", str(folder / "crannogd"))
        yield folder
        pids = folder / "pids"
        for pid in pids.read_text().split() if pids.exists() else ():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(int(pid), 0)


@pytest.fixture
def daemon(home: Path) -> Callable[[str], Client]:
    def install(body: str) -> Client:
        script = home / "crannogd"
        script.write_text(HEAD + body)
        script.chmod(0o700)
        return Client(Paths(str(home), str(home / "cache")))

    return install


def open_files() -> set[str]:
    found = set()
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the descriptor that listed the folder is closed by now
            found.add(os.readlink(f"/proc/self/fd/{descriptor}"))
    return found


def test_the_daemon_is_started_and_called(daemon: Callable[[str], Client]) -> None:
    client = daemon("serve(2)")
    before = open_files()
    first = client.text("admin.vm.List")
    assert first.startswith("served by ")
    assert client.text("admin.vm.List") == first
    assert open_files() == before


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("fail(9, 'crannogd: the store is broken; repair it')", "did not start: the store is broken; repair it;"),
        ("fail(1)", "did not start: it gave no reason;"),
        ("fail(0)", "did not start: it gave no reason;"),
        ("fail(1, f'crannogd: a fault; report {home}/log/crannogd.log')", "did not start: a fault; report /"),
        ("raise KeyError('odd')", "did not start: KeyError: 'odd';"),
        ("os.kill(os.getpid(), 9)", "did not start: it gave no reason;"),
        ("fail(9, 'x' * 60000)", "did not start: xxx"),
        ("sys.stderr.buffer.write(b'caf\\xe9'); fail(1)", "did not start: caf\ufffd;"),
        ("os.write(ready, b'0'); fail(9, 'no')", "did not start: no;"),
    ],
)
def test_a_daemon_that_dies_at_its_start_gives_its_reason(
    daemon: Callable[[str], Client], body: str, reason: str
) -> None:
    client = daemon(body)
    before = open_files()
    with pytest.raises(DaemonError) as caught:
        client.call("admin.vm.List")
    assert reason in str(caught.value)
    assert str(caught.value).count(client.paths.daemon_log) == 1
    assert open_files() == before


def test_a_daemon_that_takes_its_time_is_waited_for(
    daemon: Callable[[str], Client], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(spawn, "PATIENCE", 0.05)
    assert daemon("time.sleep(0.3); serve(1)").text("admin.vm.List").startswith("served by ")
    assert "crannogd starts" in capsys.readouterr().err


def test_a_daemon_that_never_gets_ready(daemon: Callable[[str], Client], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spawn, "PATIENCE", 0.05)
    monkeypatch.setattr(spawn, "READY_TIMEOUT", 0.05)
    client = daemon("time.sleep(0.6)")
    before = open_files()
    with pytest.raises(DaemonError, match="did not get ready"):
        client.call("admin.vm.List")
    assert open_files() == before


def test_a_daemon_that_another_tool_is_starting_is_waited_for(daemon: Callable[[str], Client]) -> None:
    client = daemon("fail(11, 'crannogd: crannogd runs already')")

    def serve_late() -> None:
        time.sleep(0.2)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(client.paths.daemon_socket)
            listener.listen()
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"0\0late")

    thread = threading.Thread(target=serve_late)
    thread.start()
    assert client.text("admin.vm.List") == "late"
    thread.join(10)


def test_a_lock_without_an_answer(daemon: Callable[[str], Client], monkeypatch: pytest.MonkeyPatch) -> None:
    client = daemon("fail(11)")
    monkeypatch.setattr(spawn, "READY_TIMEOUT", 0.3)
    with pytest.raises(DaemonError, match="does not answer"):
        client.call("admin.vm.List")


def test_tools_that_start_at_once_share_one_daemon(
    daemon: Callable[[str], Client], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = str(home / "crannogd")
    daemon(LOCKED)
    environment = {**os.environ, "CRANNOG_HOME": str(home)}
    monkeypatch.undo()
    command = [sys.executable, "-c", TOOL, script]
    tools = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    results = [(*tool.communicate(timeout=30), tool.returncode) for tool in tools]
    assert len(set(results)) == 1, results
    assert results[0][0].startswith("served by ")
    assert results[0][1:] == ("", 0)
