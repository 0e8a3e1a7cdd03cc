"""How the client in the sandbox dresses its windows: as forwarder.py says, at first and in lines on standard input.

A line is `look rrggbb STATE`, in which the state may be missing; forwarder.py has checked it. This file uses the
standard library alone, as it runs in the sandbox.
"""

import os

from crannog.display.titles import compose_prefix, compose_title

READ_MAX = 4096
STILL = frozenset({"paused", "suspended"})
"""States in which a guest cannot answer (core/displays.py)."""


class Dress:
    """The VM's name, what stands before each title, and the frame's colour: red, green and blue, each from 0 to 1."""

    def __init__(self) -> None:
        self.name = self.prefix = self._state = ""
        self.colour = 0.0, 0.0, 0.0
        self._unread = b""

    @property
    def is_still(self) -> bool:
        """Whether the VM's processors stand still, as the state says."""
        return not STILL.isdisjoint(self._state.split(", "))

    def put_on(self, name: str, colour: str, state: str) -> None:
        """Take a look. Raises ValueError for a colour that is none."""
        self.name, self.prefix, self.colour = name, compose_prefix(name, state), read_colour(colour)
        self._state = state

    def read(self, fd: int) -> bool:
        """Take the lines that are there at a descriptor; return whether it is still open."""
        data = os.read(fd, READ_MAX)
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            _, colour, state = (line.decode("ascii") + " ").split(" ", 2)
            self.put_on(self.name, colour, state.strip())
        return bool(data)

    def compose(self, _name: str, untrusted_title: object) -> str:
        """Return the title to show for a guest's title."""
        return compose_title(self.prefix, untrusted_title)

    def change_title(self, title: str, before: str) -> str:
        """Return the title that follows from one which began with another prefix."""
        return self.compose(self.name, title.removeprefix(f"[{before}] "))


def read_colour(text: str) -> tuple[float, float, float]:
    """Return red, green and blue of a colour such as cc0000, each from 0 to 1. Raises ValueError."""
    number = int(text, 16)
    if not 0 <= number <= 0xFFFFFF:
        raise ValueError(f"{text} is not a colour such as cc0000")
    return (number >> 16) / 255, (number >> 8 & 255) / 255, (number & 255) / 255
