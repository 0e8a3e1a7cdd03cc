"""The pools of disposables that are started in advance, as a state machine: every edge, and any sequence of events."""

import itertools
import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from crannog.core.preload import EDGES, RETRY_FIRST, RETRY_MOST, Discard, Host, Member, Reserve, Stage, Warm, Wish

QUIET = Host()


def wish(size: int = 2, recipe: str = "r", delay: float = 0.0, cost: int = 400) -> Wish:
    return Wish(size, delay, recipe, cost)


def filled(size: int = 2, **wishes: Wish) -> Reserve:
    """Return a reserve whose pools have what is asked for, ready; the VMs are called POOL-NUMBER."""
    reserve = Reserve()
    asked = wishes or {"a": wish(size)}
    reserve.wish(asked)
    for pool, one in asked.items():
        for number in range(one.size):
            reserve.add(pool, f"{pool}-{number}", one.recipe)
            reserve.note_ready(f"{pool}-{number}")
    return reserve


@pytest.mark.parametrize(("before", "after"), list(itertools.product(Stage, Stage)), ids=str)
def test_every_edge(before: Stage, after: Stage) -> None:
    member = Member("u", "a", "r", 1, before)
    if after in EDGES[before]:
        member.move(after)
        assert member.stage is after
    else:
        with pytest.raises(ValueError, match="cannot become"):
            member.move(after)
        assert member.stage is before


def test_nothing_leads_back_to_where_it_could_be_claimed() -> None:
    assert EDGES[Stage.CLAIMED] == {Stage.SPENT}
    assert EDGES[Stage.SPENT] == frozenset()


def test_one_at_a_time_until_the_pool_is_full() -> None:
    reserve = Reserve()
    reserve.wish({"a": wish(2)})
    assert reserve.next_steps(0, QUIET) == [Warm("a", "there are 0 of 2")]
    reserve.add("a", "u1", "r")
    assert reserve.next_steps(0, QUIET) == []
    assert reserve.note_ready("u1")
    assert reserve.next_steps(0, QUIET) == [Warm("a", "there are 1 of 2")]
    reserve.add("a", "u2", "r")
    assert reserve.note_ready("u2")
    assert reserve.next_steps(0, QUIET) == []
    assert reserve.due(0) is None


def test_nothing_is_started_beside_another_start() -> None:
    reserve = Reserve()
    reserve.wish({"a": wish()})
    assert reserve.next_steps(0, Host(is_busy=True)) == []


def test_a_template_that_is_in_use_gets_none() -> None:
    reserve = Reserve()
    reserve.wish({"a": Wish(2, 0, "r", is_blocked=True)})
    assert reserve.next_steps(0, QUIET) == []


def test_the_emptiest_pool_comes_first() -> None:
    reserve = Reserve()
    reserve.wish({"a": wish(2), "b": wish(2)})
    reserve.add("a", "u1", "r")
    reserve.note_ready("u1")
    assert reserve.next_steps(0, QUIET) == [Warm("b", "there are 0 of 2")]


def test_first_ready_first_claimed_and_each_once() -> None:
    reserve = filled(3)
    claimed = [reserve.claim("a", 0) for _ in range(4)]
    assert [one and one.uuid for one in claimed] == ["a-0", "a-1", "a-2", None]
    assert all(one is None or one.was_ready for one in claimed)


def test_one_that_still_starts_is_claimed_after_those_that_are_ready() -> None:
    reserve = Reserve()
    reserve.wish({"a": wish(2)})
    reserve.add("a", "warming", "r")
    reserve.add("a", "ready", "r", Stage.READY)
    first, second = reserve.claim("a", 0), reserve.claim("a", 0)
    assert first
    assert second
    assert (first.uuid, second.uuid, second.was_ready) == ("ready", "warming", False)
    assert not reserve.note_ready("warming")  # it is not to be paused


def test_who_is_claimed_is_not_of_another_pool() -> None:
    reserve = filled(a=wish(1), b=wish(1))
    assert reserve.claim("b", 0) is reserve.members["b-0"]
    assert reserve.claim("b", 0) is None
    assert reserve.claim("nowhere", 0) is None


def test_after_a_claim_the_next_one_waits_for_the_delay() -> None:
    reserve = filled(a=wish(1, delay=3))
    reserve.claim("a", 100)
    assert reserve.next_steps(102.9, QUIET) == []
    assert reserve.due(100) == 3
    assert reserve.next_steps(103, QUIET) == [Warm("a", "there are 0 of 1")]


def test_a_burst_counts_the_delay_from_its_end() -> None:
    reserve = filled(a=wish(2, delay=3))
    reserve.claim("a", 100)
    reserve.claim("a", 102)
    assert reserve.next_steps(104, QUIET) == []
    assert len(reserve.next_steps(105, QUIET)) == 1


def test_without_replacement_nothing_is_due() -> None:
    reserve = filled(a=wish(1, delay=math.inf))
    reserve.claim("a", 0)
    assert reserve.next_steps(1e9, QUIET) == []
    assert reserve.due(0) is None
    reserve.wish({"a": wish(2, delay=math.inf)})  # who asks for more now gets more
    assert len(reserve.next_steps(0, QUIET)) == 1


def test_who_asks_for_the_same_again_gets_what_was_claimed_replaced() -> None:
    reserve = filled(a=wish(1, delay=math.inf))
    reserve.claim("a", 0)
    reserve.renew("nowhere")
    reserve.renew("a")
    assert reserve.next_steps(0, QUIET) == [Warm("a", "there are 0 of 1")]


def test_what_was_made_from_something_else_ends_and_is_not_handed_out() -> None:
    reserve = filled(2)
    reserve.wish({"a": wish(2, recipe="new")})
    assert reserve.claim("a", 0) is None
    assert reserve.next_steps(0, QUIET) == [
        Discard("a-0", "what it was made from has changed"), Discard("a-1", "what it was made from has changed"),
    ]  # fmt: skip


def test_what_still_starts_from_something_else_ends_as_well() -> None:
    reserve = Reserve()
    reserve.wish({"a": wish()})
    reserve.add("a", "u", "r")
    reserve.wish({"a": wish(recipe="new")})
    assert reserve.claim("a", 0) is None
    assert reserve.next_steps(0, QUIET) == [Discard("u", "what it was made from has changed")]


def test_who_was_claimed_stays_whatever_changes() -> None:
    reserve = filled(1)
    reserve.claim("a", 0)
    reserve.wish({})
    assert reserve.next_steps(0, Host(headroom=-1000, threshold=500)) == []
    assert reserve.find_victims() == []


def test_those_that_are_too_many_end_the_youngest_first_and_what_starts_before_all() -> None:
    reserve = filled(3)
    reserve.add("a", "warming", "r")
    reserve.wish({"a": wish(2)})
    assert [step.uuid for step in reserve.next_steps(0, QUIET) if isinstance(step, Discard)] == ["a-2", "warming"]


def test_a_pool_that_is_not_wanted_any_more_is_emptied() -> None:
    reserve = filled(2)
    reserve.wish({})
    assert {step.uuid for step in reserve.next_steps(0, QUIET) if isinstance(step, Discard)} == {"a-0", "a-1"}


def test_memory_short_ends_one_at_a_time_of_the_largest_pool() -> None:
    reserve = filled(a=wish(1), b=wish(2))
    short = Host(headroom=400, threshold=500)
    assert reserve.next_steps(0, short) == [Discard("b-1", "memory is short")]
    reserve.spend("b-1")
    assert reserve.next_steps(0, short) == [Discard("b-0", "memory is short")]


def test_nothing_is_started_for_which_too_little_memory_would_be_left() -> None:
    reserve = Reserve()
    reserve.wish({"a": wish(cost=400)})
    assert reserve.next_steps(0, Host(headroom=899, threshold=500)) == []
    assert len(reserve.next_steps(0, Host(headroom=900, threshold=500))) == 1
    assert len(reserve.next_steps(0, Host(headroom=None, threshold=500))) == 1


def test_what_was_given_up_for_memory_is_not_started_again_with_what_it_gave_back() -> None:
    reserve = filled(a=wish(2, cost=400))
    assert reserve.next_steps(0, Host(headroom=499, threshold=500)) == [Discard("a-1", "memory is short")]
    reserve.spend("a-1")
    assert reserve.next_steps(0, Host(headroom=499 + 400, threshold=500)) == []


def test_victims_are_those_that_are_ready_the_youngest_first() -> None:
    reserve = filled(2)
    reserve.add("a", "warming", "r")
    assert reserve.find_victims() == ["a-1", "a-0", "warming"]


def test_failures_are_tried_again_ever_later() -> None:
    reserve = Reserve()
    reserve.wish({"a": wish()})
    pauses = []
    now = 0.0
    for _ in range(12):
        reserve.note_failure("a", now)
        due = reserve.due(now)
        assert due is not None
        assert reserve.next_steps(now + due - 0.01, QUIET) == []
        now += due
        assert len(reserve.next_steps(now, QUIET)) == 1
        pauses.append(due)
    assert pauses[:3] == [RETRY_FIRST, 2 * RETRY_FIRST, 4 * RETRY_FIRST]
    assert pauses[-1] == RETRY_MOST


def test_a_start_that_succeeds_or_another_recipe_ends_the_waiting() -> None:
    reserve = Reserve()
    reserve.wish({"a": wish()})
    for _ in range(5):
        reserve.note_failure("a", 0)
    reserve.wish({"a": wish(recipe="mended")})
    assert len(reserve.next_steps(0, QUIET)) == 1
    reserve.note_failure("a", 0)
    assert reserve.due(0) == RETRY_FIRST


def test_what_is_not_known_is_no_error() -> None:
    reserve = Reserve()
    reserve.spend("nobody")
    reserve.note_failure("nowhere", 0)
    assert not reserve.note_ready("nobody")


class Pools(RuleBasedStateMachine):
    """Whatever happens in whatever order: nothing is handed out twice, and there is never more than is wanted."""

    def __init__(self) -> None:
        super().__init__()
        self.reserve = Reserve()
        self.now = 0.0
        self.names = map(str, itertools.count())
        self.recipes = {"a": 0, "b": 0}
        self.sizes = {"a": 0, "b": 0}
        self.made: dict[str, str] = {}
        self.handed_out: list[str] = []
        self.ended: set[str] = set()

    def look(self) -> None:
        asked = {p: wish(n, f"{p}{self.recipes[p]}", 2.0) for p, n in self.sizes.items() if n}
        self.reserve.wish(asked)

    @rule(pool=st.sampled_from("ab"), size=st.integers(0, 3))
    def resize(self, pool: str, size: int) -> None:
        self.sizes[pool] = size
        self.look()

    @rule(pool=st.sampled_from("ab"))
    def change(self, pool: str) -> None:
        self.recipes[pool] += 1
        self.look()

    @rule(headroom=st.integers(-500, 3000), is_busy=st.booleans(), passed=st.floats(0, 400))
    def step(self, headroom: int, is_busy: bool, passed: float) -> None:
        self.now += passed
        steps = self.reserve.next_steps(self.now, Host(headroom, 300, is_busy))
        assert sum(isinstance(step, Warm) for step in steps) <= (not is_busy)
        for one in steps:
            if isinstance(one, Warm):
                uuid = next(self.names)
                self.made[uuid] = f"{one.pool}{self.recipes[one.pool]}"
                self.reserve.add(one.pool, uuid, self.made[uuid])
            else:
                assert one.uuid not in self.handed_out
                self.end(one.uuid)

    def end(self, uuid: str) -> None:
        self.reserve.spend(uuid)
        self.ended.add(uuid)

    @precondition(lambda self: self.reserve.members)
    @rule(data=st.data(), is_fine=st.booleans())
    def finish(self, data: st.DataObject, is_fine: bool) -> None:
        uuid = data.draw(st.sampled_from(sorted(self.reserve.members)))
        before = self.reserve.members[uuid].stage
        if is_fine:
            assert self.reserve.note_ready(uuid) == (before is Stage.WARMING)
        elif before is Stage.WARMING:
            self.reserve.note_failure(self.reserve.members[uuid].pool, self.now)
            self.end(uuid)

    @precondition(lambda self: self.reserve.members)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        self.end(data.draw(st.sampled_from(sorted(self.reserve.members))))

    @rule(pool=st.sampled_from("ab"))
    def claim(self, pool: str) -> None:
        member = self.reserve.claim(pool, self.now)
        if member:
            assert self.made[member.uuid] == f"{pool}{self.recipes[pool]}"
            assert member.uuid not in self.ended
            self.handed_out.append(member.uuid)

    @invariant()
    def nothing_is_handed_out_twice(self) -> None:
        assert len(self.handed_out) == len(set(self.handed_out))

    @invariant()
    def one_starts_at_most(self) -> None:
        assert sum(m.stage is Stage.WARMING for m in self.reserve.members.values()) <= 1

    @invariant()
    def due_is_in_the_future(self) -> None:
        due = self.reserve.due(self.now)
        assert due is None or 0 < due < math.inf


TestPools = Pools.TestCase
TestPools.settings = settings(max_examples=60, stateful_step_count=40)
