"""A real guest whose agent was replaced by one that wants to do harm, beside another VM that goes on working."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.hostile_world import bounded, count_descriptors
from tests.vm import hostile_agent
from tests.vm.home import Home

pytestmark = pytest.mark.vm

RPC_MEGABYTES, DAEMON_MEGABYTES = 8, 16
DESCRIPTORS_MAX = 1024
LEAST = 2 << 20
"""Bytes that the guest sends at least: it is an emulated machine."""

TAKE_OVER = """
cat > /run/hostile.py
cd /usr/lib/crannog && mv agent.py agent.real && cp /run/hostile.py agent.py
kill -9 $(cat /run/agent.pid)
"""
FIND_AGENT = "grep -l agent.py /proc/[0-9]*/cmdline | tr -dc '0-9\\n' | sort -n | head -n 1 | tee /run/agent.pid"


@pytest.fixture
def home(shared_home: Home) -> Iterator[Home]:
    """Return the home with two running VMs, `hostile` and `peaceful`."""
    for name in ("hostile", "peaceful"):
        shared_home.ok("qvm-create", "--template", "debian-12", name)
        shared_home.ok("qvm-start", "--wait", name)
    yield shared_home
    for name in ("hostile", "peaceful"):
        shared_home.run("qvm-kill", name)
        shared_home.ok("qvm-remove", "--force", name)


def work_beside_it(home: Home, rpc: int) -> int:
    """Have the other VM work until the hostile one has become what it was; return how many calls came out right."""
    calls, deadline = 0, time.monotonic() + 120
    while time.monotonic() < deadline:
        with home.popen("qvm-run", "--user", "root", "hostile", "test -e /run/flood", stdout=-1, stderr=-1) as back:
            while back.poll() is None:
                assert home.ok("qvm-run", "peaceful", f"echo {calls}") == f"{calls}\n"
                date = home.ok("qvm-run", "peaceful", "qrexec-client-vm dom0 qubes.GetDate")
                assert date.startswith("20"), "the daemon decides on others' calls"
                assert count_descriptors(rpc) < DESCRIPTORS_MAX
                calls += 2
        if back.returncode == 0:
            return calls
    raise AssertionError("the hostile guest has not got its agent back")


def test_a_hostile_guest_disturbs_nobody(home: Home) -> None:
    """Its RPC process and the daemon stay small, the other VM's calls come out right, and it works again afterwards."""
    assert home.ok("qvm-run", "--user", "root", "hostile", FIND_AGENT).strip().isdecimal()
    program = Path(hostile_agent.__file__).read_bytes()
    rpc, daemon = home.rpc_process("hostile"), home.daemon()
    with bounded(rpc, RPC_MEGABYTES), bounded(daemon, DAEMON_MEGABYTES):
        home.run("qvm-run", "--user", "root", "hostile", TAKE_OVER, stdin=program)  # the agent dies of that
        assert work_beside_it(home, rpc) >= 10
    assert home.rpc_process("hostile") == rpc, "it is the same process"
    assert home.daemon() == daemon
    assert int(home.ok("qvm-run", "--user", "root", "hostile", "cat /run/flood")) > LEAST
    log = os.path.join(home.path, "log", "rpc-hostile.log")
    assert os.stat(log).st_size < 400_000
    with open(log) as file:
        assert "lost step with the agent" in file.read()
    assert home.ok("qvm-run", "hostile", "echo well") == "well\n"
