"""How a signal ends a daemon: where it waits, and nowhere else, so that nothing is left half done."""

import select
import sys
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Ending:
    """Whether the program is to end, and a wait that does it."""

    def __init__(self) -> None:
        self._is_waiting = False
        self._exit_code: int | None = None

    def request(self, exit_code: int) -> None:
        """Raise SystemExit, here in the signal's handler if the program waits, else as soon as it does."""
        self._exit_code = exit_code
        if self._is_waiting:
            sys.exit(exit_code)

    def wait(self, poll: select.poll, timeout: float | None) -> list[tuple[int, int]]:
        """Poll, at most that many milliseconds. Raises SystemExit when the program is to end."""
        return self.during(lambda: poll.poll(timeout))

    def during(self, wait: Callable[[], T]) -> T:
        """Do what waits, and may be left at any point. Raises SystemExit when the program is to end."""
        try:
            self._is_waiting = True
            if self._exit_code is not None:
                sys.exit(self._exit_code)
            return wait()
        finally:
            self._is_waiting = False
