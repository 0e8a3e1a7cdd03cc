"""Which of a VM's displays are open: the device-model display, the agent display, or both (design.md, B9 and B10).

Pure: what happens is told to a `Handover` with the time at which it happened, in seconds of any clock that only goes
forward; it answers with what is to be done now, and knows when it wants to be asked again (`due`).
"""

from dataclasses import dataclass
from enum import Enum, StrEnum, auto

GRACE = 3.0
"""Seconds that a display process has to end after SIGTERM; then it is killed."""
PAUSES = (0.3, 1.0, 5.0, 30.0)
"""Seconds before a display process that ended by itself is started again; the last counts for all further times."""
STEADY = 60.0
"""Seconds after which a process that ran counts as a good one: the next pause is the first again."""
SWITCH = 90.0
"""Seconds in which the agent display may be gone because the guest changes its mode: nothing opens for that.

A guest begins its display anew then, which takes 4 s, and 20 to 60 s where the processor is emulated. Who wants to see
the screen before that asks for it.
"""
MODE_PAUSE = 2.0
"""Seconds before the guest is told its mode once more, when that failed."""


class GuiMode(StrEnum):
    """How the agent display shows a guest; the words that the guest is told."""

    SEAMLESS = "SEAMLESS"
    FULLSCREEN = "FULLSCREEN"


class ScreenUse(Enum):
    """When the device-model display is open."""

    NEVER = auto()
    """Only when somebody asks to see it."""
    UNTIL_AGENT = auto()
    ALWAYS = auto()
    """In debug mode: beside the agent display."""


class Act(Enum):
    """What is to be done to the displays of one VM."""

    OPEN_SCREEN = auto()
    CLOSE_SCREEN = auto()
    KILL_SCREEN = auto()
    START_AGENT = auto()
    STOP_AGENT = auto()
    KILL_AGENT = auto()
    SEND_MODE = auto()


@dataclass(frozen=True)
class Wishes:
    """What a VM's settings say of its displays."""

    screen: ScreenUse
    uses_agent: bool
    mode: GuiMode = GuiMode.SEAMLESS


class _Stage(Enum):
    ABSENT = auto()
    OPEN = auto()
    CLOSING = auto()
    RESTING = auto()
    """It ended by itself, and is started again after a pause."""


class Part:
    """One display's process: started and ended as wanted, and started again when it ends by itself."""

    def __init__(self, opens: Act, closes: Act, kills: Act) -> None:
        self._acts = opens, closes, kills
        self._stage = _Stage.ABSENT
        self._began = 0.0
        self._failures = 0
        self.due: float | None = None

    @property
    def is_absent(self) -> bool:
        """Whether there is no process, and none is started again after a pause."""
        return self._stage is _Stage.ABSENT

    @property
    def is_open(self) -> bool:
        """Whether the process runs, and is wanted."""
        return self._stage is _Stage.OPEN

    def steer(self, now: float, *, is_wanted: bool) -> list[Act]:
        """Return what brings the process to what is wanted."""
        opens, closes, kills = self._acts
        is_due = self.due is not None and self.due <= now
        if self._stage is _Stage.OPEN and not is_wanted:
            self._enter(_Stage.CLOSING, now + GRACE)
            return [closes]
        if self._stage is _Stage.CLOSING and is_due:
            self.due = None
            return [kills]
        if self._stage is _Stage.RESTING and not is_wanted:
            self._enter(_Stage.ABSENT)
        if is_wanted and (self._stage is _Stage.ABSENT or (self._stage is _Stage.RESTING and is_due)):
            self._enter(_Stage.OPEN)
            self._began = now
            return [opens]
        return []

    def note_end(self, now: float) -> None:
        """Note that the process has ended: as it was told, or by itself."""
        if self._stage is _Stage.OPEN:
            self._failures = 1 if now - self._began >= STEADY else self._failures + 1
            self._enter(_Stage.RESTING, now + PAUSES[min(self._failures, len(PAUSES)) - 1])
        elif self._stage is _Stage.CLOSING:
            self._enter(_Stage.ABSENT)

    def adopt(self, now: float) -> None:
        """Note that a process which somebody else started is there."""
        self._enter(_Stage.OPEN)
        self._began = now

    def forget_failures(self) -> None:
        """Have the next start come at once."""
        self._failures = 0
        if self._stage is _Stage.RESTING:
            self._enter(_Stage.ABSENT)

    def _enter(self, stage: _Stage, due: float | None = None) -> None:
        self._stage = stage
        self.due = due


class Handover:
    """The displays of one VM, from its start to its end. Each method returns what is to be done, in that order."""

    def __init__(self, wishes: Wishes, *, has_screen: bool) -> None:
        """`has_screen`: the VM has a device model that shows something."""
        self.wishes = wishes
        self.has_screen = has_screen
        self._screen = Part(Act.OPEN_SCREEN, Act.CLOSE_SCREEN, Act.KILL_SCREEN)
        self._agent = Part(Act.START_AGENT, Act.STOP_AGENT, Act.KILL_AGENT)
        self._is_running = False
        self._is_connected = False
        self._is_dismissed = False
        self._is_asked_for = False
        self._told: GuiMode | None = None
        self._believed = GuiMode.SEAMLESS  # what a guest shows that was told nothing
        self._asked = wishes.mode
        self._mode_due = 0.0
        self._switching_until = 0.0

    @property
    def is_over(self) -> bool:
        """Whether the VM has ended, and all its displays with it."""
        return not self._is_running and self._screen.is_absent and self._agent.is_absent

    @property
    def due(self) -> float | None:
        """When `tick` must be called at the latest; None: not before something happens."""
        dues = [part.due for part in (self._screen, self._agent)]
        if self._is_switching:
            dues.append(self._switching_until)
        if self._is_connected and self._told is not self.wishes.mode:
            dues.append(self._mode_due)
        return min((due for due in dues if due is not None), default=None)

    def begin(self, now: float, *, has_open_screen: bool = False, has_agent_display: bool = False) -> list[Act]:
        """Note that the VM runs, or will in a moment. Display processes that a former daemon started may be there."""
        self._is_running = True
        self._is_dismissed = self._is_asked_for = False
        self._believed = GuiMode.SEAMLESS
        if has_open_screen:
            self._screen.adopt(now)
        if has_agent_display:
            self._agent.adopt(now)
        return self.tick(now)

    def dismiss(self, now: float) -> list[Act]:
        """Note that the user closed the screen: it stays closed until somebody asks for it, and the VM goes on."""
        self._is_dismissed, self._is_asked_for = True, False
        return self.tick(now)

    def note_screen_end(self, now: float) -> list[Act]:
        """Note that the device-model display's process has ended, and nobody closed its window."""
        self._screen.note_end(now)
        return self.tick(now)

    def note_agent_end(self, now: float) -> list[Act]:
        """Note that the agent display's process has ended."""
        self._agent.note_end(now)
        return self.note_lost(now)

    def note_connected(self, now: float) -> list[Act]:
        """Note that the agent display shows the guest."""
        if self._agent.is_open:  # else it is late news of a process that was told to end
            self._is_connected, self._switching_until = True, 0.0
            self._is_dismissed = self._is_asked_for = False
        return self.tick(now)

    def note_lost(self, now: float) -> list[Act]:
        """Note that the agent display shows the guest no more: it is silent, or has gone."""
        self._is_connected = False
        return self.tick(now)

    def note_mode_sent(self, now: float) -> list[Act]:
        """Note that the guest was told its mode. For another one than before it begins its display anew."""
        self._switching_until = now + SWITCH if self._asked is not self._believed else 0.0
        self._told = self._believed = self._asked
        self._mode_due = now
        return self.tick(now)

    def note_mode_failed(self, now: float) -> list[Act]:
        """Note that the guest could not be told its mode."""
        self._told, self._mode_due = None, now + MODE_PAUSE
        return self.tick(now)

    def change(self, now: float, wishes: Wishes, *, has_screen: bool | None = None) -> list[Act]:
        """Note that the VM's settings have changed, or whether its screen can be shown; None: as before."""
        self.wishes = wishes
        self.has_screen = self.has_screen if has_screen is None else has_screen
        return self.tick(now)

    def show(self, now: float) -> list[Act]:
        """Somebody asks to see the VM: what was closed opens; without an agent display that shows it, its screen."""
        self._is_dismissed, self._is_asked_for = False, True
        self._switching_until = 0.0
        self._screen.forget_failures()
        self._agent.forget_failures()
        return self.tick(now)

    def end(self, now: float) -> list[Act]:
        """Note that the VM has ended."""
        self._is_running = self._is_connected = False
        return self.tick(now)

    def tick(self, now: float) -> list[Act]:
        """Return what is to be done now."""
        acts = self._agent.steer(now, is_wanted=self._is_running and self.wishes.uses_agent)
        if not self._agent.is_open:
            self._is_connected, self._told = False, None
        if self._switching_until <= now:
            self._switching_until = 0.0
        acts += self._screen.steer(now, is_wanted=self._wants_screen())
        if self._is_connected and self._told is not self.wishes.mode and self._mode_due <= now:
            self._mode_due = now + SWITCH  # until the answer is there
            self._asked = self.wishes.mode
            acts.append(Act.SEND_MODE)
        return acts

    @property
    def _is_switching(self) -> bool:
        return self._switching_until > 0 and not self._is_connected

    def _wants_screen(self) -> bool:
        if not self._is_running or not self.has_screen or self._is_dismissed:
            return False
        if self.wishes.screen is ScreenUse.ALWAYS:
            return True
        if self._is_connected or self._is_switching:
            return False
        return self.wishes.screen is ScreenUse.UNTIL_AGENT or self._is_asked_for
