"""What programs that others wrote for qrexec count on, of crannog-qrexec-daemon and services of this host."""

import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crannog.rpc import qrexec_messages as qm
from crannog.rpc.qrexec_data import Pump
from crannog.rpc.qrexec_messages import MessageParser
from tests.unit.guest_peer import policy_stand_in
from tests.unit.qrexec_world import (
    CONNECT,
    DOMAIN,
    EXIT,
    NAME,
    REFUSED,
    SECONDS,
    STDERR,
    STDIN,
    STDOUT,
    TRIGGER2,
    TRIGGER3,
    TRIGGER4,
    Agent,
    Daemon,
    Peer,
    ask,
    client,
    daemon_and_agent,
    install,
    lend_folder,
    rest_of,
    wait_until,
)

IDENT = b"ab".ljust(32, b"\0")


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    yield from lend_folder()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Daemon, Agent]]:
    """Give a daemon whose policy allows what is not called "denied"."""
    (tmp_path / "home").mkdir()
    with (
        policy_stand_in(tmp_path / "home"),
        daemon_and_agent(tmp_path, f"--policy-socket={tmp_path}/home/run/policy.sock") as pair,
    ):
        yield pair


# -- what the guest asks for


def policy(folder: Path, script: str) -> str:
    install(folder, "policy", f'echo "$@" >> {folder}/asked\n{script}')
    return f"--policy-program={folder}/services/policy"


@pytest.mark.parametrize(
    ("service", "words"), [("a.B", "a.B"), ("a.B+x", "a.B+x"), ("a.B++", "a.B++"), ("a.B+x+", "a.B+x+")]
)
def test_what_the_policy_program_is_told(tmp_path: Path, service: str, words: str) -> None:
    """A service without argument is asked about without `+`."""
    with daemon_and_agent(tmp_path, policy(tmp_path, "exit 1")) as (_, agent):
        agent.peer.send(TRIGGER3, struct.pack("<64s32s", b"target_domain", IDENT) + service.encode() + b"\0")
        assert agent.peer.next() == (REFUSED, IDENT)
    assert (tmp_path / "asked").read_text() == f"-- {NAME} target_domain {words}\n"


NAMES = [b"\0", b"", b"\0a", b"\0+a", b"+", b"+a"]


@pytest.mark.parametrize("kind", [TRIGGER2, TRIGGER3, TRIGGER4])
def test_names_that_are_none_are_refused_and_nobody_is_asked(tmp_path: Path, kind: int) -> None:
    fields = {
        TRIGGER3: struct.pack("<64s32s", b"work", IDENT),
        TRIGGER4: struct.pack("<64s64s32s", b"", b"work", IDENT),
    }
    bodies = [struct.pack("<64s32s32s", name, b"work", IDENT) for name in NAMES]
    if kind != TRIGGER2:
        bodies = [fields[kind] + name for name in (b"a", b"a\0\0", b"a\0a\0", *(name + b"\0" for name in NAMES))]
    version = {TRIGGER2: 2, TRIGGER3: 3, TRIGGER4: 4}[kind]
    with daemon_and_agent(tmp_path, policy(tmp_path, "sleep 1"), version=version) as (_, agent):
        for body in bodies:
            agent.peer.send(kind, body)
            assert agent.peer.next() == (REFUSED, IDENT), body
    assert not (tmp_path / "asked").exists()


def test_a_request_without_a_name_ends_the_connection(tmp_path: Path) -> None:
    with daemon_and_agent(tmp_path, policy(tmp_path, "exit 0")) as (_, agent):
        agent.peer.send(TRIGGER3, struct.pack("<64s32s", b"work", IDENT))
        assert agent.peer.is_closed()
    assert not (tmp_path / "asked").exists()


def test_names_that_fill_their_fields(tmp_path: Path) -> None:
    """The last byte of a field is a NUL, whatever the guest has there."""
    with daemon_and_agent(tmp_path, policy(tmp_path, "exit 1"), version=2) as (_, agent):
        agent.peer.send(TRIGGER2, b"n" * 64 + b"t" * 32 + IDENT)
        assert agent.peer.next() == (REFUSED, IDENT)
    assert (tmp_path / "asked").read_text() == f"-- {NAME} {'t' * 31} {'n' * 63}\n"


def test_nobody_connects_a_call_that_was_not_asked_for(pair: tuple[Daemon, Agent]) -> None:
    daemon, agent = pair
    peer = client(daemon.path)
    peer.send(CONNECT, struct.pack("<II", DOMAIN + 1, 513) + b"SOCKET11\0")
    assert peer.is_closed()
    daemon.process.terminate()
    with pytest.raises(EOFError):
        agent.peer.next()


# -- services of the host


def begin(agent: Agent, service: str) -> Peer:
    agent.trigger(service)
    return agent.caller()


@pytest.mark.parametrize(("mode", "code"), [(None, 127), (0o644, 125)])
def test_a_service_that_is_allowed_and_cannot_be_run(pair: tuple[Daemon, Agent], mode: int | None, code: int) -> None:
    """It is connected all the same: 126 would say that the policy is against it."""
    daemon, agent = pair
    if mode is not None:
        install(daemon.folder, "test.Service", "echo never")
        (daemon.folder / "services" / "test.Service").chmod(mode)
    caller = begin(agent, "test.Service+arg")
    assert caller.outcome() == (b"", b"", code)
    caller.close()
    daemon.wait_for_no_calls()


def test_input_that_nobody_reads_any_more(pair: tuple[Daemon, Agent]) -> None:
    daemon, agent = pair
    install(daemon.folder, "test.Service", "read line; exec <&-; echo closed; sleep 0.2; exit 3")
    caller = begin(agent, "test.Service")
    caller.send(STDIN, b"one\n")
    assert caller.next() == (STDOUT, b"closed\n")
    caller.send(STDIN, b"two\n")
    caller.send(STDIN)
    assert caller.outcome() == (b"", b"", 3)


@pytest.fixture
def configure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Give what writes the configuration of a service. It has to be asked for before the daemon."""
    monkeypatch.setenv("QUBES_RPC_CONFIG_PATH", str(tmp_path / "config"))
    (tmp_path / "config").mkdir()

    def write(name: str, text: str) -> None:
        (tmp_path / "config" / name).write_text(text)

    return write


@pytest.mark.parametrize(
    "text",
    [
        "wait-for-session = 00\n",
        "wait-for-session = \n",
        'wait-for-session = "a"\n',
        "wait-for-session\n",
        "skip-service-descriptor = 1\n",
        "wait-for-session = 0\nwait-for-session = 0\n",
        "force-user = 'user'\nexit-on-client-eof = true\n",
        "force-user = user\n",
        "#" * 4097,
        "# \u00e9\n",
    ],
)
def test_a_configuration_that_is_wrong(
    configure: Callable[[str, str], None], pair: tuple[Daemon, Agent], text: str
) -> None:
    daemon, agent = pair
    install(daemon.folder, "test.Service", "echo never")
    configure("test.Service+arg", text)
    caller = begin(agent, "test.Service+arg")
    assert caller.outcome() == (b"", b"", 125)
    caller.close()
    wait_until(lambda: "test.Service" in daemon.log.read_text(), "it is said why")


def test_a_configuration_that_leads_nowhere(configure: Callable[[str, str], None], pair: tuple[Daemon, Agent]) -> None:
    daemon, agent = pair
    del configure
    install(daemon.folder, "test.Service", "echo never")
    (daemon.folder / "config" / "test.Service").symlink_to("/dev/null/nothing")
    assert begin(agent, "test.Service+arg").outcome() == (b"", b"", 125)


def test_a_service_waits_for_the_session(configure: Callable[[str, str], None], pair: tuple[Daemon, Agent]) -> None:
    daemon, agent = pair
    install(daemon.folder, "qubes.WaitForSession", f"sleep 0.2; echo $QREXEC_REMOTE_DOMAIN > {daemon.folder}/session")
    install(daemon.folder, "test.Service", f"cat {daemon.folder}/session; cat")
    configure("test.Service", "\n# of any argument\nwait-for-session=1 # here\nnew-option = 'x'\nforce-user = 'u'\n")
    caller = begin(agent, "test.Service+arg")
    caller.send(STDIN, b"input")
    caller.send(STDIN)
    assert caller.outcome() == (f"{NAME}\ninput".encode(), b"", 0)


class SocketService:
    """A service of the host behind a socket, after it was told who calls."""

    def __init__(
        self, pair: tuple[Daemon, Agent], head: bytes = f"test.Socket+arg {NAME} name dom0\0".encode()
    ) -> None:
        daemon, agent = pair
        path = daemon.folder / "services" / "test.Socket+arg"
        path.parent.mkdir()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(1)
            listener.settimeout(SECONDS)
            self.caller = begin(agent, "test.Socket+arg")
            self.peer = Peer(listener.accept()[0])
        assert self.peer.read(len(head)) == head
        assert self.caller.next() == (STDERR, b""), "it has none"

    def outcome(self) -> bytes:
        """Return what the caller still gets, up to the exit code, which is 0."""
        messages = rest_of(self.caller)
        assert messages[-1] == (EXIT, bytes(4))
        assert [message for message in messages[:-1] if not message[1]] == messages[-2:-1], "one end, and last"
        assert {kind for kind, _ in messages[:-1]} <= {STDOUT}
        return b"".join(body for _, body in messages[:-1])

    @property
    def socket(self) -> socket.socket:
        return self.peer.socket


@pytest.fixture
def service(pair: tuple[Daemon, Agent]) -> SocketService:
    return SocketService(pair)


def test_a_socket_that_is_closed_without_reading(service: SocketService) -> None:
    """What it said first arrives, although the input cannot be delivered any more."""
    service.caller.send(STDIN, b"unread")
    service.socket.sendall(b"said" * 50000)
    service.socket.close()
    service.caller.send(STDIN, b"late")
    service.caller.send(STDIN)
    assert service.outcome() == b"said" * 50000


def test_a_socket_that_takes_no_more_input(service: SocketService) -> None:
    service.caller.send(STDIN, b"one")
    assert service.peer.read(3) == b"one"
    service.socket.shutdown(socket.SHUT_RD)
    service.caller.send(STDIN, b"two")
    service.socket.sendall(b"answer")
    assert service.caller.next() == (STDOUT, b"answer")
    service.socket.shutdown(socket.SHUT_WR)
    assert service.outcome() == b""


def test_a_socket_that_says_nothing_more(service: SocketService) -> None:
    """The end of its output is passed on at once; input still gets there."""
    service.socket.sendall(b"answer")
    assert service.caller.next() == (STDOUT, b"answer")
    service.socket.shutdown(socket.SHUT_WR)
    assert service.caller.next() == (STDOUT, b"")
    service.caller.send(STDIN, b"one")
    assert service.peer.read(3) == b"one"
    service.socket.shutdown(socket.SHUT_RD)
    assert rest_of(service.caller) == [(EXIT, bytes(4))]


def test_a_socket_that_is_not_told_who_calls(configure: Callable[[str, str], None], pair: tuple[Daemon, Agent]) -> None:
    configure("test.Socket+arg", "skip-service-descriptor = true\n")
    service = SocketService(pair, b"")
    service.caller.send(STDIN, b"input")
    assert service.peer.read(5) == b"input"
    service.socket.close()
    assert service.outcome() == b""


@pytest.mark.parametrize("who", ["client", "service"])
def test_a_call_of_a_socket_that_one_end_is_enough_for(
    configure: Callable[[str, str], None], pair: tuple[Daemon, Agent], who: str
) -> None:
    configure("test.Socket", f"exit-on-{who}-eof = true\n")
    service = SocketService(pair)
    service.caller.send(STDIN, b"input")
    assert service.peer.read(5) == b"input"
    if who == "client":
        service.caller.send(STDIN)
    else:
        service.socket.shutdown(socket.SHUT_WR)
    assert service.outcome() == b""
    assert service.peer.is_closed()


def test_a_socket_that_nobody_listens_at(pair: tuple[Daemon, Agent]) -> None:
    daemon, agent = pair
    (daemon.folder / "services").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(daemon.folder / "services" / "test.Dead"))
    assert begin(agent, "test.Dead").outcome() == (b"", b"", 125)


# -- starting and ending


@pytest.mark.parametrize("letters", [True, False])
def test_time_is_up_in_the_foreground_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, letters: bool) -> None:
    monkeypatch.setenv("QREXEC_STARTUP_TIMEOUT", "1")
    daemon = Daemon(tmp_path, *(["-D", "-p", "/nowhere", "-u", "x"] if letters else []))
    assert daemon.process.wait(SECONDS) == 3
    assert "did not come within 1 s" in daemon.log.read_text()


def test_time_does_not_matter_once_the_agent_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QREXEC_STARTUP_TIMEOUT", "1")
    with daemon_and_agent(tmp_path) as (daemon, agent):
        agent.close()
        with pytest.raises(subprocess.TimeoutExpired):
            daemon.process.wait(1.3)


def test_it_tidies_up_whenever_it_is_told_to_end(tmp_path: Path) -> None:
    """Also when that is told twice, and just while the agent goes away."""
    for _ in range(8):
        agent = Agent(tmp_path)
        daemon = Daemon(tmp_path)
        agent.accept()
        wait_until(daemon.path.exists, "it listens")
        agent.close()
        daemon.process.terminate()
        daemon.close()


def test_it_can_be_ended_while_no_agent_is_there(tmp_path: Path) -> None:
    with daemon_and_agent(tmp_path) as (daemon, agent):
        agent.close()
        wait_until(lambda: not daemon.sockets(), "the sockets are gone")


def test_ports_of_calls_between_vms(pair: tuple[Daemon, Agent]) -> None:
    daemon, agent = pair
    assert ask(client(daemon.path), b"DEFAULT:x", domain=DOMAIN + 1) == (DOMAIN, 514)
    assert ask(client(daemon.path), b"DEFAULT:x", domain=DOMAIN + 2) == (DOMAIN, 516)
    agent.terminated(DOMAIN + 1, 514)
    wait_until(lambda: _port(daemon) == 514, "a freed port is used again")


def _port(daemon: Daemon) -> int:
    return ask(client(daemon.path), b"DEFAULT:x", domain=DOMAIN + 2)[1]


# -- a service that somebody else wrote


def test_what_a_service_says_after_its_exit_code_is_late(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(qm.encode_data(STDOUT, b"answer") + qm.encode_exit_code(3))
    theirs.sendall(qm.encode_data(STDOUT, b"late") + b"GET / HTTP/1.0\r\n")
    with theirs, (tmp_path / "output").open("wb") as output:
        parser = MessageParser(qm.FROM_SERVICE - {qm.HELLO})
        assert Pump(ours, parser, {STDOUT: output.fileno()}, {}).run() == 3
    assert (tmp_path / "output").read_bytes() == b"answer"
