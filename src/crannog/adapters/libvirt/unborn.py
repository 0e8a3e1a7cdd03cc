"""Domains whose start was cut short by the end of the process that ran libvirt.

libvirt writes a status file before it has started QEMU, with process number 0. Should our process be killed right then,
the next one reads that file and has a domain that it neither takes up again nor can destroy: its start counts as going
on for ever. So such files, and a QEMU that came of such a start, are taken away before libvirt sees them.
"""

import contextlib
import fcntl
import glob
import os
import select
import shutil
import signal

from lxml import etree

_END_SECONDS = 5


def discard_unborn(root: str, root_alias: str) -> list[str]:
    """Take away what cut-short starts left below `root` and return the domains' names.

    `root_alias` is the path under which libvirt uses the folder. Nothing is touched while another process uses it.
    """
    with contextlib.suppress(FileNotFoundError), open(f"{root}/run/qemu/driver.pid", "rb+") as lock:
        try:
            # The lock by which libvirt keeps a folder for itself (virPidFileAcquire).
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return []
        return [
            name for path in glob.glob(f"{glob.escape(root)}/run/qemu/*.xml") if (name := _discard(path, root_alias))
        ]
    return []


def _discard(status: str, root_alias: str) -> str:
    """Discard the domain of a status file if it was never born; return its name then, else nothing."""
    try:
        element = etree.parse(status).getroot()
    except (OSError, etree.XMLSyntaxError):
        return ""
    name = element.findtext("domain/name", "")
    if element.tag != "domstatus" or element.get("pid") != "0" or os.path.basename(status) != name + ".xml":
        return ""
    _end_emulator(status.removesuffix(".xml") + ".pid", name, root_alias)
    monitor = element.find("monitor")
    if monitor is not None and monitor.get("path", "").startswith(root_alias + "/lib/qemu/domain-"):
        shutil.rmtree(os.path.dirname(monitor.get("path", "")), ignore_errors=True)
    os.unlink(status)
    return name


def _kill(pid: int) -> None:
    """Kill a process that may not be our child, and wait until it has ended."""
    process = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(process, signal.SIGKILL)
        select.select([process], [], [], _END_SECONDS)
    finally:
        os.close(process)


def _end_emulator(pid_file: str, name: str, root_alias: str) -> None:
    """End the QEMU that the file names, if it is one that serves this domain of this folder."""
    with contextlib.suppress(OSError, ValueError):
        with open(pid_file, encoding="ascii") as file:
            pid = int(file.read())
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
        is_ours = any(os.fsencode(f"{root_alias}/lib/qemu/domain-") in word for word in words)
        if is_ours and any(word.startswith(os.fsencode(f"guest={name},")) for word in words):
            _kill(pid)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(pid_file)
