"""The global clipboard: one file of the home, for its user alone, with the text that was copied from a VM."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from crannog.config import Paths
from crannog.errors import StorageError

LIFETIME = 600.0
"""Seconds after which the text counts for nothing: what was forgotten there is pasted by nobody by mistake."""
_LOCK = ".lock"


class Clip:
    """What is in the global clipboard: of which VM, since when (seconds of time.time), and the text as UTF-8."""

    def __init__(self, vm: str, uuid: str, copied: float, text: bytes) -> None:
        self.vm = vm
        self.uuid = uuid
        self.copied = copied
        self.text = text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Clip) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


class Clipboard:
    """The global clipboard of a home. `load`, `save` and `clear` are for who has it `locked`."""

    def __init__(self, paths: Paths, clock: Callable[[], float] = time.time) -> None:
        self._path = paths.clipboard
        self._clock = clock

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others from it; raises StorageError. A home that was never used has none, and needs no lock."""
        if not os.path.isdir(os.path.dirname(self._path)):
            yield
            return
        try:
            lock = os.open(self._path + _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._broken(error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def load(self) -> Clip | None:
        """Return what is there, None when nothing is. What is too old is deleted. Raises StorageError."""
        try:
            with open(self._path, "rb") as file:
                clip = _parse(file.read())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._broken(error) from error
        # A clock that was set back must not make it last.
        if not 0 <= self.age(clip) < LIFETIME:
            self.clear()
            return None
        return clip

    def age(self, clip: Clip) -> float:
        """Return how many seconds ago it was copied."""
        return self._clock() - clip.copied

    def save(self, vm: str, uuid: str, text: bytes) -> None:
        """Put a text there in place of what is there; raises StorageError."""
        header = json.dumps({"vm": vm, "uuid": uuid, "copied": self._clock()})
        new = f"{self._path}.new"
        try:
            with suppress(FileNotFoundError):
                os.unlink(new)  # of a process that was killed
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(header.encode() + b"\n" + text)
            os.rename(new, self._path)
        except OSError as error:
            raise self._broken(error) from error

    def clear(self) -> None:
        """Forget what is there; raises StorageError."""
        try:
            with suppress(FileNotFoundError):
                os.unlink(self._path)
        except OSError as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> StorageError:
        why = error.strerror if isinstance(error, OSError) else "it is damaged"
        return StorageError(f"the global clipboard, {self._path}, cannot be used: {why}; try 'crannog clipboard clear'")


def _parse(data: bytes) -> Clip:
    header, separator, text = data.partition(b"\n")
    if not separator:
        raise ValueError("it has no header")
    values = json.loads(header)
    text.decode()
    return Clip(str(values["vm"]), str(values["uuid"]), float(values["copied"]), text)
