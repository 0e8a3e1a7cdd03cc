"""A guest that is saved and restored: its agent stops it, makes it another one, and only then takes calls."""

import fcntl
import os
import pwd
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog.guest import agent as agent_module
from crannog.rpc import frames
from crannog.rpc.frames import Frame
from tests.unit.agent_world import WAIT, AgentWorld
from tests.unit.rpc_world import wait_until

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root's agent can renew a guest"),
]

ME = pwd.getpwuid(os.geteuid()).pw_name
UUID = "0f8fad5b-d9cb-469f-a165-70867728950e"
SLEEP, RENEW = b"/crannog-sleep\0", b"/crannog-renew\0"


class HearingWorld(AgentWorld):
    """An agent whose announcements are kept."""

    def __init__(self, folder: Path) -> None:
        self.announced: dict[str, str] = {}
        super().__init__(folder)

    def next_frame(self) -> Frame:
        frame = super().next_frame()
        if frame.type == frames.GUESTDB_WRITE:
            path, _, value = frame.body.decode().partition("\0")
            self.announced[path] = value
        return frame

    def renewal(self) -> str:
        return self.announced.get("/qubes-tools/renewal", "")


class SleepyWorld(HearingWorld):
    """An agent with a program for the identity that notes how it was called, and ends as the file `code` says."""

    def __init__(self, folder: Path) -> None:
        self.called = folder / "called"
        program = folder / "identity"
        (folder / "code").write_text("0")
        program.write_text(f'echo "$@" >>{self.called}\nexit "$(cat {folder}/code)"\n')
        os.environ["CRANNOG_IDENTITY"] = str(program)
        try:
            super().__init__(folder)
        finally:
            del os.environ["CRANNOG_IDENTITY"]

    def order(self, number: str = "number1", seed: bytes = b"seed" * 16) -> None:
        text = f"{number} {UUID} disp7 {time.time_ns()} {seed.hex()}"
        self.send(0, frames.GUESTDB_WRITE, RENEW + text.encode())

    def sleep(self) -> None:
        self.send(0, frames.GUESTDB_WRITE, SLEEP + b"1")
        self.hears("asleep")

    def hears(self, word: str) -> None:
        """Take frames until the agent announces that word."""
        while self.renewal() != word:
            self.held.append(self.next_frame())

    def accept_again(self) -> None:
        """Be another host."""
        self.port.close()
        self.announced.clear()
        self.port, _ = self.listener.accept()
        self.port.settimeout(WAIT)
        self.synchronise()

    def log(self) -> str:
        return (self.folder / "agent.log").read_text()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[SleepyWorld]:
    world = SleepyWorld(tmp_path)
    yield world
    world.close()


def test_it_says_that_it_can(world: SleepyWorld) -> None:
    assert world.renewal() == "1"


def test_it_becomes_another_one(world: SleepyWorld) -> None:
    world.sleep()
    world.order()
    world.hears("number1")
    assert world.called.read_text() == f"{UUID} disp7\n"
    assert world.run(f"{ME}:echo on")[:2] == (0, b"on\n")


def test_calls_wait_until_it_is(world: SleepyWorld) -> None:
    world.sleep()
    stream = world.start(f"{ME}:cat; cat {world.called}")
    world.send(stream, frames.DATA_STDIN, b"early ")
    world.send(stream, frames.DATA_STDIN, b"")
    time.sleep(0.3)
    assert not world.called.exists()
    world.order()
    assert world.finish(stream)[:2] == (0, f"early {UUID} disp7\n".encode())


def test_a_call_that_its_caller_gave_up_meanwhile_is_never_run(world: SleepyWorld, tmp_path: Path) -> None:
    world.sleep()
    world.send(77, frames.EXEC_CMDLINE, f"{ME}:sleep 1; touch {tmp_path}/ran\0".encode())
    world.send(77, frames.CLOSE, b"")
    world.order()
    world.hears("number1")
    assert world.run(f"{ME}:sleep 1.5; ls {tmp_path}/ran")[0] != 0


@pytest.mark.parametrize(
    "order", [b"", b"number", b"a b c d e", b"n u name 1 zz", b"\xff", b"n u n 1 " + b"00" * 3000 + b" more"]
)
def test_nonsense_changes_nothing(world: SleepyWorld, order: bytes) -> None:
    world.sleep()
    world.send(0, frames.GUESTDB_WRITE, RENEW + order)
    wait_until(lambda: "cannot be renewed" in world.log())
    assert not world.called.exists()
    world.order("later")
    world.hears("later")


def test_a_program_that_fails_is_no_identity(world: SleepyWorld) -> None:
    (world.folder / "code").write_text("3")
    world.sleep()
    world.order("first")
    wait_until(lambda: "ended with 3" in world.log())
    (world.folder / "code").write_text("0")
    world.order("second")
    world.hears("second")
    assert world.called.read_text().count(UUID) == 2


def test_who_was_not_asleep_is_not_renewed(world: SleepyWorld) -> None:
    world.order()
    wait_until(lambda: "was not put to sleep" in world.log())
    assert world.run(f"{ME}:echo on")[:2] == (0, b"on\n")
    assert not world.called.exists()


def test_sleep_outlasts_the_host_that_goes(world: SleepyWorld) -> None:
    """That is what a restored guest sees: another host, who knows nothing of the one before."""
    world.sleep()
    world.accept_again()
    assert world.renewal() == "asleep"
    world.order("other")
    world.hears("other")
    assert world.run(f"{ME}:echo on")[:2] == (0, b"on\n")


def test_calls_are_broken_off_by_sleep(world: SleepyWorld) -> None:
    pid = int(world.expect(world.start(f"{ME}:echo $$; exec sleep 1000"), frames.DATA_STDOUT).body)
    world.sleep()
    wait_until(lambda: not Path(f"/proc/{pid}").exists())


def test_an_agent_without_that_program_says_and_does_nothing(tmp_path: Path) -> None:
    world = HearingWorld(tmp_path)
    try:
        assert "/qubes-tools/version" in world.announced
        assert world.renewal() == ""
        world.send(0, frames.GUESTDB_WRITE, SLEEP + b"1")
        assert world.run(f"{ME}:echo on")[:2] == (0, b"on\n")
    finally:
        world.close()


def test_all_random_numbers_depend_on_the_seed() -> None:
    """The kernel takes the seed, and counts it: a wrong request would be refused."""
    agent_module.add_entropy(os.urandom(64))
    with Path("/dev/urandom").open("wb", 0) as device, pytest.raises(OSError, match="Invalid argument"):
        fcntl.ioctl(device, agent_module.RNDADDENTROPY, struct.pack("ii", -1, 0))
