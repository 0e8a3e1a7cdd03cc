"""How much of what a guest sends may wait: when that is full its socket is not read any more, and the guest waits.

Of the standard library alone, as it runs in the sandbox.
"""

import threading
from collections import deque


class Room:
    """Room for packets between the thread that reads them and the one that is done with them."""

    def __init__(self, count_max: int, cost_max: int) -> None:
        """At most `count_max` packets wait, which cost `cost_max` together; one alone may cost more."""
        self._count_max, self._cost_max = count_max, cost_max
        self._costs: deque[int] = deque()
        self._changed = threading.Condition()

    def take(self, cost: int = 0) -> None:
        """Wait until there is room for a packet, and take it."""
        with self._changed:
            self._changed.wait_for(lambda: self._fits(cost))
            self._costs.append(cost)

    def give(self) -> None:
        """Say that the oldest packet is done with. More of it than `take` does nothing."""
        with self._changed:
            if self._costs:
                self._costs.popleft()
            self._changed.notify_all()

    def _fits(self, cost: int) -> bool:
        return len(self._costs) < self._count_max and (not self._costs or sum(self._costs) + cost <= self._cost_max)
