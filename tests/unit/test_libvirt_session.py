"""How a connection to libvirt is closed while calls are under way. Real connections, of libvirt's test driver."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from crannog.adapters.libvirt.roots import MockRoot
from crannog.adapters.libvirt.session import Session
from crannog.adapters.libvirt.unborn import end_probes

PROBE = (sys.executable, "-c", "import time; time.sleep(60)")


class Leaving(MockRoot):
    """A libvirt in whose stead this process makes processes, as the embedded driver does."""

    is_embedded = True

    def __init__(self, home: Path) -> None:
        super().__init__("test:///default", str(home))
        self.left = threading.Event()

    def leave(self) -> None:
        end_probes(f"{self.path}/lib/qemu", self.path)
        self.left.set()


@pytest.fixture
def root(tmp_path: Path) -> Leaving:
    return Leaving(tmp_path)


@pytest_asyncio.fixture
async def session(root: Leaving) -> AsyncIterator[Session]:
    async def do_nothing() -> None:
        pass

    session = Session(root, lambda *_: None, do_nothing)
    await session.open()
    yield session
    await session.close()


async def test_what_libvirt_begins_while_the_connection_is_closed_is_ended_as_well(
    session: Session, root: Leaving
) -> None:
    begun: list[int] = []

    def probe(_: object) -> int:
        assert root.left.wait(30)  # it was looked for already
        with subprocess.Popen([*PROBE, f"{root.path}/lib/qemu/qmp-ABCDEF/qmp.monitor"]) as emulator:
            begun.append(emulator.pid)
            return emulator.wait(30)

    call = asyncio.ensure_future(session.call(probe))
    await asyncio.sleep(0.1)
    async with asyncio.timeout(30):
        await session.close()
    assert begun
    assert await call == -9


async def test_the_connection_is_closed_though_calls_hang(session: Session) -> None:
    go_on = threading.Event()
    questions = [asyncio.ensure_future(session.query("asking", lambda _: go_on.wait(60))) for _ in range(9)]
    await asyncio.sleep(0.1)
    try:
        async with asyncio.timeout(30):
            await session.close()
        assert not go_on.is_set()
    finally:
        go_on.set()
    answers = await asyncio.gather(*questions, return_exceptions=True)
    assert answers[:4] == [True] * 4
    assert all(isinstance(answer, asyncio.CancelledError) for answer in answers[4:])
