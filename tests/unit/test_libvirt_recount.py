"""Looking at the domains again: what is told of it, and what is not."""

import asyncio
from collections.abc import Callable

import pytest

from crannog.adapters.libvirt import recount
from crannog.adapters.libvirt.recount import Recount
from crannog.core.domain import DomainInfo, DomainState
from crannog.errors import HypervisorError

RUNNING, PAUSED, ABSENT = DomainState.RUNNING, DomainState.PAUSED, DomainState.ABSENT


class World:
    """Domains as a hypervisor lists them, one answer after the other."""

    def __init__(self, *answers: "dict[str, DomainState] | HypervisorError") -> None:
        self.answers = list(answers)
        self.known = {"one", "two"}
        self.told: list[tuple[str, DomainState]] = []
        self.meanwhile: Callable[[], None] = lambda: None
        self.recount = Recount(self.list_domains, lambda: set(self.known), self.tell)

    def tell(self, uuid: str, state: DomainState) -> None:
        self.told.append((uuid, state))

    async def list_domains(self) -> list[DomainInfo]:
        answer = self.answers.pop(0)
        await asyncio.sleep(0)
        self.meanwhile()
        if isinstance(answer, HypervisorError):
            raise answer
        return [DomainInfo(uuid, uuid, state, 1) for uuid, state in answer.items()]


async def test_all_is_told_that_is_not_known() -> None:
    world = World({"one": RUNNING, "new": PAUSED})
    assert await world.recount.look({"one": RUNNING}) == {"one": RUNNING, "new": PAUSED}
    assert world.told == [("new", PAUSED), ("two", ABSENT)]


async def test_an_event_is_newer_than_the_look_in_which_it_came() -> None:
    world = World({"one": RUNNING, "two": RUNNING})
    world.meanwhile = lambda: world.recount.note("one")
    await world.recount.look({})
    assert world.told == [("two", RUNNING)]


async def test_a_domain_that_came_during_the_look_is_not_taken_for_gone() -> None:
    world = World({"one": RUNNING, "two": RUNNING})
    world.meanwhile = lambda: world.known.add("three")
    await world.recount.look({"one": RUNNING, "two": RUNNING})
    assert world.told == []


async def test_a_domain_that_went_during_the_look_is_not_told_again() -> None:
    world = World({"one": RUNNING})
    world.meanwhile = lambda: world.known.discard("two")
    await world.recount.look({"one": RUNNING})
    assert world.told == []


async def test_looks_go_on_after_one_that_failed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A hypervisor lists a domain that is not there any more, fails once, and then says the truth."""
    monkeypatch.setattr(recount, "LOOKS", (0, 0, 0, 0))
    both = {"one": RUNNING, "two": RUNNING}
    world = World(both, HypervisorError("busy"), both, {"one": PAUSED})
    await world.recount.go_on(both)
    assert world.told == [("one", PAUSED), ("two", ABSENT)]
    assert "busy" in caplog.text
