"""crannog policy log: what was decided, as a line each."""

from __future__ import annotations

import os
import time

from crannog.cli.policy import COMMAND
from crannog.cli.tool import complain, escape
from crannog.config import Paths
from crannog.errors import NotFoundError, StorageError, UsageError

# Importing typing and collections.abc would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from crannog.cli.options import Values

OLD = ".1"
"""Ends the name of the log before this one (daemon.decision_log)."""
DEFAULT_LINES = 20
PAUSE = 0.25
"""Seconds between two looks at a log that is followed."""
_BLOCK = 65536
_SHOWN = 100
"""Characters that are shown of a service with its argument: guests choose them."""


def show_log(options: Values) -> int:
    """Print the last decisions, and with --follow those that come."""
    count, path = _count(options.lines), Paths().policy_log
    show = _show_json if options.json else _show_text
    follower = Follower(path)
    if not follower.is_there and not os.path.exists(path + OLD) and not options.follow:
        raise NotFoundError(f"there is no log {path} yet; it begins with the first call of a VM")
    odd = _print(read_last(path, count, follower.end), show)
    while options.follow:
        odd += _print(follower.read_new(), show)
        time.sleep(PAUSE)
    if odd:
        complain(COMMAND.program, f"{odd} of the lines are no decisions and were left out")
    return 0


def _count(text: str) -> int:
    if not text:
        return DEFAULT_LINES
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise UsageError(f"--lines takes a number, not '{text[:80]}'")
    return int(text)


def _print(lines: list[bytes], show: Callable[[dict[str, object]], str]) -> int:
    """Print lines; return how many could not be understood."""
    import json

    odd = 0
    for line in lines:
        try:
            told = json.loads(line)
            print(show({str(key): value for key, value in told.items()}), flush=True)
        except (ValueError, AttributeError):
            odd += 1
    return odd


def _show_json(told: dict[str, object]) -> str:
    import json

    return json.dumps(told)


def _show_text(told: dict[str, object]) -> str:
    """Return `TIME DECISION SOURCE -> TARGET SERVICE (WHY)`."""

    def get(key: str) -> str:
        return str(told.get(key, ""))

    call = get("service") + ("" if get("argument") == "+" else get("argument"))
    call = call if len(call) <= _SHOWN else f"{call[:_SHOWN]}... ({len(call)} characters)"
    called, target = get("called"), get("target") or "@default"
    way = f"{target} = {called}" if called and called != target else target
    why = get("reason") or get("rule")
    return escape(f"{get('time')} {get('decision'):5} {get('source')} -> {way} {call} ({why})")


def read_last(path: str, count: int, end: int) -> list[bytes]:
    """Return the last lines of a log up to an offset; when it has too few, those before them of the log before it."""
    lines = _read_tail(path, count, end)
    if len(lines) < count:
        lines = _read_tail(path + OLD, count - len(lines)) + lines
    return lines


def _read_tail(path: str, count: int, end: int | None = None) -> list[bytes]:
    """Return at most `count` whole lines; raises StorageError. A file that is not there has none."""
    try:
        with open(path, "rb") as file:
            start = end = file.seek(0, os.SEEK_END) if end is None else end
            data = b""
            while start > 0 and data.count(b"\n") <= count:
                start = max(0, start - _BLOCK)
                file.seek(start)
                data = file.read(min(_BLOCK, end - start)) + data
                end = start
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error
    return data.splitlines()[-count:] if count else []


class Follower:
    """A log that grows, and is now and then put aside for a new one."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._identity = (0, 0)
        self.end = 0
        """How far has been read: up to the end of a line."""
        self.is_there = self._look()
        self.end = self._find_end()

    def read_new(self) -> list[bytes]:
        """Return the lines that have come since the last time."""
        before, lines = self._identity, []
        if not self._look():
            return []
        if before not in ((0, 0), self._identity):
            lines = self._read_from(self._path + OLD, before)
            self.end = 0
        return lines + self._read_from(self._path, self._identity)

    def _look(self) -> bool:
        try:
            status = os.stat(self._path)
        except OSError:
            return False
        self._identity = (status.st_dev, status.st_ino)
        return True

    def _find_end(self) -> int:
        size, block = _read_last_block(self._path)
        return size - len(block) + block.rfind(b"\n") + 1

    def _read_from(self, path: str, identity: tuple[int, int]) -> list[bytes]:
        """Return the whole lines of a file from `end` on, if it is the one that is meant."""
        try:
            with open(path, "rb") as file:
                status = os.fstat(file.fileno())
                if (status.st_dev, status.st_ino) != identity:
                    return []
                file.seek(self.end)
                data = file.read()
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self.end += len(whole)
        return whole.splitlines()


def _read_last_block(path: str) -> tuple[int, bytes]:
    """Return a file's size, and its last bytes; nothing of a file that cannot be read."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _BLOCK))
            return size, file.read(size - file.tell())
    except OSError:
        return 0, b""
