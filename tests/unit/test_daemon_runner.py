"""The runner: order, times, and undoing in reverse order whatever happens."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest

from crannog.core.plan import Step
from crannog.daemon.runner import Action, Runner, StageTime
from crannog.errors import HypervisorError, StorageError


@dataclass(frozen=True)
class First(Step):
    stage: ClassVar[str] = "first"


@dataclass(frozen=True)
class Second(Step):
    stage: ClassVar[str] = "second"


@dataclass(frozen=True)
class Third(Step):
    stage: ClassVar[str] = "third"


PLAN = (First(), Second(), Third())
Work = Callable[[Step], Awaitable[None]]


class World:
    """Records what is done and undone. `doing` and `undoing` replace the work of a stage."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.doing: dict[str, Work] = {}
        self.undoing: dict[str, Work] = {}
        self.clock = iter(range(100))
        actions: dict[type[Step], Action] = {kind: Action(self.do, self.undo) for kind in (First, Second, Third)}
        self.runner = Runner(actions, clock=lambda: float(next(self.clock)))

    async def do(self, step: Step) -> None:
        self.events.append(f"do {step.stage}")
        if step.stage in self.doing:
            await self.doing[step.stage](step)

    async def undo(self, step: Step) -> None:
        self.events.append(f"undo {step.stage}")
        if step.stage in self.undoing:
            await self.undoing[step.stage](step)


def failing(error: BaseException) -> Work:
    async def fail(_step: Step) -> None:
        raise error

    return fail


async def test_steps_in_order_with_their_times() -> None:
    world = World()
    times = await world.runner.run("work", PLAN)
    assert times == [StageTime("first", 1.0), StageTime("second", 1.0), StageTime("third", 1.0)]
    assert world.events == ["do first", "do second", "do third"]


async def test_an_empty_plan() -> None:
    assert await World().runner.run("work", ()) == []


async def test_a_failure_is_undone_in_reverse_order_the_failing_step_first() -> None:
    world = World()
    cause = StorageError("the disk is full")
    world.doing["second"] = failing(cause)
    with pytest.raises(StorageError) as caught:
        await world.runner.run("work", PLAN)
    assert caught.value is cause
    assert world.events == ["do first", "do second", "undo second", "undo first"]


@pytest.mark.parametrize("error", [HypervisorError("gone"), OSError(5, "i/o"), ValueError("odd"), TimeoutError()])
async def test_undoing_goes_on_after_a_failure_and_the_first_cause_is_raised(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    world = World()
    world.doing["third"] = failing(StorageError("the first cause"))
    world.undoing["second"] = failing(error)
    with pytest.raises(StorageError, match="the first cause"):
        await world.runner.run("work", PLAN)
    assert world.events[3:] == ["undo third", "undo second", "undo first"]
    assert "work: undoing 'second' failed" in caplog.text


async def test_a_step_without_undo_is_passed_over() -> None:
    world = World()
    runner = Runner({First: Action(world.do, world.undo), Second: Action(world.do)})
    world.doing["second"] = failing(StorageError("no"))
    with pytest.raises(StorageError):
        await runner.run("work", PLAN[:2])
    assert world.events == ["do first", "do second", "undo first"]


@pytest.mark.parametrize("cancellations", [1, 2, 3])
async def test_a_cancelled_run_is_undone_to_its_end(cancellations: int) -> None:
    world = World()
    begun, may_go_on = asyncio.Event(), asyncio.Event()

    async def hang(_step: Step) -> None:
        begun.set()
        await asyncio.Event().wait()

    async def undo_slowly(_step: Step) -> None:
        await may_go_on.wait()

    world.doing["second"] = hang
    world.undoing["second"] = undo_slowly
    task = asyncio.ensure_future(world.runner.run("work", PLAN))
    await begun.wait()
    for _ in range(cancellations):
        task.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
    assert not task.done()
    may_go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.events == ["do first", "do second", "undo second", "undo first"]
