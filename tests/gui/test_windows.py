"""Windows of a guest on a desktop: the real xpra on both sides, the real agent and RPC process, but no VM."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog.display.forwarder_command import build_command
from crannog.display.forwarder_rules import FRAME
from crannog.display.look import parse_look
from crannog.display.session import Session
from crannog.display.titles import TITLE_MAX
from tests.gui.desktop import Desktop, Picture, wait_for
from tests.gui.local_guest import COLOUR, Forwarder, LocalGuest
from tests.processes import is_alive

TITLE = """
import sys
import gi
gi.require_version("Gtk", "3.0")
from gi.repository import Gdk, Gtk
kind = Gtk.WindowType.POPUP if "popup" in sys.argv else Gtk.WindowType.TOPLEVEL
window = Gtk.Window(type=kind, title=eval(sys.argv[1]))
window.set_default_size(300, 200)
if "proud" in sys.argv:
    window.set_visual(window.get_screen().get_rgba_visual())
    window.set_type_hint(Gdk.WindowTypeHint.DOCK)
    window.set_decorated(False)
    window.fullscreen()
    window.set_keep_above(True)
    window.stick()
if "popup" in sys.argv:
    window.resize(1200, 900)
window.show()
Gtk.main()
"""


@pytest.fixture
def terminal(local_guest: LocalGuest) -> Iterator[int]:
    """Return the process of a terminal in the guest, whose title is `shell`."""
    pid = local_guest.spawn("exec xterm -fn 10x20 -T shell -e sh")
    yield pid
    os.kill(pid, signal.SIGKILL)


def show_title(guest: LocalGuest, expression: str, *words: str) -> int:
    """Have the guest show a window whose title is a Python expression; words ask for more."""
    program = guest.folder / "title.py"
    program.write_text(TITLE)
    return guest.spawn(f"exec /usr/bin/python3 {program} '{expression}' {' '.join(words)}")


def test_a_window_is_framed_in_the_labels_colour(desktop: Desktop, forwarder: Forwarder, terminal: int) -> None:
    assert terminal
    window = desktop.wait_for_window("[work] shell")
    wait_for("the frame", lambda: desktop.look().count(COLOUR))
    x, y, width, height = desktop.place(window)
    picture = wait_for("the content", lambda: _show_content(desktop, x, y))
    assert picture
    for rectangle in (
        (x, y, width, FRAME),
        (x, y + height - FRAME, width, FRAME),
        (x, y, FRAME, height),
        (x + width - FRAME, y, FRAME, height),
    ):
        assert picture.colours(*rectangle) == {COLOUR}
    inside = (x + FRAME, y + FRAME, width - 2 * FRAME, height - 2 * FRAME)
    assert COLOUR not in picture.colours(*inside), "the frame is outside of what the guest draws"
    assert forwarder.lines[-1] == "connected"


def _show_content(desktop: Desktop, x: int, y: int) -> Picture | None:
    picture = desktop.look()
    return picture if picture.colour(x + FRAME + 50, y + FRAME + 100) == "ffffff" else None


def test_what_is_typed_arrives(desktop: Desktop, forwarder: Forwarder, terminal: int, local_guest: LocalGuest) -> None:
    assert forwarder.process.poll() is None
    assert is_alive(terminal)
    window = desktop.wait_for_window("[work] shell")
    typed = local_guest.folder / "typed"
    desktop.type(window, f"echo 'Az-/|~@{{}}' >{typed}; echo READABLE")
    assert wait_for("the typed line", lambda: typed.exists() and typed.read_text()) == "Az-/|~@{}\n"
    wait_for("the answer on the screen", lambda: "READABLE" in desktop.read(window).replace("echo READABLE", ""))


def test_letters_arrive_also_from_another_keyboard(
    desktop: Desktop, local_guest: LocalGuest, terminal: int, tmp_path: Path
) -> None:
    assert is_alive(terminal)
    desktop.run("setxkbmap", "de")
    forwarder = Forwarder(desktop, local_guest.world.rpc_socket, tmp_path)
    try:
        forwarder.wait_for("connected")
        window = desktop.wait_for_window("[work] shell")
        typed = local_guest.folder / "typed-de"
        desktop.type(window, f"echo 'zy-/(]@' >{typed}")
        assert wait_for("the typed line", lambda: typed.exists() and typed.read_text()) == "zy-/(]@\n"
    finally:
        forwarder.close()
        desktop.run("setxkbmap", "us")
        desktop.wait_for_none()


def test_menus_are_framed_and_in_their_place(desktop: Desktop, forwarder: Forwarder, terminal: int) -> None:
    assert forwarder.process.poll() is None
    assert is_alive(terminal)
    window = desktop.wait_for_window("[work] shell")
    before = desktop.look().count(COLOUR)
    x, y, _, _ = desktop.place(window)
    desktop.run("xdotool", "windowactivate", "--sync", str(window), "mousemove", str(x + 100), str(y + 60))
    desktop.run("xdotool", "keydown", "ctrl", "mousedown", "1")
    try:
        wait_for("a second frame", lambda: desktop.look().count(COLOUR) > before + 2000)
    finally:
        desktop.run("xdotool", "mouseup", "1", "keyup", "ctrl")


def test_the_window_can_be_resized(desktop: Desktop, forwarder: Forwarder, local_guest: LocalGuest) -> None:
    assert forwarder
    pid = show_title(local_guest, '"box"')
    window = desktop.wait_for_window("[work] box")
    assert desktop.place(window)[2:] == (300 + 2 * FRAME, 200 + 2 * FRAME)
    desktop.run("xdotool", "windowsize", str(window), str(500 + 2 * FRAME), str(400 + 2 * FRAME))
    wait_for("the guest's window", lambda: "500x400" in _list_guest_windows(local_guest))
    os.kill(pid, signal.SIGKILL)


def _list_guest_windows(guest: LocalGuest) -> str:
    return guest.world.run("xwininfo -root -tree")[1].decode(errors="replace")


@pytest.mark.parametrize(
    ("expression", "shown"),
    [
        (r'"\u202e[tluav]\u202c\u200b x"', "[work] [tluav] x"),
        (r'"[vault] keys\n\x1b[31m"', "[work] [vault] keys [31m"),
        (r'"A" * 5000', "[work] " + "A" * (TITLE_MAX - 1) + "\u2026"),
        ('""', "[work] untitled"),
        (r'"@hostname@ @windowid@"', "[work] @hostname@ @windowid@"),
    ],
)
def test_hostile_titles(
    desktop: Desktop, forwarder: Forwarder, local_guest: LocalGuest, expression: str, shown: str
) -> None:
    pid = show_title(local_guest, expression)
    desktop.wait_for_window(shown)
    assert forwarder.process.poll() is None
    os.kill(pid, signal.SIGKILL)


def test_a_window_does_not_choose_to_cover_everything(
    desktop: Desktop, forwarder: Forwarder, local_guest: LocalGuest
) -> None:
    assert forwarder.process.poll() is None
    pid = show_title(local_guest, '"all"', "proud")
    window = desktop.wait_for_window("[work] all")
    assert wait_for("the window manager's frame", lambda: _has_title_bar(desktop, window))
    facts = desktop.run("xprop", "-id", str(window), "_NET_WM_STATE", "_NET_WM_WINDOW_TYPE")
    assert not [word for word in ("FULLSCREEN", "ABOVE", "STICKY", "DOCK") if word in facts]
    assert "Depth: 24" in desktop.run("xwininfo", "-id", str(window))
    os.kill(pid, signal.SIGKILL)


def _has_title_bar(desktop: Desktop, window: int) -> bool:
    words = desktop.run("xprop", "-id", str(window), "_NET_FRAME_EXTENTS").partition("=")[2].split(",")
    return len(words) == 4 and int(words[2]) > 10


def test_a_menu_as_large_as_the_screen_is_a_window(
    desktop: Desktop, forwarder: Forwarder, local_guest: LocalGuest
) -> None:
    assert forwarder.process.poll() is None
    pid = show_title(local_guest, '"menu"', "popup")
    wait_for("a managed window", desktop.titles)
    ((window, title),) = desktop.titles().items()
    assert title.startswith("[work] ")
    assert wait_for("the window manager's frame", lambda: _has_title_bar(desktop, window))
    os.kill(pid, signal.SIGKILL)


def test_ten_megabytes_of_title_end_no_more_than_a_connection(
    desktop: Desktop, forwarder: Forwarder, local_guest: LocalGuest
) -> None:
    pid = show_title(local_guest, '"A" * 10_000_000')
    wait_for("the window", lambda: "title.py" in _list_guest_windows(local_guest))
    os.kill(pid, signal.SIGKILL)
    other = show_title(local_guest, '"small"')
    desktop.wait_for_window("[work] small", 60)
    assert forwarder.process.poll() is None
    os.kill(other, signal.SIGKILL)


def test_modes_change_and_applications_stay(
    desktop: Desktop, forwarder: Forwarder, local_guest: LocalGuest, terminal: int
) -> None:
    desktop.wait_for_window("[work] shell")
    forwarder.set_mode("FULLSCREEN")
    wait_for("one window", lambda: len(desktop.titles()) == 1)
    ((window, title),) = desktop.titles().items()
    assert title.startswith("[work] ")
    assert title != "[work] shell"
    assert desktop.place(window)[2:] == (1280 + 2 * FRAME, 960 + 2 * FRAME)
    forwarder.set_mode("SEAMLESS")
    window = desktop.wait_for_window("[work] shell")
    assert is_alive(terminal)
    mark = local_guest.folder / "after"
    desktop.type(window, f"touch {mark}")
    wait_for("the terminal that was there before", mark.exists)


def test_a_killed_client_is_told_and_comes_again(desktop: Desktop, forwarder: Forwarder, terminal: int) -> None:
    desktop.wait_for_window("[work] shell")
    for pid in forwarder.clients():
        os.kill(pid, signal.SIGKILL)
    assert "ended" in forwarder.wait_for("lost")
    forwarder.wait_for("connected")
    desktop.wait_for_window("[work] shell")
    assert is_alive(terminal)


def test_a_silent_guest_is_noticed(forwarder: Forwarder, local_guest: LocalGuest) -> None:
    xpra = local_guest.find_xpra()
    os.kill(xpra, signal.SIGSTOP)
    try:
        forwarder.wait_for("lost")
    finally:
        os.kill(xpra, signal.SIGCONT)
    forwarder.wait_for("connected")


def test_from_within_the_sandbox_no_other_socket_is_visible(desktop: Desktop, tmp_path: Path) -> None:
    session = Session.find(desktop.environment)
    command = build_command(parse_look("work", "#cc0000"), session, str(tmp_path / "guest.sock"))
    (tmp_path / "guest.sock").touch()
    find = "find / -xdev -type s -not -path '/proc/*' 2>/dev/null"
    probe = f"{find}; ls /run /home /root /var/lib 2>&1; cat /proc/net/unix"
    words = [*command[: command.index("/usr/bin/python3")], "sh", "-c", probe]
    found = subprocess.run(words, stdout=subprocess.PIPE, check=False, timeout=30).stdout.decode()
    assert ".sock" not in found
    assert found.count("No such file or directory") == 4


def test_it_ends_as_told(desktop: Desktop, local_guest: LocalGuest, tmp_path: Path) -> None:
    forwarder = Forwarder(desktop, local_guest.world.rpc_socket, tmp_path)
    forwarder.wait_for("connected")
    clients = forwarder.clients()
    assert clients
    assert forwarder.close() == 0
    wait_for("the end of the client", lambda: not any(map(is_alive, clients)))
    assert not os.path.exists(forwarder.status)


def test_a_killed_forwarder_leaves_no_window(desktop: Desktop, local_guest: LocalGuest, tmp_path: Path) -> None:
    first = Forwarder(desktop, local_guest.world.rpc_socket, tmp_path)
    first.wait_for("connected")
    pid = show_title(local_guest, '"left"')
    desktop.wait_for_window("[work] left")
    clients = first.clients()
    first.process.kill()
    first.close()
    wait_for("the end of the client", lambda: not any(map(is_alive, clients)))
    desktop.wait_for_none()
    second = Forwarder(desktop, local_guest.world.rpc_socket, tmp_path)
    second.wait_for("connected")
    desktop.wait_for_window("[work] left")
    os.kill(pid, signal.SIGKILL)
    assert second.close() == 0
