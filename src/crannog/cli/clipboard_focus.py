"""Which VM the active window of this desktop belongs to: its class says so, which the forwarder gives it, no guest."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping

from crannog.errors import DisplayError

PATIENCE = 5.0
"""Seconds for the X server to answer."""
_WINDOW = re.compile(r"^_NET_ACTIVE_WINDOW: window id # (0x[0-9a-f]+)", re.MULTILINE)
_CLASS = re.compile(r'^WM_CLASS = "([A-Za-z][A-Za-z0-9_.-]*)", "crannog"$', re.MULTILINE)
"""The window's class-instance in forwarder_rules.py. Titles hold words of guests, and are not looked at."""


def find_focused_vm(environment: Mapping[str, str]) -> str:
    """Return the VM whose window is active on the display that the environment names; raises DisplayError."""
    if not environment.get("DISPLAY"):
        raise DisplayError("there is no desktop here: the variable DISPLAY is not set; name the VM")
    active = _WINDOW.search(_ask("-root", "_NET_ACTIVE_WINDOW", environment=environment))
    # The window's number is a word of ours by now: hexadecimal digits.
    owner = active and _CLASS.search(_ask("-id", active[1], "WM_CLASS", environment=environment))
    if not owner:
        raise DisplayError("the active window is not one of a VM; click into one that is, or name the VM")
    return owner[1]


def _ask(*words: str, environment: Mapping[str, str]) -> str:
    try:
        done = subprocess.run(
            ["xprop", "-notype", *words],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
    except FileNotFoundError:
        raise DisplayError("there is no xprop here: install the package x11-utils, or name the VM") from None
    except subprocess.TimeoutExpired:
        raise DisplayError(f"the X server did not answer within {PATIENCE:.0f} s; name the VM") from None
    return done.stdout.decode("utf-8", "replace")
