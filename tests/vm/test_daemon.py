"""The daemon may die at any moment, and come back: VMs go on, and nothing half-done stays."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog.errors import DaemonError, VMNotRunningError
from crannog.shortpath import short_path
from tests.processes import is_alive
from tests.vm.home import Home, wait_until

pytestmark = pytest.mark.vm

SERVICE_FILES = {"run/crannogd.lock", "run/crannogd.sock"}


def furnish(home: Home) -> Home:
    """Give a home the template debian-12 and its AppVM `work`."""
    home.ok("crannog", "template", "build", "debian-12")
    home.ok("qvm-create", "work")
    return home


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    home = furnish(Home())
    home.ok("qvm-start", "--wait", "work")
    home.ok("qvm-shutdown", "--wait", "work")
    yield home
    home.close()


@pytest.fixture(autouse=True)
def _is_halted_and_clean(home: Home) -> Iterator[None]:
    assert home.state("work") == "Halted"
    files = home.files() | SERVICE_FILES
    yield
    home.run("qvm-kill", "work")
    assert home.ok("qvm-ls", "--raw-data", "--fields", "name,state") == "dom0|Running\ndebian-12|Halted\nwork|Halted\n"
    home.settles(files)


@pytest.mark.parametrize("seconds", [0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2])
def test_killed_in_the_middle_of_a_start(home: Home, seconds: float) -> None:
    files = home.files()
    start = home.popen("qvm-start", "work", stderr=subprocess.PIPE)
    time.sleep(seconds)
    home.kill_daemon()
    _, complaint = start.communicate(timeout=60)
    assert (start.returncode, complaint) == (0, b"") or complaint.startswith(b"qvm-start: crannogd "), complaint
    wait_until(lambda: is_decided(home), "the VM runs or is halted")
    if home.state("work") == "Halted":
        home.settles(files | SERVICE_FILES)
        home.ok("qvm-start", "--no-wait", "work")
    assert home.state("work") == "Running"
    os.kill(home.rpc_process("work"), 0)


@pytest.mark.parametrize("is_known", [False, True])
def test_killed_while_libvirt_starts_its_qemu(home: Home, is_known: bool) -> None:
    """Libvirt notes such states for an instant only; they cannot be hit by time, so they are written."""
    files = home.files()
    home.ok("qvm-start", "--no-wait", "work")
    qemu, pids = home.qemu("work"), [home.daemon(), home.rpc_process("work")]
    for process in pids:
        os.kill(process, signal.SIGKILL)
    wait_until(lambda: not home.daemon(), "the daemon is gone")
    pid = qemu if is_known else 0
    status = f"{home.path}/vmm/run/qemu/work.xml"
    with open(status) as file:
        text = file.read()
    with open(status, "w") as file:
        file.write(re.sub(r"<domstatus .*>", f"<domstatus state='paused' reason='starting up' pid='{pid}'>", text))
    assert home.state("work") == "Halted"
    wait_until(lambda: not is_alive(qemu), "its QEMU is gone")
    home.settles(files)
    home.ok("qvm-start", "--no-wait", "work")


def is_decided(home: Home) -> bool:
    """Tell whether the VM is halted, or runs with a QEMU: libvirt takes a second to find that one is gone."""
    state = home.state("work")
    if state == "Running":
        with contextlib.suppress(OSError):
            return os.path.exists(f"/proc/{home.qemu('work')}")
    return state == "Halted"


def test_a_running_vm_is_adopted(home: Home) -> None:
    home.ok("qvm-start", "--wait", "work")
    qemu = home.qemu("work")
    home.kill_daemon()
    assert home.ok("qvm-run", "work", "echo without") == "without\n"
    assert home.daemon() == 0
    assert home.state("work") == "Running"
    assert home.ok("qvm-run", "work", "echo adopted") == "adopted\n"
    home.ok("crannog", "daemon", "stop")
    assert home.ok("qvm-run", "work", "echo without") == "without\n"
    assert home.state("work") == "Running"
    assert home.qemu("work") == qemu
    home.ok("qvm-shutdown", "--wait", "work")
    assert home.state("work") == "Halted"


def test_an_rpc_process_that_is_killed_is_replaced(home: Home) -> None:
    home.ok("qvm-start", "--wait", "work")
    for _ in range(2):
        former = home.rpc_process("work")
        os.kill(former, signal.SIGKILL)
        wait_until(lambda former=former: has_rpc_process(home, but_not=former), "another one is there")  # type: ignore[misc]
        wait_until(lambda: home.run("qvm-run", "work", "true").returncode == 0, "it serves")
    home.kill_daemon()
    os.kill(home.rpc_process("work"), signal.SIGKILL)
    assert home.state("work") == "Running"
    wait_until(lambda: home.run("qvm-run", "work", "true").returncode == 0, "the next daemon started one")
    home.ok("qvm-shutdown", "--wait", "work")


def has_rpc_process(home: Home, but_not: int) -> bool:
    try:
        return home.rpc_process("work") != but_not
    except AssertionError:
        return False


def test_everything_of_a_vm_is_killed_at_once(home: Home) -> None:
    files = home.files()
    kill_all(home)
    assert home.state("work") == "Halted"
    home.settles(files)
    kill_all(home)
    assert os.path.exists(f"{home.path}/run/rpc-work.sock")
    assert home.ok("qvm-run", "work", "echo again") == "again\n"


def kill_all(home: Home) -> None:
    """Start the VM, then kill the daemon, the RPC process and QEMU, in this order."""
    home.ok("qvm-start", "--no-wait", "work")
    wait_until(lambda: os.path.exists(f"{home.path}/run/rpc-work.sock"), "the RPC process listens")
    home.kill_daemon()
    for pid in (home.rpc_process("work"), home.qemu("work")):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("seconds", [0, 0.5])
def test_a_qemu_that_dies_during_the_start(home: Home, seconds: float) -> None:
    start = home.popen("qvm-start", "work", stderr=subprocess.PIPE)
    wait_until(lambda: os.path.exists(f"{home.path}/vmm/run/qemu/work.pid"), "QEMU is there")
    time.sleep(seconds)
    os.kill(home.qemu("work"), signal.SIGKILL)
    _, complaint = start.communicate(timeout=60)
    assert start.returncode in (6, 10)
    assert complaint.startswith(b"qvm-start: work ")
    assert home.state("work") == "Halted"


def test_a_qemu_that_dies_while_it_runs(home: Home) -> None:
    home.ok("qvm-start", "--no-wait", "work")
    os.kill(home.qemu("work"), signal.SIGKILL)
    wait_until(lambda: home.state("work") == "Halted", "the VM is halted by itself")
    home.ok("qvm-start", "--no-wait", "work")


def test_a_start_can_be_killed_and_is_undone_by_the_daemons_end(home: Home) -> None:
    for undo in (("qvm-kill", "work"), ("crannog", "daemon", "stop")):
        start = home.popen("qvm-start", "work", stderr=subprocess.PIPE)
        wait_until(lambda: os.path.exists(f"{home.path}/vmm/run/qemu/work.pid"), "QEMU is there")
        home.ok(*undo)
        _, complaint = start.communicate(timeout=60)
        assert start.returncode in (6, 11), complaint
        assert complaint.count(b"\n") == 1
        wait_until(lambda: not home.processes(), "no process is left")
        assert home.state("work") == "Halted"


def test_two_start_at_once_and_an_interrupted_start_goes_on(home: Home) -> None:
    first = home.popen("qvm-start", "--wait", "work")
    wait_until(lambda: home.state("work") == "Transient", "the start has begun")
    assert "it is being started already" in home.fails(5, "qvm-start", "work")
    first.send_signal(signal.SIGINT)
    assert first.wait(60) == 130
    wait_until(lambda: home.state("work") == "Running", "the start went on")
    assert home.ok("qvm-run", "work", "echo up") == "up\n"
    stop = home.popen("qvm-shutdown", "--wait", "work")
    wait_until(lambda: home.state("work") == "Halting", "the shutdown has begun")
    stop.kill()
    stop.wait()
    home.kill_daemon()
    # The daemon died before or after the guest was asked. Either way the VM has a state, and can be shut down.
    wait_until(lambda: home.state("work") in ("Running", "Halted"), "its state is one that lasts")
    assert home.run("qvm-shutdown", "--wait", "work").returncode in (0, VMNotRunningError.exit_code)
    assert home.state("work") == "Halted"


@pytest.mark.parametrize("seconds", [0, 0.01, 0.02, 0.04])
def test_killed_while_a_vm_is_created(home: Home, seconds: float) -> None:
    files = home.files()
    pid = home.daemon()
    creation = home.popen("qvm-create", "new", stderr=subprocess.PIPE)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    creation.communicate(timeout=60)
    wait_until(lambda: home.daemon() != pid, "the daemon is gone")  # until then, tools may still find its socket
    if home.run("qvm-prefs", "new", "memory").returncode == 0:
        home.ok("qvm-start", "--no-wait", "new")
        home.ok("qvm-kill", "new")
        home.ok("qvm-remove", "--force", "new")
    home.settles(files)


def test_a_second_daemon_is_refused(home: Home) -> None:
    complaint = home.fails(11, "crannogd", "--log-stderr")
    assert f"crannogd runs already for {home.path} (process {home.daemon()})" in complaint


def test_eight_tools_at_once_start_one_daemon(empty_home: Home) -> None:
    tools = [empty_home.popen("qvm-ls", stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(8)]
    for tool in tools:
        output, complaint = tool.communicate(timeout=60)
        assert (tool.returncode, complaint) == (0, b""), complaint
        assert b"dom0" in output
    daemons = [name for name in filter(str.isdigit, os.listdir("/proc")) if serves(name, empty_home.path)]
    assert daemons == [str(empty_home.daemon())]


@pytest.mark.parametrize("seconds", [0, 0.3, 1])
def test_a_daemon_that_ends_while_libvirt_looks_at_qemu_leaves_none(
    empty_home: Home, seconds: float, tmp_path: Path
) -> None:
    """Without what earlier daemons have kept, libvirt starts QEMUs to ask what they can do."""
    empty_home.env["CRANNOG_CACHE"] = str(tmp_path)
    empty_home.ok("crannog", "daemon", "stop")
    shutil.rmtree(f"{empty_home.path}/vmm", ignore_errors=True)
    empty_home.ok("qvm-ls")
    time.sleep(seconds)
    empty_home.ok("crannog", "daemon", "stop")
    wait_until(lambda: not empty_home.processes(), f"no process is left: {empty_home.processes()}")


def test_a_daemon_ends_though_a_qemu_hangs(home: Home) -> None:
    home.ok("qvm-start", "--no-wait", "work")
    with open(f"{home.status_folder}/work.pid") as file:
        emulator = int(file.read())
    os.kill(emulator, signal.SIGSTOP)
    try:
        tools = [home.popen("qvm-pause", "work", stderr=subprocess.PIPE) for _ in range(6)]
        time.sleep(2)  # until they wait for it
        home.ok("crannog", "daemon", "stop")
    finally:
        os.kill(emulator, signal.SIGCONT)
    for tool in tools:  # one that is slow asks the next daemon
        _, complaint = tool.communicate(timeout=60)
        assert (tool.returncode, complaint.count(b"\n")) in {(DaemonError.exit_code, 1), (0, 0)}
    assert home.state("work") in ("Running", "Paused")
    home.ok("qvm-kill", "work")


def serves(pid: str, home: str) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as line, open(f"/proc/{pid}/environ", "rb") as environment:
            return b"crannog.daemon" in line.read() and f"CRANNOG_HOME={home}\0".encode() in environment.read()
    except OSError:
        return False


def test_homes_with_odd_paths_do_all_and_touch_no_other_home(home: Home) -> None:
    home.ok("qvm-start", "--no-wait", "work")
    for name in ("long-" + "n" * 150, "blank Ö ü %41&,:é"):
        folder = tempfile.mkdtemp(prefix="cr-test-")
        other = furnish(Home(f"{folder}/{name}"))
        assert other.ok("qvm-run", "work", "uname -n") == "work\n"
        other.ok("crannog", "daemon", "stop")
        assert other.state("work") == "Running"
        other.ok("qvm-kill", "work")
        other.close()
        os.unlink(short_path(other.path))
        os.rmdir(folder)
        assert home.state("work") == "Running"
