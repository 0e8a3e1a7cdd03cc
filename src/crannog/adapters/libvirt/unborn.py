"""Domains whose start was cut short by the end of the process that ran libvirt.

libvirt writes a status file before it has started QEMU, with process number 0. Should our process be killed right then,
the next one reads that file and has a domain that it neither takes up again nor can destroy: its start counts as going
on for ever. A little earlier, files are there that no status file belongs to; a little later, libvirt would end the
domain itself, but only after half a minute of trying to speak with a QEMU that may be gone. So all of that, and a QEMU
that came of such a start, is taken away before libvirt looks. So is a QEMU that was just being asked what it can do.
"""

import contextlib
import fcntl
import glob
import os
import shutil

from lxml import etree

from crannog.hostprocesses import is_own, kill, list_processes, read_command


def discard_unborn(root: str, root_alias: str) -> set[str]:
    """Take away what cut-short starts left below `root` and return the names of their domains.

    `root_alias` is the path under which libvirt uses the folder. Nothing is touched while another process uses it.
    """
    with contextlib.suppress(FileNotFoundError), open(f"{root}/run/qemu/driver.pid", "rb+") as lock:
        try:
            # The lock by which libvirt keeps a folder for itself (virPidFileAcquire).
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return set()
        return _sweep(f"{glob.escape(root)}/run/qemu", f"{glob.escape(root)}/lib/qemu", root_alias)
    return set()


def _sweep(run: str, lib: str, root_alias: str) -> set[str]:
    born = {name: folder for path in glob.glob(f"{run}/*.xml") for name, folder in _read_born(path)}
    gone = set()
    for path in glob.glob(f"{run}/*.xml") + glob.glob(f"{run}/*.xml.new") + glob.glob(f"{run}/*.pid"):
        name = os.path.basename(path).removesuffix(".new").rpartition(".")[0]
        if name in born and path.endswith(".new"):
            os.unlink(path)  # a change that was just being written: the file beside it is whole
        if name in born or name == "driver":
            continue
        if path.endswith(".pid"):
            _end_emulator(path, name, root_alias)
        os.unlink(path)
        gone.add(name)
    if glob.glob(f"{lib}/qmp-*"):  # else all processes would be looked at in each of our starts
        end_probes(lib, root_alias)
    for folder in glob.glob(f"{lib}/domain-*"):
        if os.path.basename(folder) not in born.values():
            shutil.rmtree(folder, ignore_errors=True)
            gone.add(os.path.basename(folder).split("-", 2)[-1])
    return gone


def _read_born(status: str) -> list[tuple[str, str]]:
    """Return the name of the domain of a status file, and its folder's name, if its QEMU was started completely.

    A file that cannot be understood is left to libvirt: it counts as born.
    """
    name = os.path.basename(status).removesuffix(".xml")
    try:
        element = etree.parse(status).getroot()
    except (OSError, etree.XMLSyntaxError):
        return [(name, "")]
    if element.tag == "domstatus" and (element.get("pid") == "0" or element.get("reason") == "starting up"):
        return []
    monitor = element.find("monitor")
    path = "" if monitor is None else monitor.get("path", "")
    return [(name, os.path.basename(os.path.dirname(path)))]


def end_probes(lib: str, root_alias: str) -> None:
    """End the QEMUs that libvirt asks what they can do: nobody else would, once libvirt has gone. Blocks.

    They are found by their command lines, as one that has just begun has not yet written its number.
    """
    place = os.fsencode(f"{root_alias}/lib/qemu/qmp-")

    def is_probe(words: list[bytes]) -> bool:
        return any(place in word for word in words)

    for process in list_processes():
        if is_probe(read_command(process)) and is_own(process):
            kill(process, is_probe)
    for folder in glob.glob(f"{lib}/qmp-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _end_emulator(pid_file: str, name: str, root_alias: str) -> None:
    """End the QEMU that the file names, if it is one that serves this domain of this folder."""
    folder, guest = os.fsencode(f"{root_alias}/lib/qemu/domain-"), os.fsencode(f"guest={name},")

    def is_ours(words: list[bytes]) -> bool:
        return any(folder in word for word in words) and any(word.startswith(guest) for word in words)

    with contextlib.suppress(OSError, ValueError), open(pid_file, encoding="ascii") as file:
        kill(int(file.read()), is_ours)
