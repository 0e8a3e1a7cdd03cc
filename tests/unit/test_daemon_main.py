"""What crannogd learns of its host when it begins."""

import pytest

from crannog.core.registry import Registry
from crannog.core.runtime import HostFacts
from crannog.daemon.main import correct_host_facts
from crannog.errors import HypervisorError
from tests.fakes import FakeHypervisor

OURS, ALL = HostFacts(1500, 2), HostFacts(64000, 16)


@pytest.mark.parametrize(("told", "expected"), [(None, OURS), (ALL, ALL)])
async def test_a_hypervisor_may_know_better_than_our_kernel(told: HostFacts | None, expected: HostFacts) -> None:
    registry, hypervisor = Registry(), FakeHypervisor()
    registry.host, hypervisor.facts = OURS, told
    await correct_host_facts(hypervisor, registry)
    assert registry.host == expected


async def test_what_our_kernel_says_stays_when_the_hypervisor_cannot_answer(caplog: pytest.LogCaptureFixture) -> None:
    class Mute(FakeHypervisor):
        async def host_facts(self) -> HostFacts | None:
            raise HypervisorError("reading it failed")

    registry = Registry()
    registry.host = OURS
    await correct_host_facts(Mute(), registry)
    assert registry.host == OURS
    assert "reading it failed" in caplog.text
