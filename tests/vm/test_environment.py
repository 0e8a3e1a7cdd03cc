"""What a start leaves behind in the process that starts VMs: nothing. And what outlives that process."""

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog.client.rpc import read_status
from tests.vm.home import Home, wait_until

pytestmark = pytest.mark.vm

RECORDER = """#!/bin/sh
cat /proc/$$/environ >"$0.$$.seen"
exec {program} "$@"
"""


class Recorder:
    """A program that crannogd runs when it makes a layer, and that keeps what environment it was given."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        script = folder / "qemu-img"
        script.write_text(RECORDER.format(program=shutil.which("qemu-img")))
        script.chmod(0o755)

    def take(self) -> set[bytes]:
        """Return the environments seen since the last time."""
        found = set()
        for path in self.folder.glob("*.seen"):
            found.add(path.read_bytes())
            path.unlink()
        return found


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    return Recorder(tmp_path_factory.mktemp("bin"))


@pytest.fixture(scope="module")
def home(recorder: Recorder) -> Iterator[Home]:
    home = Home()
    home.env["PATH"] = f"{recorder.folder}:{home.env['PATH']}"
    home.ok("crannog", "template", "build", "debian-12")
    home.ok("qvm-create", "--class", "StandaloneVM", "--property", "virt_mode=hvm", "bare")
    home.ok("qvm-create", "--template", "debian-12", "work")
    yield home
    home.close()


def agent(home: Home, vm: str) -> object:
    return read_status(f"{home.path}/run/rpc-{vm}.sock", 10)["agent"]


def environment(process: int) -> bytes:
    return Path(f"/proc/{process}/environ").read_bytes()


@pytest.mark.parametrize("how", [(), ("--no-wait",)], ids=["no feature", "asked not to wait"])
def test_a_vm_without_tools_then_one_with(home: Home, recorder: Recorder, how: tuple[str, ...]) -> None:
    """B8: the second start waits for its session, and no child finds anything of the first one."""
    daemon = home.daemon()
    home.ok("qvm-start", "--no-wait", "work")
    home.ok("qvm-kill", "work")
    before, seen = environment(daemon), recorder.take()
    assert len(seen) == 1, "the recorder was run, and always with the same environment"
    home.ok("qvm-start", *how, "bare")
    assert agent(home, "bare") != "ready", "it has none, and nobody waited for it"
    home.ok("qvm-start", "work")
    assert agent(home, "work") == "ready", "the start ended when the agent had answered, and not before"
    assert recorder.take() == seen
    assert home.daemon() == daemon
    assert environment(daemon) == before
    assert home.ok("qvm-run", "work", "echo here") == "here\n"
    home.ok("qvm-kill", "bare")
    home.ok("qvm-shutdown", "--wait", "work")


def test_what_is_killed_takes_nothing_with_it(home: Home) -> None:
    """The parent of the RPC processes, then crannogd: VMs go on, and the next starts find all in order."""
    home.ok("qvm-start", "work")
    process, first = home.rpc_process("work"), home.nursery()
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{first}").exists(), "it is buried")
    home.ok("qvm-start", "bare")
    second = home.nursery()
    assert second not in (0, first)
    other = home.rpc_process("bare")
    home.kill_daemon()
    wait_until(lambda: not Path(f"/proc/{second}").exists(), "the parent ended by itself, and is buried")
    assert home.ok("qvm-run", "work", "echo here") == "here\n"
    assert [home.state(vm) for vm in ("work", "bare")] == ["Running", "Running"]
    assert (home.rpc_process("work"), home.rpc_process("bare")) == (process, other)
    assert home.nursery() == 0, "both are adopted, and none was started"
    home.ok("qvm-kill", "bare")
    home.ok("qvm-start", "bare")
    assert home.nursery()
    home.ok("qvm-kill", "bare", "work")
    wait_until(lambda: not any(map(_exists, (process, other))), "they are buried")


def test_nothing_is_left_when_crannogd_ends(home: Home) -> None:
    home.ok("qvm-start", "bare")
    parent, process = home.nursery(), home.rpc_process("bare")
    home.ok("crannog", "daemon", "stop")
    wait_until(lambda: not _exists(parent), "the parent is gone")
    assert home.state("bare") == "Running"
    assert home.rpc_process("bare") == process
    home.ok("qvm-kill", "bare")


def _exists(process: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}").exists()
    return False
