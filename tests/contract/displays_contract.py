"""What every `ports.display.Displays` does. `bench` gives one, and a VM with a screen that it may show."""

import asyncio
from abc import ABC, abstractmethod
from dataclasses import replace

import pytest

from crannog.core.displays import DisplayKind, DisplayNews, Shown
from crannog.ports.display import Displays

SCREEN = DisplayKind.SCREEN


class DisplaysBench(ABC):
    """A `Displays` under test, and what it says."""

    def __init__(self, displays: Displays, shown: Shown) -> None:
        self.displays = displays
        self.shown = shown
        self.news: asyncio.Queue[tuple[str, DisplayKind, DisplayNews]] = asyncio.Queue()
        displays.listen(lambda uuid, kind, news: self.news.put_nowait((uuid, kind, news)))

    async def hears(self, *expected: DisplayNews) -> None:
        """Expect news of the VM's screen, in this order."""
        for news in expected:
            async with asyncio.timeout(30):
                assert await self.news.get() == (self.shown.uuid, SCREEN, news)

    async def shows_nothing(self) -> None:
        """Expect that the screen is soon not to be seen."""
        async with asyncio.timeout(30):
            while self.is_shown():  # noqa: ASYNC110 - a desktop tells nobody what goes
                await asyncio.sleep(0.05)

    async def looks(self, colour: str, state: str) -> None:
        """Expect that the screen is soon to be seen with a frame of that colour, and that state beside its name."""
        async with asyncio.timeout(30):
            while self.look() != (colour, state):  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    def is_shown(self) -> bool:
        """Tell whether the screen is to be seen."""
        return self.look() is not None

    @abstractmethod
    def look(self) -> tuple[str, str] | None:
        """Return the colour of the screen's frame, as #rrggbb, and the state beside its name; None without a screen."""


class DisplaysContract:
    """Inherit it, and give a fixture `bench`."""

    @pytest.fixture
    async def open_bench(self, bench: DisplaysBench) -> DisplaysBench:
        await bench.displays.open(SCREEN, bench.shown)
        await bench.hears(DisplayNews.DRAWN)
        return bench

    async def test_a_screen_is_shown_until_it_is_closed(self, open_bench: DisplaysBench) -> None:
        assert open_bench.is_shown()
        open_bench.displays.close(SCREEN, open_bench.shown.uuid)
        await open_bench.hears(DisplayNews.ENDED)
        await open_bench.shows_nothing()

    async def test_a_screen_can_be_ended_at_once(self, open_bench: DisplaysBench) -> None:
        open_bench.displays.kill(SCREEN, open_bench.shown.uuid)
        await open_bench.hears(DisplayNews.ENDED)
        await open_bench.shows_nothing()

    async def test_a_screen_can_be_shown_again(self, open_bench: DisplaysBench) -> None:
        open_bench.displays.close(SCREEN, open_bench.shown.uuid)
        await open_bench.hears(DisplayNews.ENDED)
        await open_bench.displays.open(SCREEN, open_bench.shown)
        await open_bench.hears(DisplayNews.DRAWN)
        assert open_bench.is_shown()
        open_bench.displays.close(SCREEN, open_bench.shown.uuid)
        await open_bench.hears(DisplayNews.ENDED)

    async def test_a_screen_looks_as_its_vm_does(self, bench: DisplaysBench) -> None:
        await bench.displays.open(SCREEN, replace(bench.shown, state="starting"))
        bench.displays.dress(replace(bench.shown, state="debug"))  # its process may not listen yet
        await bench.hears(DisplayNews.DRAWN)
        await bench.looks(bench.shown.colour, "debug")
        bench.displays.dress(replace(bench.shown, colour="#3465a4", state="debug, paused"))
        await bench.looks("#3465a4", "debug, paused")
        bench.displays.dress(bench.shown)
        await bench.looks(bench.shown.colour, "")
        bench.displays.close(SCREEN, bench.shown.uuid)
        await bench.hears(DisplayNews.ENDED)
        bench.displays.dress(bench.shown)
        assert bench.news.empty()

    async def test_what_is_not_open_is_closed_without_complaint(self, bench: DisplaysBench) -> None:
        for kind in DisplayKind:
            bench.displays.close(kind, bench.shown.uuid)
            bench.displays.kill(kind, bench.shown.uuid)
        await asyncio.sleep(0.05)
        assert bench.news.empty()

    async def test_of_a_vm_that_is_not_shown_nothing_is_adopted(self, bench: DisplaysBench) -> None:
        assert await bench.displays.adopt(bench.shown) == frozenset()

    async def test_it_says_where_vms_are_shown(self, bench: DisplaysBench) -> None:
        assert [bench.displays.describe_problem(kind) for kind in DisplayKind] == ["", ""]
        assert all(sentence.startswith("VMs are ") for sentence in bench.displays.diagnose())
