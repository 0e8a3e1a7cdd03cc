"""What a dom0 must get through besides the life of one VM."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.xen.guests import Note, refused
from tests.xen.home import TEMPLATES, XenHome, list_remains, run, wait_for_remains, xen_domain


@pytest.fixture
def vm(request: pytest.FixtureRequest, xen_home: XenHome) -> Iterator[str]:
    """Return the name of a halted AppVM of the mode that the test asks for."""
    name = f"host-{request.param}"
    xen_home.create(name, request.param)
    yield name
    xen_home.remove(name)


@pytest.mark.parametrize("vm", ["hvm"], indirect=True)
def test_a_template_that_runs_keeps_its_vms_from_starting(xen_home: XenHome, vm: str, record_property: Note) -> None:
    """B12, the other order."""
    template = TEMPLATES["hvm"]
    xen_home.call("crannog.vm.Start", template, "nowait")
    try:
        sentence = refused(xen_home, vm)
    finally:
        xen_home.call("admin.vm.Kill", template)
    assert template in sentence, sentence
    record_property("fact", f"refused: {sentence}")
    assert xen_domain(vm) == []


@pytest.mark.parametrize("vm", ["pv"], indirect=True)
def test_a_daemon_that_is_killed_in_a_start_leaks_nothing(xen_home: XenHome, vm: str, record_property: Note) -> None:
    before = list_remains()
    connection = xen_home.client.open_stream("crannog.vm.Start", vm, "nowait")
    deadline = time.monotonic() + 60
    while not xen_domain(vm):
        assert time.monotonic() < deadline, "no domain was created"
    xen_home.kill_daemon()
    connection.close()
    xen_home.await_state(vm, "Halted")
    wait_for_remains(before)
    record_property("fact", "killed with SIGKILL during a start: nothing left")


def test_what_the_host_has_is_what_xen_has(xen_home: XenHome) -> None:
    """dom0's kernel knows its own share of the memory, less than half here; what VMs may have comes from all of it."""
    total = int(re.findall(r"^total_memory +: (\d+)$", run("xl", "info"), re.MULTILINE)[0])
    assert xen_home.ok("qubes-prefs", "maxmem") == f"{total}\n"


def test_an_idle_dom0_is_woken_each_second() -> None:
    """What runs these tests sees to that (scripts/lab/execution.py): an idle Xen may have slept for ever."""
    before = count_interrupts()
    time.sleep(5)
    assert count_interrupts() - before >= 3


def count_interrupts() -> int:
    """Return how many interrupts the agent's port has had (proc(5), /proc/interrupts)."""
    lines = Path("/proc/interrupts").read_text(encoding="ascii").splitlines()
    (line,) = (line for line in lines if line.endswith("-virtqueues"))
    return int(line.split()[1])


def test_dom0_is_left_alone(xen_home: XenHome) -> None:
    """dom0 itself is a domain here, with the UUID that dom0 has in the registry."""
    assert xen_domain("Domain-0")[1] == "0"
    assert "Domain-0" not in Path(xen_home.paths.daemon_log).read_text(), "a daemon took dom0 for a VM"
