"""The xpra client as it runs in the sandbox: less of it, and with a frame of its own.

`forwarder_client.py NAME COLOUR WORDS...` runs `xpra WORDS...` with these differences, all held here, so that no
option of a guest's server can turn one off:

- Packets that show windows are read, no others (forwarder_rules.py): none that has to do with files, addresses,
  printers, sounds, clipboards, notifications, trays, icons, grabs, or the client's own settings.
- Of what a guest says about a window, what is listed there is believed. Titles are those of titles.py. No window
  covers the whole screen by its own wish, stays above others, has a shape, or lets others show through.
- A frame in the label's colour is around each window, outside of what the guest draws, also around menus. A menu that
  would cover most of the screen becomes an ordinary window.
- The first output line is `connected`, once the guest's server has agreed and told its windows; then `windows N`
  follows for each change.

It is made for xpra 3.1, the version of Debian 12, and refuses to run with another one: what is above would be in doubt.
"""

# ruff: noqa: ANN401, D102  xpra has no types; what its methods do, it says itself
import os
import sys
from typing import Any

import xpra
from gi.repository import GObject, Gtk
from xpra.client.gtk3 import client as xpra_client
from xpra.client.gtk3.client_window import ClientWindow
from xpra.platform import init
from xpra.scripts import main as xpra_main
from xpra.util import typedict

from crannog.display import forwarder_rules as rules
from crannog.display.forwarder_rules import FRAME
from crannog.display.titles import compose_title

VERSION = "3.1."
EXIT_VERSION = 70


class Status:
    """The lines that go to forwarder.py, and what the command line says."""

    fd = -1
    name = ""
    colour = (0.0, 0.0, 0.0)

    @classmethod
    def tell(cls, line: str) -> None:
        """Write one line."""
        os.write(cls.fd, line.encode() + b"\n")


class FramedWindow(ClientWindow):  # type: ignore[misc]
    """A window of the guest. Sizes and places that xpra sees are without the frame."""

    _size: tuple[int, int]

    def init_drawing_area(self) -> None:
        super().init_drawing_area()
        for side in ("start", "end", "top", "bottom"):
            getattr(self.drawing_area, f"set_margin_{side}")(FRAME)

    def do_draw(self, context: Any) -> None:
        context.set_source_rgb(*Status.colour)
        context.paint()
        super().do_draw(context)

    def get_size(self) -> tuple[int, int]:
        width, height = Gtk.Window.get_size(self)
        return max(1, width - 2 * FRAME), max(1, height - 2 * FRAME)

    def set_default_size(self, width: int, height: int) -> None:
        Gtk.Window.set_default_size(self, width + 2 * FRAME, height + 2 * FRAME)

    def get_position(self) -> tuple[int, int]:
        x, y = Gtk.Window.get_position(self)
        return x + FRAME, y + FRAME

    def move(self, x: int, y: int) -> None:
        Gtk.Window.move(self, x - FRAME, y - FRAME)

    def resize(self, width: int, height: int, resize_counter: int = 0) -> None:
        self._resize_counter = resize_counter
        if not self._maximized:
            Gtk.Window.resize(self, width + 2 * FRAME, height + 2 * FRAME)
        self._backing.offsets = 0, 0, 0, 0
        self._set_backing_size(width, height)
        self.queue_draw_area(0, 0, width, height)

    def move_resize(self, x: int, y: int, width: int, height: int, resize_counter: int = 0) -> None:
        width, height = max(1, width), max(1, height)
        if self._override_redirect and rules.is_too_large(width, height, self._client.get_root_size()):
            return
        self._resize_counter = resize_counter
        decoration_x, decoration_y = self.measure_decoration()
        self.move(x - decoration_x, y - decoration_y)
        if (width, height) != self._size:
            self._size = width, height
            self.resize(width, height, resize_counter)

    def measure_decoration(self) -> tuple[int, int]:
        """Return how far the window's corner is inside of what the window manager put around it."""
        window = self.get_window()
        if window is None or self._override_redirect:
            return 0, 0
        origin, root = window.get_origin()[-2:], window.get_root_origin()
        return int(origin[0] - root[0]), int(origin[1] - root[1])

    def apply_geometry_hints(self, hints: Any) -> None:
        super().apply_geometry_hints(rules.widen_hints(hints))

    def set_fullscreen(self, fullscreen: bool) -> None:
        """Do nothing: the guest does not choose to cover everything, frame and all."""


GObject.type_register(FramedWindow)


class QuietClient(xpra_client.XpraClient):  # type: ignore[misc]
    """The client of one guest."""

    ClientWindowClass = FramedWindow

    def add_packet_handler(self, packet_type: str, handler: Any, main_thread: bool = True) -> None:
        if packet_type in rules.PACKETS:
            super().add_packet_handler(packet_type, handler, main_thread)
        else:
            super().add_packet_handler(packet_type, lambda _packet: None, False)

    def _process_startup_complete(self, packet: Any) -> None:
        super()._process_startup_complete(packet)
        Status.tell("connected")
        self.tell_windows()

    def tell_windows(self) -> None:
        Status.tell(f"windows {len(self._id_to_window)}")

    def _process_new_common(self, packet: Any, override_redirect: bool) -> None:
        if len(self._id_to_window) >= rules.WINDOWS_MAX:
            return
        width, height = int(packet[4]), int(packet[5])
        is_menu = bool(override_redirect) and not rules.is_too_large(width, height, self.get_root_size())
        super()._process_new_common(packet[:7], is_menu)  # after that come wishes such as another workspace
        self.tell_windows()

    def cook_metadata(self, new_window: bool, metadata: Any) -> Any:
        untrusted = dict(metadata)
        return typedict(rules.filter_metadata(compose_title, Status.name, untrusted, is_new=new_window))

    def _process_lost_window(self, packet: Any) -> None:
        super()._process_lost_window(packet)
        self.tell_windows()

    def _process_cursor(self, packet: Any) -> None:
        if not rules.is_large_cursor(packet):
            super()._process_cursor(packet)

    def set_tray_icon(self) -> None:
        """Do nothing: there is no tray."""


def read_colour(text: str) -> tuple[float, float, float]:
    """Return red, green and blue of a colour such as cc0000, each from 0 to 1. Raises ValueError."""
    number = int(text, 16)
    if not 0 <= number <= 0xFFFFFF:
        raise ValueError(f"{text} is not a colour such as cc0000")
    return (number >> 16) / 255, (number >> 8 & 255) / 255, (number & 255) / 255


def main(name: str, colour: str, words: list[str]) -> int:
    """Run xpra's client until it ends; return its exit code."""
    Status.fd, Status.name, Status.colour = os.dup(1), name, read_colour(colour)
    os.dup2(2, 1)  # what xpra prints is no status
    if not xpra.__version__.startswith(VERSION):
        Status.tell("wrong-version")
        return EXIT_VERSION
    init()
    xpra_client.XpraClient = QuietClient
    return int(xpra_main.main("xpra", ["xpra", *words]) or 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
