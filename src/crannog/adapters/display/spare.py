"""A screen's process whose viewer is ready before it is needed: starting GTK takes longer than a VM's start."""

import asyncio
import contextlib
from asyncio.subprocess import Process
from collections.abc import Callable, Coroutine
from typing import Any

from crannog.errors import DisplayError

PAUSE = 2.0
"""Seconds before another spare is made: not while the VM that took the last one needs the processors."""
GRACE = 3.0


class Spare:
    """At most one such process."""

    def __init__(self, spawn: Callable[[], Coroutine[Any, Any, Process]], may_start: Callable[[], bool]) -> None:
        """`spawn` starts it, with a pipe as its standard input."""
        self._spawn = spawn
        self._may_start = may_start
        self._task: asyncio.Task[Process] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._dropping: asyncio.Future[None] | None = None
        """The end of one that goes on: the event loop itself holds no reference."""

    def prepare(self) -> None:
        """Start the process, unless there is one, or none may be started."""
        if self._task is None and self._may_start():
            self._task = asyncio.ensure_future(self._spawn())

    async def take(self) -> Process | None:
        """Return the process, which waits for a line on its standard input; None without one. The next one follows."""
        task, self._task = self._task, None
        self._timer = asyncio.get_running_loop().call_later(PAUSE, self.prepare)
        try:
            process = await task if task else None
        except DisplayError:
            return None
        return process if process and process.returncode is None and process.stdin else None

    def drop(self) -> "asyncio.Future[None]":
        """Have the process ended; return what is done when it is."""
        if self._timer:
            self._timer.cancel()
        task, self._task = self._task, None
        self._dropping = asyncio.ensure_future(_end(task))
        return self._dropping


async def _end(task: "asyncio.Task[Process] | None") -> None:
    """End a process that may still be starting: it does so by itself when nobody is at its input any more."""
    if task is None:
        return
    with contextlib.suppress(DisplayError):
        process = await task
        if process.stdin:
            process.stdin.close()
        try:
            async with asyncio.timeout(GRACE):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
