"""The window with the screen of one VM's device model, in the colour of the VM's label.

A program of its own: it runs in the sandbox (display/sandbox.py) with the distribution's Python and gtk-vnc, which
reads what the guest draws, and imports nothing of the package. On standard input it has a socket to display/screen.py,
a message a time (SOCK_SEQPACKET): it gets `look VM #rrggbb STATE`, upon which the window is there, or looks otherwise
from then on, and `connect`, with the connected VNC socket beside it; it sends `drawn` when the first picture is on the
screen, and `closed` when the user closes the window. Until it is told what to show it is a spare: starting it is what
takes long.

Title, frame and bar are made of what Crannog says, never of what the guest does. Cut buffers are not passed on.
"""

import signal
import socket
import sys
import warnings

import gi

gi.require_version("Gdk", "3.0")
gi.require_version("Gtk", "3.0")
gi.require_version("GtkVnc", "2.0")
from gi.repository import Gdk, GLib, Gtk, GtkVnc  # noqa: E402

EXIT_CLOSED = 0
EXIT_GONE = 3
"""The VM's end of the connection was closed."""
MESSAGE_MAX = 256
CLASS = "crannog"
"""The class of all windows of VMs; its instance is the VM's name (cli/clipboard_focus.py)."""
FRAME = 4
"""Pixels of the coloured frame."""
FIRST_SIZE = (720, 400)
"""Pixels of a PC's text screen, with which every boot begins."""
SIZE_MAX = 16384
"""Pixels; a larger side is no screen."""

STYLE = """
window.crannog {{ background: #000000; }}
window.crannog box.frame {{ border: {frame}px solid {colour}; background: #000000; }}
window.crannog box.bar {{ background: {colour}; padding: 0 6px 2px 6px; }}
window.crannog box.bar label {{ color: {ink}; font-weight: bold; }}
"""


class Viewer:
    """The window, and the socket to who started it."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._has_picture = self._is_drawn = False
        self.exit_code = EXIT_GONE
        self._label = Gtk.Label()
        self._screen = GtkVnc.Display()
        self._style = Gtk.CssProvider()
        Gtk.StyleContext.add_provider_for_screen(Gdk.Screen.get_default(), self._style, 800)
        self._window = self._build()
        self._listen()
        self._warm_up()

    def _warm_up(self) -> None:
        """Do as a spare what takes long the first time: styles, fonts, and the X windows."""
        self._dress("#000000")
        self._label.set_text("warm-up")
        self._window.get_child().show_all()
        self._window.realize()
        self._screen.realize()
        self._label.get_layout().get_pixel_size()

    def _dress(self, colour: str) -> None:
        self._style.load_from_data(STYLE.format(frame=FRAME, colour=colour, ink=contrast_to(colour)).encode())

    def _look(self, name: str, colour: str, state: str) -> None:
        prefix = f"{name}: {state}" if state else name
        self._window.set_title(f"[{prefix}] emulated screen")
        self._label.set_text(prefix)
        self._dress(colour)
        if not self._window.get_visible():
            self._name(name)
            self._window.show_all()
            self._screen.grab_focus()

    def _name(self, name: str) -> None:
        """Give the window the VM's name as its class-instance, as the VM's other windows have it.

        X windows have that from their beginning on (ICCCM, 4.1.2.5), so that the spare's are made anew.
        """
        self._window.unrealize()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # GTK 3 has no other way
            self._window.set_wmclass(name, CLASS)
        self._window.realize()

    def _build(self) -> Gtk.Window:
        window = Gtk.Window()
        window.set_role("screen")
        window.get_style_context().add_class("crannog")
        frame = Gtk.Box(orientation=Gtk.Orientation.VERTICAL)
        frame.get_style_context().add_class("frame")
        bar = Gtk.Box()
        bar.get_style_context().add_class("bar")
        bar.pack_start(self._label, False, False, 0)
        frame.pack_start(bar, False, False, 0)
        frame.pack_start(self._screen, True, True, 0)
        window.add(frame)
        self._fit(window, *FIRST_SIZE)
        return window

    def _listen(self) -> None:
        self._screen.set_scaling(True)
        self._screen.set_keep_aspect_ratio(True)
        self._screen.set_pointer_local(False)
        self._screen.set_keyboard_grab(False)
        self._screen.connect("vnc-initialized", self._note_initialized)
        self._screen.connect("vnc-desktop-resize", self._note_size)
        self._screen.connect("draw", self._note_draw)
        self._screen.connect("vnc-disconnected", lambda *_: self._quit(EXIT_GONE))
        self._window.connect("delete-event", self._note_closed)
        GLib.io_add_watch(self._control.fileno(), GLib.IO_IN | GLib.IO_HUP, self._take_message)
        GLib.unix_signal_add(GLib.PRIORITY_HIGH, signal.SIGTERM, lambda *_: self._quit(EXIT_GONE))

    def _fit(self, window: Gtk.Window, width: int, height: int) -> None:
        """Give the window the guest's size, as far as the monitor has room for it."""
        area = Gdk.Display.get_default().get_monitor(0).get_workarea()
        bar = 24
        wanted = min(width, SIZE_MAX) + 2 * FRAME, min(height, SIZE_MAX) + 2 * FRAME + bar
        window.resize(min(wanted[0], int(area.width * 0.95)), min(wanted[1], int(area.height * 0.92)))

    def _note_size(self, _screen: GtkVnc.Display, width: int, height: int) -> None:
        if width > 0 and height > 0:
            self._fit(self._window, width, height)

    def _note_initialized(self, screen: GtkVnc.Display) -> None:
        self._note_size(screen, screen.get_width(), screen.get_height())
        screen.get_connection().connect("vnc-framebuffer-update", self._note_picture)

    def _note_picture(self, *_: object) -> None:
        self._has_picture = True

    def _note_draw(self, *_: object) -> bool:
        if self._has_picture and not self._is_drawn:
            self._is_drawn = True
            # Once the widget has drawn, which it is about to do.
            GLib.idle_add(self._send, b"drawn", priority=GLib.PRIORITY_DEFAULT)
        return False

    def _note_closed(self, *_: object) -> bool:
        self._send(b"closed")
        self._quit(EXIT_CLOSED)
        return True

    def _take_message(self, *_event: object) -> bool:
        message, fds, _flags, _address = socket.recv_fds(self._control, MESSAGE_MAX, 1)
        if message == b"connect" and fds:
            self._screen.open_fd(fds[0])
        elif message.startswith(b"look "):
            _, name, colour, state = message.decode("ascii", "replace").split(" ", 3)
            self._look(name, colour, state)
        elif not message:
            self._quit(EXIT_GONE)
            return False
        return True

    def _send(self, message: bytes) -> bool:
        try:
            self._control.send(message)
        except OSError:
            self._quit(EXIT_GONE)
        return False

    def _quit(self, code: int) -> bool:
        self.exit_code = code
        Gtk.main_quit()
        return False


def contrast_to(colour: str) -> str:
    """Return black or white, whichever can be read on `colour`, `#rrggbb` (ITU-R BT.601's weights of the parts)."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#000000" if 299 * red + 587 * green + 114 * blue > 140_000 else "#ffffff"


def main() -> int:
    """Run the viewer; return its exit code."""
    GLib.set_prgname(CLASS)
    viewer = Viewer(socket.socket(fileno=0))
    Gtk.main()
    return viewer.exit_code


if __name__ == "__main__":
    sys.exit(main())
