"""Windows of a real guest: the image with the graphical session, booted by the tools as a user does."""

import os
import signal
import sys
import time
from collections.abc import Iterator

import pytest

from crannog.client.rpc import read_status
from crannog.config import Paths
from crannog.display.forwarder_rules import FRAME
from tests.gui.desktop import Desktop, wait_for
from tests.gui.local_guest import COLOUR, NAME, Forwarder
from tests.vm.home import Home

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    """Return a home in which the VM `work` runs, with a graphical session."""
    found = Home()
    try:
        found.ok("crannog", "template", "build", "debian-12-gui")
        found.ok("qvm-create", "--template", "debian-12-gui", "--label", "red", NAME)
        found.ok("qvm-prefs", NAME, "memory", "1000")
        found.ok("qvm-start", "--wait", NAME)
        yield found
    finally:
        found.run("qvm-kill", NAME)
        found.close()


@pytest.fixture(scope="module")
def forwarder(desktop: Desktop, home: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forwarder]:
    """Return a forwarder that shows the guest's windows."""
    began = time.monotonic()
    found = Forwarder(desktop, Paths(home.path).rpc_socket(NAME), tmp_path_factory.mktemp("forwarder"))
    try:
        found.wait_for("connected")
        sys.stderr.write(f"connected {time.monotonic() - began:.1f} s after the agent answered\n")
        yield found
    finally:
        found.close()


@pytest.fixture(scope="module")
def terminal(desktop: Desktop, home: Home, forwarder: Forwarder) -> int:
    """Return the process, in the guest, of a terminal with the title `shell`."""
    assert forwarder.process.poll() is None
    began = time.monotonic()
    program = "LC_ALL=C.UTF-8 xterm -u8 -xrm '*utf8Title: true' -fn 10x20 -T shell -e sh"
    output = home.ok("qvm-run", NAME, f"{program} </dev/null >/dev/null 2>&1 & echo $!")
    desktop.wait_for_window("[work] shell", 60)
    sys.stderr.write(f"window {time.monotonic() - began:.1f} s after its program was started\n")
    return int(output)


def test_the_guest_has_announced_its_gui_agent(home: Home) -> None:
    announced = read_status(Paths(home.path).rpc_socket(NAME), 10)["announced"]
    assert isinstance(announced, dict)
    assert announced["gui"] is True
    assert home.ok("qvm-features", "debian-12-gui", "gui").strip() == "1"
    done = home.run("qvm-run", "--service", NAME, "qubes.WaitForSession", stdin=b"user\n")
    assert done.returncode == 0


def test_the_display_is_the_users_alone(home: Home, forwarder: Forwarder) -> None:
    assert forwarder.process.poll() is None
    files = "/run/crannog/gui $XAUTHORITY /run/crannog/gui/xpra.sock"
    command = f"echo $DISPLAY; stat -c '%a %U' {files}"
    assert home.ok("qvm-run", NAME, command) == ":0\n700 user\n600 user\n600 user\n"
    tcp = home.ok("qvm-run", "--user", "root", NAME, "cat /proc/net/tcp /proc/net/tcp6 | grep -c ' 0A ' || true")
    assert tcp == "0\n", "nobody listens on TCP"
    assert home.run("qvm-run", "--user", "root", NAME, "XAUTHORITY= xdpyinfo || xterm -display :0 -e true").returncode


def test_the_window_has_its_frame_and_its_name(desktop: Desktop, terminal: int) -> None:
    assert terminal
    window = desktop.wait_for_window("[work] shell")
    x, y, width, height = desktop.place(window)

    def is_framed() -> bool:
        picture = desktop.look()
        return picture.colours(x, y, width, FRAME) | picture.colours(x, y, FRAME, height) == {COLOUR}

    wait_for("the frame", is_framed)
    picture = desktop.look()
    assert COLOUR not in picture.colours(x + FRAME, y + FRAME, width - 2 * FRAME, height - 2 * FRAME)


def test_what_is_typed_arrives(desktop: Desktop, home: Home, terminal: int) -> None:
    assert terminal
    desktop.type(desktop.wait_for_window("[work] shell"), "echo typed-here >/tmp/typed")
    wait_for("the typed line", lambda: home.run("qvm-run", NAME, "cat /tmp/typed").stdout == b"typed-here\n")


def test_the_guests_titles_are_cleaned(desktop: Desktop, terminal: int) -> None:
    assert terminal
    window = desktop.wait_for_window("[work] shell")
    desktop.type(window, r"printf '\033]2;\342\200\256[vault]\007'")
    desktop.wait_for_window("[work] [vault]")
    desktop.type(window, r"printf '\033]2;shell\007'")
    desktop.wait_for_window("[work] shell")


def test_a_killed_client_comes_again(desktop: Desktop, forwarder: Forwarder, terminal: int, home: Home) -> None:
    for pid in forwarder.clients():
        os.kill(pid, signal.SIGKILL)
    forwarder.wait_for("lost")
    forwarder.wait_for("connected")
    desktop.wait_for_window("[work] shell")
    assert home.run("qvm-run", NAME, f"kill -0 {terminal}").returncode == 0


def test_modes_change_and_applications_stay(desktop: Desktop, forwarder: Forwarder, terminal: int, home: Home) -> None:
    forwarder.set_mode("FULLSCREEN")
    wait_for("one window", lambda: len(desktop.titles()) == 1)
    ((window, title),) = desktop.titles().items()
    assert title.startswith("[work] ")
    assert desktop.place(window)[2:] == (1920 + 2 * FRAME, 1080 + 2 * FRAME)
    forwarder.set_mode("SEAMLESS")
    window = desktop.wait_for_window("[work] shell", 60)
    assert home.run("qvm-run", NAME, f"kill -0 {terminal}").returncode == 0
    desktop.type(window, "touch /tmp/after")
    wait_for("the same terminal", lambda: home.run("qvm-run", NAME, "test -e /tmp/after").returncode == 0)


def test_no_other_vm_may_ask_for_the_display(home: Home) -> None:
    done = home.run("crannog", "policy", "explain", "crannog.Display", "debian-12-gui", NAME)
    assert b"deny" in done.stdout


def test_the_end_of_the_vm(forwarder: Forwarder, desktop: Desktop, home: Home) -> None:
    home.ok("qvm-kill", NAME)
    forwarder.wait_for("lost")
    desktop.wait_for_none()
