"""The guest DB of one VM: a tree of paths with values that the host and the guest both see. Pure: a value with rules.

The host writes what the guest may know; the guest writes what it is, below two folders of its own. Limits of path and
value are those of QubesDB (qubesdb.h: QDB_MAX_PATH, QDB_MAX_DATA).
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from crannog.errors import DeniedError, ProtocolError

PATH_MAX = 63
"""Longest path in characters."""
VALUE_MAX = 3072
"""Longest value in bytes."""
ENTRIES_MAX = 2000
"""Most entries of the host; more are a mistake."""
GUEST_ENTRIES_MAX = 128
"""Most entries below the guest's folders."""
CLOCK = "/crannog-clock"
"""What the host writes for a moment to have the agent set the guest's clock: nanoseconds since 1970."""
READY = "/crannog-ready"
"""What the host writes for a moment to have the agent prepare for a command: the name of its user."""
SLEEP = "/crannog-sleep"
"""What the host writes for a moment to have the agent stop the guest's processes, as its memory is to be saved."""
RENEW = "/crannog-renew"
"""What the host writes for a moment to have the agent make a restored guest one of its own: see `RenewOrder`."""
GUEST_FOLDERS = ("/qubes-tools/", "/features-request/")
"""Where the guest may write."""

_PATH = re.compile(r"(/(?!\.+(/|$))[A-Za-z0-9_.:-]+)+")

Watcher = Callable[[str], None]
"""Called with the path of what was written or removed; a removed subtree is one path that ends in a slash."""


def check_path(untrusted_path: bytes, *, may_be_folder: bool = False) -> str:
    """Return a path; raises ProtocolError. One that ends in `/` means all that is below, where that may be."""
    path = untrusted_path.decode("ascii", "replace")
    name = path.removesuffix("/") if may_be_folder else path
    if len(path) > PATH_MAX or not (_PATH.fullmatch(name) or (may_be_folder and path in ("", "/"))):
        raise ProtocolError(f"a path of the guest DB is longer than {PATH_MAX} characters, or has odd ones")
    return path


def is_entry(path: str, value: bytes) -> bool:
    """Tell whether there can be such an entry."""
    return len(path) <= PATH_MAX and _PATH.fullmatch(path) is not None and len(value) <= VALUE_MAX


class GuestDB:
    """The tree. Who passes on what a guest wants asks `check_path` and `check_guest_may_write` first."""

    def __init__(self, entries: Mapping[str, bytes] | None = None) -> None:
        self._entries: dict[str, bytes] = dict(entries or {})
        self._watchers: dict[int, tuple[str, Watcher]] = {}
        self._next_watch = 0

    def read(self, path: str) -> bytes | None:
        """Return a value, None where there is none."""
        return self._entries.get(path)

    def list(self, prefix: str = "/") -> Iterator[tuple[str, bytes]]:
        """Give the entries whose paths begin with `prefix`, by path."""
        return ((path, value) for path, value in sorted(self._entries.items()) if path.startswith(prefix))

    def write(self, path: str, value: bytes) -> None:
        """Set a value; raises ProtocolError for one that is too long, or one entry too many."""
        if len(value) > VALUE_MAX:
            raise ProtocolError(f"{path} of the guest DB cannot hold {len(value)} bytes; {VALUE_MAX} are allowed")
        if path not in self._entries:
            self._check_room(path)
        self._entries[path] = value
        self._tell(path)

    def _check_room(self, path: str) -> None:
        is_guests = path.startswith(GUEST_FOLDERS)
        count = sum(known.startswith(GUEST_FOLDERS) is is_guests for known in self._entries)
        most = GUEST_ENTRIES_MAX if is_guests else ENTRIES_MAX
        if count >= most:
            raise ProtocolError(f"the guest DB has {most} entries already; {path} is one too many")

    def remove(self, path: str) -> bool:
        """Remove an entry, or with a slash at the end all below; return whether there was anything."""
        found = [known for known in self._entries if known == path or (path.endswith("/") and known.startswith(path))]
        for known in found:
            del self._entries[known]
        if found:
            self._tell(path)
        return bool(found)

    # -- watches

    def watch(self, path: str, watcher: Watcher) -> int:
        """Have a watcher told of a path, or with a slash at the end of all below; return the number of the watch."""
        self._next_watch += 1
        self._watchers[self._next_watch] = (path, watcher)
        return self._next_watch

    def unwatch(self, number: int) -> None:
        """End a watch; one that is not there is no error."""
        self._watchers.pop(number, None)

    def _tell(self, changed: str) -> None:
        for path, watcher in tuple(self._watchers.values()):
            if changed == path or (path.endswith("/") and changed.startswith(path)) or _covers(changed, path):
                watcher(changed)


def _covers(removed: str, watched: str) -> bool:
    """Tell whether something that is watched went with a whole subtree."""
    return removed.endswith("/") and watched.startswith(removed)


def check_guest_may_write(path: str) -> None:
    """Raise DeniedError for a path where only the host writes."""
    if not path.startswith(GUEST_FOLDERS):
        raise DeniedError(f"the guest may write below {' and '.join(GUEST_FOLDERS)} only, not to {path}")


def differences(before: Iterable[tuple[str, bytes]], after: Iterable[tuple[str, bytes]]) -> dict[str, bytes | None]:
    """Return what has to be written, and with None what has to be removed, to get from one content to the other."""
    old, new = dict(before), dict(after)
    changed: dict[str, bytes | None] = {path: value for path, value in new.items() if old.get(path) != value}
    return changed | {path: None for path in old if path not in new}
