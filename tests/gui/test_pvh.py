"""A guest without a device model: it has windows, never a screen; on a host without a desktop, then with one."""

import subprocess
from collections.abc import Iterator

import pytest

from tests.gui.desktop import Desktop, wait_for
from tests.gui.homes import GRAPHICAL, home_with
from tests.vm.home import Home

pytestmark = [pytest.mark.vm, pytest.mark.timeout(400)]

NAME, PURPLE = "work", "75507b"
SHELL = f"[{NAME}] shell"
SECONDS = 180
"""Most that an emulated guest takes for anything."""


@pytest.fixture(scope="module")
def home(desktop: Desktop) -> Iterator[Home]:
    """Return a home whose daemon knows no desktop, with a PVH guest that has the graphical session."""
    words = ("--template", "debian-12-gui", "--label", "purple")
    with home_with(desktop, NAME, *words, memory=GRAPHICAL, template=("debian-12-gui",)) as found:
        yield found


@pytest.fixture(scope="module")
def told(home: Home) -> str:
    """Start the guest; return what is said of that."""
    done = home.run("qvm-start", "-v", "--wait", NAME)
    assert done.returncode == 0, done.stderr
    home.ok("qvm-run", "--service", NAME, "qubes.WaitForSession", stdin=b"user\n")
    return (done.stdout + done.stderr).decode()


@pytest.fixture(scope="module")
def terminal(home: Home, told: str) -> str:
    """Return the title of a terminal in the guest that has a word in it."""
    assert told
    program = "xterm -fn 10x20 -T shell -e 'echo; echo HERONS; exec cat'"
    home.ok("qvm-run", NAME, f"{program} </dev/null >/dev/null 2>&1 &")
    return SHELL


def refuse(home: Home, *words: str) -> str:
    """Return why something cannot be shown."""
    done = home.run("crannog", *words)
    assert done.returncode == 16, done
    return done.stderr.decode()


def read_picture(home: Home, *options: str) -> str:
    """Return the text in a picture that crannog takes; nothing when it takes none."""
    file = f"{home.path}/picture.png"
    if home.run("crannog", "screenshot", *options, NAME, file).returncode:
        return ""
    command = "convert $0 -crop 600x200+0+0 +repage -resize 300% png:- | tesseract - - --psm 6 2>/dev/null"
    return subprocess.run(["sh", "-c", command, file], capture_output=True, check=True).stdout.decode()


def test_a_host_without_a_desktop_says_so(home: Home, told: str) -> None:
    reason = "there is no desktop to show VMs on: crannogd was started without the variable DISPLAY"
    assert f"displays ready (not shown: {reason})" in told
    assert reason in refuse(home, "show", NAME)


def test_pictures_need_no_desktop(home: Home, told: str) -> None:
    assert told
    file = f"{home.path}/picture.png"
    wait_for(
        "the guest's display",
        lambda: b"shows no window" in home.run("crannog", "screenshot", NAME, file).stderr,
        SECONDS,
    )
    assert "work has no emulated screen" in refuse(home, "screenshot", "--screen", NAME, file)


def test_a_picture_of_windows_that_nobody_shows(home: Home, terminal: str) -> None:
    assert terminal
    wait_for("the window in the picture", lambda: "HERONS" in read_picture(home), SECONDS)


def test_on_a_desktop_it_has_windows_and_no_screen(desktop: Desktop, home: Home, terminal: str) -> None:
    home.env["DISPLAY"] = desktop.display
    home.ok("crannog", "show", "--here", NAME)
    desktop.wait_for_window(terminal, SECONDS)
    wait_for("its frame", lambda: desktop.look().count(PURPLE) > 1000)
    home.ok("qvm-prefs", NAME, "debug", "True")
    desktop.wait_for_window(f"[{NAME}: debug] shell")
    home.ok("qvm-prefs", NAME, "debug", "False")
    desktop.wait_for_window(terminal)
    assert list(desktop.titles().values()) == [terminal]
    assert "HERONS" in read_picture(home, "--windows")
    assert list(desktop.titles().values()) == [terminal], "who takes a picture takes no window away"


def test_without_a_guivm_it_is_shown_nowhere(desktop: Desktop, home: Home, terminal: str) -> None:
    home.ok("qvm-prefs", NAME, "guivm", "")
    desktop.wait_for_none()
    assert "its guivm is none" in refuse(home, "show", NAME)
    home.ok("qvm-prefs", NAME, "guivm", "dom0")
    desktop.wait_for_window(terminal, SECONDS)
