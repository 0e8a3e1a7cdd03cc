"""The guest's copy of the guest DB, and the tools that read it, change it and watch it."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog.guest import guestdb
from crannog.rpc import frames
from tests.unit.agent_world import PYTHON, WAIT, AgentWorld
from tests.unit.rpc_world import wait_until

pytestmark = pytest.mark.timeout(60)


class DatabaseWorld(AgentWorld):
    """An agent with its copy, and the tools."""

    def tell(self, **entries: bytes) -> None:
        """Have the host tell all entries; `a_b` is /a/b."""
        for name, value in entries.items():
            self.write("/" + name.replace("_", "/"), value)
        self.send(0, frames.GUESTDB_READY)
        self.settle()

    def write(self, path: str, value: bytes) -> None:
        self.send(0, frames.GUESTDB_WRITE, path.encode() + b"\0" + value)

    def settle(self) -> None:
        """Return when the agent has acted on everything that was sent."""
        self.finish(self.start("root:true"))

    def popen(self, tool: str, *words: str) -> "subprocess.Popen[bytes]":
        link = self.folder / tool
        if not link.exists():
            link.symlink_to(guestdb.__file__)
        environment = os.environ | {
            "CRANNOG_GUESTDB_FOLDER": str(self.folder / "database"),
            "CRANNOG_AGENT_SOCKET": self.trigger,
        }
        child = subprocess.Popen(
            [PYTHON, "-IS", str(link), *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )
        self.children.append(child)
        return child

    def use(self, tool: str, *words: str) -> tuple[int, bytes, bytes]:
        child = self.popen(tool, *words)
        output, errors = child.communicate(timeout=WAIT)
        return child.returncode, output, errors


@pytest.fixture
def world(tmp_path: Path) -> Iterator[DatabaseWorld]:
    world = DatabaseWorld(tmp_path)
    yield world
    world.close()


def test_reading(world: DatabaseWorld) -> None:
    world.tell(name=b"work", a_b=b"1\n\xff", a_c=b"")
    assert world.use("qubesdb-read", "/name", "/a/b") == (0, b"work\n1\\x0a\\xff\n", b"")
    assert world.use("qubesdb-read", "-r", "/a/b") == (0, b"1\n\xff\n", b"")
    assert world.use("qubesdb-list", "/a/") == (0, b"b\nc\n", b"")
    assert world.use("qubesdb-list", "-f", "/") == (0, b"/a/b\n/a/c\n/name\n", b"")
    assert world.use("qubesdb-multiread", "/a") == (0, b"/a/b = 1\\x0a\\xff\n/a/c = \n", b"")
    code, output, errors = world.use("qubesdb-read", "/nothing")
    assert (code, output) == (2, b"")
    assert errors == b"qubesdb-read: there is no /nothing in the guest DB\n"
    assert world.use("qubesdb-read", "-d", "other", "/nothing") == (0, b"other\n", b"")


@pytest.mark.parametrize(
    "words", ["qubesdb-read", "qubesdb-read -x /a", "qubesdb-write /a", "qubesdb-list /a /b", "qubesdb-read -d"]
)
def test_wrong_uses(world: DatabaseWorld, words: str) -> None:
    code, _, errors = world.use(*words.split())
    assert code == 2
    assert errors.startswith(b"usage: qubesdb-")


def test_changes_and_removals_of_the_host(world: DatabaseWorld) -> None:
    world.tell(a_b=b"1", a_c=b"2", d=b"3")
    world.write("/d", b"new")
    world.send(0, frames.GUESTDB_REMOVE, b"/a/")
    world.settle()
    assert world.use("qubesdb-multiread", "/") == (0, b"/d = new\n", b"")


def test_what_is_not_told_again_goes_when_all_is_told(world: DatabaseWorld) -> None:
    world.tell(old=b"1", name=b"work")
    world.port.sendall(bytes(20))  # no frame
    world.synchronise()
    world.write("/name", b"work")
    world.settle()
    assert world.use("qubesdb-list", "/")[1] == b"name\nold\n", "readers never find less than there is"
    world.send(0, frames.GUESTDB_READY)
    world.settle()
    assert world.use("qubesdb-list", "/")[1] == b"name\n"


@pytest.mark.parametrize("path", [b"/../../x", b"x", b"", b"/a%b", b"/" + b"a" * 300, b"/a\nb", b"/."])
def test_no_path_leads_out_of_the_folder(world: DatabaseWorld, path: bytes) -> None:
    world.tell(name=b"work")
    world.send(0, frames.GUESTDB_WRITE, path + b"\0value")
    world.send(0, frames.GUESTDB_REMOVE, path)
    world.settle()
    database = world.folder / "database"
    assert all(file.parent == database for file in world.folder.rglob("*") if file.name.startswith("%"))
    assert not (world.folder / "x").exists()
    assert world.use("qubesdb-read", "/name")[0] == 0


def test_the_seed_is_for_root_alone(world: DatabaseWorld) -> None:
    world.write("/qubes-random-seed", b"secret")
    world.tell(name=b"work")
    assert (world.folder / "database" / "%qubes-random-seed").stat().st_mode & 0o077 == 0


def test_writing_goes_to_the_host_which_decides(world: DatabaseWorld) -> None:
    assert world.use("qubesdb-write", "/features-request/gui", "1", "/qubes-tools/os", "Linux")[0] == 0
    first, second = world.expect(0, frames.GUESTDB_WRITE), world.expect(0, frames.GUESTDB_WRITE)
    assert (first.body, second.body) == (b"/features-request/gui\0" + b"1", b"/qubes-tools/os\0Linux")
    assert world.use("qubesdb-rm", "/features-request/")[0] == 0
    assert world.expect(0, frames.GUESTDB_REMOVE).body == b"/features-request/"


def test_watching(world: DatabaseWorld) -> None:
    world.tell(a_b=b"1")
    watcher = world.popen("qubesdb-watch", "/a/")
    assert watcher.stdout
    wait_until(lambda: _is_watched(world))
    world.write("/other", b"1")
    world.write("/a/b", b"2")
    world.send(0, frames.GUESTDB_REMOVE, b"/a/")
    assert [watcher.stdout.readline() for _ in range(2)] == [b"/a/b\n", b"/a/\n"]
    world.agent.kill()
    assert watcher.wait(WAIT) == 1


def _is_watched(world: DatabaseWorld) -> bool:
    """Tell whether the agent has the watcher's connection, and has read its wish."""
    links = [os.readlink(f"/proc/{world.agent.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{world.agent.pid}/fd")]
    world.settle()
    return sum(link.startswith("socket:") for link in links) >= 3


def test_an_agent_that_is_not_there(world: DatabaseWorld) -> None:
    world.agent.kill()
    world.agent.wait(WAIT)
    code, _, errors = world.use("qubesdb-write", "/qubes-tools/os", "x")
    assert code == 1
    assert b"the agent does not answer" in errors
