"""A host without a desktop keeps what would be shown, and else behaves as one with a desktop."""

import pytest

from crannog.adapters.display.headless import HeadlessDisplays
from crannog.core.displays import DisplayKind, DisplayNews, Shown
from crannog.core.handover import GuiMode
from tests.contract.displays_contract import DisplaysBench, DisplaysContract

SHOWN = Shown("0000", "work", "#cc0000")


class HeadlessBench(DisplaysBench):
    def look(self) -> tuple[str, str] | None:
        assert isinstance(self.displays, HeadlessDisplays)
        shown = self.displays.shown.get((SHOWN.uuid, DisplayKind.SCREEN))
        return (shown.colour, shown.state) if shown else None


class TestHeadless(DisplaysContract):
    @pytest.fixture
    def bench(self) -> HeadlessBench:
        return HeadlessBench(HeadlessDisplays(), SHOWN)


async def test_an_agent_display_is_connected_at_once_and_told_its_mode() -> None:
    displays, heard = HeadlessDisplays(), []
    displays.listen(lambda *news: heard.append(news))
    await displays.open(DisplayKind.AGENT, SHOWN)
    displays.send_mode(SHOWN.uuid, GuiMode.FULLSCREEN)
    assert [news for _, _, news in heard] == [DisplayNews.CONNECTED, DisplayNews.MODE_SENT]
    assert displays.modes == {SHOWN.uuid: GuiMode.FULLSCREEN}


def test_why_nothing_is_shown() -> None:
    displays = HeadlessDisplays("there is no desktop")
    assert displays.describe_problem(DisplayKind.AGENT) == "there is no desktop"
    assert displays.diagnose() == ["VMs are not shown: there is no desktop."]
