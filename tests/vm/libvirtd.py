"""A libvirtd of the tests' own: in a mount namespace in which every folder of libvirt is a temporary one."""

import contextlib
import os
import shutil
import signal
import subprocess
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


class Libvirtd:
    """One libvirtd for qemu:///system. Its QEMU processes outlive it, as they do everywhere."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="cr-lv-", dir="/tmp")
        for name, place in FOLDERS.items():
            os.makedirs(os.path.join(self.folder, name))
            os.makedirs(place, exist_ok=True)
        with open(f"{self.folder}/etc/qemu.conf", "w") as file:
            file.write(QEMU_CONF)
        with open(f"{self.folder}/etc/libvirtd.conf", "w") as file:
            file.write('auth_unix_rw = "none"\n')
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        """The URI that reaches it from outside its namespace."""
        return f"qemu:///system?socket={self.folder}/run/libvirt-sock"

    def start(self) -> None:
        """Start it, and return when it answers."""
        pairs = " ".join(f"{self.folder}/{name}:{place}" for name, place in FOLDERS.items())
        with open(f"{self.folder}/libvirtd.log", "ab") as log:
            self._process = subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private", "sh", "-c", SCRIPT],
                env={**os.environ, "PAIRS": pairs, "FOLDER": self.folder, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 60
        while not os.path.exists(f"{self.folder}/run/libvirt-sock"):
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End it, as hard as asked; its socket goes too, so that `start` can wait for the next one."""
        if self._process:
            self._process.send_signal(number)
            self._process.wait(30)
            self._process = None
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.folder}/run/libvirt-sock")

    def log(self) -> str:
        """Return what it said."""
        with open(f"{self.folder}/libvirtd.log", errors="replace") as file:
            return file.read()[-4000:]

    def close(self) -> None:
        """End it for good."""
        self.kill(signal.SIGTERM)
        shutil.rmtree(self.folder)
