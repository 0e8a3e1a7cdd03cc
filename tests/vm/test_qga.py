"""A real guest that has Debian's qemu-guest-agent and not our agent."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog.client.rpc import read_status
from crannog.config import Paths
from crannog.guest import agent
from crannog.images.builder import build_template
from tests.vm.home import Home, wait_until
from tests.vm.images import FOREIGN

pytestmark = pytest.mark.vm

LAUNCHER = """import os
os.execv("/usr/sbin/qemu-ga", ["qemu-ga", "-m", "virtio-serial", "-p", "/dev/virtio-ports/org.qemu.guest_agent.0"])
"""
"""What init starts, and starts again, where our images have our agent."""


def report(text: str) -> None:
    print(text)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a root disk with QEMU's guest agent in the place of ours."""
    launcher = tmp_path_factory.mktemp("qga") / "agent.py"
    launcher.write_text(LAUNCHER)
    return build_template(FOREIGN, "pv", Paths().cache, report, agent_path=str(launcher)).root_img


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    """Return a home with a kernel of the host."""
    home = Home()
    home.ok("crannog", "template", "build", "debian-12")
    yield home
    home.close()


@pytest.fixture(scope="module")
def foreign(home: Home, image: str) -> Iterator[str]:
    """Return the name of a running VM without our agent, as a user makes it from a foreign disk."""
    vm = "foreign"
    kernel = home.ok("qvm-prefs", "debian-12", "kernel").strip()
    words = ("--property", "virt_mode=pvh", "--property", f"kernel={kernel}", "--property", "vcpus=1")
    home.ok("qvm-create", "-C", "StandaloneVM", *words, "--root-copy-from", image, vm)
    home.ok("qvm-start", vm)  # nobody knows of an agent, so nobody waits for one
    yield vm
    home.run("qvm-kill", vm)
    home.ok("qvm-remove", "--force", vm)


def state(home: Home, vm: str) -> object:
    return read_status(Paths(home.path).rpc_socket(vm), 5)["agent"]


def waits(home: Home, vm: str, wanted: str) -> None:
    wait_until(lambda: state(home, vm) == wanted, f"the agent is {wanted}", timeout=60)


def test_commands_run_through_it_and_it_is_said(home: Home, foreign: str) -> None:
    assert home.ok("qvm-run", foreign, "id -un; pwd; echo $HOME") == "root\n/root\n/root\n"
    features = dict(line.split(maxsplit=1) for line in home.ok("qvm-features", foreign).splitlines())
    assert features == {"qga": "1", "os": "Linux", "os-distribution": "debian", "os-version": "12"}
    flags = home.ok("qvm-ls", "--raw-data", "--fields", "flags", foreign).strip()
    assert flags == "srU-----Q"
    assert "qrexec" not in features


@pytest.mark.parametrize(
    ("words", "data", "result"),
    [
        (["cat; printf '\\377\\0' >&2; exit 42"], bytes(range(256)), (42, bytes(range(256)), b"\xff\0")),
        (["kill -9 $$"], b"", (137, b"", None)),
        (["--user", "user", "id -un; pwd"], b"", (0, b"user\n/home/user\n", b"")),
        (["--user", "nobody-here", "true"], b"", (125, b"", b"there is no user 'nobody-here' in this VM\n")),
        (["no-such-command"], b"", (127, b"", None)),
        (["--service", "qubes.VMShell"], b"id -un; exit 3\n", (3, b"root\n", b"")),
        (["--service", "--user", "user", "qubes.VMExec+printf+-25s-7C+a-20b+--c"], b"", (0, b"a b|-c|", b"")),
    ],
)
def test_input_output_users_and_codes(
    home: Home, foreign: str, words: list[str], data: bytes, result: tuple[int, bytes, bytes | None]
) -> None:
    done = home.run("qvm-run", *words[:-1], foreign, words[-1], stdin=data)
    code, out, err = result
    assert (done.returncode, done.stdout) == (code, out), done.stderr
    assert err is None or done.stderr == err


def test_services_need_our_agent(home: Home, foreign: str) -> None:
    done = home.run("qvm-run", "--service", foreign, "qubes.Filecopy")
    assert done.returncode == 125
    assert b"the service qubes.Filecopy needs Crannog's agent in the VM" in done.stderr


def test_much_data_and_the_limits(home: Home, foreign: str) -> None:
    data = os.urandom(4 << 20)
    done = home.run("qvm-run", foreign, "cat", stdin=data)
    assert (done.returncode, done.stdout == data) == (0, True), done.stderr
    done = home.run("qvm-run", foreign, "cat", stdin=data + b"x")
    assert (done.returncode, done.stdout) == (125, b"")
    assert b"takes at most 4 MiB of input" in done.stderr
    done = home.run("qvm-run", foreign, "head -c 20000000 /dev/zero")
    assert (done.returncode, done.stdout) == (125, bytes(16 << 20))
    assert done.stderr == b"the output is cut: QEMU's guest agent keeps 16 MiB of each\n"


@pytest.mark.slow
@pytest.mark.parametrize("user", ["root", "user"])
def test_a_caller_that_goes_away_ends_its_command(home: Home, foreign: str, user: str) -> None:
    command = "echo $$ > /tmp/mark; sleep 7788; true"
    call = home.popen("qvm-run", "--user", user, foreign, command, stdin=subprocess.DEVNULL)
    listing = "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"
    wait_until(lambda: "sleep 7788 " in home.ok("qvm-run", foreign, listing), "the command runs")
    call.send_signal(signal.SIGTERM)
    call.wait(60)
    wait_until(lambda: "sleep 7788 " not in home.ok("qvm-run", foreign, listing), "the command has ended")
    home.ok("qvm-run", foreign, "rm /tmp/mark")


@pytest.mark.slow
def test_an_agent_that_is_killed_takes_its_commands_with_it(home: Home, foreign: str) -> None:
    call = home.popen("qvm-run", foreign, "sleep 60", stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    time.sleep(1)
    assert home.run("qvm-run", foreign, "busybox killall -9 qemu-ga").returncode == 125
    _, complaint = call.communicate(timeout=60)
    assert call.returncode == 125
    assert b"QEMU's guest agent" in complaint
    assert home.ok("qvm-run", foreign, "echo again") == "again\n"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["reboot", "echo b >/proc/sysrq-trigger"], ids=["reboot", "reset"])
def test_a_guest_that_restarts_itself_is_found_again(home: Home, foreign: str, command: str) -> None:
    boot_id = "cat /proc/sys/kernel/random/boot_id"
    before = home.ok("qvm-run", foreign, boot_id)
    call = home.popen("qvm-run", foreign, "sleep 600", stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    home.run("qvm-run", foreign, command)
    _, complaint = call.communicate(timeout=130)
    assert (call.returncode, b"QEMU's guest agent" in complaint) == (125, True), complaint
    wait_until(
        lambda: home.run("qvm-run", foreign, boot_id).stdout.decode() not in ("", before),
        "commands run after the restart",
        timeout=130,
    )


@pytest.mark.slow
def test_another_rpc_process_finds_it_as_well(home: Home, foreign: str) -> None:
    os.kill(home.rpc_process(foreign), signal.SIGKILL)
    wait_until(lambda: home.run("qvm-run", foreign, "echo on").stdout == b"on\n", "commands run", timeout=60)


def test_ours_takes_over_when_it_is_installed(home: Home, foreign: str) -> None:
    program = Path(agent.__file__).read_bytes()
    home.ok("qvm-run", foreign, "cat > /tmp/agent.py; setsid python3 /tmp/agent.py >/dev/null 2>&1 &", stdin=program)
    waits(home, foreign, "ready")
    assert home.ok("qvm-run", foreign, "id -un") == "user\n"
    wait_until(lambda: "qga" not in home.ok("qvm-features", foreign), "the feature is gone")
    assert home.ok("qvm-features", foreign, "qrexec").strip() == "1"
    assert home.ok("qvm-ls", "--raw-data", "--fields", "flags", foreign).strip() == "srU------"


@pytest.mark.slow
def test_a_start_that_waits_for_ours_in_vain_is_content_with_qemus(home: Home, foreign: str) -> None:
    home.ok("qvm-kill", foreign)  # if ours was there, it was in memory only
    home.ok("qvm-features", foreign, "qrexec", "1")  # it said so once
    home.run("qvm-features", "--unset", foreign, "qga")  # it has that, where ours was never there
    assert home.ok("qvm-start", "--dry-run", foreign).splitlines()[-1].startswith("wait")
    home.ok("qvm-start", foreign)
    assert state(home, foreign) == "fallback"
    assert home.ok("qvm-run", "--no-autostart", foreign, "id -un") == "root\n"
    assert home.ok("qvm-features", foreign, "qga").strip() == "1"


def test_it_shuts_down_by_the_agent_alone(home: Home, foreign: str) -> None:
    script = "printf '#!/bin/sh\\nexec poweroff\\n' > /sbin/shutdown; chmod +x /sbin/shutdown; rm /etc/acpi/PWRF/*"
    home.ok("qvm-run", "--user", "root", foreign, script)
    home.ok("qvm-shutdown", "--wait", foreign)
    assert home.state(foreign) == "Halted"
