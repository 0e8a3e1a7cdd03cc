"""The runner: executes a plan's steps, times each, and undoes them in reverse order when one fails."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from crannog.core.plan import Plan, Step

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageTime:
    """One step that was done, and how long it took."""

    stage: str
    seconds: float


@dataclass(frozen=True)
class Action:
    """How one kind of step is done and undone."""

    do: Callable[[Any], Awaitable[str | None]]
    """It may return a remark, which is told with the step."""
    undo: Callable[[Any], Awaitable[None]] | None = None


class Runner:
    """Executes plans. `actions` says for each kind of step what to do."""

    def __init__(self, actions: dict[type[Step], Action], clock: Callable[[], float] = time.monotonic) -> None:
        self._actions = actions
        self._clock = clock

    async def run(self, name: str, plan: Plan) -> list[StageTime]:
        """Do all steps for VM `name`; on failure or cancellation undo what was begun, then raise the cause.

        The step that failed is undone as well: it may have done half of its work.
        """
        begun: list[Step] = []
        times: list[StageTime] = []
        try:
            for step in plan:
                begun.append(step)
                before = self._clock()
                remark = await self._actions[type(step)].do(step)
                told = f"{step.tell()} ({remark})" if remark else step.tell()
                times.append(StageTime(told, self._clock() - before))
                log.info("%s: %s (%.0f ms)", name, told, 1000 * times[-1].seconds)
        except BaseException as error:
            log.warning("%s: step '%s' failed: %s", name, begun[-1].stage, error)
            await self._undo_whatever_comes(name, begun)
            raise
        return times

    async def _undo_whatever_comes(self, name: str, begun: list[Step]) -> None:
        """Undo to the end, however often the caller is cancelled meanwhile: nothing half-done may stay."""
        undoing = asyncio.ensure_future(self._undo(name, begun))
        while not undoing.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(undoing)

    async def _undo(self, name: str, begun: list[Step]) -> None:
        for step in reversed(begun):
            undo = self._actions[type(step)].undo
            if undo is None:
                continue
            try:
                await undo(step)
            except Exception:
                # The other steps must be undone in any case; the first cause is what the caller gets.
                log.exception("%s: undoing '%s' failed", name, step.stage)
