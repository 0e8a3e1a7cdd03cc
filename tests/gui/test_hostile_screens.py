"""The screen of a device model that is hostile or mute: the host goes on, and all stays within bounds."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crannog.display.sandbox import MEMORY_MAX
from tests.fakes import short_folder
from tests.gui.bounds import SCREEN_MEMORY, is_usable, measure
from tests.gui.desktop import HEIGHT, WIDTH, Desktop, wait_for
from tests.gui.device_models import (
    DESKTOP_SIZE,
    FakeModel,
    Play,
    claim_a_name_without_end,
    claim_the_largest,
    close_at_once,
    draw,
    greet,
    grow_to_the_largest,
    read_all,
    stall_after_the_handshake,
    stall_in_the_handshake,
    talk_garbage,
    talk_garbage_later,
)
from tests.processes import is_alive, list_below

pytestmark = pytest.mark.timeout(200)

TITLE = "[work] emulated screen"


@pytest.fixture
def pretend(desktop: Desktop) -> Iterator[Callable[[Play], FakeModel]]:
    """Return what has a device model of a test's shown on the desktop."""
    with short_folder() as folder, contextlib.ExitStack() as models:

        def start(play: Play) -> FakeModel:
            model = FakeModel(desktop, folder, play)
            models.callback(model.close)
            return model

        yield start
    desktop.wait_for_none()


@pytest.mark.parametrize(
    "play",
    [
        claim_the_largest,
        grow_to_the_largest,
        claim_a_name_without_end,
        talk_garbage,
        talk_garbage_later,
        stall_in_the_handshake,
        stall_after_the_handshake,
        close_at_once,
    ],
    ids=lambda play: play.__name__,
)
def test_a_hostile_device_model(
    desktop: Desktop, pretend: Callable[[Play], FakeModel], tmp_path: Path, play: Play
) -> None:
    model = pretend(play)
    titles, largest, sizes = set(), 0, set()
    deadline = time.monotonic() + 8
    while model.process.poll() is None and time.monotonic() < deadline:
        found = desktop.titles()
        titles |= set(found.values())
        for window in found:
            with contextlib.suppress(KeyError):  # it has gone meanwhile
                sizes.add(desktop.place(window)[2:])
        largest = max([largest, *(measure(pid, "VmData") for pid in list_below(model.process.pid))])
        assert measure(model.process.pid, "VmHWM") < SCREEN_MEMORY
    assert titles <= {TITLE, ""}, "the VM's name comes from the host; a window that has just gone has none"
    assert largest <= MEMORY_MAX
    if play in (stall_in_the_handshake, stall_after_the_handshake):
        assert TITLE in titles, "who says nothing may still do so"
        assert model.process.poll() is None
    assert all(width <= WIDTH and height <= HEIGHT for width, height in sizes)
    assert is_usable(desktop, tmp_path)
    viewers = list_below(model.process.pid)
    model.process.terminate()
    assert model.process.wait(60) in (0, 1), "it ended by itself, or as told: it hangs on nothing"
    wait_for("the end of the viewer", lambda: not any(map(is_alive, viewers)))


def test_a_mute_device_model_is_shown_as_one_that_has_drawn_nothing(
    desktop: Desktop, pretend: Callable[[Play], FakeModel]
) -> None:
    model = pretend(stall_after_the_handshake)
    window = desktop.wait_for_window(TITLE)
    time.sleep(2)
    assert model.said() == set()
    desktop.close(window)
    desktop.wait_for_none()
    wait_for("that the user closed it", lambda: model.said() == {"closed"})
    assert model.process.poll() is None, "it keeps that, for as long as there is a VM"


@pytest.mark.slow
def test_a_thousand_new_sizes(desktop: Desktop, pretend: Callable[[Play], FakeModel], tmp_path: Path) -> None:
    done, is_over = threading.Event(), threading.Event()

    def play(link: socket.socket) -> None:
        greet(link, 64, 64)
        threading.Thread(target=read_all, args=(link,), daemon=True).start()  # it asks for a picture of each size
        for number in range(1000):
            size = (1 + number * 37 % 700, 1 + number * 91 % 500) if number % 50 else (3000, 2000)
            link.sendall(struct.pack(">BxHHHHHi", 0, 1, 0, 0, *size, DESKTOP_SIZE))
        link.sendall(struct.pack(">BxHHHHHi", 0, 1, 0, 0, 320, 200, DESKTOP_SIZE))
        draw(link, 320, 200)
        done.set()
        is_over.wait(60)

    model = pretend(play)
    assert done.wait(90)
    window = desktop.wait_for_window(TITLE)
    wait_for("the picture", lambda: desktop.look().count("aaaaaa") > 320 * 200 // 2)
    assert model.said() == {"drawn"}
    assert model.process.poll() is None
    width, height = desktop.place(window)[2:]
    assert width <= WIDTH
    assert height <= HEIGHT
    viewer = list_below(model.process.pid)[-1]
    assert 0 < measure(viewer, "VmData") < MEMORY_MAX // 2, "what it had for former sizes is given back"
    assert is_usable(desktop, tmp_path)
    is_over.set()
