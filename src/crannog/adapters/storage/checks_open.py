"""Which files are open: by a running VM, by a tool that copies, or by whoever else looks at them."""

import glob
import os
from contextlib import suppress

Identity = tuple[int, int]
"""Device and inode, by which stat(2) tells files apart."""


def find_open_files() -> set[Identity]:
    """Return the files that processes of this host have open, and those that loop devices are over.

    Those of other users are seen by root only (proc(5)): QEMU runs as the daemon's own user.
    """
    found = set()
    for path in glob.iglob("/proc/[0-9]*/fd/*"):
        with suppress(OSError):
            status = os.stat(path)
            found.add((status.st_dev, status.st_ino))
    for path in glob.iglob("/sys/block/loop*/loop/backing_file"):
        with suppress(OSError), open(path) as file:
            found.add(identify(file.read().rstrip("\n")))
    return found


def identify(path: str) -> Identity:
    """Return what tells a file from all others; raises OSError."""
    status = os.stat(path)
    return status.st_dev, status.st_ino
