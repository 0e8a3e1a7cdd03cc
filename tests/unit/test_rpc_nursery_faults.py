"""The parent of the RPC processes, or crannogd, is killed; many starts, at once and one after another."""

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from crannog.errors import RpcError
from crannog.rpc import nursery_link
from crannog.rpc import nursery_messages as messages
from crannog.rpc.nursery_link import PROGRAM
from crannog.rpc.nursery_messages import Birth
from tests.fakes import short_folder
from tests.processes import is_alive, list_children
from tests.unit.nursery_world import ENVIRONMENT, NurseryWorld, exists, nursery_world, open_files, until

DAEMON = """
import asyncio, os, sys
from crannog.rpc.nursery_link import NurseryLink
from crannog.rpc.place import Place

async def main(folder):
    link = NurseryLink(folder + "/parent.log", os.environ)
    for vm in ("work", "early"):
        place = Place(vm, folder + "/channel-" + vm, folder + "/rpc-" + vm + ".sock")
        child = await link.bear(place, os.environ, folder + "/" + vm + ".log")
        print(child.pid)
    print(link._process.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main(sys.argv[1]))
"""
STARTS = 200


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Give a folder with a short name: it is for sockets."""
    with short_folder() as folder:
        yield folder


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[NurseryWorld]:
    async with nursery_world(tmp_path) as world:
        yield world


async def test_the_parent_is_killed_between_two_starts(world: NurseryWorld) -> None:
    first = await world.bear("first")
    killed = world.kill_parent()
    await until(lambda: not exists(killed), "it is buried, also when nobody starts anything")
    second = await world.bear("second")
    assert world.parent != killed
    assert not first.has_ended
    await world.listens("first")
    assert list_children(world.parent) == [second.pid]
    await first.end()  # which is init's now
    await until(lambda: not exists(first.pid), "it is buried")


async def test_the_parent_is_killed_before_it_answers(world: NurseryWorld) -> None:
    await world.bear("first")
    os.kill(world.parent, signal.SIGSTOP)
    start = asyncio.ensure_future(world.bear("second"))
    await asyncio.sleep(0)  # the request is on its way
    killed = world.kill_parent()
    second = await start
    await until(lambda: not exists(killed), "it is buried")
    assert world.parent != killed
    assert list_children(world.parent) == [second.pid]


async def test_the_parent_is_killed_with_every_request(world: NurseryWorld) -> None:
    """Once more is tried; then the start fails, and the next one is none the worse."""
    await world.bear("first")
    killed = [world.kill_parent()]
    world_start = world.link._start

    async def start_and_kill() -> socket.socket:
        control = await world_start()
        killed.append(world.kill_parent())
        return control

    world.link._start = start_and_kill  # type: ignore[method-assign]
    with pytest.raises(RpcError, match="the process that starts them does not answer"):
        await world.bear("second")
    world.link._start = world_start  # type: ignore[method-assign]
    await world.bear("second")
    await until(lambda: not any(map(exists, killed)), "they are buried")
    assert len(killed) == 2


def begin() -> tuple["subprocess.Popen[bytes]", socket.socket]:
    """Start a parent without a crannogd; return the socket on which crannogd would be."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen([sys.executable, "-I", "-m", PROGRAM], stdin=theirs.fileno(), env=ENVIRONMENT)
    ours.settimeout(60)
    return process, ours


def ask(world: NurseryWorld, control: socket.socket, vm: str) -> tuple[int, int, int]:
    """Ask for a child; return its number, its pidfd, and the pipe on which it waits for the word to go."""
    body = Birth(world.place(vm), ENVIRONMENT).encode()
    stdin, starter = os.pipe()
    socket.send_fds(control, [messages.HEADER.pack(len(body))], [stdin, 2])
    os.close(stdin)
    control.sendall(body)
    answer, pidfds, _, _ = socket.recv_fds(control, messages.ANSWER.size, 1)
    return messages.ANSWER.unpack(answer)[0], pidfds[0], starter


async def test_a_child_that_crannogd_has_not_heard_of_does_not_begin(world: NurseryWorld) -> None:
    """Else it would take the socket from the one that is started in its place."""
    parent, control = begin()
    number, pidfd, starter = ask(world, control, "work")
    parent.kill()
    parent.wait()
    os.close(starter)
    assert select.select([pidfd], [], [], 10)[0], "it ends"
    assert not world.socket("work").exists()
    await until(lambda: not exists(number), "it is buried")
    os.close(pidfd)
    control.close()


async def test_half_a_request(world: NurseryWorld) -> None:
    """Crannogd was killed while it sent one."""
    parent, control = begin()
    stdin, starter = os.pipe()
    socket.send_fds(control, [messages.HEADER.pack(1000)], [stdin, 2])
    control.sendall(b"work\0")
    control.close()
    assert parent.wait(60) == 0
    os.close(stdin)
    os.close(starter)


def start_daemon(world: NurseryWorld) -> "subprocess.Popen[bytes]":
    words = [sys.executable, "-c", DAEMON, str(world.folder)]
    environment = os.environ | {"HOME": "/nowhere"}
    with open(world.log, "wb") as log:
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=log, env=environment)


async def test_crannogd_is_killed(world: NurseryWorld) -> None:
    """Processes with a channel go on, those without end, and the parent ends by itself."""
    world.place("work")
    with start_daemon(world) as daemon:
        assert daemon.stdout
        work, early, parent = (int(daemon.stdout.readline()) for _ in range(3))
        await world.listens("work")
        await world.listens("early")
        await until(lambda: len(open_files(work)) == 5, "it is connected to its channel")
        daemon.kill()
        daemon.wait()
    await until(lambda: not exists(parent), "the parent has ended, and is buried")
    await until(lambda: not exists(early), "what waits for a VM that nobody makes any more has ended")
    assert is_alive(work)
    await world.listens("work")
    assert "crannogd ended before it made the channel" in (world.folder / "early.log").read_text()
    assert not world.socket("early").exists()
    assert Path(f"/proc/{work}/environ").read_bytes().count(b"HOME=/nowhere") == 1
    os.kill(work, signal.SIGTERM)
    await until(lambda: not exists(work), "it is buried")
    assert not world.socket("work").exists()


async def test_many_starts_leave_nothing_behind(world: NurseryWorld) -> None:
    """No file and no zombie, in neither process."""
    await world.bear("first")
    number = world.parent
    await until(lambda: len(open_files(number)) == 4, "the request is over")
    place = world.place("work")
    theirs, ours = open_files(number), open_files(os.getpid())
    for _ in range(STARTS):
        child = await world.bear("work", place=place, is_up=False)
        await child.end()
        world.children.remove(child)
    await until(lambda: len(list_children(number)) == 1, "the parent has buried them")
    assert world.parent == number
    assert open_files(number) == theirs
    assert {fd: file for fd, file in open_files(os.getpid()).items() if fd not in ours} == {}


async def test_many_starts_at_once(world: NurseryWorld) -> None:
    names = [f"vm{number}" for number in range(16)]
    children = await asyncio.gather(*map(world.bear, names))
    assert sorted(list_children(world.parent)) == sorted(child.pid for child in children)
    for child, name in zip(children, names, strict=True):
        assert f"\0--name\0{name}\0".encode() in Path(f"/proc/{child.pid}/cmdline").read_bytes()


async def test_a_parent_that_hangs(world: NurseryWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds up neither a start nor the end of crannogd for ever."""
    monkeypatch.setattr(nursery_link, "GRACE", 0.05)
    monkeypatch.setattr(nursery_link, "PATIENCE", 0.5)
    first = await world.bear("first")
    hung = world.parent
    os.kill(hung, signal.SIGSTOP)
    with pytest.raises(RpcError, match="the process that starts them does not answer"):
        await world.bear("second")
    await until(lambda: not exists(hung), "it is buried")
    monkeypatch.setattr(nursery_link, "PATIENCE", 30)
    await world.bear("second")
    os.kill(world.parent, signal.SIGSTOP)
    hung = world.parent
    await world.link.close()
    assert not exists(hung)
    assert not first.has_ended


async def test_a_start_is_given_up(world: NurseryWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever started a VM has gone: no process is left, and the next start finds all in order."""
    first = await world.bear("first")
    write = MagicMock(wraps=os.write)
    monkeypatch.setattr(os, "write", write)
    os.kill(world.parent, signal.SIGSTOP)
    start = asyncio.ensure_future(world.bear("second"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    next_one = asyncio.ensure_future(world.bear("second"))
    os.kill(world.parent, signal.SIGCONT)
    second = await next_one
    await until(lambda: set(list_children(world.parent)) == {first.pid, second.pid}, "the one that nobody wants ended")
    await world.listens("second")
    words = [call.args[1] for call in write.call_args_list]
    assert words.count(messages.GO) == 1, "it never begins: it would have the socket of the next one"
