"""Saving a QEMU, and going on from there in another one. All of it blocks.

The memory is a file that both have (xml/memory.py), so that only the rest of the machine is written and read, some
hundred KB: QEMU's capability `x-ignore-shared` (QEMU, docs/devel/migration.rst). libvirt has no call for that, so QEMU
is asked by its own protocol, through libvirt.
"""

import hashlib
import json
import os
import time
from typing import TYPE_CHECKING, Any

from crannog.adapters.libvirt import failures
from crannog.core.domain import MemoryFiles
from crannog.errors import HypervisorError

if TYPE_CHECKING:
    import libvirt

_PATIENCE = 30.0
"""Seconds that QEMU has for a state of some hundred KB; it takes milliseconds."""
_PAUSE = 0.003
_STATE = "crannog-state"
"""How the descriptor is called in QEMU (its command getfd)."""


def machine_key(emulator: str, xml: str) -> str:
    """Return what a saved machine depends on: the QEMU that has written it, the host's processor, and its devices."""
    try:
        facts = os.stat(os.path.realpath(emulator))
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            processor = file.read().partition("\n\n")[0]
    except OSError:
        return ""
    # The processor's speed is among it, and changes all the time.
    lines = [line for line in processor.splitlines() if not line.startswith(("cpu MHz", "bogomips"))]
    parts = [emulator, str(facts.st_size), str(facts.st_mtime_ns), os.uname().release, *lines, xml]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def save(domain: "libvirt.virDomain", files: MemoryFiles) -> None:
    """Write the state of a paused domain to a new file. Raises HypervisorError."""
    _set_capabilities(domain)
    descriptor = os.open(files.state, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        _move(domain, descriptor, "migrate", "saved")
        os.fsync(descriptor)
    except OSError as error:
        raise HypervisorError(f"{domain.name()} cannot be saved in {files.state}: {error.strerror}") from error
    finally:
        os.close(descriptor)


def load(domain: "libvirt.virDomain", files: MemoryFiles) -> None:
    """Read the state of the saved machine into a new domain. Raises HypervisorError."""
    _set_capabilities(domain)
    try:
        descriptor = os.open(files.state, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise HypervisorError(f"{files.state} cannot be read: {error.strerror}") from error
    try:
        _move(domain, descriptor, "migrate-incoming", "restored")
    finally:
        os.close(descriptor)


def _set_capabilities(domain: "libvirt.virDomain") -> None:
    wanted = [{"capability": "x-ignore-shared", "state": True}]
    _command(domain, "migrate-set-capabilities", capabilities=wanted)


def _move(domain: "libvirt.virDomain", descriptor: int, command: str, done: str) -> None:
    """Hand QEMU a copy of a descriptor, have it write or read the state there, and wait until that is done."""
    _command(domain, "getfd", descriptor, fdname=_STATE)
    _command(domain, command, uri=f"fd:{_STATE}")
    _wait(domain, done)


def _command(domain: "libvirt.virDomain", name: str, *descriptors: int, **arguments: object) -> dict[str, Any]:
    """Return what QEMU answers; raises HypervisorError with its reason."""
    import libvirt
    import libvirt_qemu

    text = json.dumps({"execute": name, **({"arguments": arguments} if arguments else {})})
    try:
        if descriptors:
            answer, *_ = libvirt_qemu.qemuMonitorCommandWithFiles(domain, text, list(descriptors), 0)
        else:
            answer = libvirt_qemu.qemuMonitorCommand(domain, text, 0)
    except libvirt.libvirtError as error:
        raise failures.call_failure(f"QEMU's command {name}", error) from error
    said = json.loads(answer)
    if "error" in said:
        raise HypervisorError(f"QEMU refused {name}: {said['error'].get('desc', 'no reason')}")
    result: dict[str, Any] = said["return"]
    return result


def _wait(domain: "libvirt.virDomain", what: str) -> None:
    """Return when QEMU has written or read all; raises HypervisorError when it cannot, or takes too long."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        found = _command(domain, "query-migrate")
        if found.get("status") == "completed":
            return
        if found.get("status") in ("failed", "cancelled"):
            reason = found.get("error-desc", "QEMU says no more than that it failed")
            raise HypervisorError(f"{domain.name()} was not {what}: {reason}")
        time.sleep(_PAUSE)
    raise HypervisorError(f"{domain.name()} was not {what} within {_PATIENCE:.0f} s")
