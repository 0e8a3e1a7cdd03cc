"""Short names for long homes: a unix socket's path has at most 107 bytes (unix(7), sun_path).

A home that is too long, or has a blank in it (libvirt ends the name of its log at one), gets a symbolic link whose name
follows from its path, so that tools, daemons and libvirt find the sockets in it under the same short path, each time.
"""

import os

from crannog.errors import StorageError

SUN_PATH_MAX = 107
"""Longest unix socket path in bytes, without the final NUL."""

LONGEST_SOCKET = "/vmm/lib/qemu/domain-999999-" + "n" * 20 + "/monitor.sock"
"""Longest path below a home: libvirt's, which cuts a domain's name to 20 characters (virDomainDefGetShortName)."""

HOME_MAX = SUN_PATH_MAX - len(LONGEST_SOCKET)
"""Longest home that needs no other name, in bytes."""


def find_alias_folder() -> str:
    """Return the folder of this user's short names."""
    if os.geteuid() == 0:
        return "/run/crannog-0"
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    return f"{runtime}/crannog" if runtime.startswith("/") else f"/tmp/crannog-{os.geteuid()}"  # noqa: S108


def short_path(home: str, alias_folder: str = "") -> str:
    """Return the path under which sockets below `home` are used: itself, or its short name. Touches nothing."""
    if len(os.fsencode(home)) <= HOME_MAX and not any(map(str.isspace, home)):
        return home
    import hashlib

    return f"{alias_folder or find_alias_folder()}/{hashlib.sha256(os.fsencode(home)).hexdigest()[:12]}"


def provide_short_path(home: str, alias_folder: str = "") -> str:
    """Return `short_path(home)` after making the link, if it takes one.

    Raises StorageError when the folder of short names is not this user's alone, or is itself too long.
    """
    alias_folder = alias_folder or find_alias_folder()
    alias = short_path(home, alias_folder)
    if alias == home:
        return home
    if len(os.fsencode(alias)) > HOME_MAX:
        raise StorageError(
            f"{home} is too long for unix sockets below it (at most {HOME_MAX} bytes): use a shorter one"
        )
    try:
        _make_private(alias_folder)
        _drop_dangling(alias_folder)
        if not _leads_to(alias, home):
            _link(home, alias)
    except OSError as error:
        raise StorageError(f"{home} gets no short name in {alias_folder}: {error.strerror}") from error
    return alias


def _leads_to(alias: str, home: str) -> bool:
    try:
        return os.readlink(alias) == home
    except OSError:
        return False


def _link(home: str, alias: str) -> None:
    """Make the link, or replace it; another process may be doing the same."""
    new = f"{alias}.{os.getpid()}"
    _delete(new)  # of one that was killed, and had our number
    os.symlink(home, new)
    os.replace(new, alias)


def _drop_dangling(folder: str) -> None:
    """Delete the short names of homes that are gone."""
    for entry in os.scandir(folder):
        if entry.is_symlink() and not os.path.exists(entry.path):
            _delete(entry.path)


def _delete(path: str) -> None:
    import contextlib

    with contextlib.suppress(FileNotFoundError):  # another process has been quicker
        os.unlink(path)


def _make_private(folder: str) -> None:
    import contextlib
    import stat

    # In a folder that anyone may write to, a name that can be foreseen may have been taken by somebody else.
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    status = os.lstat(folder)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise StorageError(f"{folder} is not a folder of this user alone: remove it, then try again")
