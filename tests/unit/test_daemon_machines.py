"""Power states: the hypervisor's word, and what the daemon is doing meanwhile."""

import asyncio

import pytest

from crannog.daemon.machines import Machines
from tests.fakes import DomainInfo, DomainState

ID = "00000000-0000-4000-8000-000000000001"


def machines_with(state: DomainState) -> Machines:
    machines = Machines()
    machines.note(DomainInfo(ID, "work", state, 7))
    return machines


def test_an_unknown_vm_is_halted() -> None:
    machines = Machines()
    assert (machines.power_state(ID), machines.xid(ID), machines.has_domain(ID)) == ("Halted", -1, False)
    assert machines.active() == frozenset()


@pytest.mark.parametrize("state", [state for state in DomainState if state is not DomainState.ABSENT])
def test_states_in_the_words_of_the_api(state: DomainState) -> None:
    machines = machines_with(state)
    word = "Paused" if state is DomainState.STALLED else state.value.capitalize()
    assert machines.power_state(ID) == word
    assert machines.xid(ID) == 7
    assert machines.active() == {ID}


@pytest.mark.parametrize(
    ("doing", "state", "shown"),
    [
        ("Transient", None, "Transient"),
        ("Transient", DomainState.PAUSED, "Transient"),
        ("Transient", DomainState.RUNNING, "Transient"),
        ("Halting", DomainState.RUNNING, "Halting"),
        ("Halting", DomainState.DYING, "Dying"),
        ("Halting", DomainState.CRASHED, "Crashed"),
    ],
)
def test_what_the_daemon_does_is_shown(doing: str, state: DomainState | None, shown: str) -> None:
    machines = machines_with(state) if state else Machines()
    machines.begin(ID, doing)
    assert machines.power_state(ID) == shown
    assert ID in machines.active()
    machines.finish(ID)
    machines.finish(ID)
    assert machines.power_state(ID) == (state.value.capitalize() if state else "Halted")


def test_the_end_of_a_domain_clears_everything_and_is_told_once() -> None:
    machines = machines_with(DomainState.RUNNING)
    ended: list[str] = []
    machines.on_ended = ended.append
    machines.change(ID, DomainState.DYING)
    assert ended == []
    machines.change(ID, DomainState.ABSENT)
    assert ended == [ID]
    assert (machines.power_state(ID), machines.xid(ID), machines.active()) == ("Halted", -1, frozenset())


async def test_waiting_for_the_end() -> None:
    machines = machines_with(DomainState.RUNNING)
    waits = [asyncio.ensure_future(machines.ended(ID)) for _ in range(3)]
    await asyncio.sleep(0)
    waits[0].cancel()
    await asyncio.sleep(0)
    machines.change(ID, DomainState.DYING)
    await asyncio.sleep(0)
    assert [wait.done() for wait in waits] == [True, False, False]
    machines.change(ID, DomainState.ABSENT)
    await asyncio.wait_for(asyncio.gather(*waits[1:]), 5)


async def test_waiting_for_the_end_of_a_halted_vm_takes_no_time() -> None:
    await asyncio.wait_for(Machines().ended(ID), 5)


async def test_a_wait_that_is_cancelled_as_the_domain_ends() -> None:
    machines = machines_with(DomainState.RUNNING)
    wait = asyncio.ensure_future(machines.ended(ID))
    await asyncio.sleep(0)
    wait.cancel()
    machines.change(ID, DomainState.ABSENT)
    with pytest.raises(asyncio.CancelledError):
        await wait


def test_each_vm_has_one_lock() -> None:
    machines = Machines()
    assert machines.lock(ID) is machines.lock(ID)
    assert machines.lock(ID) is not machines.lock("other")
