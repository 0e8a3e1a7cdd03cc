"""How soon a VM is seen, how soon its display is handed over, and how soon a key is seen (design.md, B9).

The screen of an HVM without any system is timed from the moment at which QEMU's socket accepts until it is on a
desktop, with a spare viewer and without. The rest is of an HVM with a GUI agent: from `connected` until the screen's
window is gone from the desktop, and from a key that is pressed until the letter is seen: in a terminal through the
agent display, in the same guest's text console through the device-model display (VNC), and in a terminal of this host.
"""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator

from benchmarks.desktop import Desktop, Place, Watch, accepts, find_peer, own_desktop, wait_for
from benchmarks.harness import Row, call, own_home, summarize, take_turns, tool
from benchmarks.model import exactly
from crannog.config import Paths

FRAME_TARGET, FRAME_COLD_TARGET, HANDOVER_TARGET = 0.150, 1.0, 0.500
START_TARGET = 3.0
WINDOW_TARGET, CONSOLE_TARGET = 8.0, 8.0
"""The guest is emulated, and its side of the windows is a Python program; what a key costs there is no promise."""
KEYS = 20
BARE, FULL = "bare", "full"
FRAME = 4
"""Pixels of the viewer's frame."""
BAR = 40
"""Pixels, more than the bar above the guest's picture has."""
INSET = 6
"""Pixels, more than either display's frame has: that is redrawn when a window is activated."""
TERMINAL = ("xterm", "-fn", "10x20", "-geometry", "70x12")


# -- processes


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]
    return []


def _words(pid: int) -> list[str]:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline") as file:
        return file.read().split("\0")
    return []


def _below(pid: int) -> Iterator[int]:
    for child in _children(pid):
        yield child
        yield from _below(child)


def _clients(pid: int) -> list[int]:
    """Return the processes in the sandbox below a display's process: the distribution's Python."""
    return [child for child in _below(pid) if _words(child)[:1] == ["/usr/bin/python3"]]


def _ticks(pid: int) -> int:
    """Return the processor time of a process (proc(5))."""
    with open(f"/proc/{pid}/stat") as file:
        return sum(map(int, file.read().rpartition(")")[2].split()[11:13]))


def _find_spare() -> int:
    """Return the process that waits for the next screen; 0 when there is none."""
    daemon = int(call("crannog", "daemon", "status").split()[-1].rstrip(")"))
    return next((child for child in _children(daemon) if "--spare" in _words(child)), 0)


def _wait_for_spare() -> int:
    """Wait until a spare's viewer has nothing more to do; return the spare."""
    spare = wait_for("a spare", _find_spare, pause=0.2)
    viewer = wait_for("its viewer", lambda: _clients(spare), pause=0.2)[-1]
    used = -1
    while used != (used := _ticks(viewer)):
        time.sleep(0.5)
    return spare


# -- the first frame


class FirstFrame:
    """Starts of an HVM without a system."""

    def __init__(self, desktop: Desktop) -> None:
        self._desktop = desktop
        call("qvm-create", "--class", "StandaloneVM", "--property", "virt_mode=hvm", "--label", "orange", BARE)
        call("qvm-prefs", BARE, "memory", "64")
        uuid = call("qvm-prefs", BARE, "uuid").strip()
        self._vnc, self._status = Paths().screen_socket(uuid), Paths().display_socket("screen", uuid)
        self.starts: tuple[list[float], list[float]] = ([], [])
        """Seconds from the start of qvm-start to the first frame, without a spare and with one."""
        self._edge, self._inside = self._find_places()

    def _find_places(self) -> tuple[Place, Place]:
        """Start once; return where on the desktop the left side of the viewer's frame is, and the guest's picture."""
        call("qvm-start", BARE)
        x, y, width, height = self._desktop.place(self._desktop.wait_for_window(f"[{BARE}] emulated screen"))
        edge = (x, y, FRAME, height)
        self._frame = self._desktop.wait_for_rest(edge)
        self._halt()
        return edge, (x + FRAME, y + BAR, width - 2 * FRAME, height - BAR - FRAME)

    def with_spare(self) -> float:
        """Return the seconds from QEMU's socket to the first frame, when a viewer is ready."""
        _wait_for_spare()
        return self._start(has_spare=True)

    def without(self) -> float:
        """Return the same without a spare."""
        os.kill(_wait_for_spare(), signal.SIGKILL)
        wait_for("the end of the spare", lambda: not _find_spare(), pause=0.1)
        return self._start(has_spare=False)

    def _start(self, *, has_spare: bool) -> float:
        """Start and halt; return the seconds from QEMU's socket to the first frame."""
        watch = Watch(self._status)
        began = time.perf_counter()
        with subprocess.Popen([tool("qvm-start"), BARE]):
            watch.start()
            wait_for("QEMU's socket", lambda: accepts(self._vnc))
            accepted = time.perf_counter()
            watch.wait_for("drawn", began)
            # What the viewer says is believed when its frame is on the desktop, and the firmware's words come into it.
            wait_for("the window", lambda: self._desktop.read(self._edge) == self._frame)
            seen = time.perf_counter()
            wait_for("the guest's words", lambda: self._desktop.read(self._inside))
        self._halt()
        self.starts[has_spare].append(seen - began)
        return seen - accepted

    def _halt(self) -> None:
        serving = find_peer(self._status)  # it was a spare, and shall not be taken for the next one
        call("qvm-kill", BARE)
        self._desktop.wait_for_none()
        wait_for("the end of what showed the screen", lambda: not os.path.exists(f"/proc/{serving}"), pause=0.05)


# -- a guest with a GUI agent


class Full:
    """An HVM that has both displays."""

    def __init__(self, desktop: Desktop) -> None:
        self._desktop = desktop
        call("crannog", "template", "build", "debian-12-gui", "--virt-mode", "hvm")
        call("qvm-create", "--template", "debian-12-gui-hvm", "--label", "green", FULL)
        call("qvm-prefs", FULL, "memory", "1000")
        uuid = call("qvm-prefs", FULL, "uuid").strip()
        self._status = Paths().display_socket("agent", uuid)
        self._watch = Watch(self._status)

    def start(self) -> None:
        """Start, and wait for the first handover."""
        call("qvm-start", FULL)
        self._watch.start()
        self._watch.wait_for("connected", 0.0)
        self._desktop.wait_for_none()

    def hand_over(self) -> float:
        """Have the agent display begin anew; return the seconds from `connected` to the end of the screen's window."""
        began = time.perf_counter()
        for client in _clients(find_peer(self._status)):
            os.kill(client, signal.SIGKILL)
        x, y, _, _ = self._desktop.place(self._desktop.wait_for_window(f"[{FULL}] emulated screen"))
        corner = (x, y, 8, 8)
        frame = self._desktop.wait_for_rest(corner)
        gone = self._desktop.wait_for_change(corner, frame)
        connected = self._watch.wait_for("connected", began)
        self._desktop.wait_for_none()
        return gone - connected

    def open_terminals(self) -> "Keys":
        """Open the screen, and a terminal in the guest and on this host."""
        call("qvm-run", FULL, f"{' '.join(TERMINAL)} -T guest -e cat </dev/null >/dev/null 2>&1 &")
        # A console whose cursor is not seen changes by what is typed only.
        call("qvm-run", "--user", "root", FULL, r"printf '\033[?25l' >/dev/tty1")
        call("qvm-prefs", FULL, "debug", "True")
        titles = {"guest": "guest", "screen": "emulated screen"}
        windows = {name: self._desktop.wait_for_window(f"[{FULL}: debug] {title}") for name, title in titles.items()}
        return Keys(self._desktop, windows)


class Keys:
    """Windows in which a letter appears when it is typed."""

    def __init__(self, desktop: Desktop, windows: dict[str, int]) -> None:
        self._desktop = desktop
        self._windows = windows

    def press(self, name: str) -> float:
        """Return the seconds from the start of xdotool, that presses a key, to the letter in a window."""
        window = self._windows[name]
        self._desktop.run("xdotool", "windowactivate", "--sync", str(window))
        x, y, width, height = self._desktop.place(window)
        place = (x + INSET, y + INSET, width - 2 * INSET, height - 2 * INSET)
        before = self._desktop.wait_for_rest(place)
        began = time.perf_counter()
        with subprocess.Popen(["xdotool", "key", "x"]):
            return self._desktop.wait_for_change(place, before) - began

    @contextlib.contextmanager
    def with_host(self) -> Iterator[None]:
        """Have a terminal of this host as well."""
        with subprocess.Popen([*TERMINAL, "-T", "host", "-e", "cat"]) as terminal:
            self._windows["host"] = self._desktop.wait_for_window("host")
            try:
                yield
            finally:
                terminal.terminate()


def _measure_frames(runs: int, desktop: Desktop) -> list[Row]:
    frames = FirstFrame(desktop)
    with_spare, without = take_turns(runs, frames.with_spare, frames.without)
    fixed = "a fixed time"
    return [
        Row("first frame after QEMU's socket", with_spare, fixed, exactly(FRAME_TARGET), 1),
        Row("the same without a spare", without, fixed, exactly(FRAME_COLD_TARGET), 1),
        Row("qvm-start to the first frame", summarize(frames.starts[True]), fixed, exactly(START_TARGET), 1),
        Row("the same without a spare", summarize(frames.starts[False]), fixed, exactly(START_TARGET), 1),
    ]


def _measure_full(runs: int, desktop: Desktop) -> list[Row]:
    full = Full(desktop)
    full.start()
    (handover,) = take_turns(runs, full.hand_over)
    keys = full.open_terminals()
    with keys.with_host():
        presses = [lambda name=name: keys.press(name) for name in ("guest", "screen", "host")]  # type: ignore[misc]
        window, screen, host = take_turns(runs, *presses, least=KEYS)
    return [
        Row("`connected` to the screen gone", handover, "a fixed time", exactly(HANDOVER_TARGET), 1),
        Row("a key in a window of the guest", window, "the same guest's console by VNC", screen, WINDOW_TARGET),
        Row("a key in that console", screen, "a terminal of this host", host, CONSOLE_TARGET),
    ]


def measure(runs: int) -> list[Row]:
    """Return all rows."""
    with tempfile.TemporaryDirectory(prefix="crannog-bench-") as folder, own_desktop(folder) as desktop, own_home():
        return [*_measure_frames(runs, desktop), *_measure_full(runs, desktop)]
