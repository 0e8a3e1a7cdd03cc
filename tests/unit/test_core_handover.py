"""The handover of displays (design.md, B9): every edge, with a clock of the test's own."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crannog.core.handover import GRACE, MODE_PAUSE, PAUSES, STEADY, SWITCH, Act, GuiMode, Handover, ScreenUse, Wishes

BARE = Wishes(ScreenUse.UNTIL_AGENT, uses_agent=False)
TOOLS = Wishes(ScreenUse.UNTIL_AGENT, uses_agent=True)
DEBUG = Wishes(ScreenUse.ALWAYS, uses_agent=True)
HIDDEN = Wishes(ScreenUse.NEVER, uses_agent=False)


def begun(wishes: Wishes = BARE, *, has_screen: bool = True) -> Handover:
    """Return a handover of a VM that began to run at 0 without an agent, which then came, if there is one."""
    handover = Handover(replace(wishes, uses_agent=False), has_screen=has_screen)
    handover.begin(0)
    handover.change(0, wishes)
    return handover


def connected(wishes: Wishes = TOOLS) -> Handover:
    """Return one whose agent display showed the guest at 10, and whose screen was closed by 11."""
    handover = begun(wishes)
    handover.note_connected(10)
    handover.note_mode_sent(10)
    if wishes.screen is not ScreenUse.ALWAYS:
        handover.note_screen_end(11)
    return handover


# -- boot


def test_the_screen_opens_at_once() -> None:
    assert Handover(BARE, has_screen=True).begin(0) == [Act.OPEN_SCREEN]


def test_without_a_device_model_nothing_opens() -> None:
    assert Handover(BARE, has_screen=False).begin(0) == []


def test_the_screen_opens_at_once_beside_the_agent_display() -> None:
    assert Handover(TOOLS, has_screen=True).begin(0) == [Act.START_AGENT, Act.OPEN_SCREEN]


def test_boot_without_an_agent_leaves_the_screen_open_for_ever() -> None:
    handover = begun(BARE)
    assert [handover.tick(now) for now in (1, 60, 10**6)] == [[], [], []]
    assert handover.due is None


def test_an_agent_that_is_announced_starts_its_display_and_the_screen_stays() -> None:
    handover = begun(BARE)
    assert handover.change(5, TOOLS) == [Act.START_AGENT]
    assert handover.tick(10**6) == []
    assert handover.due is None


def test_an_agent_without_a_device_model_has_its_display_alone() -> None:
    handover = begun(HIDDEN, has_screen=False)
    assert handover.change(5, replace(HIDDEN, uses_agent=True)) == [Act.START_AGENT]
    assert handover.note_connected(6) == [Act.SEND_MODE]


def test_a_screen_that_can_be_shown_from_now_on_opens() -> None:
    handover = begun(BARE, has_screen=False)
    assert handover.change(5, BARE) == [], "as before, when nothing is said of it"
    assert handover.change(6, BARE, has_screen=True) == [Act.OPEN_SCREEN]


def test_a_screen_that_cannot_be_shown_is_not_tried_for_ever() -> None:
    handover = begun(BARE)
    handover.note_screen_end(5)
    assert handover.change(5, BARE, has_screen=False) == []
    assert handover.due is None, "nothing is tried after a pause"
    assert handover.show(6) == []


def test_a_screen_that_cannot_be_shown_any_more_is_closed() -> None:
    assert begun(BARE).change(5, BARE, has_screen=False) == [Act.CLOSE_SCREEN]


# -- the agent connects


def test_the_screen_is_closed_when_the_agent_display_is_connected_and_not_before() -> None:
    handover = begun(TOOLS)
    assert handover.note_connected(10) == [Act.CLOSE_SCREEN, Act.SEND_MODE]


def test_in_debug_mode_both_stay() -> None:
    handover = begun(DEBUG)
    assert handover.note_connected(10) == [Act.SEND_MODE]
    handover.note_mode_sent(10)
    assert handover.tick(10**6) == []


def test_a_screen_that_does_not_end_is_killed_after_a_grace() -> None:
    handover = begun(TOOLS)
    handover.note_connected(10)
    handover.note_mode_sent(10)
    assert handover.due == 10 + GRACE
    assert handover.tick(10 + GRACE - 0.01) == []
    assert handover.tick(10 + GRACE) == [Act.KILL_SCREEN]
    assert handover.tick(10 + 2 * GRACE) == []
    assert handover.note_screen_end(11 + 2 * GRACE) == []


def test_a_connection_without_an_agent_display_is_none() -> None:
    """Late news of a process that was told to end closes nothing."""
    handover = begun(TOOLS)
    handover.change(5, BARE)
    assert handover.note_connected(6) == []
    assert handover.tick(7) == []  # and the screen stays


def test_an_agent_display_that_is_taken_away_is_stopped_then_killed() -> None:
    handover = connected()
    assert handover.change(20, BARE) == [Act.STOP_AGENT, Act.OPEN_SCREEN]
    assert handover.tick(20 + GRACE) == [Act.KILL_AGENT]
    assert handover.note_agent_end(24) == []


# -- the mode


def test_the_guest_is_told_its_mode_once() -> None:
    handover = begun(TOOLS)
    assert Act.SEND_MODE in handover.note_connected(10)
    assert handover.note_mode_sent(10.1) == []
    assert Act.SEND_MODE not in handover.tick(10**6)


def test_a_mode_that_could_not_be_told_is_told_again() -> None:
    handover = connected()
    handover.change(20, replace(TOOLS, mode=GuiMode.FULLSCREEN))
    handover.note_mode_failed(21)
    assert handover.due == 21 + MODE_PAUSE
    assert handover.tick(21 + MODE_PAUSE) == [Act.SEND_MODE]


def test_a_mode_without_an_answer_is_told_again() -> None:
    handover = begun(TOOLS)
    handover.note_connected(10)
    assert handover.tick(10 + SWITCH) == [Act.KILL_SCREEN, Act.SEND_MODE]


def test_a_change_of_mode_is_told_and_the_screen_does_not_flash_up_for_it() -> None:
    handover = connected()
    assert handover.change(20, replace(TOOLS, mode=GuiMode.FULLSCREEN)) == [Act.SEND_MODE]
    assert handover.note_mode_sent(20.1) == []
    assert handover.note_lost(20.5) == []
    assert handover.note_connected(22) == []


def test_who_asks_sees_the_screen_while_the_guest_changes_its_mode() -> None:
    handover = connected()
    handover.change(20, replace(TOOLS, mode=GuiMode.FULLSCREEN))
    handover.note_mode_sent(20)
    handover.note_lost(21)
    assert handover.show(22) == [Act.OPEN_SCREEN]


def test_a_guest_that_does_not_come_back_in_its_new_mode_gets_its_screen() -> None:
    handover = connected()
    handover.change(20, replace(TOOLS, mode=GuiMode.FULLSCREEN))
    handover.note_mode_sent(20)
    handover.note_lost(21)
    assert handover.due == 20 + SWITCH
    assert handover.tick(20 + SWITCH) == [Act.OPEN_SCREEN]


def test_a_mode_that_the_guest_had_already_excuses_no_silence() -> None:
    handover = connected()  # and was told SEAMLESS a second ago
    assert handover.note_lost(11) == [Act.OPEN_SCREEN]


# -- the agent goes


def test_the_screen_comes_back_when_the_agent_goes_silent() -> None:
    handover = connected()
    assert handover.note_lost(20) == [Act.OPEN_SCREEN]
    assert handover.note_connected(21) == [Act.CLOSE_SCREEN]


def test_the_screen_comes_back_while_it_is_still_closing() -> None:
    handover = begun(TOOLS)
    handover.note_connected(10)
    handover.note_mode_sent(10)
    assert handover.note_lost(10.1) == []
    assert handover.note_screen_end(10.2) == [Act.OPEN_SCREEN]


def test_an_agent_display_that_dies_is_started_again_after_growing_pauses() -> None:
    handover, now = connected(), 20.0
    assert handover.note_agent_end(now) == [Act.OPEN_SCREEN]
    for pause in (*PAUSES, PAUSES[-1]):
        assert handover.due == pytest.approx(now + pause)
        assert handover.tick(now + pause - 0.01) == []
        now += pause
        assert handover.tick(now) == [Act.START_AGENT]
        assert handover.note_agent_end(now) == []


def test_a_process_that_ran_well_is_started_again_soon() -> None:
    handover, now = begun(BARE), 0.0
    for _ in range(5):
        handover.note_screen_end(now)
        now += PAUSES[-1]
        handover.tick(now)
    now += STEADY
    handover.note_screen_end(now)
    assert handover.due == pytest.approx(now + PAUSES[0])


def test_after_a_reboot_of_the_guest_all_begins_anew() -> None:
    """QEMU and the screen stay; the agent goes, is announced again, and connects again."""
    handover = connected()
    assert handover.change(20, BARE) == [Act.STOP_AGENT, Act.OPEN_SCREEN]
    handover.note_agent_end(20.1)
    assert handover.change(40, TOOLS) == [Act.START_AGENT]
    assert handover.note_connected(41) == [Act.CLOSE_SCREEN, Act.SEND_MODE]


# -- the user


def test_a_screen_that_the_user_closed_stays_closed_until_somebody_asks() -> None:
    handover = begun(BARE)
    assert handover.dismiss(5) == [Act.CLOSE_SCREEN]
    handover.note_screen_end(5.1)
    assert handover.tick(10**6) == []
    assert handover.show(10**6) == [Act.OPEN_SCREEN]


def test_a_screen_that_died_is_opened_again() -> None:
    handover = begun(BARE)
    assert handover.note_screen_end(5) == []
    assert handover.due == 5 + PAUSES[0]
    assert handover.tick(5 + PAUSES[0]) == [Act.OPEN_SCREEN]


def test_asking_ends_the_pause_before_the_next_start() -> None:
    handover = begun(BARE)
    handover.note_screen_end(5)
    assert handover.show(5) == [Act.OPEN_SCREEN]


def test_asking_for_what_is_open_does_nothing() -> None:
    assert begun(BARE).show(5) == []
    assert connected().show(20) == []


def test_a_closed_screen_comes_back_when_the_agent_goes() -> None:
    handover = begun(TOOLS)
    handover.dismiss(5)
    handover.note_screen_end(5.1)
    handover.note_connected(10)
    handover.note_mode_sent(10)
    assert handover.note_lost(20) == [Act.OPEN_SCREEN]


def test_a_screen_that_is_not_wanted_opens_when_somebody_asks() -> None:
    handover = begun(HIDDEN)
    assert handover.tick(5) == []
    assert handover.show(6) == [Act.OPEN_SCREEN]
    assert handover.dismiss(7) == [Act.CLOSE_SCREEN]


def test_debug_mode_at_run_time_opens_and_closes_the_screen() -> None:
    handover = connected()
    assert handover.change(20, DEBUG) == [Act.OPEN_SCREEN]
    assert handover.change(30, TOOLS) == [Act.CLOSE_SCREEN]


# -- the end, and a daemon that comes later


def test_all_is_closed_when_the_vm_ends() -> None:
    handover = begun(DEBUG)
    assert set(handover.end(20)) == {Act.STOP_AGENT, Act.CLOSE_SCREEN}
    assert not handover.is_over
    handover.note_agent_end(20.1)
    handover.note_screen_end(20.1)
    assert handover.is_over


def test_nothing_opens_after_the_end() -> None:
    handover = begun(BARE)
    handover.note_screen_end(5)
    assert handover.end(5.1) == []
    assert handover.is_over
    assert handover.show(6) == []
    assert handover.tick(10**6) == []


def test_a_vm_that_starts_again_before_its_screen_is_gone_gets_a_new_one() -> None:
    handover = begun(BARE)
    handover.end(20)
    assert handover.begin(20.1) == []
    assert handover.note_screen_end(20.2) == [Act.OPEN_SCREEN]


def test_what_is_open_already_is_not_opened_twice() -> None:
    handover = Handover(TOOLS, has_screen=True)
    assert handover.begin(0, has_open_screen=True, has_agent_display=True) == []
    assert handover.note_connected(1) == [Act.CLOSE_SCREEN, Act.SEND_MODE]


def test_what_should_not_be_open_any_more_is_closed_at_adoption() -> None:
    handover = Handover(BARE, has_screen=True)
    assert handover.begin(0, has_open_screen=True, has_agent_display=True) == [Act.STOP_AGENT]


# -- whatever comes


WISHES = st.builds(Wishes, st.sampled_from(ScreenUse), st.booleans(), st.sampled_from(GuiMode))
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["begin", "end", "show", "dismiss", "note_screen_end", "note_agent_end", "note_connected", "note_lost",
             "note_mode_sent", "note_mode_failed", "tick", "change"]
        ),
        st.floats(0, 40),
        WISHES,
    ),
    max_size=60,
)  # fmt: skip


class Desk:
    """The processes that run, as the acts of a handover make them."""

    def __init__(self, *, has_screen: bool) -> None:
        self.running: set[str] = set()
        self._has_screen = has_screen

    def carry_out(self, acts: list[Act]) -> None:
        for act in acts:
            kind = act.name.partition("_")[2]
            if act in (Act.OPEN_SCREEN, Act.START_AGENT):
                assert kind not in self.running
                assert kind != "SCREEN" or self._has_screen
                self.running.add(kind)
            elif act is not Act.SEND_MODE:
                assert kind in self.running


ENDINGS = {"note_screen_end": "SCREEN", "note_agent_end": "AGENT"}


@given(STEPS, st.booleans())
def test_no_display_is_ever_opened_twice_and_none_is_left(
    steps: list[tuple[str, float, Wishes]], has_screen: bool
) -> None:
    """Whatever order the news comes in: the processes that run are those of which the handover knows."""
    handover, desk, now = Handover(BARE, has_screen=has_screen), Desk(has_screen=has_screen), 0.0
    for name, pause, wishes in [
        *steps,
        ("end", 0.0, BARE),
        ("note_screen_end", 0.0, BARE),
        ("note_agent_end", 0.0, BARE),
    ]:
        now += pause
        if ENDINGS.get(name, "") in desk.running or name not in ENDINGS:
            desk.running.discard(ENDINGS.get(name, ""))
            desk.carry_out(handover.change(now, wishes) if name == "change" else getattr(handover, name)(now))
            assert handover.due is None or handover.due > now
    assert handover.is_over
    assert not desk.running
