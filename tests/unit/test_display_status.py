"""The status socket of a display process."""

import socket
from collections.abc import Iterator

import pytest

from crannog.display.status import LINE_MAX, WATCHERS_MAX, StatusSocket
from tests.fakes import short_folder


class World:
    """A status socket with the lines that watchers sent."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.lines: list[str] = []
        self.status = StatusSocket(path, self.lines.append)

    def watch(self) -> socket.socket:
        watcher = socket.socket(socket.AF_UNIX)
        watcher.settimeout(60)
        watcher.connect(self.path)
        self.turn()
        return watcher

    def turn(self) -> None:
        for _ in range(3):
            self.status.wait(0.01, [])


@pytest.fixture
def world() -> Iterator[World]:
    with short_folder() as folder:
        world = World(f"{folder}/status")
        yield world
        world.status.close()


def test_who_comes_late_is_told_how_things_are(world: World) -> None:
    world.status.say("connected")
    world.status.say("windows 1")
    world.status.say("windows 2")
    with world.watch() as watcher:
        assert watcher.recv(100) == b"connected\nwindows 2\n"
        world.status.say("lost it is silent")
        assert watcher.recv(100) == b"lost it is silent\n"


def test_what_is_no_longer_so_is_not_told(world: World) -> None:
    world.status.say("connected")
    world.status.unsay("connected")
    world.status.unsay("never said")
    world.status.say("lost")
    with world.watch() as watcher:
        assert watcher.recv(100) == b"lost\n"


def test_lines_of_watchers_come_whole(world: World) -> None:
    with world.watch() as watcher:
        for part in (b"mode SEAM", b"LESS\nmode FULL", b"SCREEN\n"):
            watcher.send(part)
            world.turn()
    assert world.lines == ["mode SEAMLESS", "mode FULLSCREEN"]


def test_a_line_without_end_is_not_kept(world: World) -> None:
    with world.watch() as watcher:
        watcher.send(b"x" * (LINE_MAX + 1))
        for _ in range(5):
            world.turn()
        assert watcher.recv(100) == b""
    assert world.lines == []


def test_a_watcher_that_never_reads_is_let_go(world: World) -> None:
    with world.watch() as deaf:
        for number in range(20_000):
            world.status.say(f"windows {number}")
        assert len(world.status.filenos()) == 1
        with world.watch() as other:
            assert other.recv(100) == b"windows 19999\n"
        del deaf


def test_there_is_an_end_to_watchers(world: World) -> None:
    watchers = [world.watch() for _ in range(WATCHERS_MAX + 1)]
    assert len(world.status.filenos()) == 1 + WATCHERS_MAX
    assert watchers[-1].recv(10) == b""
    for watcher in watchers:
        watcher.close()
    world.turn()
    for _ in range(WATCHERS_MAX):
        world.turn()
    assert len(world.status.filenos()) == 1


def test_a_socket_that_is_served_is_not_taken_over(world: World) -> None:
    with pytest.raises(FileExistsError):
        StatusSocket(world.path)
    world.turn()
    with world.watch():
        assert len(world.status.filenos()) == 2


def test_a_socket_that_a_dead_process_left_is_replaced(world: World) -> None:
    world.status._listener.close()
    again = StatusSocket(world.path)
    again.say("drawn")
    with socket.socket(socket.AF_UNIX) as watcher:
        watcher.connect(world.path)
        again.wait(1, [])
        assert watcher.recv(100) == b"drawn\n"
    again.close()
    world.status._listener = socket.socket(socket.AF_UNIX)
