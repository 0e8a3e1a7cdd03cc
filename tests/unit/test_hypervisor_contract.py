"""The contract of the Hypervisor port, where no guest is needed: the fake, and libvirt's test driver."""

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
import pytest_asyncio

from crannog.adapters.libvirt.connection import LibvirtHypervisor
from crannog.config import Paths, Settings
from crannog.core.domain import Boot, DomainSpec, DomainState
from crannog.ports.hypervisor import Hypervisor
from tests.contract.hypervisor_contract import *  # noqa: F403 - the tests
from tests.fakes import FakeHypervisor

MOCK = "test:///default"


def make_mock(home: Path) -> LibvirtHypervisor:
    settings = Settings()
    settings.libvirt_uri = MOCK
    return LibvirtHypervisor(Paths(str(home), str(home / "cache")), settings)


@pytest_asyncio.fixture(params=["fake", "mock"])
async def hypervisor(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Hypervisor]:
    adapter: Hypervisor = FakeHypervisor() if request.param == "fake" else make_mock(tmp_path)
    await adapter.open()
    try:
        yield adapter
    finally:
        await adapter.close()


@pytest.fixture
def spec(tmp_path: Path) -> DomainSpec:
    log = str(tmp_path / "console.log")
    return DomainSpec(str(uuid4()), "work", "hvm", 64, 2, Boot.DISK, disks=(), channels=(), console_log=log)


async def test_the_test_driver_is_shared_and_runs_everything(tmp_path: Path, spec: DomainSpec) -> None:
    adapter = make_mock(tmp_path)
    await adapter.open()
    try:
        assert adapter.is_shared
        capabilities = await adapter.capabilities()
        assert (capabilities.kind, capabilities.has_hvm) == ("test", True)
        assert "no guest runs" in (await adapter.diagnose())[0]
        await adapter.create_paused(spec)
        await adapter.resume(spec.uuid)
        ended: list[DomainState] = []
        adapter.listen(lambda _uuid, state: ended.append(state))
        await adapter.press_power_button(spec.uuid)
        await until(lambda: ended[-1:] == [DomainState.ABSENT])  # noqa: F405
    finally:
        await adapter.close()
