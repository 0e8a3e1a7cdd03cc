"""Our agent in guests of a real Xen: commands through a console of Xen's, and what its tools say in XenStore (B13)."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crannog.adapters.guestdb.tree import domain_folder
from crannog.errors import CrannogError
from tests.vm.home import wait_until
from tests.xen.home import XenHome, run

Note = Callable[[str, object], None]
OWN_XENSTORE = "import sys; sys.path.insert(0, '/usr/lib/crannog'); import agent; s = agent.XenStore(); "
"""For the guest's Python: the agent's end of XenStore, as any program of the guest's root could use it."""
SOON = 60
"""Seconds; an emulated guest of an emulated Xen takes seconds for a command."""


@pytest.fixture(scope="module", params=["pv", "pvh", "hvm"])
def vm(request: pytest.FixtureRequest, xen_home: XenHome) -> Iterator[str]:
    """Return the name of a running VM of each mode."""
    name = f"agent-{request.param}"
    xen_home.create(name, request.param)
    try:
        xen_home.start(name)
        yield name
    finally:
        xen_home.remove(name)


def prop(home: XenHome, vm: str, name: str) -> str:
    return home.call("admin.vm.property.Get", vm, name).split(" ", 2)[2]


def feature(home: XenHome, vm: str, name: str) -> str:
    try:
        return home.call("admin.vm.feature.Get", vm, name)
    except CrannogError:
        return "(none)"


def folder(home: XenHome, vm: str) -> str:
    return domain_folder(int(prop(home, vm, "xid")))


def as_guest(home: XenHome, vm: str, python: str) -> str:
    """Run a line of Python with XenStore `s` as the guest's root; return its output, or the error's last line."""
    return home.in_guest(vm, f'python3 -ISc "{OWN_XENSTORE}{python}" 2>&1 || true').strip().rpartition("\n")[2]


def rpc_process(home: XenHome, vm: str) -> int:
    try:
        return home.rpc_process(vm)
    except AssertionError:
        return 0


def test_commands_run_in_the_guest(xen_home: XenHome, vm: str, record_property: Note) -> None:
    began = time.monotonic()
    assert xen_home.in_guest(vm, "echo here; uname -s") == "here\nLinux\n"
    record_property("fact", f"a command in {time.monotonic() - began:.1f} s")
    every = bytes(range(256)) * 64
    done = xen_home.run("qvm-run", "--user=root", vm, "cat; echo aside >&2; exit 7", stdin=every)
    assert (done.returncode, done.stdout == every, done.stderr) == (7, True, b"aside\n")


def test_the_channel_is_a_console_of_xens(xen_home: XenHome, vm: str) -> None:
    assert xen_home.in_guest(vm, "ls /sys/class/virtio-ports 2>/dev/null | wc -l") == "0\n"
    assert run("xenstore-read", f"{folder(xen_home, vm)}/device/console/1/name") == "org.crannog.agent.0\n"


def test_tools_announce_themselves_in_xenstore(xen_home: XenHome, vm: str) -> None:
    place = folder(xen_home, vm)
    assert run("xenstore-read", f"{place}/qubes-tools/os", f"{place}/qubes-tools/qrexec") == "Linux\n1\n"
    listing = run("xenstore-ls", "-p", place).splitlines()
    (line,) = [line for line in listing if line.startswith("qubes-tools ")]
    assert line.endswith(f"(n0,b{place.rpartition('/')[2]})")
    wait_until(lambda: feature(xen_home, vm, "os") == "Linux", "the VM is known by what its tools say", SOON)
    assert feature(xen_home, vm, "qrexec") == "1"


def test_a_change_in_xenstore_is_taken_over_and_nonsense_is_not(xen_home: XenHome, vm: str) -> None:
    assert as_guest(xen_home, vm, "s.write_all({'qubes-tools/os': 'Plan 9'})") == ""
    wait_until(lambda: feature(xen_home, vm, "os") == "Plan 9", "the change is taken over", SOON)
    log = Path(xen_home.paths.rpc_log(vm))
    assert as_guest(xen_home, vm, "s.write_all({'qubes-tools/os': 'x' * 65})") == ""
    wait_until(lambda: "refused the announcement, nothing is changed" in log.read_text(), "it is refused", SOON)
    assert feature(xen_home, vm, "os") == "Plan 9"
    assert as_guest(xen_home, vm, "s.write_all({'qubes-tools/os': 'Linux'})") == ""
    wait_until(lambda: feature(xen_home, vm, "os") == "Linux", "sense is taken over again", SOON)


@pytest.mark.parametrize("path", ["new", "qubes-vm-type", "name", "memory/target"])
def test_a_guest_may_write_in_its_two_folders_alone(xen_home: XenHome, vm: str, path: str) -> None:
    assert as_guest(xen_home, vm, f"s.write_all({{'{path}': 'lie'}})").startswith("PermissionError: [Errno 13]")
    assert as_guest(xen_home, vm, "s.write_all({'features-request/x': '1'})") == ""


def test_a_guest_reads_what_the_host_says_of_it(xen_home: XenHome, vm: str) -> None:
    assert as_guest(xen_home, vm, "print(s.read('qubes-vm-type').decode())") == "AppVM"
    xen_home.call("admin.vm.feature.Set", vm, "service.cups", "1")
    said = f"{folder(xen_home, vm)}/qubes-service/cups"
    wait_until(lambda: "cups" in run("xenstore-ls", said.rpartition("/")[0]), "it is told while it runs", SOON)
    assert as_guest(xen_home, vm, "print(s.read('qubes-service/cups').decode())") == "1"


def test_an_agent_that_is_killed_comes_back(xen_home: XenHome, vm: str) -> None:
    xen_home.run("qvm-run", "--user=root", vm, "kill -9 $PPID")
    assert xen_home.in_guest(vm, "echo again") == "again\n"


def test_an_rpc_process_that_is_killed_is_replaced(xen_home: XenHome, vm: str) -> None:
    pid = rpc_process(xen_home, vm)
    os.kill(pid, 9)
    wait_until(lambda: rpc_process(xen_home, vm) not in (0, pid), "another one serves the VM", SOON)
    assert xen_home.run("qvm-run", "--user=root", vm, "echo again").stdout == b"again\n"


def test_stub_domains(xen_home: XenHome, vm: str) -> None:
    assert prop(xen_home, vm, "stubdom_xid") == "-1"
    # As libxl does on hosts that run device models in domains of their own.
    run("xenstore-write", f"{folder(xen_home, vm)}/image/device-model-domid", "77")
    xen_home.kill_daemon()
    assert xen_home.ok("qvm-prefs", vm, "stubdom_xid") == "77\n", "the next daemon finds it"
    xen_home.call("admin.vm.Kill", vm)
    assert prop(xen_home, vm, "stubdom_xid") == "-1"
