"""Console logs: what a guest writes to its serial port, kept within bounds.

The port is a terminal of this host, for those who want to work at the console; QEMU keeps a log of it besides. It
appends to the file for as long as the guest writes. Nothing in QEMU or libvirt limits that without another daemon
(virtlogd), so the adapter shortens the files now and then.
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import libvirt

KEPT_BYTES = 1 << 20
"""What is kept of a log that has grown too long."""

LIMIT_BYTES = 4 * KEPT_BYTES
"""A log longer than this is shortened."""


def start_log(path: str) -> None:
    """Make an empty log at `path` that this user alone can read. Raises OSError."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    # Emptied, not replaced: a program that follows the log sees the new start.
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600))


def shorten_log(path: str, limit: int = LIMIT_BYTES, kept: int = KEPT_BYTES) -> bool:
    """Cut the log at `path` to its last `kept` bytes if it is longer than `limit`; return whether it was.

    QEMU's descriptor appends, so it goes on at the new end. What the guest writes during the cut may be lost.
    An absent log is no error.
    """
    try:
        with open(path, "r+b", buffering=0) as file:
            length = file.seek(0, os.SEEK_END)
            if length <= limit:
                return False
            file.seek(length - kept)
            untrusted_tail = file.read(kept)
            file.truncate(0)
            file.seek(0)
            file.write(untrusted_tail)
            return True
    except FileNotFoundError:
        return False


def find_console(domain: "libvirt.virDomain") -> str:
    """Return the path of a running domain's console log, empty when it has none. Raises libvirtError."""
    return _find(domain, "devices/serial/log", "file")


def find_terminal(domain: "libvirt.virDomain") -> str:
    """Return the path of the terminal that is a running domain's console, empty when it has none."""
    return _find(domain, "devices/console[@type='pty']/source", "path")


def _find(domain: "libvirt.virDomain", place: str, attribute: str) -> str:
    from lxml import etree

    # The XML is libvirt's own, made from ours: no guest has a hand in it.
    element = etree.fromstring(domain.XMLDesc(0)).find(place)
    return "" if element is None else element.get(attribute, "")
