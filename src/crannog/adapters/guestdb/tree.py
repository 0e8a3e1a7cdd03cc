"""The guest DB of one domain in XenStore, below the domain's own folder (ports.guestdb.Tree).

There Xen keeps its own things as well, which are no entries. A folder of XenStore has a value, too: it is an entry when
that is not empty, or there is nothing below it.
"""

from collections.abc import Iterator, Sequence

from crannog.adapters.guestdb.xenstore import RefusedError, XenStore
from crannog.core.guestdb import (
    ENTRIES_MAX,
    GUEST_ENTRIES_MAX,
    GUEST_FOLDERS,
    Watcher,
    is_entry,
)
from crannog.errors import ProtocolError

STORE_VALUE_MAX = 2048
"""Longest value in bytes: that of oxenstored for all domains (oxenstored.conf, quota-maxsize), and of xenstored for all
but dom0 (--entry-size)."""
XENS = frozenset(
    {"attr", "bios-strings", "console", "control", "cpu", "data", "device", "device-model", "domid", "drivers", "error"}
    | {"event", "feature", "generation-id", "hvmloader", "image", "libxl", "memory", "name", "platform", "rom"}
    | {"serial", "store", "unique-domain-id", "vkbd", "vm"}
)
"""What Xen and its tools keep in a domain's folder (docs/misc/xenstore-paths.pandoc; libxl)."""
_FOLDERS = frozenset(folder.rstrip("/") for folder in GUEST_FOLDERS)


def domain_folder(domain: int) -> str:
    """Return the folder of a domain."""
    return f"/local/domain/{domain}"


def prepare(store: XenStore, domain: int) -> None:
    """Make the folders that the guest may write to; all others it can read only. Raises HypervisorError.

    What a guest makes in them is its own, so that xenstored counts it against the guest's quota.
    """
    for folder in sorted(_FOLDERS):
        store.make(domain_folder(domain) + folder)
        store.set_permissions(domain_folder(domain) + folder, ("n0", f"b{domain}"))


class XenStoreTree:
    """The tree of one domain."""

    def __init__(self, store: XenStore, domain: int) -> None:
        self._store = store
        self._root = domain_folder(domain)
        self._watchers: dict[int, tuple[str, Watcher]] = {}
        self._fresh: set[int] = set()
        """Watches of which nothing was heard yet: XenStore begins with one change that is none."""
        self._next_watch = 0
        self._written: set[str] = set()
        """What the host has written, so that it can be counted without asking. What guests write is counted when it is
        read, and xenstored lets a guest have so many nodes."""

    def read(self, path: str) -> bytes | None:
        """Return a value, None where there is none."""
        if _is_xens(path) or path in _FOLDERS:
            return None
        value = self._store.read(self._root + path)
        if value is None or not is_entry(path, value) or (not value and self._store.names(self._root + path)):
            return None
        return value

    def list(self, prefix: str = "/") -> Iterator[tuple[str, bytes]]:
        """Give the entries whose paths begin with `prefix`, by path."""
        above = prefix.rpartition("/")[0]
        found = [entry for entry in self._walk(above, _Count()) if entry[0].startswith(prefix)]
        return iter(sorted(found))

    def _walk(self, folder: str, count: "_Count") -> Iterator[tuple[str, bytes]]:
        """Give what is in a folder and below."""
        for name in self._list_names(folder):
            path = f"{folder}/{name}"
            if _is_xens(path):
                continue
            count.note(path)
            if not is_entry(path, b""):
                continue
            below = tuple(self._walk(path, count))
            value = self._store.read(self._root + path)
            if value is not None and is_entry(path, value) and path not in _FOLDERS and (value or not below):
                yield path, value
            yield from below

    def _list_names(self, folder: str) -> Sequence[str]:
        try:
            return self._store.names(self._root + folder)
        except RefusedError as error:
            if error.code == "E2BIG":
                raise ProtocolError(f"the guest DB has too many entries in {folder[:60] or '/'}") from error
            raise

    def write(self, path: str, value: bytes) -> None:
        """Set a value; raises ProtocolError for one that cannot be there."""
        if len(value) > STORE_VALUE_MAX:
            raise ProtocolError(f"{path} of the guest DB cannot hold {len(value)} bytes; {STORE_VALUE_MAX} are allowed")
        if _is_xens(path) or not is_entry(path, value):
            raise ProtocolError(f"{path} cannot be an entry of the guest DB: the name is Xen's own, or is none")
        self._check_room(path)
        try:
            self._store.write(self._root + path, value)
        except RefusedError as error:
            raise ProtocolError(f"{path} cannot be an entry of the guest DB: {error}") from error
        self._written.add(path)

    def _check_room(self, path: str) -> None:
        is_guests = _is_guests(path)
        count = sum(_is_guests(known) is is_guests for known in self._written)
        most = GUEST_ENTRIES_MAX if is_guests else ENTRIES_MAX
        if path not in self._written and count >= most:
            raise ProtocolError(f"the guest DB has {most} entries already; {path} is one too many")

    def remove(self, path: str) -> bool:
        """Remove an entry, or with a slash at the end all below; return whether there was anything."""
        self._written = {
            known for known in self._written if known != path and not (path.endswith("/") and known.startswith(path))
        }
        if not path.endswith("/"):
            return self.read(path) is not None and self._remove_one(path)
        found = [name for name in self._list_names(path[:-1]) if not _is_xens(f"{path}{name}")]
        for name in found:
            if f"{path}{name}" in _FOLDERS:
                self.remove(f"{path}{name}/")
            else:
                self._store.remove(f"{self._root}{path}{name}")
        self._prune(path[:-1])
        return bool(found)

    def _remove_one(self, path: str) -> bool:
        """Remove an entry, but not what is below it."""
        if self._store.names(self._root + path):
            self._store.write(self._root + path, b"")
            return True
        is_gone = self._store.remove(self._root + path)
        self._prune(path.rpartition("/")[0])
        return is_gone

    def _prune(self, folder: str) -> None:
        """Remove folders that are left empty: they would be entries."""
        while folder and folder not in _FOLDERS:
            if self._store.read(self._root + folder) != b"" or self._store.names(self._root + folder):
                return
            self._store.remove(self._root + folder)
            folder = folder.rpartition("/")[0]

    # -- watches

    def watch(self, path: str, watcher: Watcher) -> int:
        """Have a watcher told of a path, or with a slash at the end of all below, by `dispatch`.

        Several changes may be told as one, of the folder that is watched. Returns the number of the watch.
        """
        self._next_watch += 1
        self._watchers[self._next_watch] = (path, watcher)
        self._fresh.add(self._next_watch)
        self._store.watch(self._root + path.rstrip("/"), str(self._next_watch))
        return self._next_watch

    def unwatch(self, number: int) -> None:
        """End a watch; one that is not there is no error."""
        path, _ = self._watchers.pop(number, ("", None))
        if path:
            self._store.unwatch(self._root + path.rstrip("/"), str(number))

    def fileno(self) -> int:
        """Return what becomes readable when there is something to dispatch."""
        return self._store.fileno()

    def dispatch(self) -> None:
        """Tell the watchers what has changed; does not wait. Raises HypervisorError when XenStore has gone."""
        for token, untrusted_path in self._store.take_changes().items():
            number = int(token) if token.isdecimal() else 0
            watched, watcher = self._watchers.get(number, ("", None))
            if watcher is None:
                continue
            if number in self._fresh and untrusted_path:  # of several, some are real
                self._fresh.discard(number)
                continue
            self._fresh.discard(number)
            changed = untrusted_path.removeprefix(self._root)
            is_clear = changed == watched or (watched.endswith("/") and changed.startswith(watched))
            if is_clear or not changed or watched.startswith(f"{changed}/") or watched.endswith("/"):
                watcher(changed if is_clear and is_entry(changed, b"") else watched)


class _Count:
    """How much of a tree was looked at. It is bounded: guests make folders that hold nothing, too."""

    def __init__(self) -> None:
        self._guests = self._hosts = 0

    def note(self, path: str) -> None:
        """Count a node; raises ProtocolError for one too many."""
        self._guests += _is_guests(path)
        self._hosts += not _is_guests(path)
        if self._guests > GUEST_ENTRIES_MAX or self._hosts > 2 * ENTRIES_MAX:
            raise ProtocolError(f"the guest DB has too many entries at {path[:60]}")


def _is_xens(path: str) -> bool:
    return path[1:].partition("/")[0] in XENS


def _is_guests(path: str) -> bool:
    return path.startswith(GUEST_FOLDERS)
