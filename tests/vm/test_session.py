"""A session of tools, as a user has one, with the events of every step on the wire (Admin API, section 9)."""

import os
import signal
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.vm.home import Home, wait_until

pytestmark = pytest.mark.vm

START = [
    "domain-pre-start",
    "domain-pre-spawn",
    "domain-spawn",
    "domain-pre-unpaused",
    "domain-unpaused",
    "domain-start",
]
END = ["domain-stopped", "domain-shutdown"]


class Follower:
    """A client that follows all events, with nothing of ours but the path of the socket."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._socket.sendall(b"admin.Events+ dom0 name dom0\0")
        self._socket.shutdown(socket.SHUT_WR)
        self._data = b""
        self._taken = 0
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        wait_until(lambda: self._data == b"1\0\0connection-established\0\0", "the stream is there")
        self._taken = 1

    def _read(self) -> None:
        while chunk := self._socket.recv(4096):
            self._data += chunk

    def all(self) -> list[tuple[str, str, dict[str, str]]]:
        """Return subject, name and arguments of all events so far."""
        found = []
        words = iter(self._data.split(b"\0"))
        while next(words, b"") == b"1":
            subject, name, arguments = next(words).decode(), next(words).decode(), {}
            while key := next(words):
                arguments[key.decode()] = next(words).decode()
            found.append((subject, name, arguments))
        return found

    def take(self, *wanted: str, of: str) -> list[dict[str, str]]:
        """Expect exactly these events, all of one subject, to be the next ones; return their arguments."""
        wait_until(lambda: len(self.all()) >= self._taken + len(wanted), f"{wanted} come, after {self.all()[-8:]}")
        new = self.all()[self._taken : self._taken + len(wanted)]
        assert [(subject, name) for subject, name, _ in new] == [(of, name) for name in wanted]
        self._taken += len(wanted)
        return [arguments for _, _, arguments in new]

    def skip(self, last: str) -> list[str]:
        """Wait for an event; return the names of those that came up to it."""
        wait_until(lambda: last in [name for _, name, _ in self.all()[self._taken :]], f"{last} comes")
        names = [name for _, name, _ in self.all()[self._taken :]]
        self._taken += len(names)
        return names

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()


@pytest.fixture
def events(shared_home: Home) -> Iterator[Follower]:
    shared_home.ok("qvm-ls")
    follower = Follower(f"{shared_home.path}/run/crannogd.sock")
    yield follower
    follower.close()


def test_a_session(shared_home: Home, events: Follower) -> None:
    home = shared_home
    home.ok("qvm-create", "--template", "debian-12", "--label", "green", "sess")
    names = events.skip("domain-create-on-disk")
    assert names[0] == "domain-add"
    assert "domain-tag-add:created-by-dom0" in names

    home.ok("qvm-prefs", "sess", "memory", "300")
    (before, after) = events.take("property-pre-set:memory", "property-set:memory", of="sess")
    assert before == after == {"name": "memory", "newvalue": "300", "oldvalue": "400"}

    home.ok("qvm-clone", "sess", "sess-copy")
    assert events.skip("domain-create-on-disk")[0] == "domain-add"

    home.ok("qvm-start", "--wait", "sess")
    guids = [arguments.get("start_guid") for _, _, arguments in events.all() if "start_guid" in arguments]
    started = events.skip("domain-start")
    assert [name for name in started if not name.startswith(("domain-feature", "property"))] == START
    assert len(set(guids)) == 1

    assert home.ok("qvm-run", "sess", "echo out").strip() == "out"
    home.ok("qvm-features", "sess", "colour", "blue")
    (_, told) = events.take("domain-feature-pre-set:colour", "domain-feature-set:colour", of="sess")
    assert told == {"feature": "colour", "value": "blue"}

    home.ok("qvm-pause", "sess")
    events.take("domain-pre-paused", "domain-paused", of="sess")
    assert home.state("sess") == "Paused"
    home.ok("qvm-unpause", "sess")
    events.take("domain-pre-unpaused", "domain-unpaused", of="sess")

    lines = home.ok("qvm-volume", "info", "sess:private").splitlines()[:11]
    info = {key: value.strip() for key, _, value in (line.partition(" ") for line in lines)}
    assert (info["pool"], info["size"], info["save_on_stop"]) == ("vm-pool", str(2 << 30), "True")

    home.ok("qvm-shutdown", "--wait", "sess")
    (asked, *_) = events.take("domain-pre-shutdown", *END, of="sess")
    assert asked == {"force": "False"}

    home.ok("qvm-remove", "--force", "sess", "sess-copy")
    for vm in ("sess", "sess-copy"):
        (about, _) = events.take("domain-pre-delete", "domain-delete", of="")
        assert about == {"vm": vm}
        events.take("domain-remove-from-disk", of=vm)


def test_a_vm_that_dies_by_itself_is_told_of(shared_home: Home, events: Follower, work: str) -> None:
    shared_home.ok("qvm-start", "--no-wait", work)
    events.skip("domain-start")
    os.kill(shared_home.qemu(work), signal.SIGKILL)
    assert [name for name in events.skip("domain-shutdown") if name.startswith("domain-s")] == END
    assert shared_home.state(work) == "Halted"


def test_a_start_that_fails_is_told_of(shared_home: Home, events: Follower, work: str) -> None:
    shared_home.ok("qvm-prefs", work, "memory", "64")
    events.skip("property-set:memory")
    shared_home.ok("qvm-prefs", work, "qrexec_timeout", "1")
    events.skip("property-set:qrexec_timeout")
    done = shared_home.run("qvm-start", "--wait", work)
    assert done.returncode in (6, 7)
    names = events.skip("domain-start-failed")
    assert names[0] == "domain-pre-start"
    assert "domain-start" not in names
    assert shared_home.state(work) == "Halted"


def words_of(event: bytes) -> dict[bytes, bytes]:
    """Return the keys and values of an event that is whole, and followed by whatever."""
    words = event.partition(b"\0\0")[0].split(b"\0")
    return dict(zip(words[::2], words[1::2], strict=True))


def test_statistics_of_a_running_vm(shared_home: Home, work: str) -> None:
    shared_home.ok("qvm-start", "--no-wait", work)
    shared_home.ok("qubes-prefs", "stats_interval", "1")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(f"{shared_home.path}/run/crannogd.sock")
        client.sendall(b"admin.vm.Stats+ dom0 name dom0\0")
        client.shutdown(socket.SHUT_WR)
        begin, data = f"1\0{work}\0vm-stats\0".encode(), b""
        while data.count(begin) < 4:
            data += client.recv(4096)
    told = [words_of(each) for each in data.split(begin)[1:4]]
    assert all(int(pairs[b"memory_kb"]) > 100000 for pairs in told)
    assert told[0][b"cpu_usage"] == b"0"
    assert any(0 < int(pairs[b"cpu_usage"]) <= 100 for pairs in told), "it boots, which is work"
    assert told[2][b"online_vcpus"].isdigit()
    shared_home.ok("qubes-prefs", "--default", "stats_interval")


def test_a_paused_vm_stays_paused_when_the_daemon_is_killed(shared_home: Home, work: str) -> None:
    shared_home.ok("qvm-start", "--no-wait", work)
    shared_home.ok("qvm-pause", work)
    shared_home.kill_daemon()
    assert shared_home.state(work) == "Paused"
    shared_home.ok("qvm-unpause", work)
    assert shared_home.state(work) == "Running"
