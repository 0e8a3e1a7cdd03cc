"""Hostile guests: only their own RPC process suffers, within bounds, and it works again afterwards (docs/qrexec.md).

The RPC processes are real, so are the other VM's agent and its calls; the hostile guest is this test.
"""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog.client.rpc import read_status
from crannog.config import Paths
from crannog.rpc import frames
from crannog.rpc.endpoints import COMPLAINTS_MAX
from crannog.rpc.frames import encode_frame as encode
from crannog.rpc.guest_calls import CALLS_MAX
from tests.fakes import short_folder
from tests.unit.guest_peer import SECONDS, policy_stand_in
from tests.unit.hostile_floods import FLOODS, trigger, write
from tests.unit.hostile_world import HostileGuest, OtherVM, bounded, count_descriptors
from tests.unit.rpc_world import wait_until
from tests.unit.test_rpc_guest_calls import install

pytestmark = pytest.mark.timeout(120)

QUIET = 8
"""Megabytes that a guest may cost whose calls hold nothing: one read, a frame, answers, its part of the guest DB, and
5 MB of modules that the first call needs."""
WINDOWS = 2 * CALLS_MAX * frames.WINDOW / 2**20
"""Megabytes of full windows, both ways, of as many calls as a guest can have."""
LOG_MAX = 400_000
PIECES = 20
"""How much of a flood there is at least."""


@pytest.fixture
def guest() -> Iterator[HostileGuest]:
    """Return the guest, whose policy allows what is not called `denied`."""
    with short_folder() as home, policy_stand_in(home):
        (home / "log").mkdir()
        guest = HostileGuest(home)
        guest.start()
        try:
            yield guest
        finally:
            guest.close()


@pytest.fixture
def other() -> Iterator[OtherVM]:
    with short_folder() as folder:
        world = OtherVM(folder)
        world.start_all()
        yield world
        world.close()


def connect(guest: HostileGuest, service: str) -> int:
    """Call a service until it is not refused for there having been too many calls; return the stream."""
    deadline = time.monotonic() + SECONDS
    while True:
        guest.trigger(service)
        frame = guest.next_frame()
        if frame.type == frames.SERVICE_CONNECT:
            return frame.stream
        assert frame.type == frames.SERVICE_REFUSED, frame
        assert time.monotonic() < deadline, guest.log.read_text()
        time.sleep(0.05)


def expect_health(guest: HostileGuest) -> None:
    """Expect that the guest's process serves again, has no children left, and has logged little."""
    guest.recover()
    install(guest, "test.Health", "cat")
    stream = connect(guest, "test.Health")
    guest.send(stream, frames.DATA_STDIN, b"well")
    guest.send(stream, frames.DATA_STDIN)
    assert guest.outcome(stream) == (b"well", b"", 0)
    guest.wait_for_no_children()
    assert guest.log.stat().st_size < LOG_MAX
    assert "Traceback" not in guest.log.read_text()


@pytest.mark.parametrize("name", FLOODS)
def test_floods(guest: HostileGuest, other: OtherVM, name: str) -> None:
    """Whatever comes without end: the process stays small, another VM's calls come out right, and it heals."""
    flood = FLOODS[name]
    with bounded(guest.process.pid, QUIET), guest.flood(flood.piece, flood.reads):
        other.works(guest)
        while flood.reads and guest.pieces < PIECES:
            other.works(guest, 1)
    expect_health(guest)


def test_triggers_without_end_that_are_allowed(guest: HostileGuest, other: OtherVM) -> None:
    """Each is a process of the host, 128 at once."""
    install(guest, "test.Sleep", "exec sleep 60")
    with bounded(guest.process.pid, QUIET), guest.flood(lambda number: trigger(b"test.Sleep+%d" % number), reads=True):
        other.works(guest)
        wait_until(lambda: len(guest.children()) == CALLS_MAX)
        other.works(guest)
    assert guest.most_children >= CALLS_MAX
    expect_health(guest)


def test_services_of_65_000_bytes_that_are_allowed(guest: HostileGuest, other: OtherVM) -> None:
    """Each of them ends with 127, as there are none, and logs little of its name."""
    pattern = trigger(b"test.None+" + b"y" * 64_980)
    with bounded(guest.process.pid, QUIET), guest.flood(lambda _: pattern, reads=True):
        other.works(guest)
    expect_health(guest)


def connected(guest: HostileGuest, service: str, count: int) -> list[int]:
    """Call a service so many times at once; return the streams."""
    streams: list[int] = []
    for _ in range(count):
        guest.trigger(service, ident=b"SOCKET1")
    while len(streams) < count:
        frame = guest.next_frame()
        assert frame.type != frames.SERVICE_REFUSED
        streams += [frame.stream] if frame.type == frames.SERVICE_CONNECT else []
    return streams


def test_idents_that_are_used_again_while_they_are_alive(guest: HostileGuest) -> None:
    """The host knows calls by streams of its own: each has its own data, whatever the guest calls them."""
    install(guest, "test.Echo", "cat")
    streams = connected(guest, "test.Echo", 20)
    assert len(set(streams)) == 20
    for stream in streams:
        guest.send(stream, frames.DATA_STDIN, b"%d" % stream)
        guest.send(stream, frames.DATA_STDIN)
    output: dict[int, bytes] = dict.fromkeys(streams, b"")
    ends = 0
    while ends < 20:
        frame = guest.next_frame()
        output[frame.stream] += frame.body if frame.type == frames.DATA_STDOUT else b""
        ends += frame.type == frames.DATA_EXIT_CODE
    assert output == {stream: b"%d" % stream for stream in streams}
    guest.wait_for_no_children()


def test_input_that_no_service_reads(guest: HostileGuest, other: OtherVM) -> None:
    """The most a guest can have kept for it: a full window for each of its calls. What is more ends the call."""
    install(guest, "test.Deaf", "exec sleep 60")
    with bounded(guest.process.pid, WINDOWS):
        streams = connected(guest, "test.Deaf", CALLS_MAX)
        for stream in streams:
            for _ in range(3):
                guest.send(stream, frames.DATA_STDIN, bytes(65536))
        other.works(guest, 3)
        assert len(guest.children()) == CALLS_MAX
        more = b"".join(encode(stream, frames.DATA_STDIN, bytes(65536)) * 2 for stream in streams)
        with guest.flood(lambda _: more, reads=True):
            while guest.pieces < 3:
                other.works(guest, 1)
        guest.wait_for_no_children()
    expect_health(guest)


@pytest.mark.parametrize("stream", ["1", "2"])
def test_output_that_the_guest_never_reads(guest: HostileGuest, other: OtherVM, stream: str) -> None:
    """Services that say more than is taken, while the guest claims to take everything, wait themselves."""
    install(guest, "test.Loud", f"exec cat /dev/zero >&{stream}")
    with bounded(guest.process.pid, WINDOWS):
        for number in range(CALLS_MAX):
            guest.trigger("test.Loud", ident=b"SOCKET%d" % number)
        with guest.flood(lambda number: encode(number % 200, frames.CREDIT, b"\xff" * 4) * 500):
            other.works(guest)
    expect_health(guest)
    log = guest.home / "log" / "services.log"
    assert not log.exists() or log.stat().st_size <= COMPLAINTS_MAX


class Client:
    """A program of this host that runs a command in the guest, and does what it likes with the data."""

    def __init__(self, guest: HostileGuest) -> None:
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.connect(guest.listen_path)
        self.connection.settimeout(60)
        self.connection.sendall(frames.encode_message(frames.HELLO, frames.NUMBER.pack(3)))
        self.connection.sendall(frames.encode_message(frames.EXEC_CMDLINE, frames.EXEC_PARAMS + b"user:x\0"))
        frame = guest.next_frame()
        assert (frame.type, frame.body) == (frames.EXEC_CMDLINE, b"user:x\0")
        self.stream = frame.stream

    def read(self, count: int) -> None:
        """Read so many bytes of what is said."""
        while count:
            count -= len(self.connection.recv(count))


@pytest.mark.parametrize("kind", [frames.DATA_STDOUT, frames.DATA_STDERR], ids=["stdout", "stderr"])
def test_output_without_end_that_the_caller_does_not_read(guest: HostileGuest, other: OtherVM, kind: int) -> None:
    """More than a window ends that call; its caller gets a sentence once it reads."""
    client = Client(guest)
    with client.connection, bounded(guest.process.pid, QUIET):
        with guest.flood(lambda _: encode(client.stream, kind, b"z" * 65536), reads=True):
            other.works(guest)
        heard = b""
        while data := client.connection.recv(1 << 20):
            heard += data
        assert b"sent more than the window of the stream allows" in heard
        assert heard.endswith(frames.encode_message(frames.DATA_EXIT_CODE, frames.NUMBER.pack(125)))
    expect_health(guest)


def widen(guest: HostileGuest, client: Client) -> int:
    """Send as much output, which the caller reads, as makes a window wide; return the credit that is left."""
    used = 0
    while used < frames.WIDE_AFTER + frames.WINDOW:
        while guest.credit(client.stream) < used + frames.HEADER.size + 65536:
            guest.next_frame(with_credit=True)
        guest.send(client.stream, frames.DATA_STDOUT, bytes(65536))
        used += frames.HEADER.size + 65536
        client.read(frames.LOCAL_HEADER.size + 65536)
    return guest.credit(client.stream) - used


def test_callers_with_wide_windows_that_read_no_more(guest: HostileGuest, other: OtherVM) -> None:
    """Few streams have a wide window, and what is more than that ends their calls too."""
    guest.send(0, frames.HELLO, frames.NUMBER.pack(frames.BULK_VERSION))
    assert [guest.next_frame().type for _ in range(2)] == [frames.HELLO, frames.GUESTDB_READY]
    clients = [Client(guest) for _ in range(frames.WIDE_STREAMS + 4)]
    left = [widen(guest, client) for client in clients]
    assert sum(credit > frames.WINDOW for credit in left) == frames.WIDE_STREAMS
    more = b"".join(encode(client.stream, frames.DATA_STDOUT, bytes(65536)) for client in clients)
    wide = frames.WIDE_STREAMS * frames.WIDE_WINDOW + 4 * frames.WINDOW
    with bounded(guest.process.pid, QUIET + wide / 2**20):
        with guest.flood(lambda _: more, reads=True):
            while guest.pieces < PIECES:
                other.works(guest, 1)
        for client in clients:
            client.connection.close()
    expect_health(guest)


def test_a_guest_that_neither_reads_nor_answers(guest: HostileGuest, other: OtherVM) -> None:
    """Input for its commands waits with those who have it."""
    clients = [Client(guest) for _ in range(10)]
    data = frames.encode_message(frames.DATA_STDIN, bytes(65536))
    with bounded(guest.process.pid, QUIET):
        for client in clients:
            client.connection.settimeout(0.2)
            with pytest.raises(TimeoutError):
                client.connection.sendall(data * 100)
        other.works(guest)
        assert read_status(guest.listen_path, 10)["agent"] == "ready"
    descriptors = count_descriptors(guest.process.pid)
    for client in clients:
        client.connection.close()
    wait_until(lambda: count_descriptors(guest.process.pid) <= descriptors - len(clients))
    expect_health(guest)


def test_followers_are_told_a_few_changes_a_second(guest: HostileGuest) -> None:
    """The daemon saves what is announced: a guest must not have it do so all the time."""
    with socket.socket(socket.AF_UNIX) as follower:
        follower.connect(guest.listen_path)
        follower.settimeout(2.5)
        follower.sendall(frames.encode_message(frames.HELLO, frames.NUMBER.pack(3)))
        follower.sendall(frames.encode_message(frames.STATUS_FOLLOW))
        for name, value in {b"version": b"1", b"qrexec": b"1", b"gui": b"0"}.items():
            guest.connection.sendall(write(b"/qubes-tools/" + name, value))
        for number in range(3000):
            guest.connection.sendall(write(b"/qubes-tools/os", b"system-%d" % number))
            guest.send(0, frames.TRIGGER, b"qubes.NotifyTools")
        heard = b""
        while b'"os": "system-2999"' not in heard:
            heard += follower.recv(1 << 16)
        assert heard.count(b'"agent"') <= 30, "the last is told, few of those before"
    expect_health(guest)


def test_the_process_that_was_flooded_ends_with_its_guest(guest: HostileGuest) -> None:
    """It removes its sockets; nothing of it or its children is left."""
    install(guest, "test.Sleep", "exec sleep 60")
    connected(guest, "test.Sleep", 50)
    with guest.flood(lambda number: trigger(b"denied+%d" % number) * 200):
        pass
    guest.connection.close()
    assert guest.process.wait(60) == 0
    assert not Path(guest.listen_path).exists()


def test_what_was_asked_for_before_the_agent_was_lost_is_not_answered_after_it(guest: HostileGuest) -> None:
    """The next agent counts its calls from the beginning: an old answer would connect another program to a service."""
    install(guest, "test.New", "echo new")
    policy, hidden = Path(Paths(str(guest.home)).policy_socket), guest.home / "policy.sock"
    policy.rename(hidden)
    with socket.socket(socket.AF_UNIX) as undecided:
        undecided.bind(str(policy))
        undecided.listen()
        guest.trigger("test.Old", ident=b"SOCKET1")
        connection, _ = undecided.accept()
        with connection:
            guest.recover()
            guest.wait_for_no_children()
    hidden.rename(policy)
    guest.trigger("test.New", ident=b"SOCKET1")
    assert guest.outcome(guest.connected(b"SOCKET1")) == (b"new\n", b"", 0)
