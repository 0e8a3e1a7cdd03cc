"""Which programs of the distribution show VMs, and which of them are missing here."""

import shutil
from collections.abc import Mapping

SCREEN_PACKAGES = {
    "bwrap": "bubblewrap",
    "prlimit": "util-linux",
    "/usr/lib/*/girepository-1.0/GtkVnc-2.0.typelib": "gir1.2-gtk-vnc-2.0",
    "/usr/lib/python3/dist-packages/gi": "python3-gi",
}
"""What the device-model display needs, and the Debian package that has it."""
AGENT_PACKAGES = {"xpra": "xpra"}
"""What the agent display needs besides."""


def missing_packages(wanted: Mapping[str, str]) -> list[str]:
    """Return the packages of which something is not installed."""
    return [package for part, package in wanted.items() if not _is_there(part)]


def _is_there(part: str) -> bool:
    if not part.startswith("/"):
        return shutil.which(part) is not None
    import glob

    return bool(glob.glob(part))


def missing_parts(environment: Mapping[str, str]) -> str:
    """Return why VMs cannot be shown here, a sentence with the next step; empty when they can."""
    if not environment.get("DISPLAY"):
        return "there is no desktop to show VMs on: crannogd was started without the variable DISPLAY"
    missing = missing_packages(SCREEN_PACKAGES)
    if missing:
        return f"VMs cannot be shown: install {', '.join(missing)} (apt-get install {' '.join(missing)})"
    return ""


def describe_parts(environment: Mapping[str, str]) -> list[str]:
    """Return where VMs are shown and what is missing for it, a sentence each, for a person to read."""
    display = environment.get("DISPLAY", "")
    told = [
        f"VMs are shown on display {display}."
        if display
        else "VMs are not shown: crannogd was started without a desktop."
    ]
    for purpose, wanted in (("the screens of VMs", SCREEN_PACKAGES), ("the windows of VMs", AGENT_PACKAGES)):
        missing = missing_packages(wanted)
        if missing:
            told.append(f"WARNING: to show {purpose}: apt-get install {' '.join(missing)}")
    return told
