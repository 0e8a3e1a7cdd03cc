"""Noticing that a client has gone which sends nothing any more and is sent nothing now (epoll(7), EPOLLHUP)."""

import asyncio
import contextlib
import select
from collections.abc import Callable


class HangupWatch:
    """Watches any number of connected sockets, in the running event loop, through one descriptor."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._epoll.fileno(), self._look)

    def watch(self, descriptor: int, callback: Callable[[], None]) -> None:
        """Have `callback` called, once, when the other end of the connection is closed."""
        self._epoll.register(descriptor, 0)  # hang-ups and errors are reported in any case
        self._callbacks[descriptor] = callback

    def forget(self, descriptor: int) -> None:
        """Stop watching a socket, before it is closed. One that is not watched is no error."""
        if self._callbacks.pop(descriptor, None):
            with contextlib.suppress(OSError):
                self._epoll.unregister(descriptor)

    def close(self) -> None:
        """Stop watching all."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._callbacks.clear()

    def _look(self) -> None:
        for descriptor, _event in self._epoll.poll(0):
            callback = self._callbacks.get(descriptor)
            self.forget(descriptor)
            if callback:
                callback()
