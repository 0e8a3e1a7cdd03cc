"""The folder in which libvirt's in-process QEMU driver lives (`qemu:///embed?root=DIR`), and what it is told there.

Facts about that driver (libvirt, drvqemu page, "Embedded driver"): one process at a time may open a folder, a process
can open only one folder in its life, and a QEMU outlives both; the next process that opens the same path finds it.
"""

import contextlib
import functools
import glob
import logging
import os
import shutil
import subprocess
import tempfile
from urllib.parse import quote

from crannog.adapters.libvirt.unborn import discard_unborn, end_probes
from crannog.errors import HypervisorError
from crannog.shortpath import provide_short_path, short_path

log = logging.getLogger(__name__)

URI = "qemu:///embed"

_CAPABILITIES = "cache/qemu/capabilities"

_MANDATORY_ACCESS = ("/sys/module/apparmor/parameters/enabled", "/sys/fs/selinux/enforce")


def _is_root() -> bool:
    return os.geteuid() == 0


def _has_mandatory_access_control() -> bool:
    for path in _MANDATORY_ACCESS:
        with contextlib.suppress(OSError), open(path, encoding="ascii") as file:
            if file.read(1) in {"Y", "1"}:
                return True
    return False


@functools.cache
def _can_mount() -> bool:
    """Try what libvirt does to give QEMU a /dev of its own: many containers forbid it, in a chroot it cannot work."""
    command = ["unshare", "--mount", "--propagation", "slave", "true"]
    try:
        return subprocess.run(command, capture_output=True, timeout=5, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def isolation_gaps() -> list[str]:
    """Return, one sentence each, what keeps a guest that broke out of QEMU from being held back on this host."""
    gaps = []
    if _is_root():
        gaps.append("QEMU runs as root: run crannogd as an ordinary user where the host allows it")
    if not _has_mandatory_access_control():
        gaps.append("neither AppArmor nor SELinux confines QEMU: enable one of them in the host's kernel")
    if not (_is_root() and _can_mount()):
        gaps.append("QEMU sees the host's whole /dev: only root can give it another one, where mounts are permitted")
    gaps.append("QEMU's use of devices, memory and CPU is not limited by control groups")
    return gaps


def _configuration() -> str:
    """Return qemu.conf (its settings: libvirt's own commented qemu.conf)."""
    lines = [
        # Else libvirt wants the daemon virtlogd for every log file.
        'stdio_handler = "file"',
        # libvirt would ask QEMU for each of some 500 CPU properties by itself, 0.3 s of every start. Without this
        # capability it asks for all in one call.
        'capability_filters = [ "cpu-unavailable-features" ]',
    ]
    if _is_root():
        lines += [
            'user = "+0"',
            'group = "+0"',
            "dynamic_ownership = 0",
            "remember_owner = 0",
            "cgroup_controllers = []",
        ]
        if not _has_mandatory_access_control():
            lines.append('security_driver = "none"')
        if not _can_mount():
            lines.append("namespaces = []")
    return "\n".join(lines) + "\n"


def _write_if_changed(path: str, text: str) -> None:
    with contextlib.suppress(OSError), open(path, encoding="utf-8") as file:
        if file.read() == text:
            return
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


class EmbeddedRoot:
    """The folder `home`/vmm, made ready for the driver.

    `cache` is shared between homes: what libvirt finds out about a QEMU takes seconds and depends on the host alone.
    """

    is_shared = False
    is_embedded = True

    def __init__(self, home: str, cache: str) -> None:
        self._home = home
        self.uri = URI
        self._folder = os.path.join(home, "vmm")
        self._shared = os.path.join(cache, "libvirt/capabilities")
        self.path = short_path(home) + "/vmm"

    def prepare(self) -> str:
        """Make the folder ready and return the URI that opens it.

        Raises HypervisorError when it cannot be made, StorageError when its path is too long for sockets.
        """
        try:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            provide_short_path(self._home)
            for name in ("etc", "log", _CAPABILITIES):
                os.makedirs(os.path.join(self._folder, name), exist_ok=True)
            _write_if_changed(self._folder + "/etc/qemu.conf", _configuration())
            _copy_missing(self._shared, os.path.join(self._folder, _CAPABILITIES))
            for name in discard_unborn(self._folder, self.path):
                log.warning("%s: its start was cut short, what was left of it is gone", name)
        except OSError as error:
            raise HypervisorError(f"{self._folder} cannot be made ready for libvirt: {error.strerror}") from error
        return f"{URI}?root={quote(self.path)}"

    def share_capabilities(self) -> None:
        """Keep what libvirt found out about QEMU for the next home. libvirt itself throws away what is out of date."""
        # The copy saves time and nothing else, so that failing to make it is no error.
        with contextlib.suppress(OSError):
            os.makedirs(self._shared, exist_ok=True)
            _copy_missing(os.path.join(self._folder, _CAPABILITIES), self._shared, is_refresh=True)

    def leave(self) -> None:
        """End what libvirt has begun beside the domains, and cannot end any more as this process ends. Blocks."""
        end_probes(f"{glob.escape(self._folder)}/lib/qemu", self.path)

    def owner(self) -> str:
        """Return who holds the folder now ("process 12 (crannogd)"), or an empty text when that is unknown."""
        try:
            with open(self._folder + "/run/qemu/driver.pid", encoding="ascii") as file:
                pid = int(file.read())
            with open(f"/proc/{pid}/comm", encoding="utf-8") as file:
                return f"process {pid} ({file.read().strip()})"
        except (OSError, ValueError):
            return ""

    def log(self, name: str) -> str:
        """Return the file in which QEMU's own words about the domain `name` are."""
        return f"{self._folder}/log/qemu/{name}.log"

    def runs_as(self) -> str:
        """Return nothing: qemu.conf says it."""
        return ""

    def pid_file(self, name: str) -> str:
        """Return the file that holds the process number of the domain `name`'s QEMU."""
        return f"{self._folder}/run/qemu/{name}.pid"


def _is_older(path: str, than: str) -> bool:
    return os.stat(path).st_mtime_ns < os.stat(than).st_mtime_ns


def _copy_missing(source: str, target: str, *, is_refresh: bool = False) -> None:
    if not os.path.isdir(source):
        return
    for name in os.listdir(source):
        old, new = os.path.join(source, name), os.path.join(target, name)
        if not name.endswith(".xml") or (os.path.exists(new) and not (is_refresh and _is_older(new, old))):
            continue
        handle, temporary = tempfile.mkstemp(dir=target, prefix=".copy-")
        os.close(handle)
        shutil.copy2(old, temporary)
        os.replace(temporary, new)
