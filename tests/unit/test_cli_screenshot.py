"""crannog screenshot: which of a VM's displays is taken, and what is believed of a picture that a guest sends."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog.cli import guest_service, picture_sources, show
from crannog.errors import DisplayError, FeatureNotFoundError
from tests.unit.cli_world import Asked, FakeDaemon, Tool, serving
from tests.unit.clipboard_world import FakeVM

GREEN, GREY = b"\0\xff\0", b"\x80\x80\x80"
SCREEN = b"P6\n1 1\n255\n" + GREY
WINDOWS = b"P6\n2 1\n255\n" + GREEN * 2


class World:
    """A VM that answers for its windows, and a daemon that answers for its screen."""

    def __init__(self, daemon: FakeDaemon, file: Path) -> None:
        self.daemon = daemon
        self.vm = FakeVM(daemon.paths.rpc_socket("work"))
        self.vm.picture = WINDOWS
        self.file = file
        self.has_gui_agent = True
        daemon.answers["crannog.vm.Screenshot"] = SCREEN
        daemon.answers["admin.vm.feature.CheckWithTemplate"] = self.tell_feature

    def tell_feature(self, asked: Asked) -> str | FeatureNotFoundError:
        assert asked.argument == "gui"
        return "1" if self.has_gui_agent else FeatureNotFoundError("work has no feature gui")

    def size(self) -> tuple[int, int]:
        """Return width and height of the picture that was saved."""
        data = self.file.read_bytes()
        assert data.startswith(b"\x89PNG\r\n\x1a\n")
        found: tuple[int, int] = struct.unpack(">II", data[16:24])
        return found


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[World]:
    with serving(monkeypatch) as daemon:
        world = World(daemon, tmp_path / "picture.png")
        yield world
        world.vm.close()


@pytest.fixture
def tool(world: World, capsys: pytest.CaptureFixture[str]) -> Tool:
    assert world
    return Tool(show.SCREENSHOT, show._screenshot, capsys)


def test_windows_come_first(world: World, tool: Tool) -> None:
    tool.ok("work", str(world.file))
    assert world.size() == (2, 1)
    assert world.vm.commands == ["DEFAULT:QUBESRPC crannog.Screenshot+ dom0"]
    tool.ok("--screen", "work", str(world.file))
    assert world.size() == (1, 1)


def test_without_a_gui_agent_the_screen_is_taken(world: World, tool: Tool) -> None:
    world.has_gui_agent = False
    tool.ok("work", str(world.file))
    assert world.size() == (1, 1)
    assert world.vm.commands == [], "the guest is not even asked"
    world.vm.code = 127
    assert "work has no windows: it has no GUI agent" in tool.fails(16, "--windows", "work", str(world.file))


@pytest.mark.parametrize("code", [1, 3, 125, 127])
def test_windows_that_are_not_there_yet(world: World, tool: Tool, code: int) -> None:
    world.vm.code, world.vm.complaint = code, b"no session of 'user' is ready"
    tool.ok("work", str(world.file))
    assert world.size() == (1, 1)


def test_a_vm_that_shows_nothing_at_all(world: World, tool: Tool) -> None:
    world.vm.code = 3
    world.daemon.answers["crannog.vm.Screenshot"] = DisplayError("work has no emulated screen")
    assert "work shows no window; start a program in it" in tool.fails(16, "work", str(world.file))
    assert "work has no emulated screen" in tool.fails(16, "--screen", "work", str(world.file))
    assert not world.file.exists()


def test_the_guests_reason_is_quoted(world: World, tool: Tool) -> None:
    world.vm.code, world.vm.complaint = 1, b"no session\x1b[31m of 'user'\nmore"
    sentence = tool.fails(1, "--windows", "work", str(world.file))
    assert sentence.endswith("crannog.Screenshot ended with 1, and said 'no session_[31m of 'user''")


def test_both_at_once_are_none(world: World, tool: Tool) -> None:
    assert "leave out" in tool.fails(2, "--windows", "--screen", "work", str(world.file))


@pytest.mark.parametrize(
    "untrusted_picture",
    [
        b"",
        b"\x89PNG\r\n\x1a\nIHDR",
        b"GIF89a",
        b"P6\n2 2\n255\n" + GREEN,
        b"P6\n99999 1\n255\n" + GREEN,
        b"P6\n0 1\n255\n",
        b"P6\n1 1\n65535\n" + GREEN * 2,
        b"P6\n# " + b"x" * 1000,
    ],
)
def test_what_is_no_picture_is_not_saved(world: World, tool: Tool, untrusted_picture: bytes) -> None:
    world.vm.picture = untrusted_picture
    sentence = tool.fails(2, "--windows", "work", str(world.file))
    assert "what work sent is no picture of its windows" in sentence
    assert not world.file.exists()


def test_what_follows_the_pixels_is_left_out(world: World, tool: Tool) -> None:
    world.vm.picture = WINDOWS + b"<script>" * 1000
    tool.ok("--windows", "work", str(world.file))
    data = world.file.read_bytes()
    at = data.index(b"IDAT") + 4
    assert zlib.decompress(data[at : at + struct.unpack(">I", data[at - 8 : at - 4])[0]]) == b"\0" + GREEN * 2


def test_a_picture_without_end_is_cut_off(world: World, tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    service = guest_service.Service("crannog.Screenshot", "a picture of its windows", 1 << 20, 60)
    monkeypatch.setattr(picture_sources, "SERVICE", service)
    world.vm.picture = b"P6\n1000 1000\n255\n" + bytes(3_000_000)
    assert "work sent more than 1048576 bytes as a picture of its windows" in tool.fails(
        2, "--windows", "work", str(world.file)
    )
    assert not world.file.exists()


def test_a_guest_that_says_nothing(world: World, tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_sources.SERVICE, "patience", 0.2)
    world.vm.is_silent = True
    assert "did not answer about a picture of its windows" in tool.fails(125, "--windows", "work", str(world.file))
    tool.ok("work", str(world.file))
    assert world.size() == (1, 1)
