"""Ending a domain: its process first, then libvirt's part, and what is told when. Real processes stand for QEMU."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from uuid import uuid4

import pytest

from crannog.adapters.libvirt import endings
from crannog.adapters.libvirt.endings import Endings, end_emulator
from crannog.core.domain import DomainState

ABSENT = DomainState.ABSENT
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
OBEDIENT = "import time; print(flush=True); time.sleep(60)"


@pytest.fixture
def uuid() -> str:
    return str(uuid4())


def run(code: str, uuid: str) -> "Iterator[subprocess.Popen[bytes]]":
    process = subprocess.Popen([sys.executable, "-S", "-c", code, "-uuid", uuid], stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture
def emulator(uuid: str) -> "Iterator[subprocess.Popen[bytes]]":
    yield from run(OBEDIENT, uuid)


@pytest.fixture
def stubborn(uuid: str) -> "Iterator[subprocess.Popen[bytes]]":
    yield from run(STUBBORN, uuid)


class Libvirt:
    """What libvirt does and says."""

    def __init__(self) -> None:
        self.told: list[tuple[str, DomainState]] = []
        self.endings = Endings(lambda uuid, state: self.told.append((uuid, state)))
        self.passed_on: list[DomainState] = []
        self.is_destroyed = False

    def hear(self, uuid: str, state: DomainState) -> None:
        if not self.endings.is_old(uuid, state):
            self.passed_on.append(state)

    async def destroy(self) -> None:
        self.is_destroyed = True


def test_a_process_is_asked_to_end(uuid: str, emulator: "subprocess.Popen[bytes]") -> None:
    assert end_emulator(uuid)
    assert emulator.wait(60) == -signal.SIGTERM


def test_one_that_does_not_end_is_left_to_libvirt(uuid: str, stubborn: "subprocess.Popen[bytes]") -> None:
    assert not end_emulator(uuid, 0.05)
    assert stubborn.poll() is None


def test_no_process_is_no_error(uuid: str) -> None:
    assert not end_emulator(uuid)


async def test_the_end_is_told_before_libvirt_knows(uuid: str, emulator: "subprocess.Popen[bytes]") -> None:
    libvirt = Libvirt()

    async def destroy() -> None:
        assert libvirt.told == [(uuid, ABSENT)]
        libvirt.hear(uuid, DomainState.DYING)
        asyncio.get_running_loop().call_later(0.05, libvirt.hear, uuid, ABSENT)

    await libvirt.endings.end(uuid, destroy, is_whole=True)
    assert emulator.wait(60)
    assert (libvirt.told, libvirt.passed_on) == ([(uuid, ABSENT)], [])
    libvirt.hear(uuid, DomainState.PAUSED)
    assert libvirt.passed_on == [DomainState.PAUSED]  # of the VM's next domain


async def test_libvirt_may_never_tell(
    uuid: str, emulator: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endings, "_NEWS_SECONDS", 0.05)
    libvirt = Libvirt()
    await libvirt.endings.end(uuid, libvirt.destroy, is_whole=True)
    assert libvirt.is_destroyed
    assert libvirt.told == [(uuid, ABSENT)]


async def test_a_stubborn_process_is_told_of_by_libvirt(
    uuid: str, stubborn: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endings, "end_emulator", lambda uuid: end_emulator(uuid, 0.05))
    libvirt = Libvirt()

    async def destroy() -> None:
        stubborn.kill()
        libvirt.hear(uuid, ABSENT)

    await libvirt.endings.end(uuid, destroy, is_whole=True)
    assert (libvirt.told, libvirt.passed_on) == ([], [ABSENT])


async def test_what_is_just_created_is_libvirts_to_end(uuid: str, emulator: "subprocess.Popen[bytes]") -> None:
    libvirt = Libvirt()
    await libvirt.endings.end(uuid, libvirt.destroy, is_whole=False)
    assert (libvirt.told, libvirt.is_destroyed, emulator.poll()) == ([], True, None)


async def test_two_at_once(uuid: str, emulator: "subprocess.Popen[bytes]") -> None:
    libvirt = Libvirt()

    async def destroy() -> None:
        await asyncio.sleep(0.05)
        libvirt.hear(uuid, ABSENT)

    await asyncio.gather(*[libvirt.endings.end(uuid, destroy, is_whole=True) for _ in range(2)])
    assert emulator.wait(60)
    assert libvirt.told == [(uuid, ABSENT)]
