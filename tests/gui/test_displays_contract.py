"""The contract of displays with the real ones: a real viewer on a desktop, over a real QEMU's screen."""

import asyncio
import contextlib
import os
import re
import subprocess
from collections.abc import AsyncIterator

import pytest

from crannog.adapters.display.processes import DesktopDisplays
from crannog.config import Paths
from crannog.core.displays import DisplayKind, DisplayNews, Shown
from tests.contract.displays_contract import DisplaysBench, DisplaysContract
from tests.fakes import short_folder
from tests.gui.desktop import Desktop

pytestmark = pytest.mark.timeout(120)
FRAME = 4
SHOWN = Shown("12345678-0000", "work", "#cc0000")


class DesktopBench(DisplaysBench):
    def __init__(self, displays: DesktopDisplays, desktop: Desktop, paths: Paths) -> None:
        super().__init__(displays, SHOWN)
        self.desktop = desktop
        self.paths = paths

    def look(self) -> tuple[str, str] | None:
        for window, title in self.desktop.titles().items():
            match = re.fullmatch(r"\[work(?:: ([a-z, ]+))?\] emulated screen", title)
            if match:
                with contextlib.suppress(KeyError):  # it has just gone
                    x, y, _, height = self.desktop.place(window)
                    colours = self.desktop.look().colours(x, y, FRAME, height)
                    return "#" + "".join(colours if len(colours) == 1 else ()), match[1] or ""
        return None


class TestDesktop(DisplaysContract):
    @pytest.fixture
    async def bench(self, desktop: Desktop, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[DesktopBench]:
        monkeypatch.setenv("DISPLAY", desktop.display)
        monkeypatch.delenv("XAUTHORITY", raising=False)
        with short_folder() as folder:
            paths = Paths(str(folder))
            for name in ("run", "log"):
                (folder / name).mkdir()
            vnc = f"unix:{paths.screen_socket(SHOWN.uuid)}"
            words = ["qemu-system-x86_64", "-accel", "tcg", "-m", "16", "-display", "none", "-net", "none", "-vnc", vnc]
            displays = DesktopDisplays(paths)
            with subprocess.Popen(words) as qemu:  # noqa: ASYNC220 - it takes a moment, and nothing else goes on
                try:
                    yield DesktopBench(displays, desktop, paths)
                finally:
                    displays.kill(DisplayKind.SCREEN, SHOWN.uuid)
                    await displays.close_all()
                    qemu.kill()
        desktop.wait_for_none()

    async def test_another_daemon_finds_the_screen(self, open_bench: DesktopBench) -> None:
        later = DesktopBench(DesktopDisplays(open_bench.paths), open_bench.desktop, open_bench.paths)
        assert await later.displays.adopt(SHOWN) == {DisplayKind.SCREEN}
        await later.hears(DisplayNews.DRAWN)
        later.displays.close(DisplayKind.SCREEN, SHOWN.uuid)
        await later.hears(DisplayNews.ENDED)
        await open_bench.hears(DisplayNews.ENDED)

    async def test_the_next_screen_is_shown_by_a_spare_process(self, bench: DesktopBench) -> None:
        bench.displays.prepare()
        await bench.displays.open(DisplayKind.SCREEN, SHOWN)
        await bench.hears(DisplayNews.DRAWN)
        assert bench.is_shown()
        bench.displays.close(DisplayKind.SCREEN, SHOWN.uuid)
        await bench.hears(DisplayNews.ENDED)

    async def test_what_is_killed_leaves_no_socket(self, bench: DesktopBench) -> None:
        await bench.displays.open(DisplayKind.SCREEN, SHOWN)
        await bench.hears(DisplayNews.DRAWN)
        bench.displays.kill(DisplayKind.SCREEN, SHOWN.uuid)
        await bench.hears(DisplayNews.ENDED)
        assert not os.path.exists(bench.paths.display_socket("screen", SHOWN.uuid))

    async def test_a_spare_ends_with_the_daemon(self, bench: DesktopBench) -> None:
        bench.displays.prepare()
        await asyncio.sleep(0.1)
        await bench.displays.close_all()
        assert bench.desktop.titles() == {}
