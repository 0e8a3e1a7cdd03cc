"""The life of a VM of each mode on a real Xen: started, paused, used, ended, and nothing of it left."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crannog.client.events import EventStream
from crannog.errors import CrannogError
from crannog.images.digest import digest_sparse
from tests.xen.home import MEMORY, TEMPLATES, XenHome, list_remains, run, wait_for_remains, xen_domain

MODES = ("pv", "pvh", "hvm")
Tell = Callable[[str, object], None]


@pytest.fixture
def fact(record_property: Tell) -> Callable[[str], None]:
    """Return what notes a fact for the table of results."""
    return lambda text: record_property("fact", text)


@pytest.fixture
def vm(request: pytest.FixtureRequest, xen_home: XenHome) -> Iterator[str]:
    """Return the name of a halted AppVM of the mode that the test asks for."""
    name = f"life-{request.param}"
    xen_home.create(name, request.param)
    yield name
    xen_home.remove(name)


def on_each_mode() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("vm", MODES, indirect=True)


def timed_start(home: XenHome, vm: str, fact: Callable[[str], None]) -> None:
    began = time.monotonic()
    home.start(vm)
    fact(f"agent after {time.monotonic() - began:.0f} s")


def refused(home: XenHome, vm: str) -> str:
    with pytest.raises(CrannogError) as caught:
        home.call("crannog.vm.Start", vm, "nowait")
    return str(caught.value)


@on_each_mode()
def test_life(xen_home: XenHome, vm: str, fact: Callable[[str], None]) -> None:
    mode = vm.removeprefix("life-")
    template = TEMPLATES[mode]
    root = xen_home.image(template, "root")
    digest, before = digest_sparse(root), list_remains()
    stream = xen_home.listen()
    timed_start(xen_home, vm, fact)

    # What Xen says of it is what was asked for.
    name, _, memory, vcpus, *_ = xen_domain(vm)
    assert (name, int(vcpus)) == (vm, 1)
    assert MEMORY - 8 <= int(memory) <= MEMORY
    fact(f"xl list: {memory} MiB")
    assert xen_home.in_guest(vm, "cat /sys/hypervisor/type").strip() == "xen"
    assert Path(xen_home.paths.console_log(vm)).stat().st_size > 0, "nothing on its console"

    # Paused: Xen gives it no more time.
    xen_home.call("admin.vm.Pause", vm)
    assert (xen_home.power_state(vm), xen_domain(vm)[4][2]) == ("Paused", "p")
    xen_home.call("admin.vm.Unpause", vm)
    assert (xen_home.power_state(vm), xen_domain(vm)[4][2]) == ("Running", "-")

    # B12: the template and its VM never run at the same time, as this pool's driver has no revisions.
    sentence = refused(xen_home, template)
    assert vm in sentence, sentence
    fact(f"refused: {sentence}")

    xen_home.in_guest(vm, "echo changed >/root/change && echo kept >/home/user/kept && sync")
    xen_home.call("admin.vm.Shutdown", vm)
    xen_home.await_state(vm, "Halted")
    told = read_events(stream, vm, "domain-shutdown")
    rest = iter(told)
    for event in ("domain-pre-start", "domain-start", "domain-paused", "domain-unpaused", "domain-shutdown"):
        assert event in rest, f"{event} is not among {told}, or in another order"
    wait_for_remains(before)
    fact("xl list, dmsetup ls, losetup -a, backends, ps: as before")

    # B1: what was written to root is gone, what was written to private is not.
    timed_start(xen_home, vm, fact)
    assert xen_home.in_guest(vm, "ls /root/change 2>&1 || true").endswith("No such file or directory\n")
    assert xen_home.in_guest(vm, "cat /home/user/kept") == "kept\n"
    xen_home.call("admin.vm.Kill", vm)
    assert xen_domain(vm) == []
    wait_for_remains(before)
    assert digest_sparse(root) == digest, "the template was changed"
    fact("template's checksum as before")


def read_events(stream: EventStream, vm: str, last: str) -> list[str]:
    """Return the names of a VM's events up to the one called `last`."""
    found: list[str] = []
    deadline = time.monotonic() + 30
    while last not in found and (event := stream.next_event(deadline)):
        if event.subject == vm:
            found.append(event.name)
    stream.close()
    return found


@pytest.mark.parametrize("vm", ["hvm"], indirect=True)
def test_template_that_runs_keeps_its_vms_from_starting(
    xen_home: XenHome, vm: str, fact: Callable[[str], None]
) -> None:
    """B12, the other order."""
    template = TEMPLATES["hvm"]
    xen_home.call("crannog.vm.Start", template, "nowait")
    try:
        sentence = refused(xen_home, vm)
    finally:
        xen_home.call("admin.vm.Kill", template)
    assert template in sentence, sentence
    fact(f"refused: {sentence}")
    assert xen_domain(vm) == []


@pytest.mark.parametrize("vm", ["pvh"], indirect=True)
def test_memory_that_can_grow(xen_home: XenHome, vm: str, fact: Callable[[str], None]) -> None:
    """The guest starts with `memory` and knows that it may have `maxmem`."""
    xen_home.call("admin.vm.property.Set", vm, "maxmem", str(2 * MEMORY))
    xen_home.start(vm)
    assert MEMORY - 8 <= int(xen_domain(vm)[2]) <= MEMORY
    state = dict(word.split("=") for word in xen_home.call("admin.vm.CurrentState", vm).split())
    assert state["power_state"] == "Running"
    assert find_most_memory(vm) == [2 * MEMORY]
    fact(f"{MEMORY} MiB of {2 * MEMORY}")


def find_most_memory(vm: str) -> list[int]:
    """Return the most memory in MiB that Xen's tools have noted for a domain."""
    details = json.loads(run("xl", "list", "--long", vm))
    return [item["config"]["b_info"]["max_memkb"] // 1024 for item in details if item["config"]["c_info"]["name"] == vm]


@pytest.mark.parametrize("vm", ["pv"], indirect=True)
def test_daemon_that_is_killed_leaks_nothing(xen_home: XenHome, vm: str, fact: Callable[[str], None]) -> None:
    before = list_remains()
    xen_home.start(vm)
    xen_home.kill_daemon()
    assert xen_home.in_guest(vm, "echo here") == "here\n", "the VM does not need the daemon"
    assert xen_home.power_state(vm) == "Running", "the next daemon finds it"
    xen_home.call("admin.vm.Kill", vm)
    wait_for_remains(before)
    fact("killed with SIGKILL while the VM ran: adopted, then nothing left")

    connection = xen_home.client.open_stream("crannog.vm.Start", vm, "nowait")
    deadline = time.monotonic() + 60
    while not xen_domain(vm):
        assert time.monotonic() < deadline, "no domain was created"
    xen_home.kill_daemon()
    connection.close()
    xen_home.await_state(vm, "Halted")
    wait_for_remains(before)
    fact("killed with SIGKILL during a start: nothing left")


def test_dom0_is_left_alone(xen_home: XenHome) -> None:
    """dom0 itself is a domain here, with the UUID that dom0 has in the registry."""
    assert xen_domain("Domain-0")[1] == "0"
    assert "Domain-0" not in Path(xen_home.paths.daemon_log).read_text(), "a daemon took dom0 for a VM"
