"""The sandbox of programs that show a guest's display: bubblewrap (bwrap(1)), which needs no root.

What runs in it reads bytes that a hostile guest made up. It sees the programs of this host, read-only, and nothing
else that is the user's: no home, no folder of Crannog, no network, no other processes, and of all sockets only those
that it is given. What it still can do, if it is taken over: whatever an X client can do on that X display.
"""

import os
from collections.abc import Mapping, Sequence

HOME = "/tmp/home"  # noqa: S108  inside the sandbox, where /tmp is new and empty
RUNTIME = "/tmp/runtime"  # noqa: S108
MEMORY_MAX = 1 << 30
"""Bytes of data that a program may have: a guest decides how large its windows are, not how much of this host they
take."""
FILES_MAX = 256
SCRATCH_MAX = 64 << 20
"""Bytes that a program may write to its /tmp, and to its /dev/shm; it can write nowhere else."""

_ENVIRONMENT = {
    "HOME": HOME,
    "LANG": "C.UTF-8",
    "PATH": "/usr/bin:/bin",
    "XDG_RUNTIME_DIR": RUNTIME,
}
_MERGED = ("bin", "lib", "lib32", "lib64", "libx32", "sbin")
"""Folders that are links into /usr on every host with a merged /usr."""
_SETTINGS = (
    "alternatives",
    "fonts",
    "gtk-3.0",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "pango",
    "vulkan",
)
"""What programs with windows read below /etc, and in what no secret is."""

_FONT_CACHE = "/var/cache/fontconfig"
"""Without it every program reads all fonts of the host before it writes its first word."""


def sandboxed(
    command: Sequence[str], sockets: Mapping[str, str], environment: Mapping[str, str] | None = None
) -> list[str]:
    """Return the command line that runs `command` in the sandbox.

    `sockets`: path inside -> path on this host, of sockets (and single files, such as an X authority), each bound
    read-only, which still lets a socket be connected to. `environment` is all that the program gets besides a home, a
    PATH and a locale. The sandbox ends with the process that starts it. It needs the packages bubblewrap and
    util-linux (prlimit(1)).
    """
    limits = ["prlimit", f"--data={MEMORY_MAX}", f"--nofile={FILES_MAX}", "--core=0", "--"]
    inner = [*_list_walls(), *_bind(sockets), "--remount-ro", "/", "--remount-ro", "/dev"]
    return [*limits, "bwrap", *inner, *_set({**_ENVIRONMENT, **(environment or {})}), "--", *command]


def _list_walls() -> list[str]:
    """Return what is the same for every program."""
    walls = ["--unshare-all", "--unshare-user", "--uid", "1000", "--gid", "1000", "--cap-drop", "ALL"]
    walls += ["--disable-userns", "--hostname", os.uname().nodename, "--new-session", "--die-with-parent", "--clearenv"]
    walls += ["--ro-bind", "/usr", "/usr"]
    for name in _MERGED:
        walls += ["--symlink", f"usr/{name}", f"/{name}"]
    for name in _SETTINGS:
        walls += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    walls += ["--ro-bind-try", _FONT_CACHE, _FONT_CACHE]
    walls += ["--proc", "/proc", "--dev", "/dev"]
    for folder in ("/dev/shm", "/tmp"):  # noqa: S108
        walls += ["--size", str(SCRATCH_MAX), "--tmpfs", folder]
    for folder in (HOME, RUNTIME):
        walls += ["--perms", "0700", "--dir", folder]
    return [*walls, "--chdir", HOME]


def _bind(sockets: Mapping[str, str]) -> list[str]:
    words = []
    for inside, outside in sockets.items():
        words += ["--ro-bind", outside, inside]
    return words


def _set(environment: Mapping[str, str]) -> list[str]:
    words = []
    for name, value in environment.items():
        words += ["--setenv", name, value]
    return words
