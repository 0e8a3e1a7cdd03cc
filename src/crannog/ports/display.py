"""What Crannog asks of whatever shows VMs to the user."""

from collections.abc import Callable
from typing import Protocol

from crannog.core.displays import DisplayKind, DisplayNews, Shown
from crannog.core.handover import GuiMode

DisplayListener = Callable[[str, DisplayKind, DisplayNews], None]
"""Called in the event loop with a VM's UUID, which of its displays, and what is heard of it."""


class Displays(Protocol):
    """One process a VM and display; it outlives the daemon, and ends with the VM.

    Whatever happens to a process is heard by the listener, `ENDED` last. Nothing here waits for a guest.
    """

    def listen(self, listener: DisplayListener) -> None:
        """Have `listener` called with all news."""

    async def adopt(self, shown: Shown) -> frozenset[DisplayKind]:
        """Follow the processes of a VM that a former daemon started; return which there are."""

    async def open(self, kind: DisplayKind, shown: Shown) -> None:
        """Start a display's process. Raises DisplayError when this host cannot show VMs; `ENDED` is not told then."""

    def close(self, kind: DisplayKind, uuid: str) -> None:
        """Tell a display's process to end."""

    def kill(self, kind: DisplayKind, uuid: str) -> None:
        """End a display's process that does not end by itself."""

    def dress(self, shown: Shown) -> None:
        """Have the open displays of a VM look as it says: the colour of their frames, and the state in their titles."""

    def send_mode(self, uuid: str, mode: GuiMode) -> None:
        """Have the guest told its mode; `MODE_SENT` or `MODE_FAILED` is the answer."""

    def move(self, display: str, authority: str) -> None:
        """Show VMs on another X display from now on: its name, and the file with its cookie, empty for none."""

    def prepare(self) -> None:
        """Get ready whatever makes the next `open` quick."""

    async def close_all(self) -> None:
        """Leave the displays to themselves, as the daemon ends; they go on."""

    def diagnose(self) -> list[str]:
        """Return where VMs are shown and what is missing for it, a sentence each, for a person to read."""

    def describe_problem(self, kind: DisplayKind) -> str:
        """Return why this host cannot show such displays, a sentence; empty when it can. Looked up anew each time."""
