"""What crannogd learns of its host when it begins, and how it ends, also by a fault of its own."""

import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import AsyncMock, Mock

import pytest

from crannog.core.registry import Registry
from crannog.core.runtime import HostFacts
from crannog.daemon.main import correct_host_facts, opened
from crannog.errors import CrannogError, HypervisorError
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


async def test_each_part_is_closed_in_its_order_also_where_one_before_it_fails() -> None:
    parts = Mock()
    for name in ("hypervisor.open", "hypervisor.close", "displays.close_all", "agents.close", "abandon_starts"):
        parts.configure_mock(**{name: AsyncMock()})
    parts.agents.close.side_effect = ValueError("a fault")
    parts.displays.close_all.side_effect = HypervisorError("it failed too")
    inventory = Mock(lifecycle=parts)
    with pytest.raises(HypervisorError, match="it failed too"):
        async with opened(parts, inventory):
            pass
    called = [name for name, _, _ in parts.mock_calls]
    assert called == ["hypervisor.open", "abandon_starts", "agents.close", "displays.close_all", "hypervisor.close"]


def test_a_fault_of_its_own_is_one_sentence_and_the_rest_is_in_the_log(tmp_path: Path) -> None:
    (tmp_path / "crannog.toml").write_text('libvirt_uri = "test:///default"\n')
    code = (
        "import crannog.daemon.main as main\n"
        "async def fail(self): raise ZeroDivisionError('by nought')\n"
        "main.Adoption.adopt = fail\n"
        "main.main()"
    )
    environment = {**os.environ, "CRANNOG_HOME": str(tmp_path), "CRANNOG_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=60)
    log = tmp_path / "log/crannogd.log"
    sentence = f"crannogd: it ends because of a fault of its own; report what {log} says of it\n"
    assert (done.returncode, done.stdout, done.stderr) == (CrannogError.exit_code, "", sentence)
    assert "ZeroDivisionError: by nought" in log.read_text()
