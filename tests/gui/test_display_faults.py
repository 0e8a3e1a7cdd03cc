"""What shows VMs, when what it shows is hostile, mute or missing: the host goes on, and all stays within bounds."""

import contextlib
import hashlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crannog.display.forwarder_rules import WINDOWS_MAX
from crannog.display.sandbox import MEMORY_MAX
from tests.fakes import short_folder
from tests.gui.desktop import HEIGHT, WIDTH, Desktop, wait_for
from tests.gui.local_guest import COLOUR, Forwarder, LocalGuest
from tests.unit.rpc_world import is_alive
from tests.vm.home import Home

pytestmark = pytest.mark.timeout(200)

TITLE = "[work] emulated screen"
SCREEN_MEMORY = 64 << 20
"""Bytes that the process outside of the sandbox may take: it reads nothing of the guest."""
PIXELS = struct.pack(">BBBBHHHBBBxxx", 32, 24, 0, 1, 255, 255, 255, 16, 8, 0)
"""The usual format of 32 bits (RFC 6143, 7.4)."""
DESKTOP_SIZE = -223
"""Pseudo-encoding of a new size (RFC 6143, 7.8.2)."""
Play = Callable[[socket.socket], None]


# -- device models that a guest has taken over: a server each, by RFC 6143


def greet(link: socket.socket, width: int, height: int, name: bytes = b"[vault] keys") -> None:
    """Do the handshake, and claim a size and a name."""
    link.sendall(b"RFB 003.008\n")
    link.recv(12)
    link.sendall(b"\x01\x01")  # one kind of authentication: none
    link.recv(1)
    link.sendall(bytes(4))
    link.recv(1)
    link.sendall(struct.pack(">HH", width, height) + PIXELS + struct.pack(">I", len(name)) + name)


def draw(link: socket.socket, width: int, height: int) -> None:
    """Send one picture, grey."""
    link.sendall(struct.pack(">BxHHHHHi", 0, 1, 0, 0, width, height, 0) + b"\xaa" * (width * height * 4))


def claim_the_largest(link: socket.socket) -> None:
    greet(link, 65535, 65535)
    link.sendall(struct.pack(">BxHHHHHi", 0, 1, 65534, 65534, 1, 1, 0) + b"\xaa" * 4)
    linger(link)


def grow_to_the_largest(link: socket.socket) -> None:
    greet(link, 64, 64)
    draw(link, 64, 64)
    link.sendall(struct.pack(">BxHHHHHi", 0, 1, 0, 0, 65535, 65535, DESKTOP_SIZE))
    linger(link)


def claim_a_name_without_end(link: socket.socket) -> None:
    greet(link, 64, 64, b"")
    link.sendall(struct.pack(">BxH", 3, 0) + struct.pack(">I", 2**32 - 1))  # a cut buffer of 4 GiB
    linger(link, b"[vault] keys " * 5000)


def talk_garbage(link: socket.socket) -> None:
    linger(link, hashlib.shake_128(b"1").digest(65536))


def talk_garbage_later(link: socket.socket) -> None:
    greet(link, 640, 480)
    linger(link, hashlib.shake_128(b"2").digest(65536))


def stall_in_the_handshake(link: socket.socket) -> None:
    link.sendall(b"RFB 003.008\n")
    linger(link)


def stall_after_the_handshake(link: socket.socket) -> None:
    greet(link, 640, 480)
    linger(link)


def close_at_once(link: socket.socket) -> None:
    del link


def linger(link: socket.socket, block: bytes = b"") -> None:
    """Send a block as often as somebody takes it, for some seconds; then read until the other end closes."""
    link.settimeout(20)
    deadline = time.monotonic() + 4
    while block and time.monotonic() < deadline:
        link.sendall(block)
    while link.recv(65536):
        pass


def read_all(link: socket.socket) -> None:
    """Read and forget, until the other end closes."""
    with contextlib.suppress(OSError):
        while link.recv(65536):
            pass


class FakeModel:
    """A VNC server at a socket, which does the same to each who comes; and a screen's process that shows it."""

    def __init__(self, desktop: Desktop, folder: Path, play: Play) -> None:
        self._play = play
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / "vnc"))
        self._listener.listen()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()
        self.status = str(folder / "status")
        words = ["--name", "work", "--colour", f"#{COLOUR}", "--vnc", str(folder / "vnc"), "--status", self.status]
        command = [sys.executable, "-I", "-m", "crannog.display.screen", *words]
        self.process = subprocess.Popen(command, env=desktop.environment)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                link, _ = self._listener.accept()
                with link, contextlib.suppress(OSError):
                    self._play(link)

    def said(self) -> set[str]:
        """Return the first words of its status as it is now."""
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(2)
            link.connect(self.status)
            with contextlib.suppress(TimeoutError):
                return {line.split()[0] for line in link.recv(4096).decode().splitlines()}
        return set()

    def close(self) -> None:
        """End what is left."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.process.terminate()
        try:
            self.process.wait(10)
        finally:
            self.process.kill()


@pytest.fixture
def pretend(desktop: Desktop) -> Iterator[Callable[[Play], FakeModel]]:
    """Return what has a device model of a test's shown on the desktop."""
    with short_folder() as folder, contextlib.ExitStack() as models:

        def start(play: Play) -> FakeModel:
            model = FakeModel(desktop, folder, play)
            models.callback(model.close)
            return model

        yield start
    desktop.wait_for_none()


def measure(pid: int, fact: str) -> int:
    """Return a process's bytes of something (proc(5), status); 0 when it has ended."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith(f"{fact}:"):
                return int(line.split()[1]) << 10
    return 0


def list_below(pid: int) -> list[int]:
    """Return all processes below one."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            children = [int(word) for word in file.read().split()]
    except OSError:
        return []
    return children + [further for child in children for further in list_below(child)]


def is_usable(desktop: Desktop, folder: Path) -> bool:
    """Tell whether somebody at the desktop can open a program and type into it."""
    mark = folder / f"typed-{time.monotonic()}"
    with subprocess.Popen(["xterm", "-T", "other", "-e", "sh"], env=desktop.environment) as terminal:
        desktop.type(desktop.wait_for_window("other"), f"touch {mark}")
        wait_for("what was typed", mark.exists)
        terminal.terminate()
    return mark.exists()


@pytest.mark.parametrize(
    "play",
    [
        claim_the_largest,
        grow_to_the_largest,
        claim_a_name_without_end,
        talk_garbage,
        talk_garbage_later,
        stall_in_the_handshake,
        stall_after_the_handshake,
        close_at_once,
    ],
    ids=lambda play: play.__name__,
)
def test_a_hostile_device_model(
    desktop: Desktop, pretend: Callable[[Play], FakeModel], tmp_path: Path, play: Play
) -> None:
    model = pretend(play)
    titles, largest, sizes = set(), 0, set()
    deadline = time.monotonic() + 8
    while model.process.poll() is None and time.monotonic() < deadline:
        found = desktop.titles()
        titles |= set(found.values())
        for window in found:
            with contextlib.suppress(KeyError):  # it has gone meanwhile
                sizes.add(desktop.place(window)[2:])
        largest = max([largest, *(measure(pid, "VmData") for pid in list_below(model.process.pid))])
        assert measure(model.process.pid, "VmHWM") < SCREEN_MEMORY
    assert titles <= {TITLE, ""}, "the VM's name comes from the host; a window that has just gone has none"
    assert largest <= MEMORY_MAX
    if play in (stall_in_the_handshake, stall_after_the_handshake):
        assert TITLE in titles, "who says nothing may still do so"
        assert model.process.poll() is None
    assert all(width <= WIDTH and height <= HEIGHT for width, height in sizes)
    assert is_usable(desktop, tmp_path)
    viewers = list_below(model.process.pid)
    model.process.terminate()
    assert model.process.wait(10) in (0, 1), "it ended by itself, or as told: it hangs on nothing"
    wait_for("the end of the viewer", lambda: not any(map(is_alive, viewers)))


def test_a_mute_device_model_is_shown_as_one_that_has_drawn_nothing(
    desktop: Desktop, pretend: Callable[[Play], FakeModel]
) -> None:
    model = pretend(stall_after_the_handshake)
    window = desktop.wait_for_window(TITLE)
    time.sleep(2)
    assert model.said() == set()
    desktop.close(window)
    desktop.wait_for_none()
    wait_for("that the user closed it", lambda: model.said() == {"closed"})
    assert model.process.poll() is None, "it keeps that, for as long as there is a VM"


def test_a_thousand_new_sizes(desktop: Desktop, pretend: Callable[[Play], FakeModel], tmp_path: Path) -> None:
    done, is_over = threading.Event(), threading.Event()

    def play(link: socket.socket) -> None:
        greet(link, 64, 64)
        threading.Thread(target=read_all, args=(link,), daemon=True).start()  # it asks for a picture of each size
        for number in range(1000):
            size = (1 + number * 37 % 700, 1 + number * 91 % 500) if number % 50 else (3000, 2000)
            link.sendall(struct.pack(">BxHHHHHi", 0, 1, 0, 0, *size, DESKTOP_SIZE))
        link.sendall(struct.pack(">BxHHHHHi", 0, 1, 0, 0, 320, 200, DESKTOP_SIZE))
        draw(link, 320, 200)
        done.set()
        is_over.wait(60)

    model = pretend(play)
    assert done.wait(90)
    window = desktop.wait_for_window(TITLE)
    wait_for("the picture", lambda: desktop.look().count("aaaaaa") > 320 * 200 // 2)
    assert model.said() == {"drawn"}
    assert model.process.poll() is None
    width, height = desktop.place(window)[2:]
    assert width <= WIDTH
    assert height <= HEIGHT
    viewer = list_below(model.process.pid)[-1]
    assert 0 < measure(viewer, "VmData") < MEMORY_MAX // 2, "what it had for former sizes is given back"
    assert is_usable(desktop, tmp_path)
    is_over.set()


# -- the agent display


MANY = """
import sys
import gi
gi.require_version("Gdk", "3.0")
from gi.repository import Gdk, GLib
kept = []
def more():
    for _ in range(20):
        facts = Gdk.WindowAttr()
        facts.window_type, facts.width, facts.height = Gdk.WindowType.TOPLEVEL, 60, 40
        facts.wclass, facts.title = Gdk.WindowWindowClass.INPUT_OUTPUT, f"one of {len(kept)}"
        window = Gdk.Window(None, facts, Gdk.WindowAttributesType.TITLE)
        window.show()
        kept.append(window)
    return len(kept) < int(sys.argv[1])
GLib.timeout_add(50, more)
GLib.MainLoop().run()
"""


def test_more_windows_than_anybody_needs(
    desktop: Desktop, forwarder: Forwarder, local_guest: LocalGuest, tmp_path: Path
) -> None:
    program = local_guest.folder / "many.py"
    program.write_text(MANY)
    pid = local_guest.spawn(f"exec /usr/bin/python3 {program} {3 * WINDOWS_MAX}")
    try:
        wait_for("many windows", lambda: count_windows(desktop) >= WINDOWS_MAX, 90)
        for _ in range(20):
            time.sleep(0.2)
            assert count_windows(desktop) <= WINDOWS_MAX
        assert all(measure(client, "VmData") <= MEMORY_MAX for client in forwarder.clients())
        assert is_usable_among_many(desktop)
    finally:
        os.kill(pid, signal.SIGKILL)
    wait_for("the end of all windows", lambda: not count_windows(desktop), 90)
    other = local_guest.spawn("exec xterm -T shell -e sh")
    desktop.wait_for_window("[work] shell", 60)
    os.kill(other, signal.SIGKILL)
    assert is_usable(desktop, tmp_path)


def count_windows(desktop: Desktop) -> int:
    """Return how many windows the window manager manages."""
    return desktop.run("xprop", "-root", "_NET_CLIENT_LIST").count("0x")


def is_usable_among_many(desktop: Desktop) -> bool:
    """Tell whether another program's window comes up, though there are many."""
    with subprocess.Popen(["xmessage", "-name", "other", "x"], env=desktop.environment) as other:
        found = wait_for("its window", lambda: desktop.run("xdotool", "search", "--name", "other").split(), 60)
        other.terminate()
    return bool(found)


# -- with real VMs


@pytest.fixture(scope="module")
def home(desktop: Desktop) -> Iterator[Home]:
    """Return a home whose daemon shows VMs on the desktop."""
    found = Home()
    found.env["DISPLAY"] = desktop.display
    try:
        yield found
    finally:
        found.close()
        desktop.wait_for_none()


@pytest.fixture
def poor_home(desktop: Desktop, tmp_path: Path) -> Iterator[Home]:
    """Return a home on a host where bubblewrap is not installed."""
    for folder in ("/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"):
        for name in os.listdir(folder):
            if name != "bwrap" and not (tmp_path / name).is_symlink():
                (tmp_path / name).symlink_to(f"{folder}/{name}")
    found = Home()
    found.env |= {"DISPLAY": desktop.display, "PATH": str(tmp_path)}
    assert shutil.which("bwrap", path=str(tmp_path)) is None
    try:
        yield found
    finally:
        found.close()


@pytest.mark.vm
def test_a_host_without_the_viewers_programs(desktop: Desktop, poor_home: Home) -> None:
    name = "bare"
    poor_home.ok("qvm-create", "--class", "StandaloneVM", "--property", "virt_mode=hvm", "--label", "red", name)
    poor_home.ok("qvm-prefs", name, "memory", "64")
    done = poor_home.run("qvm-start", "-v", name)
    assert done.returncode == 0, done.stderr
    told = (done.stdout + done.stderr).decode()
    assert "not shown: VMs cannot be shown: install bubblewrap (apt-get install bubblewrap)" in told
    assert poor_home.state(name) == "Running"
    assert not desktop.titles()
    assert (
        "to show the screens of VMs: apt-get install bubblewrap" in poor_home.run("crannog", "doctor").stdout.decode()
    )


@pytest.mark.vm
def test_an_agent_that_is_announced_and_never_connects(desktop: Desktop, home: Home) -> None:
    name, title = "mute", "[mute] emulated screen"
    home.ok("crannog", "template", "build", "debian-12", "--virt-mode", "hvm")
    home.ok("qvm-create", "--template", "debian-12-hvm", "--label", "red", name)
    home.ok("qvm-start", "--wait", name)
    window = desktop.wait_for_window(title)
    folder = "/etc/qubes-rpc"  # the guest says that it has a display, which takes the call and never says a word
    says = f"mkdir -p {folder}; cd {folder}; for i in crannog.Display crannog.Display+wait; do rm -f $i; "
    says += "printf '#!/bin/sh\\ncase $0 in *wait) exit 0; esac; exec sleep 1000\\n' >$i; chmod 755 $i; done; "
    says += "qubesdb-write /qubes-tools/gui 1; exec qrexec-client-vm dom0 qubes.NotifyTools"
    home.ok("qvm-run", "--user", "root", name, says)
    assert home.ok("qvm-features", name, "gui").strip() == "1"
    forwarder = wait_for("a forwarder", lambda: find_forwarder(home))
    seen: set[int] = set()
    for attempt in range(2):  # each ends after 30 s of silence
        client = wait_for(f"client {attempt}", lambda: find_client(forwarder, seen), 60)
        seen.add(client)
        wait_for("its end", lambda: expect_bounds(forwarder) and not is_alive(client), 60)  # noqa: B023
        assert desktop.titles() == {window: title}, "the screen stays"
    assert find_forwarder(home) == forwarder
    home.ok("qvm-kill", name)
    desktop.wait_for_none()
    wait_for("the end of the forwarder", lambda: not is_alive(forwarder))


def find_forwarder(home: Home) -> int:
    """Return the one forwarder of the home; 0 when there is none."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
            if b"crannog.display.forwarder" in words and any(home.path.encode() in word for word in words):
                found.append(int(name))
    assert len(found) <= 1
    return found[0] if found else 0


def find_client(forwarder: int, seen: set[int]) -> int:
    """Return the program in the forwarder's sandbox, if it is none of those that were seen."""
    for pid in list_below(forwarder):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
            if file.read().startswith(b"/usr/bin/python3\0") and pid not in seen:
                return pid
    return 0


def expect_bounds(forwarder: int) -> bool:
    """Expect that a forwarder and what it started are few and small."""
    assert len(list_below(forwarder)) <= 8
    assert 0 < measure(forwarder, "VmRSS") < SCREEN_MEMORY
    return True
