"""The handover of a real HVM with tools, on a desktop, by what is to be seen there (design.md, B9 and B10)."""

import os
import time
from collections.abc import Iterator

import pytest

from tests.gui.desktop import Desktop, wait_for
from tests.gui.homes import GRAPHICAL, home_with
from tests.vm.home import Home

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

NAME, GREEN = "work", "73d216"
SCREEN, SHELL, DESKTOP = (f"[{NAME}] {title}" for title in ("emulated screen", "shell", "screen"))
DEBUG = tuple(f"[{NAME}: debug] {title}" for title in ("emulated screen", "shell"))
BLUE = "3465a4"
SECONDS = 180
"""Most that an emulated guest takes for anything."""


@pytest.fixture(scope="module")
def home(desktop: Desktop) -> Iterator[Home]:
    """Return a home whose daemon shows VMs on the desktop, with an HVM that has the graphical session."""
    template = ("debian-12-gui", "--virt-mode", "hvm")
    words = ("--template", "debian-12-gui-hvm", "--label", "green")
    with home_with(desktop, NAME, *words, memory=GRAPHICAL, template=template, is_shown=True) as found:
        yield found


@pytest.fixture(scope="module")
def booted(desktop: Desktop, home: Home) -> str:
    """Return what was read in the screen's window while the guest booted; it is handed over by then."""
    home.ok("qvm-start", "--no-wait", NAME)
    screen = desktop.wait_for_window(SCREEN)
    text = wait_for("boot messages", lambda: found if "console" in (found := desktop.read(screen)) else "", SECONDS)
    keep_picture(desktop, "boot")
    wait_for("the agent", lambda: home.run("qvm-run", NAME, "true").returncode == 0, SECONDS)
    assert SCREEN in desktop.titles().values(), "the agent answers, and its display is not connected yet"
    wait_for_titles(desktop)
    return text


@pytest.fixture(scope="module")
def terminal(desktop: Desktop, home: Home, booted: str) -> int:
    """Return the process, in the guest, of a terminal with the title `shell`."""
    assert booted
    command = "xterm -fn 10x20 -T shell -e sh </dev/null >/dev/null 2>&1 & echo $!"
    process = int(home.ok("qvm-run", "--pass-io", NAME, command))
    desktop.wait_for_window(SHELL, SECONDS)
    return process


def keep_picture(desktop: Desktop, name: str) -> None:
    """Keep a picture of the desktop for the documentation, where the caller wants one."""
    folder = os.environ.get("CRANNOG_PICTURES", "")
    if folder:
        time.sleep(5)  # so that all is painted
        desktop.run("import", "-window", "root", f"{folder}/{name}.png")


def wait_for_titles(desktop: Desktop, *titles: str) -> None:
    """Wait until exactly these windows are there."""
    wait_for(f"{titles}", lambda: sorted(desktop.titles().values()) == sorted(titles), SECONDS)


def test_boot_messages_are_seen_and_the_screen_goes_when_the_agent_is_connected(booted: str) -> None:
    assert "Please press Enter to activate this console" in booted, "the last that init says"


def test_windows_of_the_guest_are_framed_in_the_labels_colour(desktop: Desktop, terminal: int) -> None:
    assert terminal
    assert set(desktop.titles().values()) == {SHELL}
    wait_for("the frame", lambda: desktop.look().count(GREEN) > 1000)
    keep_picture(desktop, "seamless")


def test_pictures_of_either_display(desktop: Desktop, home: Home, terminal: int) -> None:
    assert terminal
    home.ok("qvm-run", NAME, "xterm -fn 10x20 -T herons -e 'echo; echo HERONS; exec cat' </dev/null >/dev/null 2>&1 &")
    window = desktop.wait_for_window(f"[{NAME}] herons", SECONDS)
    desktop.run("xdotool", "windowactivate", "--sync", str(window))
    wait_for("its words", lambda: "HERONS" in desktop.read(window, frame=8), SECONDS)
    read = {option: read_screenshot(desktop, home, *option) for option in ((), ("--windows",), ("--screen",))}
    assert "HERONS" in read[()]
    assert "HERONS" in read["--windows",]
    assert "HERONS" not in read["--screen",]
    assert "console" in read["--screen",], "the last that init says"
    desktop.close(window)
    wait_for_titles(desktop, SHELL)


def read_screenshot(desktop: Desktop, home: Home, *options: str) -> str:
    """Return the text in a picture that crannog takes."""
    file = f"{home.path}/picture.png"
    home.ok("crannog", "screenshot", *options, NAME, file)
    command = "convert $0 -resize 300% png:- | tesseract - - --psm 11 2>/dev/null"
    return desktop.run("sh", "-c", command, file)


def test_windows_follow_the_label_and_the_state(desktop: Desktop, home: Home, terminal: int) -> None:
    assert terminal
    home.ok("qvm-prefs", NAME, "label", "blue")
    wait_for("the new frame", lambda: desktop.look().count(BLUE) > 1000)
    assert desktop.look().count(GREEN) == 0
    home.ok("qvm-pause", NAME)
    wait_for_titles(desktop, f"[{NAME}: paused] shell")
    keep_picture(desktop, "paused")
    home.ok("qvm-unpause", NAME)
    wait_for_titles(desktop, SHELL)
    home.ok("qvm-prefs", NAME, "label", "green")
    wait_for("the first frame", lambda: desktop.look().count(GREEN) > 1000)


def test_in_debug_mode_both_are_there(desktop: Desktop, home: Home, terminal: int) -> None:
    assert terminal
    home.ok("qvm-prefs", NAME, "debug", "True")
    wait_for_titles(desktop, *DEBUG)
    keep_picture(desktop, "debug")
    desktop.close(desktop.wait_for_window(DEBUG[0]))
    wait_for_titles(desktop, DEBUG[1])
    home.ok("crannog", "show", NAME)
    wait_for_titles(desktop, *DEBUG)
    home.ok("qvm-prefs", NAME, "debug", "False")
    wait_for_titles(desktop, SHELL)


def test_the_whole_desktop_in_one_window_and_back(desktop: Desktop, home: Home, terminal: int) -> None:
    home.ok("qvm-features", NAME, "seamless-gui-mode", "")

    def see_desktop() -> bool:
        titles = list(desktop.titles().values())
        assert SCREEN not in titles, "the screen flashes up though the guest only changes its mode"
        return titles == [DESKTOP]

    wait_for("one window with the desktop", see_desktop, SECONDS)
    wait_for("its frame, and the terminal in it", lambda: desktop.look().count(GREEN) > 5000, SECONDS)
    keep_picture(desktop, "fullscreen")
    home.ok("qvm-features", NAME, "seamless-gui-mode", "1")
    wait_for_titles(desktop, SHELL)
    assert home.ok("qvm-run", "--pass-io", NAME, f"cat /proc/{terminal}/comm").strip() == "xterm", "it went on"


def test_the_screen_comes_back_when_the_gui_agent_dies(desktop: Desktop, home: Home, terminal: int) -> None:
    assert terminal
    home.ok("qvm-run", "--user", "root", NAME, "pkill -STOP xpra")  # it is silent, and its socket is still there
    wait_for_titles(desktop, SCREEN)
    home.ok("qvm-run", "--user", "root", NAME, "pkill -CONT xpra")
    wait_for_titles(desktop, SHELL)


def test_a_daemon_that_comes_later_leaves_all_as_it_is(desktop: Desktop, home: Home, terminal: int) -> None:
    assert terminal
    windows = desktop.titles()
    home.kill_daemon()
    assert home.state(NAME) == "Running"
    home.ok("qvm-prefs", NAME, "debug", "True")
    wait_for_titles(desktop, *DEBUG)
    assert set(windows) <= set(desktop.titles()), "the same window"
    home.ok("qvm-prefs", NAME, "debug", "False")
    wait_for_titles(desktop, SHELL)


@pytest.mark.slow
def test_a_reboot_begins_anew(desktop: Desktop, home: Home, terminal: int) -> None:
    assert terminal
    home.run("qvm-run", "--user", "root", NAME, "reboot")  # which ends with the agent
    wait_for_titles(desktop, SCREEN)
    wait_for_titles(desktop)  # handed over again, and no program runs yet


def test_nothing_is_left_when_the_vm_ends(desktop: Desktop, home: Home) -> None:
    home.ok("qvm-kill", NAME)
    desktop.wait_for_none()
