"""Which letter arrives in a guest for a key of the host: by the host's keyboard, or by a layout of the VM's own."""

import os
import signal
from collections.abc import Iterator

import pytest

from tests.gui.desktop import Desktop, wait_for
from tests.gui.local_guest import Forwarder, LocalGuest

pytestmark = pytest.mark.timeout(120)
KEYS = {"a": "38", "y": "29", "semicolon": "47", "return": "36"}
"""Codes of keys (evdev), by what is printed on them in the USA."""


@pytest.fixture
def reader(desktop: Desktop, local_guest: LocalGuest, forwarder: Forwarder) -> Iterator[int]:
    """Return the process of a terminal in the guest, which keeps the last line that it has read in `line`."""
    program = local_guest.folder / "reader"
    program.write_text(f'while read -r line; do printf %s "$line" >{local_guest.folder}/line; done\n')
    pid = local_guest.spawn(f"exec xterm -fn 10x20 -T reader -e sh {program}")
    assert forwarder.process.poll() is None
    desktop.wait_for_window("[work] reader")
    yield pid
    os.kill(pid, signal.SIGKILL)


@pytest.fixture
def own_layout(local_guest: LocalGuest, forwarder: Forwarder) -> Iterator[None]:
    """Have the guest follow the host's keyboard again in the end."""
    yield
    local_guest.set_layout("us++")
    forwarder.wait_for("lost")
    forwarder.wait_for("connected")


def press(desktop: Desktop, guest: LocalGuest, *keys: str) -> str:
    """Press keys, by what is printed on them in the USA; return the letters that a program of the guest has read."""
    file = guest.folder / "line"
    file.unlink(missing_ok=True)
    window = desktop.wait_for_window("[work] reader")
    desktop.run("xdotool", "windowactivate", "--sync", str(window))
    desktop.run("xdotool", "key", "--delay", "40", *(KEYS[key] for key in keys), KEYS["return"])
    wait_for("a line", file.exists)
    return wait_for("its letters", file.read_text)


def take_layout(guest: LocalGuest, forwarder: Forwarder, layout: str) -> None:
    """Give the VM a layout of its own, and wait until its windows are there again."""
    guest.set_layout(layout)
    forwarder.wait_for("lost")
    forwarder.wait_for("connected")


def ask_layout(guest: LocalGuest) -> str:
    """Return the layout of the guest's display, as programs in it see it."""
    return guest.world.run("setxkbmap -query")[1].decode()


def test_by_default_the_hosts_keyboard_is_followed(
    desktop: Desktop, local_guest: LocalGuest, forwarder: Forwarder, reader: int
) -> None:
    assert forwarder.process.poll() is None
    assert reader
    assert press(desktop, local_guest, "y", "semicolon", "y") == "y;y"


@pytest.mark.usefixtures("own_layout")
def test_a_layout_of_the_vms_own_wins(
    desktop: Desktop, local_guest: LocalGuest, forwarder: Forwarder, reader: int
) -> None:
    assert reader
    take_layout(local_guest, forwarder, "de+nodeadkeys+")
    assert press(desktop, local_guest, "y", "semicolon", "y") == "z\N{LATIN SMALL LETTER O WITH DIAERESIS}z"
    assert "de" in ask_layout(local_guest)
    local_guest.set_layout("fr++")
    wait_for("the other layout", lambda: "fr" in ask_layout(local_guest))
    assert press(desktop, local_guest, "a", "y", "semicolon") == "qym", "without a new connection"


@pytest.mark.usefixtures("own_layout")
def test_it_stays_when_the_hosts_keyboard_is_another_one(
    desktop: Desktop, local_guest: LocalGuest, forwarder: Forwarder, reader: int
) -> None:
    assert reader
    take_layout(local_guest, forwarder, "us+basic+")
    desktop.run("setxkbmap", "de")
    try:
        for pid in forwarder.clients():
            os.kill(pid, signal.SIGKILL)
        forwarder.wait_for("lost")
        forwarder.wait_for("connected")
        assert press(desktop, local_guest, "y", "semicolon") == "y;"
    finally:
        desktop.run("setxkbmap", "us")


@pytest.mark.usefixtures("own_layout")
@pytest.mark.parametrize("mode", ["FULLSCREEN"])
def test_it_wins_for_the_whole_desktop_as_well(
    desktop: Desktop, local_guest: LocalGuest, forwarder: Forwarder, reader: int, mode: str
) -> None:
    assert reader
    forwarder.set_mode(mode)
    take_layout(local_guest, forwarder, "de+nodeadkeys+")
    ((window, _),) = wait_for("the one window", desktop.titles).items()
    file = local_guest.folder / "line"
    file.unlink(missing_ok=True)
    x, y, _, _ = desktop.place(window)
    place = wait_for("the reader", lambda: find_reader(local_guest))
    desktop.run("xdotool", "mousemove", str(x + place[0] + 60), str(y + place[1] + 60), "click", "1")
    desktop.run("xdotool", "key", "--delay", "40", KEYS["y"], KEYS["semicolon"], KEYS["return"])
    wait_for("a line", file.exists)
    assert wait_for("its letters", file.read_text) == "z\N{LATIN SMALL LETTER O WITH DIAERESIS}"
    forwarder.set_mode("SEAMLESS")


def find_reader(guest: LocalGuest) -> tuple[int, int]:
    """Return the place of the terminal on the guest's own screen."""
    text = guest.world.run("xwininfo -name reader")[1].decode()
    facts = dict(line.strip().split(": ", 1) for line in text.splitlines() if ": " in line)
    return int(facts["Absolute upper-left X"]), int(facts["Absolute upper-left Y"])


def test_nonsense_changes_nothing(local_guest: LocalGuest, forwarder: Forwarder) -> None:
    before = ask_layout(local_guest)
    local_guest.set_layout("de; touch /tmp/evil++")
    forwarder.wait_for("lost")
    forwarder.wait_for("connected")
    assert ask_layout(local_guest) == before
    local_guest.set_layout("us++")
    forwarder.wait_for("lost")
    forwarder.wait_for("connected")
