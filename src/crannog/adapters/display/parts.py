"""Which programs of the distribution show VMs, and which of them are missing here."""

import glob
import os
import shutil
from collections.abc import Mapping

from crannog.core.displays import DisplayKind

_SANDBOX = {"bwrap": "bubblewrap", "prlimit": "util-linux"}
_LIBRARY = "/usr/lib/python3/dist-packages"
PACKAGES: Mapping[DisplayKind, Mapping[str, str]] = {
    DisplayKind.SCREEN: _SANDBOX
    | {
        "/usr/lib/*/girepository-1.0/GtkVnc-2.0.typelib": "gir1.2-gtk-vnc-2.0",
        f"{_LIBRARY}/gi/__init__.py": "python3-gi",
    },
    DisplayKind.AGENT: _SANDBOX
    | {
        "xpra": "xpra",
        f"{_LIBRARY}/PIL/__init__.py": "python3-pil",
        f"{_LIBRARY}/gi/_gi_cairo*.so": "python3-gi-cairo",
    },
}
"""What each display needs, and the Debian package that has it: a program by its name, a file by a pattern."""
_PURPOSES = {DisplayKind.SCREEN: "screens", DisplayKind.AGENT: "windows"}


def missing_packages(kind: DisplayKind, environment: Mapping[str, str]) -> list[str]:
    """Return the packages of which something is not installed, for one of the displays."""
    path = environment.get("PATH") or os.defpath
    return [package for part, package in PACKAGES[kind].items() if not _is_there(part, path)]


def _is_there(part: str, path: str) -> bool:
    return bool(glob.glob(part)) if part.startswith("/") else shutil.which(part, path=path) is not None


def missing_parts(kind: DisplayKind, environment: Mapping[str, str]) -> str:
    """Return why such displays cannot be shown here, a sentence with the next step; empty when they can."""
    if not environment.get("DISPLAY"):
        return "there is no desktop to show VMs on: crannogd was started without the variable DISPLAY"
    missing = missing_packages(kind, environment)
    if missing:
        names = _PURPOSES[kind]
        return f"{names} of VMs cannot be shown: install {', '.join(missing)} (apt-get install {' '.join(missing)})"
    return ""


def describe_parts(environment: Mapping[str, str]) -> list[str]:
    """Return where VMs are shown and what is missing for it, a sentence each, for a person to read."""
    display = environment.get("DISPLAY", "")
    told = [
        f"VMs are shown on display {display}."
        if display
        else "VMs are not shown: crannogd was started without a desktop."
    ]
    for kind, purpose in _PURPOSES.items():
        missing = missing_packages(kind, environment)
        if missing:
            told.append(f"WARNING: to show the {purpose} of VMs: apt-get install {' '.join(missing)}")
    return told
