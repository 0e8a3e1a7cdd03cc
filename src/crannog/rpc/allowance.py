"""How many calls a guest may make: so many at once after a rest, and so many a second in the long run."""

import time
from collections.abc import Callable

RATE, BURST = 50.0, 200


class Allowance:
    """Counts one guest's calls. `clock` tells seconds."""

    def __init__(self, rate: float = RATE, burst: int = BURST, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._left, self._counted_at = float(burst), clock()

    def take(self) -> bool:
        """Count one more call; return whether it may be made."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._counted_at) * self._rate)
        self._counted_at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
