"""What fuzzing and hostile guests have found, once each, as small as it is."""

import logging
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from crannog.core.announcement import AgentState, AgentStatus
from crannog.daemon.log_file import BoundedLog
from crannog.guest.qfile import is_inner_link
from crannog.rpc import endpoints, errand_start, frames, local
from crannog.rpc.allowance import Allowance
from crannog.rpc.channel import GuestChannel
from crannog.rpc.frames import encode_frame
from crannog.rpc.local import LocalClient
from tests.unit.rpc_world import wait_until
from tests.unit.test_rpc_channel import synced

HELLO = encode_frame(0, frames.HELLO, frames.NUMBER.pack(3))


def full_channel() -> GuestChannel:
    """Return a channel whose guest DB is as full as a guest can make it."""
    channel = synced(GuestChannel("vm1", lambda _line: None))
    for number in range(128):
        channel.receive(encode_frame(0, frames.GUESTDB_WRITE, b"/qubes-tools/%d\0" % number + bytes(3072)))
    channel.out.clear()
    return channel


def test_hello_after_hello_tells_the_guest_db_once() -> None:
    """16 bytes were answered with 400 KB each time: 6 GB for one read of the channel."""
    channel = full_channel()
    channel.receive(HELLO)
    told = len(channel.out)
    assert told > 128 * 3072
    channel.receive(HELLO * 1000)
    assert len(channel.out) == told


def test_the_guest_db_is_told_again_after_a_new_synchronisation() -> None:
    channel = full_channel()
    channel.tree.db.write("/name", b"work")
    channel.receive(HELLO + bytes(20))
    synced(channel, b"guest-02")
    channel.out.clear()
    channel.receive(HELLO)
    assert encode_frame(0, frames.GUESTDB_WRITE, b"/name\0work") in channel.out


def test_lines_of_the_log_are_short(capsys: pytest.CaptureFixture[str]) -> None:
    """500 lines with names of 65,000 bytes were 32 MB."""
    log = endpoints.make_log("vm1")
    for _ in range(600):
        log("x" * 65000)
    text = capsys.readouterr().err
    assert len(text) < 500 * (endpoints.LOG_LINE_MAX + 50)
    assert text.endswith("further lines are left out\n")


@pytest.mark.parametrize("target", [b".", b"./", b"././."])
def test_a_copied_link_does_not_lead_to_the_folder_of_all_copies(target: bytes) -> None:
    """Whoever opened such a link was among what had come before from the same VM."""
    assert not is_inner_link([b"link"], target)
    assert is_inner_link([b"folder", b"link"], target)
    assert is_inner_link([b"link"], target + b"/file")


CALLS = """
import os, sys
from crannog.errors import NotFoundError
from crannog.rpc.errand_start import start_errand

def run(tell, log):
    for number in range(500):
        log("there is no service " + "x" * 65000)
    return 0

log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for number in range(12):
    errand = start_errand(run, log)
    os.waitid(os.P_PIDFD, errand.pidfd, os.WEXITED)
"""


def test_calls_without_end_do_not_fill_the_log(tmp_path: Path) -> None:
    """Each call that failed left a line, as long as its service's name, and there can be 50 calls a second."""
    log = tmp_path / "log"
    subprocess.run([sys.executable, "-c", CALLS, str(log)], check=True, timeout=60)
    size = log.stat().st_size
    assert errand_start.LOG_MAX <= size < errand_start.LOG_MAX + 2 * errand_start.LOG_LINE_MAX


def test_the_daemons_log_is_bounded(tmp_path: Path) -> None:
    """A guest could ask for features 50 times a second, with a line each time."""
    path = tmp_path / "crannogd.log"
    handler = BoundedLog(str(path), most=10_000)
    for number in range(1000):
        handler.emit(logging.makeLogRecord({"msg": "work: line %d \udce4", "args": (number,)}))
    handler.close()
    sizes = [path.stat().st_size, (tmp_path / "crannogd.log.1").stat().st_size]
    assert all(size < 10_100 for size in sizes)
    assert "line 999" in path.read_text()
    assert len(os.listdir(tmp_path)) == 2


def test_complaints_of_services_do_not_fill_the_disk(tmp_path: Path) -> None:
    """The log was bounded when a service began, and not while it went on: 1.2 GB in a minute."""
    path = str(tmp_path / "services.log")
    for _ in range(40):
        endpoints.keep_complaints(path, b"x" * 65536)
    assert os.stat(path).st_size == endpoints.COMPLAINTS_MAX
    endpoints.keep_complaints(f"{path}/nowhere", b"x")


def test_a_call_is_ended_before_its_service_has_begun() -> None:
    """A signal that came while the child was still Python was lost in its parent's handler."""
    handler = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        errand = errand_start.start_errand(lambda _tell, _log: wait_for_ever())
        os.kill(errand.pid, signal.SIGTERM)
        wait_until(lambda: os.waitid(os.P_PIDFD, errand.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None)
        found = os.waitid(os.P_PIDFD, errand.pidfd, os.WEXITED)
        assert found is not None
        assert (found.si_code, found.si_status) == (os.CLD_EXITED, errand_start.TROUBLE)
        for fd in errand.fds():
            os.close(fd)
    finally:
        signal.signal(signal.SIGTERM, handler)


def wait_for_ever() -> int:
    while True:
        signal.pause()


def test_a_follower_is_told_few_changes_and_the_last_one() -> None:
    """A guest announced another system thousands of times a second, and the daemon saved each."""
    ours, theirs = socket.socketpair()
    channel = GuestChannel("vm1", lambda _line: None)
    client = LocalClient(theirs, channel, "DEFAULT")
    with ours:
        ours.sendall(frames.encode_message(frames.HELLO, frames.NUMBER.pack(3)))
        ours.sendall(frames.encode_message(frames.STATUS_FOLLOW))
        client.serve(select.POLLIN)
        for number in range(1001):
            channel.status = AgentStatus(AgentState.READY if number % 2 else AgentState.WAITING)
            client.show_status(channel.status)
        channel.status = AgentStatus(AgentState.READY)
        assert client._out.count(b'"agent"') <= local.STATUS_BURST + 1
        client._changes = Allowance()
        client.advance(client.deadline or 0)
        assert client._out.endswith(AgentStatus(AgentState.READY).encode())
        assert client.deadline is None
        client.close()
