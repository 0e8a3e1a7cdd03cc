"""Device models that a guest has taken over: VNC servers that do as a test wants (RFC 6143), and who shows them."""

import contextlib
import hashlib
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.gui.desktop import Desktop
from tests.gui.local_guest import COLOUR

PIXELS = struct.pack(">BBBBHHHBBBxxx", 32, 24, 0, 1, 255, 255, 255, 16, 8, 0)
"""The usual format of 32 bits (RFC 6143, 7.4)."""
DESKTOP_SIZE = -223
"""Pseudo-encoding of a new size (RFC 6143, 7.8.2)."""
Play = Callable[[socket.socket], None]


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
            link.settimeout(10)
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
            self.process.wait(60)
        finally:
            self.process.kill()
