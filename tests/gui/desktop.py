"""A desktop of its own for tests: an X server without a screen, a window manager, and what is to be seen on it."""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

WIDTH, HEIGHT = 1600, 1000
T = TypeVar("T")


def wait_for(what: str, look: Callable[[], T], seconds: float = 90.0) -> T:
    """Return what `look` returns as soon as it is something; fail with `what` when it stays nothing."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)
    return found


class Desktop:
    """An X display with openbox."""

    def __init__(self, display: str) -> None:
        self.display = display
        self.environment = {**os.environ, "DISPLAY": display}
        self.environment.pop("XAUTHORITY", None)

    def run(self, *words: str) -> str:
        """Run a program of the desktop; return its output."""
        done = subprocess.run(words, env=self.environment, stdout=subprocess.PIPE, check=False, timeout=90)
        return done.stdout.decode(errors="replace")

    def titles(self) -> dict[int, str]:
        """Return the titles of all windows that the window manager manages, by window."""
        listed = self.run("xprop", "-root", "_NET_CLIENT_LIST").partition("#")[2]
        windows = [int(word, 16) for word in listed.replace(",", " ").split()]
        return {window: self.run("xdotool", "getwindowname", str(window)).strip("\n") for window in windows}

    def wait_for_window(self, title: str, seconds: float = 90.0) -> int:
        """Return the one window with a title."""

        def look() -> list[int]:
            return [window for window, found in self.titles().items() if found == title]

        return wait_for(f"a window {title!r} among {self.titles()}", look, seconds)[0]

    def wait_for_none(self) -> None:
        """Wait until no window is left."""
        wait_for("no window", lambda: not self.titles())

    def place(self, window: int) -> tuple[int, int, int, int]:
        """Return x, y, width, height of a window, without what the window manager put around it."""
        text = self.run("xwininfo", "-id", str(window))
        facts = dict(line.strip().split(": ", 1) for line in text.splitlines() if ": " in line)
        x, y = int(facts["Absolute upper-left X"]), int(facts["Absolute upper-left Y"])
        return x, y, int(facts["Width"]), int(facts["Height"])

    def look(self) -> "Picture":
        """Return what is on the screen now."""
        words = ["import", "-window", "root", "-depth", "8", "rgb:-"]
        done = subprocess.run(words, env=self.environment, stdout=subprocess.PIPE, check=True, timeout=90)
        assert len(done.stdout) == WIDTH * HEIGHT * 3
        return Picture(done.stdout)

    def read(self, window: int, frame: int = 0) -> str:
        """Return the text in a window, as an OCR reads it; nothing when it has gone.

        It looks at what is at least `frame` pixels from the edges: lines around a text make it see none. The picture
        is one of the whole screen: asked for a window that goes meanwhile, import(1) waits for a click.
        """
        try:
            x, y, width, height = self.place(window)
        except KeyError:
            return ""
        command = "import -window root -crop $0 +repage -resize 300% png:- | tesseract - - --psm 6 2>/dev/null"
        return self.run("sh", "-c", command, f"{width - 2 * frame}x{height - 2 * frame}+{x + frame}+{y + frame}")

    def close(self, window: int) -> None:
        """Close a window, as somebody who sits at the desktop."""
        self.run("xdotool", "windowactivate", "--sync", str(window), "key", "alt+F4")

    def type(self, window: int, text: str) -> None:
        """Type a line into a window, as somebody who sits at the desktop."""
        self.run("xdotool", "windowactivate", "--sync", str(window))
        self.run("xdotool", "type", "--delay", "30", text)
        self.run("xdotool", "key", "Return")


class Picture:
    """The pixels of a screen."""

    def __init__(self, pixels: bytes) -> None:
        self._pixels = pixels

    def colour(self, x: int, y: int) -> str:
        """Return a pixel's colour as six hex digits."""
        at = (y * WIDTH + x) * 3
        return self._pixels[at : at + 3].hex()

    def colours(self, x: int, y: int, width: int, height: int) -> set[str]:
        """Return all colours of a rectangle."""
        return {self.colour(x + i, y + j) for i in range(width) for j in range(height)}

    def count(self, colour: str) -> int:
        """Return how many pixels have a colour."""
        wanted = bytes.fromhex(colour)
        return sum(self._pixels[at : at + 3] == wanted for at in range(0, len(self._pixels), 3))


@contextlib.contextmanager
def open_x_server(log: str, width: int = WIDTH, height: int = HEIGHT) -> Iterator[str]:
    """Run an X server on the next free display; yield its name."""
    reads, writes = os.pipe()
    words = ["Xvfb", "-displayfd", str(writes), "-screen", "0", f"{width}x{height}x24", "-nolisten", "tcp", "-noreset"]
    with open(log, "ab") as file, subprocess.Popen(words, pass_fds=[writes], stdout=file, stderr=file) as server:
        os.close(writes)
        try:
            with open(reads) as pipe:
                yield f":{int(pipe.readline())}"
        finally:
            server.terminate()


@contextlib.contextmanager
def open_desktop(log: str) -> Iterator[Desktop]:
    """Run an X server with a window manager."""
    with open_x_server(log) as display, open(log, "ab") as file:
        desktop = Desktop(display)
        with subprocess.Popen(["openbox"], env=desktop.environment, stdout=file, stderr=file) as manager:
            try:
                wait_for(
                    "a window manager", lambda: "window id" in desktop.run("xprop", "-root", "_NET_SUPPORTING_WM_CHECK")
                )
                yield desktop
            finally:
                manager.terminate()
