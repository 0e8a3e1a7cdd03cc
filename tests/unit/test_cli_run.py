"""qvm-run: where it runs what, and that no guest controls the user's terminal."""

import os
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crannog.cli import qvm_run
from crannog.cli.terminal import KEPT, Filters, Harmless
from crannog.client.rpc import DATA_EXIT_CODE, DATA_STDERR, DATA_STDOUT, EXEC_CMDLINE, HELLO, STATUS_FOLLOW
from crannog.errors import VMNotFoundError
from tests.unit.cli_world import FakeDaemon, Tool, listing, serving

CODE = "from crannog.cli.qvm_run import main; main()"
EVIL = b"a\x1b]0;x\x07\x1b[6n\x9b\x00b\tc\r\n\xc3\xa9\xc2\x9b\xe2\x80\xae\xff\n"
HARMLESS = "a_]0;x__[6n\ufffd_b\tc\r\né__\ufffd\n"
PATIENCE = 60


@dataclass
class FakeRpc:
    """An RPC process: it answers every command with the same output and exit code."""

    path: str
    output: list[tuple[int, bytes]] = field(default_factory=list)
    code: int = 0
    is_silent: bool = False
    status: bytes = b'{"agent": "ready", "announced": null}\n'
    commands: list[str] = field(default_factory=list)
    before_end: Callable[[], object] = bool
    """Called before the exit code is sent."""

    def __post_init__(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection:
                try:
                    self._call(connection)
                except StopIteration:
                    return
                except (OSError, struct.error):
                    continue  # it only wanted to know whether somebody is here

    def _call(self, connection: socket.socket) -> None:
        connection.sendall(struct.pack("<III", HELLO, 4, 3))
        file = connection.makefile("rb")
        while True:
            kind, length = struct.unpack("<II", file.read(8))
            body = file.read(length)
            if kind == STATUS_FOLLOW:
                connection.sendall(struct.pack("<II", kind, len(self.status)) + self.status)
                return
            if kind == EXEC_CMDLINE:
                break
            if kind == 0:
                raise StopIteration
        self.commands.append(body[8:-1].decode())
        for stream, data in self.output:
            connection.sendall(struct.pack("<II", stream, len(data)) + data)
        if self.is_silent:
            file.read()  # until the caller is gone
        self.before_end()
        connection.sendall(struct.pack("<III", DATA_EXIT_CODE, 4, self.code))

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(self.path)
            last.sendall(struct.pack("<II", 0, 0))
            self._thread.join(10)
        self._listener.close()


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    with serving(monkeypatch) as daemon:
        yield daemon


@pytest.fixture
def rpc(daemon: FakeDaemon) -> Iterator[FakeRpc]:
    rpc = FakeRpc(daemon.paths.rpc_socket("work"), [(DATA_STDOUT, EVIL)])
    yield rpc
    rpc.close()


@pytest.fixture
def tool(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> Tool:
    del daemon
    return Tool(qvm_run.COMMAND, qvm_run._run, capsys)


def call(*words: str) -> tuple[int, bytes, bytes]:
    """Run the tool with pipes; return its code, output and errors."""
    command = [sys.executable, "-c", CODE, *words]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=False)
    return done.returncode, done.stdout, done.stderr


def call_on_terminal(*words: str, interrupt: bool = False) -> tuple[int, bytes]:
    """Run the tool on a terminal that changes nothing; return its code and what is shown."""
    master, slave = os.openpty()
    attributes = termios.tcgetattr(slave)
    attributes[1] &= ~termios.OPOST
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, *words], stdin=subprocess.DEVNULL, stdout=slave, stderr=slave
    )
    os.close(slave)
    shown = b""
    try:
        while select.select([master], [], [], PATIENCE)[0] and (data := os.read(master, 4096)):
            shown += data
            if interrupt:
                process.send_signal(signal.SIGINT)
    except OSError:
        pass  # nobody writes any more
    os.close(master)
    return process.wait(PATIENCE), shown


@pytest.fixture
def disposable(daemon: FakeDaemon) -> Iterator[FakeRpc]:
    """Have the daemon make a disposable `work`, which runs."""
    daemon.answers["admin.vm.CreateDisposable"] = "work"
    rpc = FakeRpc(daemon.paths.rpc_socket("work"), [(DATA_STDOUT, b"said")], code=5, before_end=daemon.settle)
    yield rpc
    rpc.close()


@pytest.mark.parametrize(
    ("words", "template", "command"),
    [
        (("--dispvm", "id"), "dom0", "DEFAULT:id"),
        (("--dispvm", "--", "id", "-u"), "dom0", "DEFAULT:id -u"),
        (("--dispvm=base", "id", "-u"), "base", "DEFAULT:id -u"),
        (("-u", "root", "--dispvm=base", "--", "ls", "--dispvm"), "base", "root:ls --dispvm"),
        (("--dispvm", "--service", "qubes.VMShell"), "dom0", "DEFAULT:QUBESRPC qubes.VMShell+ dom0"),
    ],
)
def test_a_command_in_a_disposable(
    daemon: FakeDaemon, disposable: FakeRpc, words: tuple[str, ...], template: str, command: str
) -> None:
    """Its exit code comes, and the lease is let go of; nobody is asked to end it."""
    assert call(*words) == (5, b"said", b"")
    assert disposable.commands == [command]
    assert daemon.heard[:2] == [f"admin.vm.CreateDisposable {template}", "crannog.vm.Lease work"]


def test_a_daemon_that_does_not_know_the_lease_is_told_to_end_it(daemon: FakeDaemon, disposable: FakeRpc) -> None:
    """The stand-in answers a lease at once, and closes: as a daemon that goes does."""
    assert call("--dispvm", "id")[0] == 5
    assert daemon.heard[2:] == ["admin.vm.Kill work"]
    daemon.answers["admin.vm.Kill"] = VMNotFoundError("there is no VM 'work'")
    assert call("--dispvm", "id")[0] == 5
    assert daemon.heard[-2:] == ["admin.vm.Kill work", "admin.vm.Remove work"]


def test_input_of_a_terminal_is_for_our_agent_alone(rpc: FakeRpc) -> None:
    master, slave = os.openpty()
    told = []
    for status in ("ready", "fallback"):
        rpc.status = b'{"agent": "%s"}\n' % status.encode()
        for words in (["work", "id"], ["--quiet", "work", "id"]):
            command = [sys.executable, "-c", CODE, *words]
            done = subprocess.run(command, stdin=slave, capture_output=True, timeout=PATIENCE, check=False)
            told.append((done.returncode, done.stderr))
    os.close(master)
    os.close(slave)
    note = b"qvm-run: work has QEMU's guest agent alone: the command gets no input from this terminal\n"
    assert told == [(0, b""), (0, b""), (0, note), (0, b"")]
    assert rpc.commands == ["DEFAULT:id"] * 4


def test_a_pipe_gets_every_byte(rpc: FakeRpc) -> None:
    rpc.output.append((DATA_STDERR, EVIL))
    rpc.code = 7
    assert call("work", "cat", "-v") == (7, EVIL, EVIL)
    assert rpc.commands == ["DEFAULT:cat -v"]
    assert call("--no-filter-escape-chars", "-q", "-p", "-a", "--no-gui", "-u", "root", "work", "id")[1] == EVIL
    assert rpc.commands[1:] == ["root:id"]


def test_a_terminal_gets_nothing_that_it_would_obey(rpc: FakeRpc) -> None:
    rpc.code = 3
    red = f"\x1b[31m{HARMLESS}\x1b[0m".encode()
    assert call_on_terminal("work", "true") == (3, red)
    assert call_on_terminal("--no-color-output", "work", "true") == (3, HARMLESS.encode())
    assert call_on_terminal("--colour-output", "1;32", "work", "true")[1] == red.replace(b"31", b"1;32")
    assert call_on_terminal("--no-filter-escape-chars", "work", "true") == (3, EVIL)


def test_error_output_is_filtered_as_well(rpc: FakeRpc) -> None:
    rpc.output = [(DATA_STDERR, EVIL)]
    assert call_on_terminal("--color-stderr=33", "work", "true")[1] == f"\x1b[33m{HARMLESS}\x1b[0m".encode()
    assert call_on_terminal("--no-colour-stderr", "work", "true")[1] == HARMLESS.encode()


def test_filtering_can_be_asked_for_without_colour_in_files(rpc: FakeRpc) -> None:
    assert call("--filter-escape-chars", "--color-output", "31", "work", "true") == (0, HARMLESS.encode(), b"")
    rpc.output = [(DATA_STDOUT, bytes([byte])) for byte in "né\u20ac".encode()] + [(DATA_STDOUT, b"\xe2\x82")]
    assert call("--filter-escape-chars", "work", "true")[1] == "né\u20ac\ufffd".encode()


def test_much_output_arrives_before_the_tool_ends(rpc: FakeRpc) -> None:
    rpc.output = [(DATA_STDOUT, b"x" * 60000)] * 20
    assert call("--filter-escape-chars", "work", "true") == (0, b"x" * 1200000, b"")


def test_ctrl_c_leaves_what_was_shown_and_no_process(rpc: FakeRpc) -> None:
    rpc.output, rpc.is_silent = [(DATA_STDOUT, b"hello")], True
    assert call_on_terminal("work", "sleep 9", interrupt=True) == (130, b"\x1b[31mhello\x1b[0m")


def test_a_reader_that_goes_away_ends_the_command(rpc: FakeRpc) -> None:
    rpc.output = [(DATA_STDOUT, b"x" * 60000)] * 50
    command = [sys.executable, "-c", CODE, "--filter-escape-chars", "work", "yes"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(PATIENCE) == 141


@given(st.lists(st.binary(max_size=12), max_size=6))
def test_no_bytes_in_no_pieces_make_a_control_character(pieces: list[bytes]) -> None:
    harmless = Harmless()
    shown = b"".join(map(harmless.feed, pieces)) + harmless.feed(b"", is_last=True)
    assert all(char.isprintable() or char in KEPT for char in shown.decode())
    assert len(shown.decode()) == len(b"".join(pieces).decode("utf-8", "replace"))


def test_filters_end_with_their_context() -> None:
    source, sink = os.pipe()
    with Filters() as filters:
        inputs = [filters.open(sink, ""), filters.open(sink, "")]
        for file in inputs:
            os.write(file, b"a\x00")
    os.close(sink)
    assert os.read(source, 100) == b"a_a_"
    assert os.read(source, 100) == b""
    os.close(source)


def test_all_that_run_are_visited_without_input(daemon: FakeDaemon, rpc: FakeRpc) -> None:
    rpc.output, rpc.code = [(DATA_STDOUT, b"here\n")], 5
    daemon.answers["admin.vm.List"] = listing(
        "dom0 AdminVM Running", "gone AppVM Running", "held AppVM Paused", "off AppVM Halted", "work AppVM Running"
    )
    sentence = b"qvm-run: gone: it has no agent that could run the command\n"
    assert call("--all", "echo", "here") == (125, b"here\n", sentence)
    assert daemon.heard == ["admin.vm.List dom0"]
    assert rpc.commands == ["DEFAULT:echo here"]
    assert call("--all", "--exclude", "gone", "uptime")[0] == 5
    assert rpc.commands[1:] == ["DEFAULT:uptime"]


def test_a_service_instead_of_a_command(rpc: FakeRpc) -> None:
    assert call("--service", "work", "qubes.VMExec+id")[0] == 0
    assert call("--service", "--user", "root", "work", "test.Plain")[0] == 0
    assert rpc.commands == ["DEFAULT:QUBESRPC qubes.VMExec+id dom0", "root:QUBESRPC test.Plain+ dom0"]


def test_a_halted_vm_is_started_or_not(daemon: FakeDaemon, tool: Tool) -> None:
    daemon.answers["admin.vm.CurrentState"] = "mem=0 power_state=Halted"
    assert "work is Halted and has no agent" in tool.fails(2, "--no-auto", "work", "true")
    daemon.answers["crannog.vm.Start"] = VMNotFoundError("there is no VM 'work'")
    assert tool.fails(3, "work", "true") == "there is no VM 'work'"
    assert daemon.heard == ["admin.vm.CurrentState work", "crannog.vm.Start+wait work"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("work", "there is no command"),
        ("dom0 true", "dom0 is this host itself"),
        ("--dispvm --all true", "--dispvm and --all exclude each other"),
        ("--dispvm=base --no-auto true", "--dispvm and --no-autostart exclude each other"),
        ("--dispvm --service two words", "'two words' is no service"),
        ("-a -n work true", "--autostart and --no-autostart exclude each other"),
        ("--filter-escape-chars --no-filter-escape-chars work true", "exclude each other"),
        ("--exclude work work true", "--exclude leaves VMs out of --all"),
        ("--color-output red work true", "--color-output takes the number of an ANSI colour, as 31, not 'red'"),
        ("--color-stderr 31m\x07 work true", "takes the number"),
        ("--color-output ;; work true", "takes the number"),
        ("--service work two words", "'two words' is no service"),
        ("--service work +x", "'+x' is no service"),
        ("--service work a;b", "'a;b' is no service"),
    ],
)
def test_wrong_uses(words: str, sentence: str, tool: Tool, daemon: FakeDaemon) -> None:
    assert sentence in tool.fails(2, *words.split(" "))
    assert daemon.asked == []


def test_a_slip_in_exclude_runs_nothing(daemon: FakeDaemon, tool: Tool) -> None:
    daemon.answers["admin.vm.List"] = listing("work AppVM Running")
    assert "there is no VM 'wrok' to exclude" in tool.fails(3, "--all", "--exclude", "wrok", "reboot")
