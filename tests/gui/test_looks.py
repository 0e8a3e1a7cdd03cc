"""What windows look like, and pictures of them: of a guest without a VM, on a desktop."""

import os
import signal
import struct
import subprocess
import time
from collections.abc import Iterator

import pytest

from crannog.cli.guest_service import Service
from crannog.cli.picture import encode
from crannog.cli.picture_sources import SERVICE
from crannog.display.forwarder_command import PING_SECONDS, SILENCE_SECONDS
from crannog.display.forwarder_rules import FRAME
from tests.gui.desktop import Desktop, wait_for
from tests.gui.local_guest import COLOUR, NAME, Forwarder, LocalGuest

pytestmark = pytest.mark.timeout(200)

BLUE = "3465a4"
TERMINAL = "exec xterm -fn 10x20 -T {title} -e 'echo; echo {text}; exec sleep 1000'"


@pytest.fixture
def terminal(local_guest: LocalGuest) -> Iterator[int]:
    """Return the process of a terminal with the title `shell`, in which is a word."""
    pid = local_guest.spawn(TERMINAL.format(title="shell", text="HERONS"))
    yield pid
    os.kill(pid, signal.SIGKILL)


def frame_of(desktop: Desktop, window: int) -> str:
    """Return the colour of a window's frame; nothing when it has several."""
    x, y, width, height = desktop.place(window)
    picture = desktop.look()
    found = picture.colours(x, y, width, FRAME) | picture.colours(x, y, FRAME, height)
    return "".join(found) if len(found) == 1 else ""


def test_windows_follow_the_label_and_the_state(desktop: Desktop, forwarder: Forwarder, terminal: int) -> None:
    assert terminal
    window = desktop.wait_for_window(f"[{NAME}] shell")
    wait_for("the frame", lambda: frame_of(desktop, window) == COLOUR)
    clients = forwarder.clients()
    forwarder.change_look(f"#{BLUE} debug, paused")
    assert desktop.wait_for_window(f"[{NAME}: debug, paused] shell") == window, "the same window"
    wait_for("the new frame", lambda: frame_of(desktop, window) == BLUE)
    assert COLOUR not in desktop.look().colours(*desktop.place(window))
    assert forwarder.clients() == clients, "the same client"
    forwarder.change_look(f"#{COLOUR}")
    desktop.wait_for_window(f"[{NAME}] shell")
    wait_for("the first frame", lambda: frame_of(desktop, window) == COLOUR)


def test_windows_of_a_paused_vm_stay_until_it_should_speak(
    desktop: Desktop, forwarder: Forwarder, terminal: int, local_guest: LocalGuest
) -> None:
    assert terminal
    window = desktop.wait_for_window(f"[{NAME}] shell")
    forwarder.change_look(f"#{COLOUR} paused")
    xpra = local_guest.find_xpra()
    os.kill(xpra, signal.SIGSTOP)
    try:
        time.sleep(PING_SECONDS + 2 * SILENCE_SECONDS + 4)  # more than a guest that is not paused may be silent
        assert desktop.titles() == {window: f"[{NAME}: paused] shell"}
        forwarder.change_look(f"#{COLOUR}")
        forwarder.wait_for("lost")
    finally:
        os.kill(xpra, signal.SIGCONT)
    forwarder.wait_for("connected")
    desktop.wait_for_window(f"[{NAME}] shell")


def test_a_look_holds_for_what_comes_later(
    desktop: Desktop, forwarder: Forwarder, terminal: int, local_guest: LocalGuest
) -> None:
    assert terminal
    desktop.wait_for_window(f"[{NAME}] shell")
    forwarder.change_look(f"#{BLUE} paused")
    desktop.wait_for_window(f"[{NAME}: paused] shell")
    other = local_guest.spawn(TERMINAL.format(title=f"'[{NAME}] x'", text="x"))
    window = desktop.wait_for_window(f"[{NAME}: paused] [{NAME}] x")
    wait_for("its frame", lambda: frame_of(desktop, window) == BLUE)
    os.kill(other, signal.SIGKILL)
    for pid in forwarder.clients():
        os.kill(pid, signal.SIGKILL)
    forwarder.wait_for("lost")
    forwarder.wait_for("connected")
    window = desktop.wait_for_window(f"[{NAME}: paused] shell")
    wait_for("its frame", lambda: frame_of(desktop, window) == BLUE)


@pytest.mark.parametrize(
    "line", ["#00ff0 paused", "red paused", "#00ff00 [vault]", "#00ff00 a\x1b", "", "#00ff00 " + "a" * 90]
)
def test_what_is_no_look_changes_nothing(desktop: Desktop, forwarder: Forwarder, terminal: int, line: str) -> None:
    assert terminal
    window = desktop.wait_for_window(f"[{NAME}] shell")
    forwarder.change_look(line)
    forwarder.change_look(f"#{BLUE}")  # it is read after the other one
    wait_for("the frame", lambda: frame_of(desktop, window) == BLUE)
    assert set(desktop.titles().values()) == {f"[{NAME}] shell"}


# -- pictures


def take(local_guest: LocalGuest, service: Service = SERVICE) -> tuple[int, bytes]:
    """Return the exit code of the guest's service, and its picture."""
    return service.call(local_guest.world.rpc_socket, NAME)


def read(picture: bytes) -> str:
    """Return the text near the upper left corner of a picture, as an OCR reads it."""
    command = "convert - -crop 600x200+0+20 +repage -resize 300% png:- | tesseract - - --psm 6 2>/dev/null"
    return subprocess.run(["sh", "-c", command], input=encode(picture), capture_output=True, check=True).stdout.decode()


def test_a_picture_of_windows_that_are_shown(
    desktop: Desktop, forwarder: Forwarder, terminal: int, local_guest: LocalGuest
) -> None:
    assert terminal
    desktop.wait_for_window(f"[{NAME}] shell")
    clients = forwarder.clients()
    code, picture = take(local_guest)
    assert code == 0, picture
    assert "HERONS" in read(picture)
    assert forwarder.clients() == clients, "who shows the windows goes on doing so"
    assert set(desktop.titles().values()) == {f"[{NAME}] shell"}


def see(local_guest: LocalGuest) -> str:
    """Return what is read in a picture; nothing when there is none."""
    code, picture = take(local_guest)
    return read(picture) if code == 0 else ""


def test_a_picture_of_windows_that_nobody_shows(terminal: int, local_guest: LocalGuest) -> None:
    assert terminal
    wait_for("the window", lambda: "HERONS" in see(local_guest), 60)


def test_a_picture_where_no_window_is(local_guest: LocalGuest) -> None:
    wait_for("no window", lambda: take(local_guest) == (3, b""))


def test_a_picture_of_the_whole_desktop(
    desktop: Desktop, forwarder: Forwarder, terminal: int, local_guest: LocalGuest
) -> None:
    assert terminal
    # X11 asks a window manager to show a window once: one that is being replaced takes the request with it.
    desktop.wait_for_window(f"[{NAME}] shell")
    forwarder.set_mode("FULLSCREEN")
    try:
        wait_for("one window", lambda: len(desktop.titles()) == 1)
        wait_for("the terminal in the picture", lambda: "HERONS" in see(local_guest), 60)
        assert struct.unpack(">II", encode(take(local_guest)[1])[16:24]) == (1280, 960)
    finally:
        forwarder.set_mode("SEAMLESS")


def test_another_vm_gets_no_picture(local_guest: LocalGuest) -> None:
    service = local_guest.folder / "services/crannog.Screenshot"
    command = f"QREXEC_REMOTE_DOMAIN=vault exec {service}"
    code, output, complaint = local_guest.world.run(command)
    assert (code, output) == (1, b"")
    assert b"pictures are not for 'vault'" in complaint
