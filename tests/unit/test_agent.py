"""The guest's agent by itself: finding its port, waiting for a host that is away, environments, accounts."""

import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog.guest import agent as agent_module
from crannog.guest.agent import Agent, Command, Parser, Port, find_port, find_user, make_environment
from crannog.rpc import frames

pytestmark = pytest.mark.timeout(120)


class StandInPort(Port):
    """A port on a pipe, whose host is away for a number of questions."""

    def __init__(self, away_count: int) -> None:
        super().__init__("", is_socket=False)
        self.away_count = away_count
        self.fd, self.host_fd = os.pipe()
        os.set_blocking(self.fd, False)

    def is_host_away(self) -> bool:
        self.away_count -= 1
        return self.away_count >= 0


@pytest.fixture
def port() -> Iterator[StandInPort]:
    port = StandInPort(3)
    yield port
    port.close()


@pytest.fixture
def agent(port: StandInPort) -> Iterator[Agent]:
    agent = Agent(port)
    yield agent
    agent.close()


def test_the_port_is_found_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        find_port(str(tmp_path))
    for device, name in (("vport1p1", "com.example.other.0"), ("vport2p1", "org.crannog.agent.0")):
        (tmp_path / device).mkdir()
        (tmp_path / device / "name").write_text(name + "\n", encoding="ascii")
    assert find_port(str(tmp_path)) == "/dev/vport2p1"


def test_the_agent_waits_for_an_absent_host_without_spinning(
    agent: Agent, port: StandInPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("crannog.guest.agent.time.sleep", pauses.append)
    agent.desync()
    old_nonce = agent.nonce
    os.close(port.host_fd)
    agent.read_port()
    assert pauses == [agent_module.AWAY_POLL] * 3
    assert agent.nonce != old_nonce
    assert agent.out.frames.startswith(frames.GUEST_PADDING)


def test_a_sync_for_an_older_request_is_not_taken() -> None:
    parser = Parser()
    old = frames.encode_marker(frames.Marker(b"S", b"old-one!", b"host-one"))
    new = frames.encode_marker(frames.Marker(b"S", b"new-one!", b"host-two"))
    parser.buffer += b"rubbish" + old + old[:20] + new + b"rest"
    assert parser.find_sync(b"new-one!") == b"host-two"
    assert parser.buffer == b"rest"


def test_a_hunting_agent_holds_no_rubbish() -> None:
    parser = Parser()
    for _ in range(20):
        parser.buffer += b"\xff" * 65536
        assert parser.find_sync(b"12345678") is None
    assert len(parser.buffer) < 100


def test_a_bad_frame_starts_a_new_synchronisation_and_ends_the_commands(agent: Agent, port: StandInPort) -> None:
    agent.desync()
    nonce = agent.nonce
    agent.receive(frames.encode_marker(frames.Marker(b"S", nonce, b"host-one")))
    agent.receive(frames.encode_frame(1, frames.EXEC_CMDLINE, b"DEFAULT:exec sleep 30\0"))
    assert list(agent.calls.by_stream) == [1]
    command = agent.calls.by_stream[1]
    assert isinstance(command, Command)
    pid = command.pid
    agent.receive(frames.PADDING)
    assert agent.nonce != nonce
    assert not agent.calls.by_stream
    assert os.waitpid(pid, 0)[1] != 0


def test_an_account_that_the_agent_cannot_become_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crannog.guest.agent.os.geteuid", lambda: 12345)
    with pytest.raises(LookupError, match="not root"):
        find_user(b"root")
    with pytest.raises(LookupError, match="no user"):
        find_user(b"\xff\xfe")


def test_the_environment_is_a_logins_and_nothing_else() -> None:
    user = pwd.struct_passwd(("ann", "x", 1000, 1000, "", "/home/ann", ""))
    environment = make_environment(user)
    environment.pop("LANG", None)
    assert environment == {
        "HOME": "/home/ann",
        "USER": "ann",
        "LOGNAME": "ann",
        "SHELL": "/bin/sh",
        "PATH": "/usr/local/bin:/usr/bin:/bin",
    }


def test_a_fork_that_fails_leaves_no_pipes_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise BlockingIOError("no more processes")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr("crannog.guest.agent.os.fork", fail)
    with pytest.raises(BlockingIOError):
        Command(1, pwd.getpwuid(os.geteuid()), [b"true"])
    assert len(os.listdir("/proc/self/fd")) == before


def test_wrong_arguments_are_a_usage_error() -> None:
    child = subprocess.run(
        [sys.executable, "-I", agent_module.__file__, "--nonsense"],
        stderr=subprocess.PIPE,
        check=False,
        timeout=20,
    )
    assert child.returncode == 2
    assert b"usage: agent.py" in child.stderr


def test_a_hang_up_on_the_port_is_seen() -> None:
    ours, theirs = os.pipe()
    port = Port("", is_socket=False)
    port.fd = ours
    assert not port.is_host_away()
    os.close(theirs)
    assert port.is_host_away()
    port.close()
    assert port.fd == -1


def test_the_agent_needs_only_what_a_minimal_python_has() -> None:
    program = (
        "import sys; before = set(sys.modules); sys.path.insert(0, sys.argv[1]); import agent; "
        "print(*sorted(set(sys.modules) - before))"
    )
    folder = os.path.dirname(agent_module.__file__)
    child = subprocess.run(
        [sys.executable, "-I", "-c", program, folder], stdout=subprocess.PIPE, check=True, timeout=20
    )
    heavy = {
        "subprocess",
        "socket",
        "threading",
        "logging",
        "asyncio",
        "random",
        "json",
        "typing",
        "argparse",
    }
    assert not heavy & set(child.stdout.decode().split())
