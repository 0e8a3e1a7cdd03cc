"""What takes the place of a guest's agent, floods the host in several ways, and then becomes that agent again.

It runs in a guest (test_hostile_guest.py), with nothing but the standard library.
"""

import os
import select
import struct
import sys
import time
from collections.abc import Callable

PORT = "/dev/virtio-ports/org.crannog.agent.0"
AGENT, HIDDEN, REPORT = "/usr/lib/crannog/agent.py", "/usr/lib/crannog/agent.real", "/run/flood"
MAGIC = b"\xffcrannog-sync\xff\xfe"
PADDING = bytes(270_000)
DATA, TRIGGER_SERVICE, HELLO, GUESTDB_WRITE, TRIGGER, GUESTDB_WATCH = 0x191, 0x213, 0x300, 0x702, 0x703, 0x707


def frame(stream: int, kind: int, body: bytes = b"") -> bytes:
    """Return a frame of the channel."""
    return struct.pack("<III", stream, kind, len(body)) + body


def entry(path: bytes, value: bytes) -> bytes:
    """Return a change of the guest DB."""
    return frame(0, GUESTDB_WRITE, path + b"\0" + value)


def wish(service: bytes) -> bytes:
    """Return a call of a service of the host."""
    return frame(0, TRIGGER_SERVICE, struct.pack("<64s64s32s", b"", b"dom0", b"SOCKET1") + service + b"\0")


GREETING = frame(0, HELLO, struct.pack("<I", 3))
TREE = b"".join(entry(b"/features-request/%d" % number, b"x" * 3072) for number in range(128))
FACTS = entry(b"/qubes-tools/version", b"1") + entry(b"/qubes-tools/qrexec", b"1") + entry(b"/qubes-tools/gui", b"0")
NOTIFY = frame(0, TRIGGER, b"qubes.NotifyTools")


def announce(number: int) -> bytes:
    """Return a hundred announcements, each another one."""
    systems = (entry(b"/qubes-tools/os", b"os-%d" % (number * 100 + at)) + NOTIFY for at in range(100))
    return (b"" if number else FACTS) + b"".join(systems)


def open_streams(number: int) -> bytes:
    """Return data of 500 streams that nobody has opened."""
    return b"".join(frame(number * 500 + at, DATA, b"x") for at in range(500))


def greet(number: int) -> bytes:
    """Return HELLO after HELLO, once there is much to be told."""
    return GREETING * 2000 if number else TREE


Piece = Callable[[int], bytes]
FLOODS: list[tuple[Piece, bool]] = [
    (lambda _: bytes(65536), True),
    (lambda number: struct.pack("<III", 1, DATA, 65537 + number) * 500, True),
    (open_streams, True),
    (lambda _: wish(b"test.Denied+" + b"x" * 64_900), True),
    (lambda _: wish(b"test.Denied") * 100, False),
    (greet, False),
    (announce, True),
    (lambda _: frame(0, GUESTDB_WATCH, b"/") * 500, True),
]
"""What is sent, a piece at a time, and whether answers are read."""


class Channel:
    """The port, and how much was sent."""

    def __init__(self) -> None:
        self.port = os.open(PORT, os.O_RDWR | os.O_NONBLOCK)
        self.sent = 0

    def put(self, data: bytes, end: float, reads: bool = True) -> None:
        """Send `data`, if it can be sent before `end`; forget what comes."""
        while data and time.monotonic() < end:
            try:
                ready = select.select([self.port] if reads else [], [self.port], [], 0.1)
                if ready[0]:
                    os.read(self.port, 65536)
                if ready[1]:
                    count = os.write(self.port, data)
                    data, self.sent = data[count:], self.sent + count
            except BlockingIOError:
                continue

    def shake_hands(self, patience: float = 20.0) -> None:
        """Begin as an honest agent does, if the host lets it."""
        end, heard, nonce = time.monotonic() + patience, b"", os.urandom(8)
        self.put(PADDING + MAGIC + b"R" + nonce + bytes(8), end)
        while time.monotonic() < end:
            if select.select([self.port], [], [], 0.1)[0]:
                heard = (heard + os.read(self.port, 65536))[-200_000:]
            _, found, after = heard.partition(MAGIC + b"S" + nonce)
            if found and len(after) >= 8:
                self.put(MAGIC + b"A" + nonce + after[:8] + GREETING, end)
                return

    def flood(self, piece: Piece, reads: bool, seconds: float) -> None:
        """Send pieces for so long."""
        end, number = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            self.put(piece(number), end, reads)
            number += 1


def main(seconds: float) -> None:
    """Do all of it, each flood for `seconds`; then write how many bytes were sent, and become the agent."""
    channel = Channel()
    for piece, reads in FLOODS:
        channel.shake_hands()
        channel.flood(piece, reads, seconds)
    os.rename(HIDDEN, AGENT)
    with open(REPORT, "w") as file:
        file.write(str(channel.sent))
    os.close(channel.port)
    os.execv(sys.executable, [sys.executable, AGENT])  # noqa: S606


if __name__ == "__main__":
    main(1.5)
