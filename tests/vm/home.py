"""A home of its own for tests, driven through the tools as a user does."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from tests.processes import list_all, list_children, read_words
from tests.vm.libvirtd import Libvirtd

BIN = os.path.dirname(sys.executable)
TIMEOUT = 200


class Home:
    """One CRANNOG_HOME with its daemon and VMs: on libvirt's embedded driver, or on a libvirtd, as the user of that."""

    def __init__(self, path: str | None = None, libvirtd: Libvirtd | None = None) -> None:
        self.path = path or tempfile.mkdtemp(prefix="cr-test-")
        self.env = {**os.environ, "CRANNOG_HOME": self.path}
        for name in ("DISPLAY", "XAUTHORITY"):  # nothing pops up on the desktop of whoever runs the tests
            self.env.pop(name, None)
        self.status_folder = f"{self.path}/vmm/run/qemu"
        self._user: dict[str, object] = {}
        if libvirtd:
            self._use(libvirtd)

    def _use(self, libvirtd: Libvirtd) -> None:
        self.env |= libvirtd.environment
        self.status_folder = libvirtd.status_folder
        with open(f"{self.path}/crannog.toml", "w") as file:
            file.write(f'libvirt_uri = "{libvirtd.uri}"\n')
        if libvirtd.user:
            self._user = {"user": libvirtd.user, "group": libvirtd.user, "extra_groups": []}
            for path in (self.path, f"{self.path}/crannog.toml"):
                shutil.chown(path, libvirtd.user, libvirtd.user)

    def popen(self, *words: str, **options: object) -> "subprocess.Popen[bytes]":
        """Start a tool."""
        command = [os.path.join(BIN, words[0]), *words[1:]]
        return subprocess.Popen(command, env=self.env, **self._user, **options)  # type: ignore[call-overload,no-any-return]

    def run(self, *words: str, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
        """Run a tool to its end."""
        with self.popen(*words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as tool:
            try:
                output, complaint = tool.communicate(stdin, TIMEOUT)
            except BaseException:
                tool.kill()
                raise
        return subprocess.CompletedProcess(words, tool.returncode, output, complaint)

    def ok(self, *words: str, stdin: bytes = b"") -> str:
        """Run a tool that must succeed; return its output."""
        done = self.run(*words, stdin=stdin)
        assert done.returncode == 0, (words, done.returncode, done.stdout, done.stderr)
        return done.stdout.decode()

    def fails(self, code: int, *words: str) -> str:
        """Run a tool that must fail with `code` and one complaint; return the complaint."""
        done = self.run(*words)
        complaint = done.stderr.decode()
        assert done.returncode == code, (words, done.returncode, done.stdout, complaint)
        assert complaint.startswith(f"{words[0]}: "), complaint
        assert "Traceback" not in complaint
        return complaint

    def state(self, vm: str) -> str:
        """Return a VM's power state."""
        return self.ok("qvm-ls", "--raw-data", "--fields", "state", vm).strip()

    def daemon(self) -> int:
        """Return the daemon's process number, 0 when none runs."""
        words = self.ok("crannog", "daemon", "status").split()
        return int(words[-1].rstrip(")")) if "process" in words[-2] else 0

    def kill_daemon(self) -> None:
        """Kill the daemon as hard as possible."""
        pid = self.daemon()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.daemon(), "the daemon is gone")

    def qemu(self, vm: str) -> int:
        """Return the process number of a running VM's QEMU."""
        with open(f"{self.status_folder}/{vm}.pid") as file:
            return int(file.read())

    def processes(self) -> list[str]:
        """Return the command lines of all processes that mention this home, the daemon and tests excepted."""
        lines = {pid: " ".join(words) for pid, words in list_all().items()}
        return [line for pid, line in lines.items() if self.path in line and pid != os.getpid()]

    def rpc_process(self, vm: str) -> int:
        """Return the process number of a running VM's RPC process."""
        wanted = f"crannog.rpc.vm_process\0--name\0{vm}\0"
        for pid, words in list_all().items():
            line = "\0".join([*words, ""])
            if wanted in line and self.path in line:
                return pid
        raise AssertionError(f"{vm} has no RPC process")

    def nursery(self) -> int:
        """Return the process number of the parent of the daemon's RPC processes, 0 when it has started none."""
        children = list_children(self.daemon())
        return next((pid for pid in children if "crannog.rpc.nursery" in read_words(pid)), 0)

    def settles(self, files: set[str]) -> None:
        """Expect that soon no process of a VM is left, and just `files`, less those of a QEMU that was being asked."""
        files = {path for path in files if "/lib/qemu/qmp-" not in path}
        deadline = time.monotonic() + 60
        while self.processes() or self.files() != files:
            left = self.processes(), self.files() - files, files - self.files()
            assert time.monotonic() < deadline, f"processes, files and missing files that are left: {left}"
            time.sleep(0.05)

    def files(self) -> set[str]:
        """Return the paths of all files that a VM's start can leave, relative to the home."""
        found = set()
        for folder in ("pools", "run", "vmm/run", "vmm/lib"):
            for parent, _, names in os.walk(os.path.join(self.path, folder)):
                found |= {os.path.relpath(os.path.join(parent, name), self.path) for name in names}
        return found

    def close(self) -> None:
        """End all VMs and the daemon, and delete the home; nothing may be left."""
        for vm in self.ok("qvm-ls", "--raw-data", "--fields", "name,state").splitlines():
            name, _, state = vm.partition("|")
            if state != "Halted" and name != "dom0":
                self.run("qvm-kill", name)
        self.ok("crannog", "daemon", "stop")
        wait_until(lambda: not self.processes(), f"no process is left: {self.processes()}")
        shutil.rmtree(self.path)


def wait_until(is_true: Callable[[], bool], what: str, timeout: float = 60) -> None:
    """Wait until something holds; fail with `what` when it does not."""
    deadline = time.monotonic() + timeout
    while not is_true():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.02)
