"""What libvirt's and QEMU's errors mean, as one sentence each."""

import re
from typing import TYPE_CHECKING

from crannog.errors import HypervisorError, InUseError

if TYPE_CHECKING:
    import libvirt

_NO_DOMAIN = 42
_OPERATION_INVALID = 55
"""VIR_ERR_NO_DOMAIN and VIR_ERR_OPERATION_INVALID (libvirt, virterror.h): absent, or gone a moment ago."""

_RPC, _NO_CONNECT, _INVALID_CONNECTION, _FROM_RPC, _FROM_STREAMS = 39, 5, 6, 7, 38
"""VIR_ERR_RPC, VIR_ERR_NO_CONNECT, VIR_ERR_INVALID_CONN, VIR_FROM_RPC, VIR_FROM_STREAMS (libvirt, virterror.h)."""
_BROKEN = re.compile(r"client socket is closed|End of file|Connection reset|Broken pipe|Cannot recv data")

_LIBVIRT_PREFIX = re.compile(
    r"^(?:(?:internal error|operation failed|XML error|unsupported configuration|invalid argument"
    r"|Requested operation is not valid|Domain not found|qemu unexpectedly closed the monitor"
    r"|process exited while connecting to monitor): )+"
)
_QEMU_PREFIX = re.compile(r"^(?:\d{4}-\d\d-\d\dT[\d:.]+Z )?(?:qemu-system-\S+|qemu-kvm|qemu): ")
_OPTION_PREFIX = re.compile(r"^-[a-z]+ (?:\{.*\}|[^\s{]\S*): ")
_LIBVIRT_NOTE = re.compile(r"^-|: (?:starting up|shutting down|Domain id)|\\$")
"""What libvirt itself writes to that log: when it starts and ends a QEMU, and the command line."""
_LOG_TAIL = 4096
_CAUSE_MAX = 400

_KNOWN_CAUSES = (
    (
        r"cannot set up guest memory",
        "this host has not that much free memory: give the VM less, or end another",
    ),
    (
        r"could not (?:open|load) kernel|could not load kernel '([^']*)'",
        "install the kernel that the VM names",
    ),
    (
        r"could not load initrd|reading initrd|initrd image .* failed",
        "rebuild the initramfs of the VM's kernel",
    ),
    (
        r"Image is not in .* format|not in qcow2 format",
        "the image is damaged or in another format: restore the volume",
    ),
    (r"Failed to get .*lock|is another process using", "another QEMU uses that image: end it first"),
    (
        r"failed to initialize kvm|Could not access KVM",
        "set accel = 'tcg', or give this user access to /dev/kvm",
    ),
    (
        r"No such file or directory|Cannot access storage file",
        "restore the missing file, then start the VM again",
    ),
    (
        r"already exists with uuid",
        "it is not this home's: end it where it was started, or give this VM another name",
    ),
    (r"already (?:exists|running|active|in use)", "end the domain of that name first"),
)


def is_absent(error: "libvirt.libvirtError") -> bool:
    """Return whether `error` says that the domain is not there (any more)."""
    code = error.get_error_code()
    return code == _NO_DOMAIN or (code == _OPERATION_INVALID and "not running" in str(error))


def is_lost(error: "libvirt.libvirtError") -> bool:
    """Return whether `error` says that libvirtd went away during the call (libvirt, virterror.h: VIR_ERR_RPC, ...)."""
    is_from_wire = error.get_error_domain() in (_FROM_RPC, _FROM_STREAMS)
    return error.get_error_code() in (_RPC, _NO_CONNECT, _INVALID_CONNECTION) or (
        is_from_wire and bool(_BROKEN.search(str(error)))
    )


def find_cause(message: str) -> str:
    """Return the line of libvirt's `message` that tells the cause, at most 400 characters.

    When QEMU dies, libvirt's message ends with all that QEMU wrote; its first line of its own is the cause, the
    rest follows from it.
    """
    lines = [line.strip() for line in _LIBVIRT_PREFIX.sub("", message.strip()).splitlines() if line.strip()]
    spoken = [line for line in lines if _QEMU_PREFIX.match(line) and "warning: " not in line]
    cause = (spoken or lines or ["no reason was given"])[0]
    return _OPTION_PREFIX.sub("", _QEMU_PREFIX.sub("", cause))[:_CAUSE_MAX].rstrip(".")


def find_last_words(log: str) -> str:
    """Return the last line in QEMU's log that is QEMU's, without its prefixes; nothing when there is none."""
    try:
        with open(log, encoding="utf-8", errors="replace") as file:
            lines = file.read()[-_LOG_TAIL:].splitlines()
    except OSError:
        return ""
    spoken = [line for line in lines if line.strip() and not _LIBVIRT_NOTE.search(line)]
    return find_cause(spoken[-1]) if spoken else ""


def find_remedy(cause: str) -> str:
    """Return the next step for a known `cause`, or an empty text."""
    for pattern, remedy in _KNOWN_CAUSES:
        if re.search(pattern, cause, re.IGNORECASE):
            return remedy
    return ""


def start_failure(name: str, error: "libvirt.libvirtError", log: str) -> HypervisorError:
    """Return the error for a domain that could not be created; `log` is QEMU's own log of it."""
    if is_lost(error):
        return HypervisorError(f"{name} could not be started: libvirtd went away meanwhile: start it again")
    cause = find_cause(str(error))
    has_died = "monitor socket" in cause
    if has_died:
        # QEMU was gone before libvirt could ask it why; its log still tells.
        cause = find_last_words(log) or cause
    remedy = find_remedy(cause)
    if has_died or "monitor: " in str(error):
        remedy = f"{remedy} (QEMU's log: {log})" if remedy else f"read QEMU's log {log}"
    return HypervisorError(f"{name} could not be started: {cause}" + (f": {remedy}" if remedy else ""))


def call_failure(what: str, error: "libvirt.libvirtError") -> HypervisorError:
    """Return the error for any other refused call; `what` names the domain and what was asked of it."""
    return HypervisorError(f"{what} failed: {find_cause(str(error))}")


def open_failure(uri: str, error: "libvirt.libvirtError", owner: str) -> HypervisorError | InUseError:
    """Return the error for a connection that could not be opened; `owner` is who uses that folder now, if known."""
    cause = find_cause(str(error))
    if "pid file" in cause and owner:
        return InUseError(f"the hypervisor of this home is already in use by {owner}: end that first ({uri})")
    if "Failed to parse user" in cause or "Failed to parse group" in cause:
        remedy = "libvirt needs its account 'libvirt-qemu' when run by root: install libvirt's QEMU driver completely"
        return HypervisorError(f"libvirt could not be opened: {cause}: {remedy} (Debian: libvirt-daemon-system)")
    if "already open with path" in cause:
        cause += ": one process drives one home only, so use another process"
    return HypervisorError(f"libvirt could not be opened ({uri}): {cause}")
