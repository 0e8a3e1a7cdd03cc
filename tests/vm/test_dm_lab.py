"""scripts/dm-lab: what its machine can do, and how the script itself ends. The drivers' tests: `make test-dm`."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import is_alive, list_below, read_words
from tests.vm.home import wait_until

pytestmark = pytest.mark.vm

ROOT = Path(__file__).parents[2]
LAB = str(ROOT / "scripts/dm-lab")
BUILD_SECONDS = 300
"""A first run builds the machine."""
SUITE_SECONDS = 300
TOGETHER = ("setpriv", "--pdeathsig", "TERM", "--")
"""Before a command: it ends with pytest, also when that is killed by a time limit of its own."""


def run(*words: str, timeout: float = BUILD_SECONDS) -> "subprocess.CompletedProcess[str]":
    """Run the lab to its end; no traceback may reach the user."""
    command = [*TOGETHER, LAB, *words]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def is_qemu(pid: int) -> bool:
    return any("qemu-system" in word for word in read_words(pid)[:1])


@pytest.mark.timeout(BUILD_SECONDS + SUITE_SECONDS + 60)
def test_what_the_machine_can_do() -> None:
    command = [".venv/bin/python", "-m", "pytest", "-v", "tests/dm/test_machine.py"]
    done = run("--timeout", str(SUITE_SECONDS), "--", *command, timeout=BUILD_SECONDS + SUITE_SECONDS)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert " passed" in done.stdout


def test_output_and_exit_code_are_the_commands() -> None:
    done = run("--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout) == (7, "out\n")
    first, last = done.stderr.splitlines()
    assert first == "err"
    assert last.startswith("dm-lab: image ")


def test_machine_that_ends_is_explained() -> None:
    done = run("--", "sh", "-c", "echo c >/proc/sysrq-trigger")
    assert done.returncode == 125
    assert "dm-lab: the machine dm-lab has ended by itself; the end of its console:\n" in done.stderr
    assert "Kernel panic - not syncing: sysrq triggered crash" in done.stderr


def test_time_limit() -> None:
    began = time.monotonic()
    done = run("--timeout", "45", "--", "sh", "-c", "echo started; sleep 100")
    assert (done.returncode, done.stdout) == (124, "started\n")
    assert "dm-lab: the machine was ended after 45 s, its time limit (--timeout)" in done.stderr
    assert time.monotonic() - began < 120


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)],
    ids=["INT", "TERM", "KILL"],
)
def test_killed_lab_leaves_no_process(number: signal.Signals, code: int) -> None:
    with subprocess.Popen(
        [*TOGETHER, LAB, "--", "sh", "-c", "echo started; sleep 100"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as lab:
        assert lab.stdout is not None
        assert lab.stdout.readline() == b"started\n"
        children = list_below(lab.pid)
        assert any(is_qemu(pid) for pid in children)
        lab.send_signal(number)
        assert lab.wait(60) == code
    wait_until(lambda: not any(is_alive(pid) for pid in children), "QEMU and virtiofsd are gone")


def test_shell_needs_a_terminal() -> None:
    done = run()
    assert (done.returncode, done.stdout) == (125, "")
    assert "dm-lab: a shell needs a terminal" in done.stderr


def test_shell_on_a_terminal() -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(LAB, [LAB])  # noqa: S606
    try:
        expect(terminal, "dm-lab:")
        os.write(terminal, b"test -c /dev/mapper/control && echo $((6 * 7))-$PWD; exit\n")
        expect(terminal, f"42-{ROOT}")
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
    finally:
        os.close(terminal)


def expect(terminal: int, text: str) -> None:
    """Read from the terminal until it shows `text`."""
    seen = b""
    deadline = time.monotonic() + BUILD_SECONDS
    while text.encode() not in seen:
        assert select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0], seen
        seen += os.read(terminal, 4096)
    print(seen.decode(errors="replace"), file=sys.stderr)
