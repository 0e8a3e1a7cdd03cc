"""The desktop on which VMs are shown: its X display, and what a sandboxed program needs to reach it."""

import os
import re
from collections.abc import Mapping
from typing import NamedTuple, Self

from crannog.errors import DisplayError

_LOCAL = re.compile(r"(?:unix)?:(\d{1,5})(?:\.\d+)?\Z")
_AUTHORITY = "/tmp/xauthority"  # noqa: S108  inside the sandbox
X_SOCKETS = "/tmp/.X11-unix"  # noqa: S108  where X servers listen (X(7), Xorg(1))


class Session(NamedTuple):
    """An X display on this host. Under Wayland it is that of Xwayland."""

    number: int
    authority: str = ""
    """File with the X display's cookie; empty: it needs none."""

    @classmethod
    def find(cls, environment: Mapping[str, str]) -> Self:
        """Return the display that DISPLAY and XAUTHORITY name. Raises DisplayError when there is none to use."""
        name = environment.get("DISPLAY", "")
        match = _LOCAL.match(name)
        if not name:
            raise DisplayError("there is no desktop here to show VMs on: the variable DISPLAY is not set")
        if not match:
            raise DisplayError(f"VMs cannot be shown on {name[:80]!r}: it is not a display of this host, such as ':0'")
        authority = environment.get("XAUTHORITY", "") or os.path.join(environment.get("HOME", "/"), ".Xauthority")
        return cls(int(match[1]), authority if os.path.exists(authority) else "")

    @property
    def name(self) -> str:
        """The display as DISPLAY has it."""
        return f":{self.number}"

    @property
    def socket(self) -> str:
        """The X server's socket."""
        return f"{X_SOCKETS}/X{self.number}"

    @property
    def sockets(self) -> dict[str, str]:
        """What the sandbox binds: path inside -> path on this host."""
        return {self.socket: self.socket} | ({_AUTHORITY: self.authority} if self.authority else {})

    @property
    def environment(self) -> dict[str, str]:
        """What a program inside the sandbox needs in its environment."""
        words = {"DISPLAY": self.name, "GDK_BACKEND": "x11", "NO_AT_BRIDGE": "1", "GTK_USE_PORTAL": "0"}
        return words | ({"XAUTHORITY": _AUTHORITY} if self.authority else {})
