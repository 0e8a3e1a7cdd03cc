"""Libvirtds of the tests' own: one of the system in folders of its own, one of an ordinary user made for it."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

FOLDERS = {
    "etc": "/etc/libvirt",
    "run": "/run/libvirt",
    "lib": "/var/lib/libvirt",
    "log": "/var/log/libvirt",
    "cache": "/var/cache/libvirt",
}
# What a bare test machine has no parts for (docs/libvirt.md says what each weakens); and no virtlogd is needed.
QEMU_CONF = """stdio_handler = "file"
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
"""
SCRIPT = """for pair in $PAIRS; do mount --bind ${pair%%:*} ${pair##*:} || exit 9; done
exec libvirtd --pid-file $FOLDER/libvirtd.pid"""
SEARCH_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
# libvirt detaches QEMU, and waits until init has buried it when it ends. The init of a container may take seconds for
# that; this parent of libvirtd, which stays for as long as a QEMU is there, does it at once, as a host's init does.
REAPER = """import contextlib, ctypes, os, sys
PR_SET_CHILD_SUBREAPER = 36
ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
answer = os.dup(1)
os.dup2(2, 1)
os.write(answer, b"%d" % os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ))
os.close(answer)
with contextlib.suppress(ChildProcessError):
    while True:
        os.wait()
"""


class Libvirtd:
    """One libvirtd for qemu:///system. Its QEMU processes outlive it, as they do everywhere."""

    user = ""
    """Whom the tools that use it run as; empty: who runs the tests."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="cr-lv-", dir="/tmp")
        self._pid = 0
        self._reapers: list[subprocess.Popen[bytes]] = []
        self._prepare()

    def _prepare(self) -> None:
        """Make its folders and settings."""
        for name, place in FOLDERS.items():
            os.makedirs(os.path.join(self.folder, name))
            os.makedirs(place, exist_ok=True)
        with open(f"{self.folder}/etc/qemu.conf", "w") as file:
            file.write(QEMU_CONF)
        with open(f"{self.folder}/etc/libvirtd.conf", "w") as file:
            file.write('auth_unix_rw = "none"\n')

    @property
    def socket(self) -> str:
        """The socket at which it answers."""
        return f"{self.folder}/run/libvirt-sock"

    @property
    def uri(self) -> str:
        """The URI that reaches it from outside its namespace."""
        return f"qemu:///system?socket={self.socket}"

    @property
    def environment(self) -> dict[str, str]:
        """What the environment of the tools that use it has more."""
        return {}

    @property
    def status_folder(self) -> str:
        """The folder in which it keeps the status and the process numbers of its domains."""
        return f"{self.folder}/run/qemu"

    def _command(self) -> tuple[list[str], dict[str, str], dict[str, object]]:
        """Return its command line, what its environment has more, and whom it runs as."""
        pairs = " ".join(f"{self.folder}/{name}:{place}" for name, place in FOLDERS.items())
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", SCRIPT]
        return command, {"PAIRS": pairs, "FOLDER": self.folder}, {}

    def start(self) -> None:
        """Start it, and return when it answers."""
        command, variables, user = self._command()
        with open(f"{self.folder}/libvirtd.log", "ab") as log:
            reaper: subprocess.Popen[bytes] = subprocess.Popen(
                [sys.executable, "-c", REAPER, *command],
                env={**os.environ, **variables, "PATH": SEARCH_PATH},
                cwd="/",
                start_new_session=True,
                stdout=subprocess.PIPE,
                stderr=log,
                **user,
            )  # type: ignore[call-overload]
        self._reapers.append(reaper)
        assert reaper.stdout
        with reaper.stdout as answer:
            self._pid = int(answer.read())
        deadline = time.monotonic() + 60
        while not os.path.exists(self.socket):
            assert os.path.exists(f"/proc/{self._pid}"), self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End it, as hard as asked; its socket goes too, so that `start` can wait for the next one."""
        if self._pid:
            os.kill(self._pid, number)
            deadline = time.monotonic() + 60
            while os.path.exists(f"/proc/{self._pid}"):
                assert time.monotonic() < deadline, f"libvirtd does not end: {self.log()}"
                time.sleep(0.01)
            self._pid = 0
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.socket)

    def log(self) -> str:
        """Return what it said."""
        with open(f"{self.folder}/libvirtd.log", errors="replace") as file:
            return file.read()[-4000:]

    def close(self) -> None:
        """End it for good."""
        self.kill(signal.SIGTERM)
        for reaper in self._reapers:
            reaper.terminate()
            reaper.wait(30)
        shutil.rmtree(self.folder)


class SessionLibvirtd(Libvirtd):
    """One libvirtd for qemu:///session, of an ordinary user who is made for it and goes with it. Takes root."""

    def _prepare(self) -> None:
        self.user = f"cr-test-{os.getpid()}"
        command = ["useradd", "--system", "--no-create-home", "--home-dir", self.folder, "--shell", "/bin/sh"]
        subprocess.run([*command, self.user], check=True, timeout=30, capture_output=True)
        try:
            for name in ("config/libvirt", "run", "cache", "data"):
                os.makedirs(os.path.join(self.folder, name), mode=0o700)
            with open(f"{self.folder}/config/libvirt/qemu.conf", "w") as file:
                file.write('stdio_handler = "file"\n')
            self.give(self.folder)
        except BaseException:
            self._remove_user()
            raise

    def give(self, path: str) -> None:
        """Make the user the owner of a folder and all in it."""
        subprocess.run(["chown", "-R", f"{self.user}:", path], check=True, timeout=60)

    def _remove_user(self) -> None:
        subprocess.run(["userdel", self.user], check=True, timeout=30, capture_output=True)

    @property
    def socket(self) -> str:
        """The socket at which it answers."""
        return f"{self.folder}/run/libvirt/libvirt-sock"

    @property
    def uri(self) -> str:
        """The URI that reaches it, and keeps libvirt from starting another one in its place."""
        return f"qemu:///session?socket={self.socket}"

    @property
    def environment(self) -> dict[str, str]:
        """The folders of the user (XDG Base Directory Specification)."""
        return {
            "HOME": self.folder,
            "USER": self.user,
            "LOGNAME": self.user,
            "XDG_CONFIG_HOME": f"{self.folder}/config",
            "XDG_CACHE_HOME": f"{self.folder}/cache",
            "XDG_DATA_HOME": f"{self.folder}/data",
            "XDG_RUNTIME_DIR": f"{self.folder}/run",
        }

    @property
    def status_folder(self) -> str:
        """The folder in which it keeps the status and the process numbers of its domains."""
        return f"{self.folder}/run/libvirt/qemu/run"

    def _command(self) -> tuple[list[str], dict[str, str], dict[str, object]]:
        """Return its command line, what its environment has more, and whom it runs as."""
        return ["libvirtd"], self.environment, {"user": self.user, "group": self.user, "extra_groups": []}

    def close(self) -> None:
        """End it for good, and remove its user."""
        try:
            super().close()
        finally:
            self._remove_user()
