"""A libvirtd that is killed and started again under a daemon that goes on: VMs and events come back."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import pytest_asyncio

from crannog.adapters.libvirt import orphans
from crannog.adapters.libvirt.connection import LibvirtHypervisor
from crannog.config import Paths, Settings
from crannog.core.domain import Boot, DomainSpec, DomainState
from crannog.errors import HypervisorError
from tests.vm.libvirtd import Libvirtd
from tests.vm.test_libvirt_hypervisor import HALT, emulators, make_disk

pytestmark = pytest.mark.vm

UUID = str(uuid4())


@pytest.fixture(scope="module")
def libvirtd() -> Iterator[Libvirtd]:
    daemon = Libvirtd()
    daemon.start()
    yield daemon
    daemon.close()


class Told:
    """What a hypervisor told, and waiting for it."""

    def __init__(self) -> None:
        self.states: list[tuple[str, DomainState]] = []

    def __call__(self, uuid: str, state: DomainState) -> None:
        self.states.append((uuid, state))

    async def until(self, is_true: Callable[[], bool]) -> None:
        for _ in range(3000):
            if is_true():
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"not within 30 s: {self.states}")

    async def hears(self, state: DomainState) -> None:
        await self.until(lambda: (UUID, state) in self.states)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest_asyncio.fixture
async def hypervisor(libvirtd: Libvirtd, tmp_path: Path, told: Told) -> AsyncIterator[LibvirtHypervisor]:
    settings = Settings()
    settings.accel, settings.libvirt_uri = "tcg", libvirtd.uri
    adapter = LibvirtHypervisor(Paths(str(tmp_path / "h"), str(tmp_path / "cache")), settings)
    # A QEMU that init does not bury for seconds is one that libvirtd waits for when it looks for its domains again.
    orphans.adopt_emulators("qemu-system-x86_64")
    await adapter.open()
    adapter.listen(told)
    yield adapter
    await adapter.destroy(UUID)
    await adapter.close()
    orphans.release()


@pytest_asyncio.fixture
async def running(hypervisor: LibvirtHypervisor, tmp_path: Path, told: Told) -> LibvirtHypervisor:
    disk = make_disk(tmp_path / "disk.raw", HALT)
    log = str(tmp_path / "log/console.log")
    await hypervisor.create_paused(DomainSpec(UUID, "work", "hvm", 32, 1, Boot.DISK, (disk,), (), log))
    await hypervisor.resume(UUID)
    await told.hears(DomainState.RUNNING)
    told.states.clear()
    return hypervisor


async def restart(libvirtd: Libvirtd, number: int = signal.SIGKILL) -> None:
    await asyncio.to_thread(libvirtd.kill, number)
    await asyncio.to_thread(libvirtd.start)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_vm_and_its_events_come_back(
    running: LibvirtHypervisor, libvirtd: Libvirtd, told: Told, number: int
) -> None:
    await restart(libvirtd, number)
    await told.hears(DomainState.RUNNING)
    told.states.clear()
    await running.pause(UUID)
    await told.hears(DomainState.PAUSED)
    await running.destroy(UUID)
    await told.hears(DomainState.ABSENT)


async def test_a_call_meanwhile_waits_for_the_answer(running: LibvirtHypervisor, libvirtd: Libvirtd) -> None:
    await asyncio.to_thread(libvirtd.kill)
    asking = asyncio.ensure_future(running.usage(UUID))
    await asyncio.sleep(0.2)
    assert not asking.done()
    await asyncio.to_thread(libvirtd.start)
    assert await asyncio.wait_for(asking, 60)


async def test_a_vm_that_ends_meanwhile_is_told_of(running: LibvirtHypervisor, libvirtd: Libvirtd, told: Told) -> None:
    await told.until(lambda: len(emulators(UUID)) == 1)  # the one of the test before may be on its way out
    await asyncio.to_thread(libvirtd.kill)
    os.kill(emulators(UUID)[0], signal.SIGKILL)
    await asyncio.to_thread(libvirtd.start)
    await told.hears(DomainState.ABSENT)
    assert await running.domains() == []


async def test_a_libvirtd_that_stays_away_is_named(
    running: LibvirtHypervisor, libvirtd: Libvirtd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crannog.adapters.libvirt.session._PATIENCE", 0.3)
    await asyncio.to_thread(libvirtd.kill)
    await asyncio.sleep(0.1)
    with pytest.raises(HypervisorError, match=r"libvirt does not answer any more.*VMs go on running"):
        await running.domains()
    assert emulators(UUID)
    await asyncio.to_thread(libvirtd.start)
