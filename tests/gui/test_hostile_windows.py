"""A hostile xpra server at the other end of the real client: it harms its own windows, and nothing else."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog.display.forwarder_rules import FRAME, WINDOWS_MAX
from crannog.display.sandbox import MEMORY_MAX
from tests.gui.bounds import measure
from tests.gui.desktop import Desktop, wait_for
from tests.gui.hostile_guest import COLOUR, NAME, HostileGuest
from tests.gui.local_guest import Forwarder, LocalGuest, settings_taken_back
from tests.processes import list_below, memory_of, read_words

pytestmark = pytest.mark.timeout(240)

SURVIVED = {
    "unread_packets": 90,
    "forged_fields": 90,
    "absurd_windows": 90,
    "odd_wishes": 90,
    "long_titles": 90,
    "wrong_pictures": 90,
    "bombs": 90,
    "cursor_flood": 90,
    "huge_windows": 90,
    "many_windows": 120,
    "packet_flood": 120,
    "started_again_and_again": 120,
}
"""Attacks that the client lives through, with the seconds that each may take on a busy machine."""
FATAL = (
    "forged_type",
    "lying_header",
    "large_frame",
    "deflated_packet",
    "nested_packet",
    "other_encodings",
    "other_encoding_bencode",
    "other_compressors",
    "raw_pieces",
    "misplaced_piece",
    "says_goodbye",
    "forged_end",
)
"""Attacks that end the connection: as often as they are made."""
CALM = 300 << 20
"""Bytes that a client has at most when the attack is over."""


@pytest.fixture(scope="module")
def honest(desktop: Desktop, local_guest: LocalGuest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forwarder]:
    """Return the forwarder of another VM, of which a terminal is on the same desktop."""
    forwarder = Forwarder(desktop, local_guest.world.rpc_socket, tmp_path_factory.mktemp("honest"))
    pid = local_guest.spawn("exec xterm -fn 10x20 -geometry 40x5+1000+700 -T shell -e sh")
    try:
        forwarder.wait_for("connected")
        desktop.wait_for_window("[work] shell")
        yield forwarder
    finally:
        os.kill(pid, signal.SIGKILL)
        forwarder.close()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostileGuest]:
    """Return a guest that attacks."""
    with settings_taken_back():
        guest = HostileGuest(tmp_path_factory.mktemp("hostile"))
        try:
            guest.start()
            yield guest
        finally:
            guest.close()


@pytest.fixture
def attacked(desktop: Desktop, hostile: HostileGuest, honest: Forwarder, tmp_path: Path) -> Iterator[Forwarder]:
    """Return the forwarder of the hostile guest, which waits for an attack; at the end the other VM is looked at."""
    found = Forwarder(desktop, hostile.world.rpc_socket, tmp_path, NAME, COLOUR)
    before = list_home()
    try:
        yield found
        assert list_home() == before
        assert read_owners(desktop) == "0 0 0", "nobody has taken the clipboard"
        assert list_programs(found) <= {"prlimit", "bwrap", "/usr/bin/python3"}, "nothing was started in the sandbox"
    finally:
        hostile.relent()
        found.close()
        wait_for("none of its windows", lambda: set(desktop.titles().values()) == {"[work] shell"}, 60)
    assert honest.process.poll() is None
    assert not [line for line in honest.lines if line.startswith("lost")]


OWNERS = """
import ctypes
x = ctypes.CDLL("libX11.so.6")
x.XOpenDisplay.restype, x.XInternAtom.restype, x.XGetSelectionOwner.restype = ctypes.c_void_p, *[ctypes.c_ulong] * 2
display = ctypes.c_void_p(x.XOpenDisplay(None))
atoms = [ctypes.c_ulong(x.XInternAtom(display, name, 0)) for name in (b"CLIPBOARD", b"PRIMARY", b"SECONDARY")]
print(*[x.XGetSelectionOwner(display, atom) for atom in atoms])
"""


def read_owners(desktop: Desktop) -> str:
    """Return the windows that have the desktop's selections, 0 for none."""
    return desktop.run("/usr/bin/python3", "-c", OWNERS).strip()


def list_home() -> list[str]:
    """Return the files that are directly in this user's home."""
    return sorted(os.listdir(os.path.expanduser("~")))


def list_programs(forwarder: Forwarder) -> set[str]:
    """Return the programs that run below a forwarder, but for the calls into its guest.

    What it is just starting has its own words until it becomes a program (execve(2)).
    """
    own = read_words(forwarder.process.pid)
    found = [words for words in map(read_words, list_below(forwarder.process.pid)) if words and words != own]
    return {words[0] for words in found if "crannog.display.forwarder_call" not in words}


def check_the_other_vm(desktop: Desktop, guest: LocalGuest, mark: str) -> None:
    """Type into the window of the other VM, and see that it arrives."""
    file = guest.folder / mark
    desktop.type(desktop.wait_for_window("[work] shell"), f"touch {file}")
    wait_for("what was typed", file.exists)


def check_titles(desktop: Desktop) -> None:
    """See that each window says whose it is; one that goes meanwhile says nothing."""
    titles = [title for title in desktop.titles().values() if title]
    assert [title for title in titles if not title.startswith((f"[{NAME}] ", "[work] "))] == []
    assert titles.count("[work] shell") == 1
    assert len(titles) <= WINDOWS_MAX + 1


@pytest.mark.parametrize("attack", SURVIVED)
def test_the_client_lives_through(
    attack: str, attacked: Forwarder, hostile: HostileGuest, desktop: Desktop, local_guest: LocalGuest
) -> None:
    hostile.attack(attack)
    attacked.wait_for("connected")
    (client,) = attacked.clients()
    check_the_other_vm(desktop, local_guest, f"during-{attack}")
    check_titles(desktop)
    hostile.wait_for_end(SURVIVED[attack])
    desktop.wait_for_window(f"[{NAME}] after", SURVIVED[attack])
    assert attacked.clients() == [client]
    assert measure(client, "VmHWM") < MEMORY_MAX
    assert memory_of(client) < CALM
    check_titles(desktop)
    assert "over" in hostile.lines()
    assert hostile.lines().count("begun") == 1
    check_the_other_vm(desktop, local_guest, f"after-{attack}")
    decent = desktop.wait_for_window(f"[{NAME}] decent") if attack != "long_titles" else 0
    assert attack == "long_titles" or is_framed(desktop, decent)


def is_framed(desktop: Desktop, window: int) -> bool:
    """Wait for a window's frame in the label's colour, on top of all others."""
    desktop.run("xdotool", "windowactivate", "--sync", str(window))
    x, y, width, height = desktop.place(window)
    sides = ((x, y, width, FRAME), (x, y + height - FRAME, width, FRAME), (x, y, FRAME, height))

    def look() -> bool:
        picture = desktop.look()
        return all(picture.colours(*side) == {COLOUR} for side in sides)

    return wait_for("the frame", look)


@pytest.mark.parametrize("attack", FATAL)
def test_the_client_ends_and_comes_again(
    attack: str, attacked: Forwarder, hostile: HostileGuest, desktop: Desktop, local_guest: LocalGuest
) -> None:
    hostile.attack(attack)
    attacked.wait_for("connected")
    attacked.wait_for("lost")
    check_the_other_vm(desktop, local_guest, f"during-{attack}")
    attacked.wait_for("connected")
    wait_for("the second attack", lambda: hostile.lines().count("begun") >= 2)
    assert all(measure(client, "VmHWM") < MEMORY_MAX for client in attacked.clients())
    check_titles(desktop)


def test_the_host_is_not_described(attacked: Forwarder, hostile: HostileGuest) -> None:
    hostile.attack("unread_packets")
    attacked.wait_for("connected")
    hostile.wait_for_end(90)
    wait_for("an answered ping", lambda: any(line.startswith("[b'ping'") for line in hostile.lines()))
    told = "\n".join(hostile.lines())
    kernel, host = os.uname().release, os.uname().nodename
    machine = Path("/etc/machine-id").read_text().strip()
    assert "xkbmap" in told, "the keyboard is"
    for secret in (kernel, f"'{host}'", machine, "Debian", "build.", "theme.", "forwarder_client", "hostname"):
        assert secret not in told
    kinds = {line.split("'")[1] for line in hostile.lines() if line.startswith("[b'")}
    assert not {kind for kind in kinds if kind.startswith(("clipboard", "send-", "open-", "file", "printers", "sound"))}


def test_two_clients_have_nothing_in_common(attacked: Forwarder, hostile: HostileGuest) -> None:
    """A number that all clients of this host have would tell guests that they are on one host."""
    hostile.attack("says_goodbye")
    wait_for("two clients", lambda: len([line for line in hostile.lines() if "b'hello'" in line]) >= 2, 60)
    assert attacked.process.poll() is None
    first, second = (line.partition("b'uuid': ")[2][:44] for line in hostile.lines() if "b'hello'" in line)
    assert first
    assert first != second


def test_menus_do_not_cover_the_screen(attacked: Forwarder, hostile: HostileGuest, desktop: Desktop) -> None:
    hostile.attack("cover_by_menus")
    attacked.wait_for("connected")
    desktop.wait_for_window(f"[{NAME}] after")
    check_titles(desktop)
    assert any(title == f"[{NAME}] decent" for title in desktop.titles().values())
    menus = list_menus(desktop)
    assert menus
    for x, y, width, height in menus:
        assert 2 * width * height < 1600 * 1000 + 2 * 2 * FRAME * (1600 + 1000)
        assert x >= 0
        assert y >= 0
        assert x + width <= 1600
        assert y + height <= 1000


def list_menus(desktop: Desktop) -> list[tuple[int, int, int, int]]:
    """Return the places of all windows without a title bar that are as large as the tests' are."""
    tree = desktop.run("xwininfo", "-root", "-children")
    windows = [int(line.split()[0], 16) for line in tree.splitlines() if line.strip().startswith("0x")]
    places = []
    for window in windows:
        facts = desktop.run("xwininfo", "-id", str(window))
        if "Override Redirect State: yes" in facts and "IsViewable" in facts and "InputOutput" in facts:
            places.append(desktop.place(window))
    return [place for place in places if place[2] > 100]


def test_a_menus_frame_is_on_the_screen(attacked: Forwarder, hostile: HostileGuest, desktop: Desktop) -> None:
    hostile.attack("menu_at_the_edge")
    attacked.wait_for("connected")
    desktop.wait_for_window(f"[{NAME}] after")

    def look() -> bool:
        picture = desktop.look()
        return (
            picture.colours(0, 0, 400, FRAME) | picture.colours(0, 0, FRAME, 300) == {COLOUR}
            and picture.colours(1600 - FRAME, 720, FRAME, 200) == {COLOUR}
            and picture.colours(1300, 1000 - FRAME, 300, FRAME) == {COLOUR}
        )

    wait_for("the frames of both menus", look)


def test_a_window_larger_than_the_screen_shows_whose_it_is(
    attacked: Forwarder, hostile: HostileGuest, desktop: Desktop
) -> None:
    hostile.attack("cover_by_a_window")
    attacked.wait_for("connected")
    desktop.wait_for_window(f"[{NAME}] after")
    window = desktop.wait_for_window(f"[{NAME}] cover")
    x, y, _, _ = desktop.place(window)
    extents = desktop.run("xprop", "-id", str(window), "_NET_FRAME_EXTENTS").partition("=")[2].split(",")
    assert int(extents[2]) > 10, "it has a title bar"
    assert 0 <= x < 1500
    assert y >= int(extents[2]), "which is on the screen"


def test_what_is_typed_goes_to_no_new_window(
    attacked: Forwarder, hostile: HostileGuest, desktop: Desktop, local_guest: LocalGuest
) -> None:
    window = desktop.wait_for_window("[work] shell")
    desktop.run("xdotool", "windowactivate", "--sync", str(window))
    hostile.attack("focus_thief")
    attacked.wait_for("connected")
    file = local_guest.folder / "whole"
    desktop.run("xdotool", "type", "--delay", "60", f"echo {'secret' * 20} >{file}")
    desktop.run("xdotool", "key", "Return")
    hostile.wait_for_end(90)
    assert [line for line in hostile.lines() if line.startswith("[b'key-action'")] == [], "keys were stolen"
    assert wait_for("what was typed", lambda: file.exists() and file.read_text()) == "secret" * 20 + "\n"
