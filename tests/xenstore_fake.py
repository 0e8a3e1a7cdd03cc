"""A XenStore in this process, for tests of what asks one: a server on a unix socket that speaks its messages.

It keeps to the contract suite that the real one keeps to (tests/contract/guestdb_contract.py), and does what xenstored
does with permissions, watches and transactions, as far as that is asked for here.
"""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from crannog.adapters.guestdb.wire import Kind, Message, Parser, encode

LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-/_@")
"""xenstored, is_valid_nodename."""


class Refusal(Exception):  # noqa: N818
    """The name of an errno."""


class Store:
    """The tree, with the permissions of each node; `domain` 0 may all."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {"/": b"", "/local": b"", "/local/domain": b""}
        self.permissions: dict[str, list[str]] = {}
        self.lock = threading.RLock()
        self.clients: list[Client] = []

    def add_domain(self, domain: int) -> str:
        """Make a domain's folder as libxl does; return its path."""
        folder = f"/local/domain/{domain}"
        self.write(0, folder, b"")
        self.permissions[folder] = ["n0", f"r{domain}"]
        for name, value in (("name", b"vm"), ("memory/target", b"262144"), ("domid", b"%d" % domain)):
            self.write(0, f"{folder}/{name}", value)
        return folder

    def may(self, domain: int, path: str, letters: str) -> bool:
        while path not in self.values:
            path = path.rpartition("/")[0] or "/"
        found = self.permissions.get(path)
        while found is None and path != "/":
            path = path.rpartition("/")[0] or "/"
            found = self.permissions.get(path)
        owner, *others = found or ["n0"]
        if domain in (0, int(owner[1:])):
            return True
        letter = next((other[0] for other in others if int(other[1:]) == domain), owner[0])
        return letter in letters

    def read(self, domain: int, path: str) -> bytes:
        if path not in self.values:
            raise Refusal("ENOENT" if self.may(domain, path, "rb") else "EACCES")
        if not self.may(domain, path, "rb"):
            raise Refusal("EACCES")
        return self.values[path]

    def names(self, domain: int, path: str) -> list[str]:
        self.read(domain, path)
        prefix = path.rstrip("/") + "/"
        rests = [known[len(prefix) :] for known in self.values if known.startswith(prefix) and known != "/"]
        return [rest for rest in rests if "/" not in rest]

    def write(self, domain: int, path: str, value: bytes) -> None:
        if not LETTERS.issuperset(path) or path.endswith("/") or "//" in path:
            raise Refusal("EINVAL")
        if not self.may(domain, path, "wb"):
            raise Refusal("EACCES")
        parent = path.rpartition("/")[0]
        if parent and parent not in self.values:
            self.write(domain, parent, b"")
        if path not in self.values and domain:
            inherited = next(self.permissions[p] for p in _ups(path) if p in self.permissions)
            self.permissions[path] = [inherited[0][0] + str(domain), *inherited[1:]]
        self.values[path] = value
        self.tell(path)

    def remove(self, domain: int, path: str) -> None:
        if path not in self.values:
            raise Refusal("ENOENT")
        if not self.may(domain, path, "wb"):
            raise Refusal("EACCES")
        for known in [known for known in self.values if known == path or known.startswith(path + "/")]:
            del self.values[known]
            self.permissions.pop(known, None)
        self.tell(path)

    def tell(self, path: str) -> None:
        for client in self.clients:
            for watched, token in list(client.watches):
                if path == watched or path.startswith(watched + "/"):
                    client.tell(path, token)
                elif watched.startswith(path + "/"):
                    client.tell(watched, token)


def _ups(path: str) -> Iterator[str]:
    while path:
        yield path
        path = path.rpartition("/")[0]


class Client:
    """One connection, of one domain."""

    def __init__(self, store: Store, connection: socket.socket | int, domain: int) -> None:
        self.store = store
        self.fd = connection if isinstance(connection, int) else connection.detach()
        self.domain = domain
        self.watches: list[tuple[str, str]] = []
        self.staged: list[tuple[str, bytes]] | None = None
        store.clients.append(self)

    def tell(self, path: str, token: str) -> None:
        self.send(Message(Kind.WATCH_EVENT, 0, 0, f"{path}\0{token}\0".encode()))

    def send(self, message: Message) -> None:
        with contextlib.suppress(OSError):
            os.write(self.fd, encode(message))

    def serve(self) -> None:
        parser = Parser()
        with contextlib.suppress(OSError):
            while data := os.read(self.fd, 65536):
                for message in parser.feed(data):
                    with self.store.lock:
                        self.answer(message)
        with self.store.lock:
            self.store.clients.remove(self)
        os.close(self.fd)

    def answer(self, message: Message) -> None:
        try:
            kind, body = Kind(message.kind), self.do(Kind(message.kind), message)
        except Refusal as refusal:
            kind, body = Kind.ERROR, str(refusal).encode() + b"\0"
        self.send(Message(kind, message.request, message.transaction, body))
        if kind == Kind.WATCH:
            self.tell(*self.watches[-1])

    def do(self, kind: Kind, message: Message) -> bytes:
        first, _, rest = message.body.partition(b"\0")
        path = first.decode("ascii", "replace")
        if not path.startswith("/"):
            path = f"/local/domain/{self.domain}/{path}"
        if kind == Kind.READ:
            return self.store.read(self.domain, path)
        if kind == Kind.DIRECTORY:
            body = b"".join(name.encode() + b"\0" for name in self.store.names(self.domain, path))
            if len(body) > 4096:
                raise Refusal("E2BIG")
            return body
        self.change(kind, path, rest)
        return b"1\0" if kind == Kind.TRANSACTION_START else b"OK\0"

    def change(self, kind: Kind, path: str, rest: bytes) -> None:
        words = [word.decode("ascii", "replace") for word in rest.split(b"\0") if word]
        if kind in (Kind.WATCH, Kind.UNWATCH):
            change = self.watches.append if kind == Kind.WATCH else self.watches.remove
            change((path, words[0]))
        elif kind in (Kind.TRANSACTION_START, Kind.TRANSACTION_END):
            staged, self.staged = self.staged or [], [] if kind == Kind.TRANSACTION_START else None
            for name, value in staged if path.endswith("T") else []:
                self.store.write(self.domain, name, value)
        elif kind == Kind.WRITE and self.staged is not None:
            self.staged.append((path, rest))
        else:
            self.change_node(kind, path, rest, words)

    def change_node(self, kind: Kind, path: str, rest: bytes, words: list[str]) -> None:
        store = self.store
        if kind == Kind.WRITE or (kind == Kind.MKDIR and path not in store.values):
            store.write(self.domain, path, rest)
        elif kind == Kind.RM:
            store.remove(self.domain, path)
        elif kind == Kind.SET_PERMS:
            if self.domain and store.permissions.get(path, ["n0"])[0][1:] != str(self.domain):
                raise Refusal("EACCES")
            store.permissions[path] = words


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[Store, str]]:
    """Give a store, and the path of its socket, where all who come are dom0."""
    store, path = Store(), str(folder / "xenstored")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client = Client(store, listener.accept()[0], 0)
                threading.Thread(target=client.serve, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield store, path
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
