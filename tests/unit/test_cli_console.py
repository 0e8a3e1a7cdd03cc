"""qvm-console on real pseudo terminals: one stands for the VM's console, one for the user's terminal."""

import os
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crannog.errors import VMNotRunningError
from tests.unit.cli_world import FakeDaemon, serving

CODE = "from crannog.cli.qvm_console import main; main()"
PATIENCE = 60
STARTED: list[subprocess.Popen[bytes]] = []


@pytest.fixture(autouse=True)
def nobody_stays() -> Iterator[None]:
    yield
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.wait()
        for file in (process.stdout, process.stderr):
            if file:
                file.close()


class Pty:
    """A pair of terminals. The one that `path` names echoes and keeps lines back, until who is tested forbids it."""

    def __init__(self) -> None:
        self.master, self.slave = os.openpty()
        self.path = os.ttyname(self.slave)

    def read(self, count: int) -> bytes:
        """Return `count` bytes of what the other side wrote, or less when there is no more."""
        data = b""
        while len(data) < count and select.select([self.master], [], [], PATIENCE)[0]:
            data += os.read(self.master, count - len(data))
        return data

    def read_until(self, end: bytes) -> bytes:
        data = b""
        while not data.endswith(end) and select.select([self.master], [], [], PATIENCE)[0]:
            data += os.read(self.master, 1)
        return data

    def is_silent(self) -> bool:
        return not select.select([self.master], [], [], 0.2)[0]

    def hang_up(self) -> None:
        os.close(self.master)
        self.master = -1

    def close(self) -> None:
        os.close(self.slave)
        if self.master >= 0:
            self.hang_up()

    def write_until_read(self, process: subprocess.Popen[bytes]) -> None:
        """Write `x` again and again until the process shows it: what is written before it listens may be lost."""
        assert process.stdout
        while not select.select([process.stdout], [], [], 0.05)[0]:
            self.write(b"x")
        assert process.stdout.read(1) == b"x"

    def write(self, data: bytes) -> None:
        os.write(self.master, data)


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    with serving(monkeypatch) as daemon:
        yield daemon


@pytest.fixture
def console(daemon: FakeDaemon) -> Iterator[Pty]:
    pty = Pty()
    daemon.answers["admin.vm.Console"] = pty.path
    yield pty
    pty.close()


class Session:
    """A user at a terminal who runs qvm-console."""

    def __init__(self, home: str) -> None:
        self.pty = Pty()
        self.before = termios.tcgetattr(self.pty.slave)
        self.process = start(home, self.pty.slave, self.pty.slave, self.pty.slave)

    def attributes(self) -> list[Any]:
        return termios.tcgetattr(self.pty.slave)


def start(home: str, stdin: int, stdout: int, stderr: int) -> subprocess.Popen[bytes]:
    env = {**os.environ, "CRANNOG_HOME": home}
    command = [sys.executable, "-c", CODE, "work"]
    process = subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=stderr, env=env)
    STARTED.append(process)
    return process


@pytest.fixture
def session(daemon: FakeDaemon, console: Pty) -> Iterator[Session]:
    session = Session(daemon.paths.home)
    assert session.pty.read_until(b"\n") == b"qvm-console: this is the console of work; Ctrl-] ends\r\n"
    # What the VM sends now is seen when the terminal is as the console needs it.
    console.write(b"login: ")
    assert session.pty.read_until(b"login: ") == b"login: "
    yield session
    session.pty.close()


def test_each_byte_goes_both_ways_as_it_is(session: Session, console: Pty) -> None:
    keys = b"ls\r\x03\x04\x1a\x7f\x00\xff\x1b[A\n"
    session.pty.write(keys)
    assert console.read(len(keys)) == keys
    assert console.is_silent()
    assert session.pty.is_silent()  # the echo is the VM's business
    shown = b"a\nb\r\n\x1b[31m\x00\xff\x11\x13" * 50
    console.write(shown)
    assert session.pty.read(len(shown)) == shown


def test_ctrl_bracket_ends_and_the_terminal_is_as_before(session: Session, console: Pty) -> None:
    session.pty.write(b"last\x1dnever")
    assert console.read(4) == b"last"
    assert session.process.wait(PATIENCE) == 0
    assert console.is_silent()
    assert session.pty.read_until(b"work\r\n") == b"\r\nqvm-console: left the console of work\r\n"
    assert session.attributes()[:6] == session.before[:6]


def test_the_end_of_the_vm_is_told(session: Session, console: Pty) -> None:
    console.hang_up()
    assert session.process.wait(PATIENCE) == 0
    assert b"work closed its console" in session.pty.read_until(b"console\r\n")
    assert session.attributes()[:6] == session.before[:6]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_restore_the_terminal(number: signal.Signals, session: Session) -> None:
    assert session.attributes() != session.before
    session.process.send_signal(number)
    assert session.process.wait(PATIENCE) == 130
    assert session.attributes()[:6] == session.before[:6]


def test_who_types_to_a_vm_that_never_reads_can_still_leave(session: Session) -> None:
    for _ in range(50):
        session.pty.write(b"x" * 2000)
    session.pty.write(b"\x1d")
    assert session.process.wait(PATIENCE) == 0


def test_only_one_uses_a_console(session: Session, daemon: FakeDaemon, console: Pty) -> None:
    def second() -> tuple[int, bytes]:
        with subprocess.Popen(
            [sys.executable, "-c", CODE, "work"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            if session.process.poll() is not None:
                console.write_until_read(process)
                process.terminate()
            err = process.communicate(timeout=PATIENCE)[1]
        return process.returncode, err

    assert second() == (
        200, b"qvm-console: the console of work is in use by another qvm-console; end that one first\n",
    )  # fmt: skip
    # The lock goes with its process, however that ends.
    session.process.kill()
    session.process.wait()
    assert second() == (130, b"")
    assert os.path.exists(f"{daemon.paths.run}/console-work.lock")


def test_a_pipe_is_passed_on_and_its_end_is_not_the_end(daemon: FakeDaemon, console: Pty) -> None:
    read_end, write_end = os.pipe()
    process = start(daemon.paths.home, read_end, subprocess.PIPE, subprocess.PIPE)
    os.close(read_end)
    os.write(write_end, b"uname\r\x1d\r")
    assert console.read(8) == b"uname\r\x1d\r"  # Ctrl-] is for terminals
    os.close(write_end)
    console.write(b"Linux\r\n")
    assert process.stdout
    assert process.stdout.read(7) == b"Linux\r\n"
    time.sleep(0.2)
    assert process.poll() is None
    console.hang_up()
    _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (0, b"qvm-console: work closed its console\n")


def test_much_input_waits_for_the_vm(daemon: FakeDaemon, console: Pty, tmp_path: Path) -> None:
    content = bytes(range(256)) * 1000
    (tmp_path / "input").write_bytes(content)
    with open(tmp_path / "input", "rb") as file:
        process = start(daemon.paths.home, file.fileno(), subprocess.DEVNULL, subprocess.DEVNULL)
    assert console.read(len(content)) == content
    process.terminate()
    assert process.wait(PATIENCE) == 130


def test_a_reader_that_goes_away(daemon: FakeDaemon, console: Pty) -> None:
    process = start(daemon.paths.home, subprocess.DEVNULL, subprocess.PIPE, subprocess.PIPE)
    console.write_until_read(process)
    assert process.stdout
    process.stdout.close()
    console.write(b"x")
    assert process.wait(PATIENCE) == 141
    assert process.stderr
    assert process.stderr.read() == b""
    process.stderr.close()


def test_consoles_that_cannot_be_had(daemon: FakeDaemon) -> None:
    def sentence(code: int, vm: str = "work") -> str:
        done = subprocess.run(
            [sys.executable, "-c", CODE, vm],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
        assert (done.returncode, done.stdout) == (code, b"")
        return done.stderr.decode()

    daemon.answers["admin.vm.Console"] = VMNotRunningError("work is Halted")
    assert sentence(5) == "qvm-console: work is Halted\n"
    daemon.answers["admin.vm.Console"] = "/nope/pts"
    assert sentence(10) == "qvm-console: the console of work cannot be opened: /nope/pts: No such file or directory\n"
    daemon.answers["admin.vm.Console"] = "/dev/null"
    assert sentence(0) == "qvm-console: work closed its console\n"
    os.unlink(f"{daemon.paths.run}/console-work.lock")
    os.mkdir(f"{daemon.paths.run}/console-work.lock")
    assert "cannot be locked" in sentence(11)
    assert "dom0 is this host itself" in sentence(2, "dom0")
