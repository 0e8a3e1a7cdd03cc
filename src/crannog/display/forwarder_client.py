"""The xpra client as it runs in the sandbox: less of it, and with a frame of its own.

`forwarder_client.py NAME COLOUR STATE WORDS...` runs `xpra WORDS...` with these differences, all held here, so that no
option of a guest's server can turn one off:

- Packets that show windows are read, no others (forwarder_packets.py): none that has to do with files, addresses,
  printers, sounds, clipboards, notifications, trays, icons, grabs, or the client's own settings. Each is read anew,
  field by field; what is odd about one drops it.
- Of what a guest says about a window, what forwarder_rules.py lists is believed. Titles are those of titles.py. No
  window covers the whole screen by its own wish, stays above others, has a shape, or lets others show through.
- A frame in the label's colour is around each window, outside of what the guest draws, also around menus. Menus that
  would cover most of a monitor become ordinary windows, whose title bars begin on the screen.
- What waits is bounded (forwarder_room.py), and so are the sizes of pictures, of windows and of all windows together.
- The guest is told of this host what windows need, and nothing more (forwarder_hello.py).
- The first output line is `connected`, once the guest's server has agreed and told its windows; then `windows N`
  follows for each change.

It is made for xpra 3.1, the version of Debian 12, and refuses to run with another one: what is above would be in doubt.
"""

# ruff: noqa: ANN401, D102  xpra has no types; what its methods do, it says itself
import os
import secrets
import sys
import threading
from typing import Any

import xpra
from gi.repository import GLib
from xpra.client.gtk3 import client as xpra_client
from xpra.net import compression
from xpra.platform import init
from xpra.scripts import main as xpra_main
from xpra.util import typedict

from crannog.display import forwarder_rules as rules
from crannog.display.forwarder_dress import Dress
from crannog.display.forwarder_hello import tell_guest
from crannog.display.forwarder_packets import INTERNAL, READERS, inflate, measure_cost, read_packet
from crannog.display.forwarder_room import Room
from crannog.display.forwarder_window import FramedWindow

VERSION = "3.1."
EXIT_VERSION = 70
TELL_MS = 200
PACKETS_WAITING = 512
PICTURES_WAITING = 64
PICTURES_COST = 128 << 20
"""Bytes that pictures take which wait to be decoded or painted; one alone may take more."""
FRAME_MAX = 64 << 20
"""Bytes of a packet as it is sent: more than a picture of the largest size has when it cannot be compressed by half."""


class Status:
    """The lines that go to forwarder.py, and what it has said of the windows' look."""

    fd = -1
    dress = Dress()

    @classmethod
    def tell(cls, line: str) -> None:
        """Write one line."""
        os.write(cls.fd, line.encode() + b"\n")


class QuietClient(xpra_client.XpraClient):  # type: ignore[misc]
    """The client of one guest."""

    ClientWindowClass = FramedWindow
    dress = Status.dress

    def __init__(self) -> None:
        self._waiting = Room(PACKETS_WAITING, 0)
        self._pictures = Room(PICTURES_WAITING, PICTURES_COST)
        self._is_agreed = self._is_started = self._is_telling = False
        super().__init__()
        GLib.io_add_watch(0, GLib.IO_IN | GLib.IO_HUP, self.change_dress)

    def setup_connection(self, connection: Any) -> Any:
        protocol = super().setup_connection(connection)
        self._protocol.abs_max_packet_size = self._protocol.max_packet_size = FRAME_MAX
        return protocol

    def send_hello(self, *_reply: Any) -> None:
        """Say what this client is: no reply to a guest that wants a password, and little of this host."""
        told = tell_guest({**self.make_hello_base(), **self.make_hello()})
        self.send("hello", {**told, "uuid": secrets.token_hex(20)})

    def process_packet(self, protocol: Any, untrusted_packet: Any) -> None:
        packet = read_packet(untrusted_packet)
        if packet is None or (packet[0] == "hello" and self._is_agreed):
            return
        self._is_agreed |= packet[0] == "hello"
        # Of its own the client's main thread makes packets as well: it is the one that makes room.
        if threading.current_thread() is not threading.main_thread():
            if packet[0] == "draw":
                self._pictures.take(measure_cost(packet))
            if packet[0] in self._ui_packet_handlers:
                self._waiting.take()
        super().process_packet(protocol, packet)

    def add_packet_handler(self, packet_type: str, handler: Any, main_thread: bool = True) -> None:
        if packet_type not in READERS and packet_type not in INTERNAL:
            return

        def handle(packet: Any) -> None:
            try:
                handler(packet)
            finally:
                self._waiting.give()

        super().add_packet_handler(packet_type, handle if main_thread else handler, main_thread)

    def send_damage_sequence(self, *words: Any) -> None:
        self._pictures.give()
        super().send_damage_sequence(*words)

    def check_echo_timeout(self, ping_time: Any) -> None:
        """End when the guest is silent, but not while its VM stands still: then it cannot speak."""
        if Status.dress.is_still:
            self.cancel_ping_echo_timeout_timer()
        else:
            super().check_echo_timeout(ping_time)

    def _process_ping(self, packet: Any) -> None:
        self.send("ping_echo", packet[1], 0, 0, 0, -1, "")  # xpra's own tells how busy this host is

    def _process_startup_complete(self, packet: Any) -> None:
        super()._process_startup_complete(packet)
        if not self._is_started:
            self._is_started = True
            Status.tell("connected")
            self.tell_windows()

    def tell_windows(self) -> bool:
        """Tell how many windows there are."""
        self._is_telling = False
        Status.tell(f"windows {len(self._id_to_window)}")
        return False

    def tell_windows_soon(self) -> None:
        """Tell it once for all changes of the next moments: a guest may have windows come and go as it likes."""
        if self._is_started and not self._is_telling:
            self._is_telling = True
            GLib.timeout_add(TELL_MS, self.tell_windows)

    def change_dress(self, fd: int, _condition: Any) -> bool:
        """Dress all windows as forwarder.py says now."""
        before = Status.dress.prefix
        is_open = Status.dress.read(fd)
        self.cancel_ping_echo_timeout_timer()  # a guest that was paused may speak again from now on
        for _, window in self.list_windows():
            title = Status.dress.change_title(window._metadata.bytesget("title").decode(), before).encode()
            window.update_metadata(typedict({b"title": title, b"icon-title": title}))
            window.queue_draw()
        return is_open

    def has_focus(self) -> bool:
        """Tell whether what is typed goes to a window of this guest."""
        return self._focused is not None

    def list_windows(self) -> list[tuple[int, Any]]:
        """Return all windows with their numbers."""
        return list(self._id_to_window.items())

    def _process_new_common(self, packet: Any, override_redirect: bool) -> None:
        window, width, height = packet[1], packet[4], packet[5]
        if len(self._id_to_window) >= rules.WINDOWS_MAX or window in self._id_to_window:
            return
        if not self.has_room(width, height):
            return
        super()._process_new_common(packet, override_redirect and not self.is_too_large(width, height))
        self.tell_windows_soon()

    def has_room(self, width: int, height: int, window: Any = None) -> bool:
        """Tell whether a window may have a size: a new one, or one that there is, which may be a menu."""
        others = sum(other.count_pixels() for _, other in self.list_windows() if other is not window)
        if width * height > rules.AREA_MAX or others + width * height > rules.AREA_SUM_MAX:
            return False
        return window is None or not window.is_OR() or not self.is_too_large(width, height, window)

    def is_too_large(self, width: int, height: int, window: Any = None) -> bool:
        """Tell whether a menu of this size would, with all others, cover too much."""
        menus = [other for _, other in self.list_windows() if other.is_OR() and other is not window]
        others = sum(menu.count_pixels() for menu in menus)
        return rules.is_too_large(width, height, self.find_monitor(), others)

    def find_monitor(self) -> tuple[int, int]:
        """Return the size of the smallest monitor, in pixels."""
        screens = self._current_screen_sizes or ()
        monitors = [(monitor[3], monitor[4]) for screen in screens for monitor in screen[5]]
        root: tuple[int, int] = self.get_root_size()
        return min(monitors, default=root, key=lambda size: size[0] * size[1])

    def cook_metadata(self, new_window: bool, metadata: Any) -> Any:
        untrusted = dict(metadata)
        return typedict(rules.filter_metadata(Status.dress.compose, Status.dress.name, untrusted, is_new=new_window))

    def _process_lost_window(self, packet: Any) -> None:
        super()._process_lost_window(packet)
        self.tell_windows_soon()

    def set_tray_icon(self) -> None:
        """Do nothing: there is no tray."""


def main(look: list[str], words: list[str]) -> int:
    """Run xpra's client until it ends; return its exit code. `look` is a name, a colour and a state."""
    Status.fd = os.dup(1)
    Status.dress.put_on(*look)
    os.dup2(2, 1)  # what xpra prints is no status
    if not xpra.__version__.startswith(VERSION):
        Status.tell("wrong-version")
        return EXIT_VERSION
    init()
    xpra_client.XpraClient = QuietClient
    compression.zlib_decompress = inflate  # xpra's own would inflate whatever comes
    return int(xpra_main.main("xpra", ["xpra", *words]) or 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:4], sys.argv[4:]))
