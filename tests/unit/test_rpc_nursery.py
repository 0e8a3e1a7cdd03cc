"""What the RPC processes have that one parent forks: each its own environment, files and command line."""

import ast
import asyncio
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from crannog.config import Paths
from crannog.errors import RpcError
from crannog.hostprocesses import read_command
from crannog.rpc import frames, nursery, nursery_link
from crannog.rpc.agents import VMProcesses
from crannog.rpc.nursery_messages import Birth
from crannog.rpc.place import PROGRAM, Place
from crannog.rpc.strays import end_strays
from crannog.rpc.vm_process import main
from tests.fakes import short_folder
from tests.processes import list_children
from tests.unit.guest_peer import GuestPeer, policy_stand_in
from tests.unit.nursery_world import NurseryWorld, nursery_world, open_files, until

UUID = "99999999-2222-3333-4444-555555555555"


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Give a folder with a short name: it is for sockets."""
    with short_folder() as folder:
        yield folder


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[NurseryWorld]:
    async with nursery_world(tmp_path) as world:
        yield world


# -- what is said


def test_a_birth_comes_as_it_was_sent() -> None:
    place = Place("work", "/run/ch", "/run/rpc.sock", "user", UUID, "/home/me", "/run")
    birth = Birth(place, {"EMPTY": "", "TWO": "a=b", "BYTES": "\udcff", "LINES": "a\nb"})
    assert Birth.decode(birth.encode()) == birth
    assert Birth.decode(Birth(Place("w", "c", "l"), {}).encode()) == Birth(Place("w", "c", "l"), {})


def test_the_command_line_says_all_of_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place("work", "/run/ch", "/run/rpc.sock", "user", UUID, "/home/me", "/run")
    served: list[tuple[Place, int | None]] = []

    def run(where: Place, starter: int | None, _domain: int) -> int:
        served.append((where, starter))
        return 0

    monkeypatch.setattr("crannog.rpc.vm_process.run", run)
    for one in (place, Place("work", "/run/ch", "/run/rpc.sock")):
        words = one.command()
        assert words[:4] == [sys.executable, "-I", "-m", PROGRAM]
        assert main(words[4:]) == 0
    assert served == [(place, 0), (Place("work", "/run/ch", "/run/rpc.sock"), 0)]


# -- a child that is slow


async def test_a_process_that_lives_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a slow host it may take long until it listens: to start another one would make that longer."""
    monkeypatch.setattr("crannog.rpc.agents.CONNECT_TIMEOUT", 0.05)
    bear = nursery_link.NurseryLink.bear
    born: list[nursery_link.RpcChild] = []

    async def bear_asleep(*arguments: Any) -> nursery_link.RpcChild:  # noqa: ANN401
        child = await bear(*arguments)
        child.send_signal(signal.SIGSTOP)
        born.append(child)
        return child

    monkeypatch.setattr(nursery_link.NurseryLink, "bear", bear_asleep)
    paths = Paths(str(tmp_path))
    for needed in (paths.run, paths.logs):
        os.makedirs(needed, exist_ok=True)
    processes, heard = VMProcesses(paths), asyncio.Event()
    processes.listen(lambda *_: heard.set())
    await processes.start(UUID, "work", "user")
    try:
        await asyncio.sleep(0.3)
        assert not heard.is_set()
        born[0].send_signal(signal.SIGCONT)
        await asyncio.wait_for(heard.wait(), 20)
        assert len(born) == 1
    finally:
        born[-1].send_signal(signal.SIGCONT)
        await processes.stop(UUID)
        await processes.close()


# -- what a child has


async def environment_of_service(folder: Path, vm: str, environment: dict[str, str]) -> dict[str, str]:
    """Start a VM's RPC process as crannogd does; return what a service of this host finds in its environment."""
    folder.mkdir()
    paths = Paths(str(folder))
    for needed in (paths.run, paths.logs, paths.services):
        os.makedirs(needed)
    service = Path(paths.services) / "test.Env"
    service.write_text("#!/usr/bin/python3 -IS\nprint(open('/proc/self/environ', 'rb').read())\n")
    service.chmod(0o755)
    processes = VMProcesses(paths, environment=environment)
    guest = GuestPeer(folder)
    with policy_stand_in(folder), socket.socket(socket.AF_UNIX) as listener:
        listener.bind(paths.channel_socket(UUID))
        listener.listen(1)
        await processes.start(UUID, vm, "")
        try:
            return await asyncio.to_thread(ask_for_environment, guest, listener)
        finally:
            guest.connection.close()
            await processes.stop(UUID)
            await processes.close()


def ask_for_environment(guest: GuestPeer, listener: socket.socket) -> dict[str, str]:
    listener.settimeout(60)
    guest.connection, _ = listener.accept()
    guest.connection.settimeout(60)
    guest.shake_hands()
    guest.trigger("test.Env")
    stream = guest.connected()
    guest.send(stream, frames.DATA_STDIN)
    output, _, code = guest.outcome(stream)
    assert code == 0
    words = ast.literal_eval(output.decode()).decode().split("\0")[:-1]
    return dict(word.split("=", 1) for word in words)


async def test_a_child_has_the_environment_that_it_is_given_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B8: what is for one VM is for no other, and nothing of it comes into the starting process."""
    monkeypatch.setenv("OURS", "yes")
    before, inherited_before = dict(os.environ), await asyncio.to_thread(inherited)
    call = {
        "QREXEC_REQUESTED_TARGET": "dom0",
        "QREXEC_REQUESTED_TARGET_TYPE": "name",
        "QREXEC_SERVICE_ARGUMENT": "",
        "QREXEC_SERVICE_FULL_NAME": "test.Env+",
    }
    first, second = {"PATH": "/usr/bin", "ONLY_FIRST": "1"}, {"PATH": "/usr/bin:/bin", "ONLY_SECOND": "\u00e9="}
    found = await environment_of_service(tmp_path / "a", "bare", first)
    assert found == first | call | {"QREXEC_REMOTE_DOMAIN": "bare"}
    found = await environment_of_service(tmp_path / "b", "work", second)
    assert found == second | call | {"QREXEC_REMOTE_DOMAIN": "work"}
    assert dict(os.environ) == before
    assert await asyncio.to_thread(inherited) == inherited_before, "nor where C programs look"


def inherited() -> list[str]:
    """Return the environment that a child of ours gets when nobody says which."""
    return output_of(sys.executable, "-ISc", "print(end=open('/proc/self/environ').read())").split("\0")


def output_of(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


async def test_children_of_one_parent_have_environments_of_their_own(world: NurseryWorld) -> None:
    """The one that is too long for the parent's room becomes a program of its own, so that it can be looked at."""
    await world.bear("near", {"VM": "near"})
    far = await world.bear("far", {"VM": "far"}, world.place("far", home="/h" * nursery_link.ROOM))
    await until(lambda: os.readlink(f"/proc/{far.pid}/exe") == os.path.realpath(sys.executable), "it is a program")
    environment = Path(f"/proc/{far.pid}/environ").read_bytes().split(b"\0")
    assert [word for word in environment if word and not word.startswith(b"LC_CTYPE=")] == [b"VM=far"]
    assert read_command(far.pid)[4:6] == [b"--name", b"far"]


async def test_a_child_has_its_own_files_alone(world: NurseryWorld) -> None:
    others = [await world.bear(vm) for vm in ("one", "two")]
    child = await world.bear("three")
    await until(lambda: len(open_files(child.pid)) == 5, "it is connected to its channel")
    files = open_files(child.pid)
    assert (files[1], files[2]) == ("/dev/null", str(world.log))
    assert [files[fd].partition(":")[0] for fd in (0, 3, 4)] == ["pipe", "socket", "socket"]
    assert not {files[0], files[3], files[4]} & {file for one in others for file in open_files(one.pid).values()}
    assert [os.getsid(one.pid) for one in (*others, child)] == [one.pid for one in (*others, child)]


async def test_which_process_serves_which_vm_is_seen(world: NurseryWorld) -> None:
    """By `ps`, and by what ends RPC processes that serve nobody."""
    used, stray = await world.bear("used"), await world.bear("stray")
    for child, vm in ((used, "used"), (stray, "stray")):
        command = [os.fsencode(word) for word in world.place(vm).command()]
        words = read_command(child.pid)
        assert words[: len(command)] == command
        assert not any(words[len(command) :])
    shown = await asyncio.to_thread(output_of, "ps", "-ww", "-o", "args=", "-p", str(used.pid))
    assert shown.rstrip().endswith("--default-user DEFAULT")
    assert f"-m {PROGRAM} --name used " in shown
    assert read_command(world.parent)[3] == nursery_link.PROGRAM.encode()
    sentences = await asyncio.to_thread(end_strays, str(world.folder), {str(world.socket("used")): used.pid})
    assert [sentence.partition(" ")[2].partition(":")[0] for sentence in sentences] == [str(stray.pid)]
    await stray.wait()
    assert not used.has_ended


async def test_a_child_heeds_signals_as_a_new_process_does(world: NurseryWorld) -> None:
    child = await world.bear("work")
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{child.pid}/status").read_text().splitlines())
    assert int(status["SigBlk"], 16) == 0
    assert int(status["SigCgt"], 16) & 1 << signal.SIGTERM - 1
    assert not int(status["SigIgn"], 16) & (1 << signal.SIGTERM - 1 | 1 << signal.SIGCHLD - 1)
    child.send_signal(signal.SIGTERM)
    await child.wait()
    assert not world.socket("work").exists()


async def test_many_signals_at_once_leave_no_socket(world: NurseryWorld) -> None:
    for number in range(20):
        child = await world.bear("work")
        while not child.has_ended:
            child.send_signal(signal.SIGTERM)
            await asyncio.sleep(0)
        assert not world.socket("work").exists(), f"in round {number}"
    assert world.log.read_text() == ""


# -- what goes wrong


async def test_a_child_that_does_not_end_is_killed(world: NurseryWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nursery_link, "GRACE", 0.05)
    child = await world.bear("work")
    child.send_signal(signal.SIGSTOP)
    await child.end()
    await until(lambda: not list_children(world.parent), "it is buried")
    child.send_signal(signal.SIGKILL)  # it has ended: nothing happens
    await child.end()


async def test_no_parent_no_start(world: NurseryWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nursery_link, "PROGRAM", "crannog.rpc.nowhere")
    with pytest.raises(
        RpcError, match=r"RPC process of work cannot be started: .* does not answer; see .*parent\.log$"
    ):
        await world.bear("work")
    assert "crannog.rpc.nowhere" in world.parent_log.read_text()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(RpcError, match="RPC process of work cannot be started: No such file"):
        await world.bear("work")
    monkeypatch.undo()
    await world.bear("work")


@pytest.mark.parametrize("what", ["fork", "pidfd_open"])
async def test_no_child_no_start(world: NurseryWorld, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """The kernel says no: the parent says so, and has no child."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    world.link._control = ours
    children = set(list_children(os.getpid()))

    def refuse(*_: object) -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, what, refuse)
    served = asyncio.ensure_future(asyncio.to_thread(nursery.Nursery(theirs)._serve))
    with pytest.raises(RpcError, match=r"RPC process of work cannot be started: Resource temporarily unavailable$"):
        await world.bear("work")
    assert await served
    assert set(list_children(os.getpid())) == children
    theirs.close()


async def test_crannogd_may_open_no_more_files(world: NurseryWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """It learns of a child that it cannot watch: that one does not begin."""
    first = await world.bear("first")
    receive = socket.recv_fds

    def leave_out(source: socket.socket, size: int, most: int, how: int) -> tuple[bytes, list[int], int, object]:
        data, fds, flags, address = receive(source, size, most, how)
        for fd in fds:
            os.close(fd)
        return data, [], flags, address

    monkeypatch.setattr(socket, "recv_fds", leave_out)
    for _ in range(2):
        with pytest.raises(RpcError, match="RPC process of second cannot be started: Too many open files"):
            await world.bear("second")
    monkeypatch.undo()
    await until(lambda: list_children(world.parent) == [first.pid], "the others have ended, and are buried")
    assert not world.socket("second").exists()
    world.log = world.folder / "no" / "log"
    with pytest.raises(RpcError, match="RPC process of second cannot be started: No such file"):
        await world.bear("second")
    world.log = world.folder / "rpc.log"
    await world.bear("second")


async def test_more_open_files_than_allowed(world: NurseryWorld) -> None:
    """The limit is the parent's: the start fails with the reason, the others go on, and one that ends makes room."""
    first = await world.bear("first")
    number = world.parent
    await until(lambda: len(open_files(number)) == 4, "the request is over")
    used = max(open_files(number))
    _, hard = resource.prlimit(number, resource.RLIMIT_NOFILE)
    for most in range(3, used + 2):
        resource.prlimit(number, resource.RLIMIT_NOFILE, (most, hard))
        with pytest.raises(RpcError, match="RPC process of second cannot be started: Too many open files"):
            await world.bear("second")
        assert not first.has_ended
        assert len(open_files(number)) == 4
        assert list_children(number) == [first.pid]
    await first.end()
    await until(lambda: len(open_files(number)) == 3, "there is room")
    await world.bear("second")
    assert world.parent == number
