"""Ten thousand windows of a real guest, through the real xpra on both sides."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog.display.forwarder_rules import WINDOWS_MAX
from crannog.display.sandbox import MEMORY_MAX
from tests.gui.bounds import measure
from tests.gui.desktop import Desktop, wait_for
from tests.gui.local_guest import Forwarder, LocalGuest, settings_taken_back
from tests.processes import is_alive, memory_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]
COUNT = 10_000
CALM = 400 << 20
"""Bytes that the client has at most with as many windows as it shows."""

PROGRAM = """
import ctypes, sys
x = ctypes.CDLL("libX11.so.6")
x.XOpenDisplay.restype = display_type = ctypes.c_void_p
x.XDefaultRootWindow.restype = x.XCreateSimpleWindow.restype = ctypes.c_ulong
display = ctypes.c_void_p(x.XOpenDisplay(None))
root = ctypes.c_ulong(x.XDefaultRootWindow(display))
none = ctypes.c_ulong(0)
for number in range(int(sys.argv[1])):
    place = number * 7 % 900, number * 5 % 700
    window = ctypes.c_ulong(x.XCreateSimpleWindow(display, root, *place, 60, 40, 0, none, none))
    x.XStoreName(display, window, f"many {number}".encode())
    x.XMapWindow(display, window)
x.XSync(display, 0)
open(sys.argv[2], "w").write("mapped")
event = (ctypes.c_long * 24)()
while True:
    x.XNextEvent(display, event)
"""


@pytest.fixture(scope="module")
def other(desktop: Desktop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalGuest]:
    """Return another guest, whose terminal is on the same desktop."""
    with settings_taken_back():
        guest = LocalGuest(tmp_path_factory.mktemp("other"))
        try:
            guest.start()
            forwarder = Forwarder(desktop, guest.world.rpc_socket, guest.folder, "other", "0000cc")
            forwarder.wait_for("connected")
            guest.spawn("exec xterm -fn 10x20 -geometry 40x5+1000+700 -T shell -e sh")
            desktop.wait_for_window("[other] shell")
            yield guest
            forwarder.close()
        finally:
            guest.close()


def is_usable(desktop: Desktop, guest: LocalGuest, mark: str) -> bool:
    """Type into the other guest's terminal, and see that it arrives."""
    file = guest.folder / mark
    desktop.type(desktop.wait_for_window("[other] shell"), f"touch {file}")
    return wait_for("what was typed", file.exists)


def test_ten_thousand_windows(desktop: Desktop, local_guest: LocalGuest, other: LocalGuest, tmp_path: Path) -> None:
    forwarder = Forwarder(desktop, local_guest.world.rpc_socket, tmp_path)
    mapped = local_guest.folder / "mapped"
    program = local_guest.folder / "many.py"
    program.write_text(PROGRAM)
    try:
        forwarder.wait_for("connected")
        (client,) = forwarder.clients()
        pid = local_guest.spawn(f"exec /usr/bin/python3 {program} {COUNT} {mapped}")
        wait_for(f"{COUNT} windows in the guest", mapped.exists, 120)
        while forwarder.wait_for("windows") != f"windows {WINDOWS_MAX}":
            pass
        assert is_usable(desktop, other, "with-all")
        assert is_alive(client), "the same client"
        assert memory_of(client) < CALM
        assert measure(client, "VmHWM") < MEMORY_MAX
        titles = list(desktop.titles().values())
        assert len(titles) == WINDOWS_MAX + 1
        assert all(title.startswith(("[work] many ", "[other] ")) for title in titles)
        os.kill(pid, signal.SIGKILL)
        wait_for("no window of it", lambda: list(desktop.titles().values()) == ["[other] shell"], 180)
        assert is_usable(desktop, other, "after")
    finally:
        forwarder.close()
