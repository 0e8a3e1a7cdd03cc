"""Windows of a real guest: the image with the graphical session, booted by the tools as a user does."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog.client.rpc import read_status
from crannog.config import Paths
from crannog.display.forwarder_rules import FRAME
from tests.gui.desktop import Desktop, wait_for
from tests.gui.homes import GRAPHICAL, home_with
from tests.gui.local_guest import COLOUR, NAME, Forwarder
from tests.processes import memory_of
from tests.vm.home import Home

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def home(desktop: Desktop) -> Iterator[Home]:
    """Return a home in which the VM `work` runs, with a graphical session."""
    words = ("--template", "debian-12-gui", "--label", "red")
    with home_with(desktop, NAME, *words, memory=GRAPHICAL, template=("debian-12-gui",)) as found:
        found.ok("qvm-start", "--wait", NAME)
        yield found


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


@pytest.mark.slow
def test_the_vm_may_have_a_keyboard_of_its_own(desktop: Desktop, forwarder: Forwarder, home: Home) -> None:
    script = 'while read -r line; do printf %s "$line" >/tmp/key; done\n'
    home.ok("qvm-run", NAME, "cat >reader", stdin=script.encode())
    pid = home.ok("qvm-run", NAME, "xterm -T reader -e sh reader </dev/null >/dev/null 2>&1 & echo $!").strip()
    desktop.wait_for_window("[work] reader", 60)
    for layout, letter in (("de++", b"z"), ("us++", b"y")):
        home.ok("qvm-prefs", NAME, "keyboard_layout", layout)
        forwarder.wait_for("lost")
        forwarder.wait_for("connected")
        window = desktop.wait_for_window("[work] reader", 60)
        home.ok("qvm-run", NAME, "rm -f /tmp/key")
        desktop.run("xdotool", "windowactivate", "--sync", str(window), "key", "--delay", "40", "29", "36")
        assert wait_for("the key", lambda: home.run("qvm-run", NAME, "cat /tmp/key").stdout) == letter
    home.ok("qvm-run", NAME, f"kill {pid}")


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


def test_programs_are_started_with_the_session(desktop: Desktop, forwarder: Forwarder, home: Home) -> None:
    entry = (
        '[Desktop Entry]\nType=Application\nName=x\nExec=xterm -T autostarted -e sh -c "id -un >>started; exec cat"\n'
    )
    home.ok("qvm-run", NAME, "mkdir -p .config/autostart; cat >.config/autostart/x.desktop", stdin=entry.encode())
    home.ok("qvm-run", NAME, "echo nonsense >.config/autostart/bad.desktop; rm -f started")
    home.ok("qvm-run", "--user", "root", NAME, "pkill Xvfb")
    forwarder.wait_for("lost")
    forwarder.wait_for("connected")
    desktop.wait_for_window("[work] autostarted", 90)
    assert home.ok("qvm-run", NAME, "cat started") == "user\n", "once, as the user"


@pytest.mark.slow
def test_a_guest_whose_server_lies_harms_itself(desktop: Desktop, forwarder: Forwarder, home: Home) -> None:
    """The flood of test_hostile_windows.py, through the channel of a real VM, with a daemon to be asked meanwhile."""
    for name in ("hostile_server.py", "hostile_attacks.py"):
        home.ok("qvm-run", NAME, f"cat >{name}", stdin=Path(__file__).with_name(name).read_bytes())
    socket = "/run/crannog/gui/xpra.sock"
    home.ok("qvm-run", "--user", "root", NAME, f"pkill -STOP -f gui/[s]ession.py; pkill -x xpra; rm -f {socket}")
    forwarder.wait_for("lost")
    words = f"python3 hostile_server.py {socket} packet_flood log"
    pid = home.ok("qvm-run", NAME, f"{words} </dev/null >/dev/null 2>&1 & echo $!").strip()
    forwarder.wait_for("connected")
    while home.run("qvm-run", NAME, "grep -qx over log").returncode:
        assert home.state(NAME) == "Running"
    desktop.wait_for_window("[work] after", 120)
    assert memory_of(home.rpc_process(NAME)) < 100 << 20
    home.ok("qvm-run", "--user", "root", NAME, f"kill {pid}; rm {socket}; pkill -CONT -f gui/[s]ession.py")
    forwarder.wait_for("lost")
    forwarder.wait_for("connected")


def test_no_other_vm_may_ask_for_the_display(home: Home) -> None:
    done = home.run("crannog", "policy", "explain", "crannog.Display", "debian-12-gui", NAME)
    assert b"deny" in done.stdout


def test_the_end_of_the_vm(forwarder: Forwarder, desktop: Desktop, home: Home) -> None:
    home.ok("qvm-kill", NAME)
    forwarder.wait_for("lost")
    desktop.wait_for_none()
