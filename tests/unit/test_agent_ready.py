"""A shell that is ready before its command is known: a command in it ends as any other, and nobody else gets it."""

import os
import pwd
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog.guest import agent as agent_module
from crannog.rpc import frames
from tests.processes import is_alive, list_children, read_name, state_of
from tests.unit.agent_world import AgentWorld, find_shells
from tests.unit.rpc_world import wait_until

pytestmark = pytest.mark.timeout(60)

ME = pwd.getpwuid(os.geteuid())


class ReadyWorld(AgentWorld):
    """An agent, and the shells that it has ready."""

    def shells(self) -> list[int]:
        """Return the children of the agent that wait for a command."""
        return find_shells(self.agent.pid)

    def prepare(self, user: str = ME.pw_name) -> int:
        """Have a shell ready; return its process number."""
        before = self.shells()
        self.send(0, frames.GUESTDB_WRITE, b"/crannog-ready\0" + user.encode())
        wait_until(lambda: len(self.shells()) == 1 and self.shells() != before)
        return self.shells()[0]

    def is_used(self, command: str = "echo $$") -> bool:
        (shell,) = self.shells()
        code, output, _ = self.run(f"{ME.pw_name}:{command}")
        assert code == 0
        return output == b"%d\n" % shell


def children_called(pid: int, name: str) -> list[int]:
    """Return the children of a process that run the program of this name (proc(5), children and comm).

    What /etc/profile runs comes and goes meanwhile.
    """
    return [child for child in list_children(pid) if read_name(child) == name]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[ReadyWorld]:
    world = ReadyWorld(tmp_path)
    yield world
    world.close()


def test_it_runs_one_command(world: ReadyWorld) -> None:
    world.prepare()
    assert world.is_used()
    assert world.shells() == []
    assert world.run(f"{ME.pw_name}:echo again")[1] == b"again\n"


@pytest.mark.parametrize(
    ("command", "code", "output"),
    [
        ("exit 7", 7, b""),
        ("cat; echo end", 0, b"inputend\n"),
        ("false", 1, b""),
        ("kill -KILL $$", 137, b""),
        ("exec sh -c 'exit 4'", 4, b""),
        ("echo a\necho b; (exit 3)", 3, b"a\nb\n"),
        ("ls /proc/self/fd | tr -d '\\n'", 0, b"0123"),
        ("for a in 1 2; do\n  echo $a\ndone", 0, b"1\n2\n"),
        ("# nothing", 0, b""),
        ('echo \'"quoted"\' "$HOME"', 0, f'"quoted" {ME.pw_dir}\n'.encode()),
        ("if", 2, b""),
    ],
)
def test_what_it_runs_ends_as_in_another_shell(world: ReadyWorld, command: str, code: int, output: bytes) -> None:
    expected = world.run(f"{ME.pw_name}:{command}", b"input")
    assert expected[:2] == (code, output)
    world.prepare()
    found = world.run(f"{ME.pw_name}:{command}", b"input")
    assert found[:2] == (code, output)
    assert bool(found[2]) is bool(expected[2])
    assert world.shells() == []


def test_a_long_command(world: ReadyWorld) -> None:
    world.prepare()
    text = "x" * 60000
    assert world.run(f"{ME.pw_name}:printf %s {text}")[1] == text.encode()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's agent serves several users")
def test_it_is_for_its_user_alone(world: ReadyWorld) -> None:
    shell = world.prepare()
    assert world.run("nobody:id -un")[1] == b"nobody\n"
    assert world.shells() == [shell]
    assert world.is_used()


def test_services_do_not_use_it(world: ReadyWorld) -> None:
    world.write_service("test.Service", "#!/bin/sh\necho $QREXEC_REMOTE_DOMAIN\n")
    shell = world.prepare()
    assert world.run(f"{ME.pw_name}:QUBESRPC test.Service+ dom0")[1] == b"dom0\n"
    assert world.shells() == [shell]


def test_a_session_that_has_begun_since_makes_it_useless(world: ReadyWorld) -> None:
    world.prepare()
    (world.folder / "sessions" / f"environment.{ME.pw_name}").write_text("DISPLAY=:7\n")
    assert world.run(f"{ME.pw_name}:echo $DISPLAY")[1] == b":7\n"


def test_one_that_dies_is_no_loss(world: ReadyWorld) -> None:
    shell = world.prepare()
    os.kill(shell, 9)
    wait_until(lambda: not is_alive(shell))
    assert world.run(f"{ME.pw_name}:echo here")[1] == b"here\n"


def test_what_its_profiles_have_started_is_given_no_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".profile").write_text("sleep 100\n")
    monkeypatch.setattr(agent_module, "make_environment", lambda _user: {"HOME": str(tmp_path), "PATH": "/bin"})
    calls = agent_module.Calls(lambda _stream, _kind, _body: None)
    calls.prepare(ME.pw_name.encode())
    assert calls.ready
    shell = calls.ready.pid
    wait_until(lambda: bool(children_called(shell, "sleep")))
    (sleeper,) = children_called(shell, "sleep")
    os.kill(shell, 9)
    try:
        wait_until(lambda: state_of(shell) == "Z")
        assert calls.take_ready(1, f"{ME.pw_name}:echo lost".encode()) is None
    finally:
        os.kill(sleeper, 9)
        calls.drop_ready()
        os.waitpid(shell, 0)


def test_it_goes_when_the_host_does(world: ReadyWorld) -> None:
    world.prepare()
    world.port.close()
    wait_until(lambda: world.shells() == [])


def test_there_is_one_at_most(world: ReadyWorld) -> None:
    first = world.prepare()
    assert world.prepare() != first
    assert len(world.shells()) == 1


def test_a_user_that_is_not_there(world: ReadyWorld) -> None:
    world.send(0, frames.GUESTDB_WRITE, b"/crannog-ready\0nobody-here")
    assert world.run(f"{ME.pw_name}:echo here")[1] == b"here\n"
    assert world.shells() == []
    assert not list((world.folder / "database").glob("*ready*"))


def test_the_clock_is_set_and_kept_nowhere(world: ReadyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: list[int] = []
    monkeypatch.setattr(time, "clock_settime_ns", lambda _clock, moment: set_to.append(moment))
    agent_module.set_clock(b"1700000000123456789")
    for nonsense in (b"", b"x", b"1e9"):
        agent_module.set_clock(nonsense)
    assert set_to == [1700000000123456789]
    world.send(0, frames.GUESTDB_WRITE, b"/crannog-clock\0nonsense")
    assert world.run(f"{ME.pw_name}:echo here")[1] == b"here\n"
    assert not list((world.folder / "database").glob("*clock*"))
