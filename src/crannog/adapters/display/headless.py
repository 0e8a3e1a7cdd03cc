"""A host without a desktop: nothing is shown, and what would be is kept to be looked at."""

from crannog.core.displays import DisplayKind, DisplayNews, Shown
from crannog.core.handover import GuiMode
from crannog.ports.display import DisplayListener


class HeadlessDisplays:
    """Implements `ports.display.Displays` without any process. Each display is connected as soon as it is opened."""

    def __init__(self, problem: str = "") -> None:
        """`problem` says why nothing can be shown."""
        self.shown: dict[tuple[str, DisplayKind], Shown] = {}
        """What would be on the desktop now, by UUID and display."""
        self.modes: dict[str, GuiMode] = {}
        """What mode each guest would have been told last."""
        self._problem = problem
        self._listeners: list[DisplayListener] = []

    def listen(self, listener: DisplayListener) -> None:
        """Have `listener` called with all news."""
        self._listeners.append(listener)

    async def adopt(self, shown: Shown) -> frozenset[DisplayKind]:
        """Return nothing: no process outlives the daemon."""
        del shown
        return frozenset()

    async def open(self, kind: DisplayKind, shown: Shown) -> None:
        """Keep that this would be shown."""
        self.shown[shown.uuid, kind] = shown
        self.tell(shown.uuid, kind, DisplayNews.DRAWN if kind is DisplayKind.SCREEN else DisplayNews.CONNECTED)

    def close(self, kind: DisplayKind, uuid: str) -> None:
        """Keep that this would be shown no more."""
        if self.shown.pop((uuid, kind), None):
            self.tell(uuid, kind, DisplayNews.ENDED)

    def kill(self, kind: DisplayKind, uuid: str) -> None:
        """Do what `close` does."""
        self.close(kind, uuid)

    def dress(self, shown: Shown) -> None:
        """Keep how it would look."""
        self.shown |= {key: shown for key in self.shown if key[0] == shown.uuid}

    def send_mode(self, uuid: str, mode: GuiMode) -> None:
        """Keep the mode."""
        self.modes[uuid] = mode
        self.tell(uuid, DisplayKind.AGENT, DisplayNews.MODE_SENT)

    def move(self, display: str, authority: str) -> None:
        """Do nothing."""
        del display, authority

    def prepare(self) -> None:
        """Do nothing."""

    async def close_all(self) -> None:
        """Do nothing."""

    def diagnose(self) -> list[str]:
        """Return that VMs are not shown."""
        return [f"VMs are not shown: {self._problem or 'this host keeps what would be shown'}."]

    def describe_problem(self, kind: DisplayKind) -> str:
        """Return why this host cannot show VMs."""
        del kind
        return self._problem

    def tell(self, uuid: str, kind: DisplayKind, news: DisplayNews) -> None:
        """Tell the listeners something, as a test may want to."""
        for listener in self._listeners:
            listener(uuid, kind, news)
