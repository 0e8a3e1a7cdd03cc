"""libvirt's messages, as recorded from libvirt 9.0 and QEMU 7.2, and what is made of them."""

from pathlib import Path

import libvirt
import pytest

from crannog.adapters.libvirt.failures import (
    call_failure,
    find_cause,
    find_last_words,
    find_remedy,
    is_absent,
    open_failure,
    start_failure,
)
from crannog.errors import HypervisorError, InUseError

CLOSED = "internal error: qemu unexpectedly closed the monitor: "
STAMP = "2026-01-23T14:39:41.045716Z qemu-system-x86_64: "


class RecordedError(libvirt.libvirtError):  # type: ignore[misc]
    def __init__(self, message: str, code: int = 1, domain: int = libvirt.VIR_FROM_QEMU) -> None:
        super().__init__(message)
        self.err = (code, domain, message, 2, "", "", "", -1, -1)

    def __str__(self) -> str:
        return str(self.err[2])


CAUSES = {
    CLOSED + STAMP + "cannot set up guest memory 'pc.ram': Cannot allocate memory": (
        "cannot set up guest memory 'pc.ram': Cannot allocate memory",
        "give the VM less",
    ),
    CLOSED + "qemu: could not open kernel file '/k': No such file or directory": (
        "could not open kernel file '/k': No such file or directory",
        "install the kernel",
    ),
    CLOSED + "qemu: error reading initrd /i: Failed to open file": (
        "error reading initrd /i: Failed to open file",
        "rebuild the initramfs",
    ),
    CLOSED + STAMP + '-blockdev {"node-name":"a","file":"b: c"}: Image is not in qcow2 format': (
        "Image is not in qcow2 format",
        "restore the volume",
    ),
    "internal error: process exited while connecting to monitor: "
    + STAMP
    + "warning: host doesn't support requested feature\n"
    + STAMP
    + "-accel kvm: failed to initialize kvm: Permission denied": (
        "failed to initialize kvm: Permission denied",
        "accel = 'tcg'",
    ),
    "Cannot access storage file '/r' (as uid:0, gid:0): No such file or directory": (
        "Cannot access storage file '/r' (as uid:0, gid:0): No such file or directory",
        "restore the missing file",
    ),
    "operation failed: domain 'work' already exists with uuid 1": (
        "domain 'work' already exists with uuid 1",
        "end it where it was started",
    ),
}


@pytest.mark.parametrize("message", CAUSES)
def test_the_cause_and_the_next_step_are_found(message: str) -> None:
    cause, remedy = CAUSES[message]
    assert find_cause(message) == cause
    assert remedy in find_remedy(cause)


def test_a_start_that_failed_is_one_sentence_with_the_log() -> None:
    message = CLOSED + STAMP + "something new"
    error = start_failure("work", RecordedError(message), "/log/work.log")
    assert str(error) == "work could not be started: something new: read QEMU's log /log/work.log"


def test_a_libvirtd_that_goes_away_during_a_start_is_said_so() -> None:
    message = "End of file while reading data: Input/output error"
    lost = RecordedError(message, libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_FROM_RPC)
    told = "work could not be started: libvirtd went away meanwhile: start it again"
    assert str(start_failure("work", lost, "/log")) == told
    assert message in str(start_failure("work", RecordedError(message, libvirt.VIR_ERR_SYSTEM_ERROR), "/log"))


def test_qemu_log_is_not_named_when_qemu_never_ran() -> None:
    error = start_failure("a/b", RecordedError("XML error: name a/b cannot contain '/'"), "/log/a/b.log")
    assert str(error) == "a/b could not be started: name a/b cannot contain '/'"


def test_a_long_message_is_cut() -> None:
    assert len(find_cause("x" * 5000)) == 400
    assert find_cause("") == "no reason was given"


@pytest.mark.parametrize(
    ("message", "code", "is_gone"),
    [
        ("Domain not found: no domain with matching uuid", libvirt.VIR_ERR_NO_DOMAIN, True),
        ("Requested operation is not valid: domain is not running", libvirt.VIR_ERR_OPERATION_INVALID, True),
        ("Requested operation is not valid: no graphics", libvirt.VIR_ERR_OPERATION_INVALID, False),
        ("internal error: x", libvirt.VIR_ERR_INTERNAL_ERROR, False),
    ],
)
def test_a_domain_that_is_gone_is_recognised(message: str, code: int, is_gone: bool) -> None:
    assert is_absent(RecordedError(message, code)) is is_gone


def test_the_owner_of_a_used_folder_is_named() -> None:
    message = "Failed to acquire pid file '/h/vmm/run/qemu/driver.pid': Resource temporarily unavailable"
    error = open_failure("qemu:///embed?root=/h/vmm", RecordedError(message), "process 12 (crannogd)")
    assert isinstance(error, InUseError)
    assert "already in use by process 12 (crannogd)" in str(error)


def test_a_missing_account_is_explained() -> None:
    error = open_failure("u", RecordedError("invalid argument: Failed to parse user 'libvirt-qemu'"), "")
    assert isinstance(error, HypervisorError)
    assert "needs its account 'libvirt-qemu'" in str(error)


def test_a_second_folder_in_one_process_is_explained() -> None:
    message = "internal error: Cannot open embedded driver at path '/b', already open with path '/a'"
    assert "use another process" in str(open_failure("u", RecordedError(message), ""))


def test_other_calls_name_what_was_asked() -> None:
    assert str(call_failure("resuming x", RecordedError("internal error: no"))) == "resuming x failed: no"


def test_qemus_last_words_are_found_in_its_log(tmp_path: Path) -> None:
    log = tmp_path / "vm.log"
    started = "2026-01-01 00:00:00.000+0000: starting up libvirt version: 9\nLC_ALL=C \\\n/bin/qemu \\\n-msg on\n"
    log.write_text(started)
    assert find_last_words(str(log)) == ""
    spoken = (
        "2026-01-01T00:00:01.0Z qemu-system-x86_64: warning: odd\n2026-01-01T00:00:01.1Z qemu-system-x86_64: no luck\n"
    )
    log.write_text(started + spoken + "2026-01-01 00:00:01.200+0000: shutting down, reason=failed\n")
    assert find_last_words(str(log)) == "no luck"
    assert find_last_words(str(tmp_path / "absent")) == ""
