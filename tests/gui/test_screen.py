"""The device-model display of a real HVM without tools, as a person at the desktop sees it (design.md, B9)."""

import contextlib
import os
import signal
import socket
import stat
import struct
import time
from collections.abc import Iterator

import pytest

from crannog.cli.clipboard_focus import find_focused_vm
from crannog.config import Paths
from tests.gui.desktop import Desktop, open_desktop, wait_for
from tests.gui.homes import home_with
from tests.processes import is_alive, list_below
from tests.vm.home import Home

pytestmark = [pytest.mark.vm, pytest.mark.timeout(120)]

NAME, ORANGE = "bare", "f57900"
TITLE = f"[{NAME}] emulated screen"
BLUE = "3465a4"
FRAME = 4
MEMTEST = "/usr/lib/memtest86+/memtest86+x64.iso"


@pytest.fixture(scope="module")
def home(desktop: Desktop) -> Iterator[Home]:
    """Return a home whose daemon shows VMs on the desktop, with an HVM without any system."""
    words = ("--class", "StandaloneVM", "--property", "virt_mode=hvm", "--label", "orange")
    with home_with(desktop, NAME, *words, memory=64, is_shown=True) as found:
        yield found


@pytest.fixture
def window(desktop: Desktop, home: Home) -> Iterator[int]:
    """Return the window of the VM's screen; the VM is halted afterwards."""
    home.ok("qvm-start", NAME)
    yield desktop.wait_for_window(TITLE)
    home.run("qvm-kill", NAME)
    desktop.wait_for_none()


def find_serving(home: Home) -> int:
    """Return the process that shows the VM's screen: who is at its status socket (unix(7), SO_PEERCRED)."""
    path = Paths(home.path).display_socket("screen", home.ok("qvm-prefs", NAME, "uuid").strip())

    def look() -> int:
        with socket.socket(socket.AF_UNIX) as link, contextlib.suppress(OSError):
            link.connect(path)
            return int(struct.unpack("iII", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])
        return 0

    return wait_for("a process that shows the screen", look)


def find_viewer(serving: int) -> int:
    """Return the innermost process below the one that shows a screen: the viewer, in its sandbox."""
    return (list_below(serving) or [serving])[-1]


def read_boot_text(desktop: Desktop, window: int) -> str:
    return wait_for("the firmware's words", lambda: found if "Boot" in (found := desktop.read(window)) else "")


def test_boot_messages_are_read_in_a_window_in_the_labels_colour(desktop: Desktop, window: int) -> None:
    text = read_boot_text(desktop, window)
    assert "SeaBIOS" in text
    assert NAME in text, "the bar above the guest's picture"
    x, y, width, height = desktop.place(window)
    picture = desktop.look()
    for rectangle in ((x, y, width, FRAME), (x, y + height - FRAME, width, FRAME), (x, y, FRAME, height)):
        assert picture.colours(*rectangle) == {ORANGE}
    assert ORANGE not in picture.colours(x + width // 2, y + height // 2, 20, 20)


def test_a_vm_without_tools_keeps_its_screen(desktop: Desktop, window: int) -> None:
    time.sleep(3)
    assert list(desktop.titles()) == [window]


def test_the_screen_says_whose_it_is_as_other_windows_do(desktop: Desktop, window: int) -> None:
    assert desktop.run("xprop", "-id", str(window), "WM_CLASS").strip() == f'WM_CLASS(STRING) = "{NAME}", "crannog"'
    desktop.run("xdotool", "windowactivate", "--sync", str(window))
    assert find_focused_vm(desktop.environment) == NAME


def frame_of(desktop: Desktop, window: int) -> str:
    """Return the colour of the frame's left side; nothing when it has several."""
    x, y, _, height = desktop.place(window)
    found = desktop.look().colours(x, y, FRAME, height)
    return "".join(found) if len(found) == 1 else ""


def read_bar(desktop: Desktop, window: int) -> str:
    """Return the text in the bar above the guest's picture."""
    x, y, _, _ = desktop.place(window)
    command = "import -window root -crop $0 +repage -colorspace gray -resize 400% png:- | tesseract - - --psm 7"
    return desktop.run("sh", "-c", f"{command} 2>/dev/null", f"200x20+{x + FRAME}+{y + FRAME}")


def test_the_screen_follows_label_and_state(desktop: Desktop, home: Home, window: int) -> None:
    wait_for("its frame", lambda: frame_of(desktop, window) == ORANGE)
    home.ok("qvm-prefs", NAME, "label", "blue")
    wait_for("the new frame", lambda: frame_of(desktop, window) == BLUE)
    home.ok("qvm-pause", NAME)
    assert desktop.wait_for_window(f"[{NAME}: paused] emulated screen") == window, "the same window"
    wait_for("the bar says it too", lambda: f"{NAME}: paused" in read_bar(desktop, window))
    home.ok("qvm-unpause", NAME)
    assert desktop.wait_for_window(TITLE) == window
    home.ok("qvm-prefs", NAME, "debug", "True")
    assert desktop.wait_for_window(f"[{NAME}: debug] emulated screen") == window
    home.kill_daemon()
    home.ok("qvm-prefs", "--offline", NAME, "label", "orange")  # while nobody could tell the viewer
    home.ok("qvm-prefs", NAME, "debug", "False")
    assert desktop.wait_for_window(TITLE) == window
    wait_for("the first frame", lambda: frame_of(desktop, window) == ORANGE)


def test_a_viewer_that_hangs_is_killed(desktop: Desktop, home: Home, window: int) -> None:
    assert window
    serving = find_serving(home)
    hung = [serving, *list_below(serving)]
    for pid in hung:
        os.kill(pid, signal.SIGSTOP)  # no more SIGTERM reaches it
    home.ok("qvm-kill", NAME)
    desktop.wait_for_none()
    wait_for("their end", lambda: not any(map(is_alive, hung)))


def test_a_foreign_system_keeps_its_screen(desktop: Desktop, home: Home) -> None:
    """A CD without any tools of ours: memtest86+, whose test goes on for long."""
    home.ok("qvm-prefs", NAME, "memory", "128")
    home.ok("qvm-start", "--cdrom", MEMTEST, NAME)
    try:
        window = desktop.wait_for_window(TITLE)
        wait_for("its blue", lambda: desktop.look().count("0000a8") > 100_000, 100)
        assert list(desktop.titles()) == [window]
        assert home.run("qvm-features", NAME, "gui").returncode != 0, "no agent was announced"
    finally:
        home.ok("qvm-kill", NAME)
        home.ok("qvm-prefs", NAME, "memory", "64")
        desktop.wait_for_none()


def test_a_picture_of_the_screen(desktop: Desktop, home: Home, window: int) -> None:
    read_boot_text(desktop, window)
    file = f"{home.path}/screen.png"
    home.ok("crannog", "screenshot", NAME, file)
    with open(file, "rb") as picture:
        assert picture.read(8) == b"\x89PNG\r\n\x1a\n"
    assert "SeaBIOS" in desktop.run("sh", "-c", f"convert {file} -resize 300% png:- | tesseract - - --psm 6")


def test_a_window_that_the_user_closes_stays_closed_until_somebody_asks(
    desktop: Desktop, home: Home, window: int
) -> None:
    desktop.close(window)
    desktop.wait_for_none()
    time.sleep(1.5)
    assert not desktop.titles()
    assert home.state(NAME) == "Running"
    home.ok("crannog", "show", NAME)
    again = desktop.wait_for_window(TITLE)
    desktop.close(again)
    desktop.wait_for_none()
    home.fails(5, "qvm-start", NAME)
    desktop.wait_for_window(TITLE)


def test_what_shows_the_screen_is_started_again_when_it_is_killed(desktop: Desktop, home: Home, window: int) -> None:
    serving = find_serving(home)
    os.kill(find_viewer(serving), signal.SIGKILL)
    wait_for("another process", lambda: not is_alive(serving) and find_serving(home))
    desktop.wait_for_window(TITLE)
    again = find_serving(home)
    os.kill(again, signal.SIGKILL)
    wait_for("a third process", lambda: not is_alive(again) and find_serving(home))
    desktop.wait_for_window(TITLE)
    assert list(desktop.titles().values()) == [TITLE]
    assert window


def test_a_daemon_that_comes_later_finds_the_window(desktop: Desktop, home: Home, window: int) -> None:
    serving = find_serving(home)
    home.kill_daemon()
    assert home.state(NAME) == "Running"  # which starts another daemon
    time.sleep(1.5)
    assert list(desktop.titles()) == [window]
    assert find_serving(home) == serving
    desktop.close(window)
    desktop.wait_for_none()
    home.ok("crannog", "show", NAME)
    desktop.wait_for_window(TITLE)


def test_a_window_that_is_closed_while_there_is_no_daemon_stays_closed(
    desktop: Desktop, home: Home, window: int
) -> None:
    home.kill_daemon()
    desktop.close(window)
    desktop.wait_for_none()
    assert home.state(NAME) == "Running"
    time.sleep(1.5)
    assert not desktop.titles()
    home.ok("crannog", "show", NAME)
    desktop.wait_for_window(TITLE)


def test_a_viewer_that_ignores_sigterm_is_killed(desktop: Desktop, home: Home, window: int) -> None:
    assert window
    serving = find_serving(home)
    viewer = find_viewer(serving)
    for pid in (viewer, serving):
        os.kill(pid, signal.SIGSTOP)
    home.ok("qvm-kill", NAME)
    desktop.wait_for_none()
    wait_for("both are gone", lambda: not is_alive(serving) and not is_alive(viewer))


def test_the_viewer_sees_nothing_of_the_home(home: Home, window: int) -> None:
    assert window
    viewer = find_viewer(find_serving(home))
    root = f"/proc/{viewer}/root"
    assert not os.path.exists(root + home.path)
    found = [os.path.join(*place) for top in ("tmp", "run", "var", "home", "etc") for place in walk(f"{root}/{top}")]
    sockets = [path.removeprefix(root) for path in found if stat.S_ISSOCK(os.lstat(path).st_mode)]
    assert sockets == [f"/tmp/.X11-unix/X{home.env['DISPLAY'][1:]}"]
    for space in ("net", "pid", "mnt", "user", "ipc"):
        assert os.readlink(f"/proc/{viewer}/ns/{space}") != os.readlink(f"/proc/self/ns/{space}")


def walk(top: str) -> Iterator[tuple[str, str]]:
    """Return all files below a folder: their folders, and their names."""
    return ((folder, name) for folder, _folders, names in os.walk(top) for name in names)


def test_nothing_is_left_when_the_vm_ends(desktop: Desktop, home: Home, window: int) -> None:
    assert window
    serving = find_serving(home)
    home.ok("qvm-kill", NAME)
    desktop.wait_for_none()
    wait_for("the process is gone", lambda: not is_alive(serving))
    left = wait_for("the sockets are gone", lambda: not [n for n in os.listdir(f"{home.path}/run") if "scr" in n])
    assert left


def test_vms_move_to_another_desktop(desktop: Desktop, home: Home, window: int) -> None:
    """As when somebody logs in again, on another display, while a VM runs."""
    desktop.close(window)
    desktop.wait_for_none()
    with open_desktop(f"{home.path}/other.log") as other:
        env, home.env = home.env, {**home.env, "DISPLAY": other.display}
        try:
            home.ok("crannog", "show", "--here", NAME)
            other.wait_for_window(TITLE)
            assert not desktop.titles()
        finally:
            home.env = env
            home.ok("qvm-kill", NAME)
            other.wait_for_none()
    home.ok("qvm-start", NAME)
    home.ok("crannog", "show", "--here", NAME)
    desktop.wait_for_window(TITLE)
