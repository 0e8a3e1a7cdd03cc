"""A desktop of its own for benchmarks, and who shows VMs on it: its pixels are read from the X server's memory."""

import mmap
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

WIDTH, HEIGHT = 1600, 1000
SECONDS = 120.0
"""Most that an emulated guest takes for anything."""
POLL = 0.001
_HEADER = struct.Struct(">25I")
"""Of X's window dump (XWDFile.h), as Xvfb keeps its screen with -fbdir."""
_COLOUR_BYTES = 12
T = TypeVar("T")
Place = tuple[int, int, int, int]
"""x, y, width and height on the desktop."""


def wait_for(what: str, look: Callable[[], T], seconds: float = SECONDS, pause: float = POLL) -> T:
    """Return what `look` returns as soon as it is something. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:.0f} s: {what}")
        time.sleep(pause)
    return found


class Desktop:
    """An X display with a window manager."""

    def __init__(self, display: str, screen: mmap.mmap) -> None:
        """`screen` is the server's memory."""
        self.display = display
        self._screen = screen
        header = _HEADER.unpack_from(screen)
        self._line = header[12]
        self._start = header[0] + header[19] * _COLOUR_BYTES

    def run(self, *words: str) -> str:
        """Run a program of the desktop; return its output."""
        environment, quiet = {**os.environ, "DISPLAY": self.display}, subprocess.DEVNULL  # windows go meanwhile
        pipe = subprocess.PIPE
        done = subprocess.run(words, env=environment, stdout=pipe, stderr=quiet, check=False, timeout=SECONDS)
        return done.stdout.decode(errors="replace")

    def read(self, place: Place) -> int:
        """Return the pixels of a rectangle as they are now, as one number; 0 when all are black."""
        x, y, width, height = place
        starts = range(self._start + y * self._line + x * 4, self._start + (y + height) * self._line, self._line)
        pixels = b"".join(self._screen[at : at + width * 4] for at in starts)
        # The fourth byte of a pixel is not seen, and programs leave in it what they like.
        return int.from_bytes(pixels) & int.from_bytes(b"\xff\xff\xff\0" * (width * height))

    def wait_for_change(self, place: Place, before: int) -> float:
        """Wait until a rectangle is not as before; return when that was."""
        wait_for("a pixel that changes", lambda: self.read(place) != before)
        return time.perf_counter()

    def wait_for_rest(self, place: Place, seconds: float = 0.4) -> int:
        """Wait until a rectangle has not changed for some time; return its pixels."""
        pixels, since = self.read(place), time.monotonic()
        while time.monotonic() - since < seconds:
            time.sleep(0.02)
            now = self.read(place)
            if now != pixels:
                pixels, since = now, time.monotonic()
        return pixels

    def find_windows(self) -> dict[str, int]:
        """Return the windows that the window manager manages, by title."""
        listed = self.run("xprop", "-root", "_NET_CLIENT_LIST").partition("#")[2]
        windows = [int(word, 16) for word in listed.replace(",", " ").split()]
        return {self.run("xdotool", "getwindowname", str(window)).strip("\n"): window for window in windows}

    def wait_for_window(self, title: str) -> int:
        """Return the window with a title as soon as it is there."""
        return wait_for(f"a window {title!r}", lambda: self.find_windows().get(title, 0), pause=0.05)

    def wait_for_none(self) -> None:
        """Wait until no window is left."""
        wait_for("no window", lambda: not self.find_windows(), pause=0.05)

    def place(self, window: int) -> Place:
        """Return where a window is, without what the window manager put around it."""
        text = self.run("xwininfo", "-id", str(window))
        facts = dict(line.strip().split(": ", 1) for line in text.splitlines() if ": " in line)
        x, y, width, height = (
            int(facts[name]) for name in ("Absolute upper-left X", "Absolute upper-left Y", "Width", "Height")
        )
        return x, y, width, height


def find_peer(path: str) -> int:
    """Return the process that serves a socket (unix(7), SO_PEERCRED)."""
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(path)
        return int(struct.unpack("iII", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])


def accepts(path: str) -> bool:
    """Tell whether a server greets at a socket: QEMU listens a while before it takes connections."""
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(SECONDS)
        return link.connect_ex(path) == 0 and bool(link.recv(1))


class Watch(threading.Thread):
    """The lines of a display's status, each with the moment at which it came."""

    def __init__(self, path: str) -> None:
        super().__init__(daemon=True)
        self._path = path
        self.lines: list[tuple[str, float]] = []

    def run(self) -> None:
        """Follow the status until it ends."""
        with socket.socket(socket.AF_UNIX) as link:
            wait_for("a status", lambda: link.connect_ex(self._path) == 0)
            for line in link.makefile():
                self.lines.append((line.strip(), time.perf_counter()))

    def wait_for(self, word: str, after: float) -> float:
        """Return when a line that begins so came."""

        def look() -> float:
            return next((when for line, when in list(self.lines) if line.startswith(word) and when > after), 0.0)

        return wait_for(word, look)


@contextmanager
def own_desktop(folder: str) -> Iterator[Desktop]:
    """Run an X server with a window manager; programs that are started meanwhile are shown there."""
    reads, writes = os.pipe()
    words = ["Xvfb", "-displayfd", str(writes), "-fbdir", folder, "-screen", "0", f"{WIDTH}x{HEIGHT}x24"]
    words += ["-nolisten", "tcp", "-noreset"]
    with subprocess.Popen(words, pass_fds=[writes], stderr=subprocess.DEVNULL) as server:
        os.close(writes)
        with open(reads) as pipe, _reset_environment():
            os.environ["DISPLAY"] = f":{int(pipe.readline())}"
            try:
                yield from _manage(os.environ["DISPLAY"], f"{folder}/Xvfb_screen0")
            finally:
                server.terminate()


def _manage(display: str, path: str) -> Iterator[Desktop]:
    with (
        open(path, "rb") as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as screen,
        subprocess.Popen(["openbox"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as manager,
    ):
        desktop = Desktop(display, screen)
        try:
            question = ("xprop", "-root", "_NET_SUPPORTING_WM_CHECK")
            wait_for("a window manager", lambda: "window id" in desktop.run(*question), pause=0.05)
            desktop.run("xdotool", "mousemove", str(WIDTH), str(HEIGHT))  # the pointer is seen as well
            desktop.run("xsetroot", "-solid", "black")
            yield desktop
        finally:
            manager.terminate()


@contextmanager
def _reset_environment() -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in ("DISPLAY", "XAUTHORITY") if name in os.environ}
    try:
        yield
    finally:
        os.environ.pop("DISPLAY", None)
        os.environ.update(kept)
