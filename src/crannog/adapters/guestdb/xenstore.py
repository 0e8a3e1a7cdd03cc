"""A connection to XenStore, from the domain that controls the others: xenstored's socket, else the kernel's device.

It asks one thing at a time, and waits for the answer; what its watches tell meanwhile is kept, once for each watch.
"""

import os
import select
import socket
import time
from collections.abc import Sequence

from crannog.adapters.guestdb.places import DEVICE
from crannog.adapters.guestdb.wire import Kind, Message, Parser, encode
from crannog.errors import HypervisorError, ProtocolError

PATIENCE = 5.0
"""Seconds for one answer. xenstored answers within a fraction of a millisecond, or has gone."""
_READ_SIZE = 65536
_READS = 16
"""Most reads for what the watches tell: a guest can change things faster than we listen."""


class RefusedError(HypervisorError):
    """XenStore does not do what it was asked; `code` is the name of an errno."""

    def __init__(self, sentence: str, code: str) -> None:
        super().__init__(sentence)
        self.code = code


class XenStore:
    """XenStore; paths are absolute. Every call raises HypervisorError when it cannot be reached or refuses."""

    def __init__(self, path: str) -> None:
        self._fd = _open(path)
        self._parser = Parser()
        self._answers: list[Message] = []
        self._requests = 0
        self._changed: dict[str, str] = {}

    def close(self) -> None:
        """Disconnect; watches end with that."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def fileno(self) -> int:
        """Return what becomes readable when a watch tells something."""
        return self._fd

    def names(self, path: str) -> list[str]:
        """Return the names in a folder, none where there is no such folder. Raises RefusedError E2BIG for too many."""
        try:
            names = self._ask(Kind.DIRECTORY, _text(path)).split(b"\0")
        except RefusedError as error:
            if error.code == "ENOENT":
                return []
            raise
        return [name.decode("ascii", "replace") for name in names if name]

    def read(self, path: str) -> bytes | None:
        """Return a value, None where there is none."""
        try:
            return self._ask(Kind.READ, _text(path))
        except RefusedError as error:
            if error.code in ("ENOENT", "EINVAL"):  # there is nothing at a path that cannot be
                return None
            raise

    def write(self, path: str, value: bytes) -> None:
        """Set a value; what is above it comes into being with it."""
        self._ask(Kind.WRITE, _text(path) + value)

    def make(self, path: str) -> None:
        """Make a folder; one that is there is fine."""
        self._ask(Kind.MKDIR, _text(path))

    def remove(self, path: str) -> bool:
        """Remove an entry with all below it; return whether it was there."""
        try:
            self._ask(Kind.RM, _text(path))
        except RefusedError as error:
            if error.code == "ENOENT":
                return False
            raise
        return True

    def set_permissions(self, path: str, permissions: Sequence[str]) -> None:
        """Set who may do what: the owner's number with what all others may, then the exceptions.

        `n0 b5`: it is dom0's, others may nothing, domain 5 may read and write (docs/misc/xenstore.txt, SET_PERMS).
        """
        self._ask(Kind.SET_PERMS, _text(path) + b"".join(map(_text, permissions)))

    def watch(self, path: str, token: str) -> None:
        """Have changes of an entry and of all below it told; the first is told at once."""
        self._ask(Kind.WATCH, _text(path) + _text(token))

    def unwatch(self, path: str, token: str) -> None:
        """End a watch."""
        self._ask(Kind.UNWATCH, _text(path) + _text(token))
        self._changed.pop(token, None)

    def take_changes(self) -> dict[str, str]:
        """Return what has changed since the last call: for each watch's token a path, empty when there were several.

        Does not wait, and does not listen for ever.
        """
        for _ in range(_READS):
            if not self._is_readable(0):
                break
            self._receive()
        changed, self._changed = self._changed, {}
        return changed

    def _ask(self, kind: Kind, body: bytes) -> bytes:
        self._requests = self._requests % 0x7FFFFFFF + 1
        self._send(encode(Message(kind, self._requests, 0, body)))
        deadline = time.monotonic() + PATIENCE
        while True:
            for message in self._take_answers():
                if message.request == self._requests:
                    return _check(message, kind, body)
            if not self._is_readable(max(0.0, deadline - time.monotonic())):
                raise HypervisorError(f"XenStore did not answer within {PATIENCE:.0f} s; is xenstored alive?")
            self._receive()

    def _take_answers(self) -> list[Message]:
        answers, self._answers = self._answers, []
        return answers

    def _send(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            raise HypervisorError(f"XenStore has gone: {error.strerror}; restart the host") from error

    def _is_readable(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def _receive(self) -> None:
        try:
            data = os.read(self._fd, _READ_SIZE)
            messages = list(self._parser.feed(data))
        except (OSError, ProtocolError) as error:
            raise HypervisorError(f"XenStore cannot be read: {error}") from error
        if not data:
            raise HypervisorError("XenStore has gone; restart the host")
        for message in messages:
            if message.kind == Kind.WATCH_EVENT:
                self._note(message.body)
            else:
                self._answers.append(message)

    def _note(self, body: bytes) -> None:
        """Keep one path a watch: guests can make changes without end."""
        path, token = (part.decode("ascii", "replace") for part in [*body.split(b"\0"), b"", b""][:2])
        self._changed[token] = path if self._changed.get(token, path) == path else ""


def _text(text: str) -> bytes:
    return text.encode("ascii", "replace") + b"\0"


def _check(message: Message, kind: Kind, question: bytes) -> bytes:
    if message.kind == kind:
        return message.body
    code = message.body.rstrip(b"\0").decode("ascii", "replace")[:20]
    about = question.partition(b"\0")[0].decode("ascii", "replace")
    raise RefusedError(f"XenStore refused {kind.name} of {about[:100]}: {code}", code)


def _open(path: str) -> int:
    """Return a descriptor of the socket, or of the device, which takes the same messages."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        if path != DEVICE:
            connection.connect(path)
            return connection.detach()
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise HypervisorError(f"XenStore cannot be reached at {path}: {error.strerror}; is xenstored alive?") from error
    finally:
        connection.close()
