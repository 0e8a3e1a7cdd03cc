"""A VM is prepared for its first command: through the daemon's link, its RPC process and the real agent."""

import asyncio
import os
import pwd
from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog.config import Paths
from crannog.rpc import exercise
from crannog.rpc.agents import VMProcesses
from tests.fakes import short_folder
from tests.unit.agent_world import find_shells
from tests.unit.rpc_world import World, wait_until

UUID = "99999999-2222-3333-4444-555555555555"
ME = pwd.getpwuid(os.geteuid()).pw_name
USER = "nobody" if ME == "root" else ME
"""Not root: the exercise itself is a command of root's."""
pytestmark = pytest.mark.timeout(60)


class ReadyWorld(World):
    """Everything of one VM, in a home where the daemon finds it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.paths = Paths(str(folder / "home"), str(folder / "cache"))
        self.services = str(folder / "services")
        for path in (self.paths.run, self.paths.logs, self.services):
            os.makedirs(path)
        os.environ["QREXEC_SERVICE_PATH"] = self.services  # the agent's; the fixture puts it back
        self.rpc_socket = self.paths.rpc_socket("vm1")
        self.start_all()
        self.agent = self.children[-1]

    def shells(self) -> list[int]:
        """Return the agent's children that wait for a command."""
        return find_shells(self.agent.pid)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[ReadyWorld]:
    monkeypatch.setenv("QREXEC_SERVICE_PATH", "")
    with short_folder() as folder:
        world = ReadyWorld(folder)
        yield world
        world.close()


async def test_the_next_command_has_its_shell_already(world: ReadyWorld) -> None:
    processes = VMProcesses(world.paths)
    await processes.adopt(UUID, "vm1", USER)
    await processes.exercise(UUID)
    await asyncio.to_thread(wait_until, lambda: len(world.shells()) == 1)
    await processes.exercise("nobody")  # a VM without a process
    await processes.close()
    (shell,) = world.shells()
    assert world.run("echo $$", user=USER)[1] == f"{shell}\n".encode()
    assert world.run("echo here", user=USER)[1] == b"here\n"
    assert world.shells() == []


async def test_windows_are_there_before_it_is_ready(world: ReadyWorld) -> None:
    service = Path(world.services, "qubes.WaitForSession")
    service.write_text(f"#!/bin/sh\nread -r user; sleep 0.3; echo $user >{world.folder}/waited\n")
    service.chmod(0o755)
    await exercise.exercise(world.paths.rpc_socket("vm1"), USER)
    assert Path(world.folder, "waited").read_text() == f"{USER}\n"
    service.write_text("#!/bin/sh\nexit 1\n")
    await exercise.exercise(world.paths.rpc_socket("vm1"), USER)  # none came: it is used without


async def test_a_guest_that_does_not_answer_is_given_up(world: ReadyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exercise, "COMMAND_TIMEOUT", 0.5)
    processes = VMProcesses(world.paths)
    await processes.adopt(UUID, "vm1", ME)
    world.agent.kill()
    await asyncio.wait_for(processes.exercise(UUID), 30)
    await processes.close()


async def test_a_clock_that_is_told_is_told_once(world: ReadyWorld) -> None:
    """An agent that comes later must not set its clock back; what is told here is no time, so that ours stays."""
    processes = VMProcesses(world.paths)
    await processes.adopt(UUID, "vm1", "")
    processes.set_clock(UUID, "no time")  # type: ignore[arg-type]
    processes.set_clock("nobody", 1)
    await processes.read_entries(UUID, "/")
    assert not [path for path in await processes.read_entries(UUID, "/") if "clock" in path]
    await processes.close()
    await asyncio.to_thread(wait_until, lambda: b"the clock cannot be set" in world.log.read_bytes())
