"""An xpra server as a hostile guest would have it; run by the distribution's Python, which has rencode.

hostile_server.py SOCKET ATTACK LOG: serves one connection after the other. Each begins as a decent server would, with
one window titled `decent`; then come the packets of the attack (hostile_attacks.py), and afterwards pings are answered
for as long as the client stays. LOG gets a line of Python for each packet of the client, and `begun` and `over` around
the attack.
"""

import contextlib
import importlib.util
import os
import socket
import struct
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

RENCODE = 1
HELLO: dict[str, object] = {
    "version": "3.1.3",
    "rencode": True,
    "zlib": True,
    "compressors": ("zlib",),
    "encoders": ("rencode",),
    "actual_desktop_size": (1280, 960),
    "desktop_size": (1280, 960),
    "max_desktop_size": (1280, 960),
    "windows": True,
    "cursors": True,
    "keyboard": True,
    "pointer": True,
    # What a client that believed all of it would do something with:
    "clipboard": True,
    "clipboards": ("CLIPBOARD", "PRIMARY"),
    "start-new-commands": True,
    "file-transfer": True,
    "open-files": True,
    "open-url": True,
    "printing": True,
    "notifications": True,
    "remote-logging": True,
    "sound.send": True,
    "system_tray": True,
    "webcam": True,
    "dbus_proxy": True,
    "rpc-types": ("dbus",),
    "mmap_enabled": True,
    "session_name": "[vault] keys",
    "bell": True,
}


def load(name: str) -> object:
    """Return a module that stands beside this file, or one of the distribution's."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Connection:
    """One client."""

    def __init__(self, connection: socket.socket, log: IO[str]) -> None:
        import rencode  # type: ignore[import-not-found]

        self._rencode = rencode
        self._socket, self._log = connection, log
        self._lock = threading.Lock()

    def send(self, packet: object) -> None:
        """Send a packet: a list, or bytes as they are to be sent."""
        data = packet if isinstance(packet, bytes) else self.frame(self._rencode.dumps(packet))
        with self._lock:
            self._socket.sendall(data)

    @staticmethod
    def frame(data: bytes, level: int = 0, flags: int = RENCODE, index: int = 0) -> bytes:
        """Return data with xpra's header."""
        return struct.pack("!cBBBL", b"P", flags, level, index, len(data)) + data

    def answer(self) -> None:
        """Read what the client sends, until it is gone; answer its pings."""
        for packet in self._read():
            self._log.write(f"{packet!r}\n")
            if packet[0] == b"ping":
                self.send(["ping_echo", packet[1], 0, 0, 0, -1])

    def read_hello(self) -> None:
        """Wait for the first packet, and note it."""
        self._log.write(f"{next(self._read())!r}\n")

    def _read(self) -> Iterator[list[object]]:
        raw: dict[int, bytes] = {}
        stream = self._socket.makefile("rb")
        while len(header := stream.read(8)) == 8:
            _, _, level, index, size = struct.unpack("!cBBBL", header)
            data = stream.read(size)
            data = zlib.decompress(data) if level else data
            if index:
                raw[index] = data
                continue
            packet = list(self._rencode.loads(data))
            for place, value in raw.items():
                packet[place] = value
            raw = {}
            yield packet


def serve(connection: socket.socket, attack: str, log: IO[str]) -> None:
    """Serve one client."""
    client = Connection(connection, log)
    client.read_hello()
    client.send(["hello", HELLO])
    client.send(["new-window", 1, 100, 100, 300, 200, {"title": "decent", "window-type": ("NORMAL",)}, {}])
    client.send(["startup-complete"])
    answering = threading.Thread(target=client.answer, daemon=True)
    answering.start()
    attacks = load("hostile_attacks")
    log.write("begun\n")
    for packet in getattr(attacks, attack)(client.frame):
        client.send(packet)
    client.send(["new-window", 2, 500, 300, 300, 200, {"title": "after", "window-type": ("NORMAL",)}, {}])
    log.write("over\n")
    answering.join()


def main(path: str, attack: str, log_path: str) -> None:
    """Serve clients until killed."""
    with open(log_path, "a", buffering=1) as log, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path + "~")
        listener.listen(4)
        os.rename(path + "~", path)
        while True:
            with listener.accept()[0] as connection, contextlib.suppress(OSError, StopIteration):
                serve(connection, attack, log)


if __name__ == "__main__":
    main(*sys.argv[1:])
