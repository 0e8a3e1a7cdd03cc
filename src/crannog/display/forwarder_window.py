"""A window of a guest, as the client in the sandbox shows it: with a frame, and where the user sees whose it is."""

# ruff: noqa: ANN401, D102  xpra has no types; what its methods do, it says itself
from typing import Any

from gi.repository import GObject, Gtk
from xpra.client.gtk3.client_window import ClientWindow

from crannog.display import forwarder_rules as rules
from crannog.display.forwarder_rules import FRAME


class FramedWindow(ClientWindow):  # type: ignore[misc]
    """A window of the guest. Sizes and places that xpra sees are without the frame."""

    _size: tuple[int, int]

    def init_drawing_area(self) -> None:
        super().init_drawing_area()
        for side in ("start", "end", "top", "bottom"):
            getattr(self.drawing_area, f"set_margin_{side}")(FRAME)

    def do_draw(self, context: Any) -> None:
        context.set_source_rgb(*self._client.dress.colour)
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
        """Put the frame's corner, or that of what a window manager puts around it, to its place."""
        x, y = x - FRAME, y - FRAME
        if not self._override_redirect:
            x, y = rules.keep_on_screen(x, y, self._client.get_root_size())
        Gtk.Window.move(self, x, y)

    def calculate_window_offset(self, x: int, y: int, width: int, height: int) -> Any:
        """Return how far a menu has to be moved to be on a monitor, frame and all; the pointer's place follows it."""
        return super().calculate_window_offset(x - FRAME, y - FRAME, width + 2 * FRAME, height + 2 * FRAME)

    def show(self) -> None:
        """Appear; with the focus only where that takes it from no other VM, and from no program of the host."""
        self.set_focus_on_map(self._client.has_focus() or not self.get_screen().get_active_window())
        super().show()

    def deiconify(self) -> None:
        """Come back from being an icon: window managers give the focus to who does."""
        if self._client.has_focus():
            super().deiconify()

    def count_pixels(self) -> int:
        """Return how many pixels the guest draws in this window."""
        return int(self._backing.size[0] * self._backing.size[1]) if self._backing else 0

    def resize(self, width: int, height: int, resize_counter: int = 0) -> None:
        if not self._client.has_room(width, height, self):
            return
        self._resize_counter = resize_counter
        if not self._maximized:
            Gtk.Window.resize(self, width + 2 * FRAME, height + 2 * FRAME)
        self._backing.offsets = 0, 0, 0, 0
        self._set_backing_size(width, height)
        self.queue_draw_area(0, 0, width, height)

    def move_resize(self, x: int, y: int, width: int, height: int, resize_counter: int = 0) -> None:
        if not self._client.has_room(width, height, self):
            return
        self._resize_counter = resize_counter
        if self._override_redirect:
            self.window_offset = self.calculate_window_offset(x, y, width, height)
        offset_x, offset_y = self.window_offset or (0, 0)
        decoration_x, decoration_y = self.measure_decoration()
        self.move(x + offset_x - decoration_x, y + offset_y - decoration_y)
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

    def apply_transient_for(self, window: int) -> None:
        parents = {child: found._metadata.intget("transient-for", -1) for child, found in self._client.list_windows()}
        if not rules.would_loop(self._id, window, parents):
            super().apply_transient_for(window)

    def set_fullscreen(self, fullscreen: bool) -> None:
        """Do nothing: the guest does not choose to cover everything, frame and all."""


GObject.type_register(FramedWindow)
