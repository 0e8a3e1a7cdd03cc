"""A fresh VM, one command in it, and it is gone: with one command of ours, and with debvm, which Debian has for that.

The guests differ: debvm's is what debvm-create makes, Debian with systemd, a network and sshd, run with -snapshot; ours
is a template of the same release, with as much memory and as many processors, and commands reach it over a channel.
That is what each has people do, and much of the difference. Multipass and Vagrant do the same with images that come
from elsewhere, and are not measured. Each clock runs until the command's output is there; how the VM goes is not in it.
"""

import contextlib
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator

from benchmarks.disposables import DVM, RESTORED, Bench, make_templates
from benchmarks.harness import Row, own_home, take_turns, tool
from benchpage.machine import find_accelerator

RELEASE = "bookworm"
TARGET = 1.0
BOOT_TIMEOUT, END_TIMEOUT = 300, 30
WORDS = ("echo", "here")
_MEMORY = 1024
"""MiB, as debvm-run gives."""
_SSH = (
    *("ssh", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"),
    *("-o", "LogLevel=ERROR", "-o", "ConnectTimeout=2"),
)


class Debvm:
    """An image that debvm-create has made in a folder, and the VM that runs of it."""

    def __init__(self, folder: str) -> None:
        self._image, self._key, self._log = f"{folder}/image", f"{folder}/key", f"{folder}/log"
        # By emulation, as ours, with what debvm-run takes for that: KVM that can be opened need not work.
        self._options = [] if find_accelerator() == "kvm" else ["-machine", "accel=tcg", "-cpu", "qemu64"]

    def create(self) -> None:
        """Make the image. Raises RuntimeError with what debvm-create has said."""
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self._key], check=True)
        words = ["debvm-create", "--release", RELEASE, "--sshkey", f"{self._key}.pub", "--output", self._image]
        with open(self._log, "wb") as log:
            code = subprocess.run(words, check=False, stdin=subprocess.DEVNULL, stdout=log, stderr=log).returncode
        if code:
            raise RuntimeError(f"debvm-create ended with {code}: {self._tail()}")

    def use(self) -> float:
        """Run a VM whose changes are forgotten, and a command in it; return the seconds until that has written."""
        began = time.perf_counter()
        with self._running() as port:
            command = [*_SSH, "-i", self._key, "-p", str(port), "root@127.0.0.1", *WORDS]
            while _output_of(command) != b"here\n":
                if time.perf_counter() - began > BOOT_TIMEOUT:
                    raise RuntimeError(f"debvm's VM does not answer: {self._tail()}")
                time.sleep(0.1)
            return time.perf_counter() - began

    @contextlib.contextmanager
    def _running(self) -> Iterator[int]:
        """Run the VM; yield the port of this host that leads to its sshd."""
        port = _find_port()
        words = ["debvm-run", "--image", self._image, "--sshport", str(port), "--", "-snapshot", *self._options]
        none = subprocess.DEVNULL
        with open(self._log, "wb") as log:
            vm = subprocess.Popen(words, stdin=none, stdout=log, stderr=log, start_new_session=True)
        try:
            yield port
        finally:
            os.killpg(vm.pid, 15)
            vm.wait(END_TIMEOUT)

    def _tail(self) -> str:
        with open(self._log, errors="replace") as log:
            return log.read()[-2000:]


def _output_of(command: list[str]) -> bytes:
    return subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True).stdout


def _find_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def use_ours(bench: Bench, template: str) -> float:
    """Have a disposable run the command, and return the seconds until that has written."""
    bench.idle()
    began = time.perf_counter()
    command = [tool("qvm-run"), "--pass-io", "--no-gui", f"--dispvm={template}", "--", *WORDS]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout  # noqa: S101 - it is a pipe
        said = process.stdout.read(5)
        seconds = time.perf_counter() - began
    if said != b"here\n" or process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode} and wrote {said!r}")
    return seconds


def measure(runs: int) -> list[Row]:
    """Return all rows."""
    with own_home() as home, tempfile.TemporaryDirectory(prefix="crannog-bench-") as folder:
        debvm = Debvm(folder)
        debvm.create()
        make_templates(memory=_MEMORY, maxmem=0, vcpus=os.cpu_count())
        bench = Bench(home)
        bench.save()
        cold, restored, theirs = take_turns(
            runs, lambda: use_ours(bench, DVM), lambda: use_ours(bench, RESTORED), debvm.use
        )
        their_name = "debvm-run -snapshot, and ssh until it answers"
        return [
            Row("qvm-run --dispvm, a cold one", cold, their_name, theirs, TARGET),
            Row("qvm-run --dispvm, a restored one", restored, their_name, theirs, TARGET),
        ]
