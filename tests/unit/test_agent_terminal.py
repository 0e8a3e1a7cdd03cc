"""The agent on a terminal, as Xen's consoles are for a guest, and its end of XenStore."""

import errno
import os
import pty
import select
import subprocess
import termios
import threading
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog.errors import ProtocolError
from crannog.guest import agent as agent_module
from crannog.guest.agent import XenStore, announce_in_xenstore, find_console
from crannog.rpc import frames
from crannog.rpc.frames import FrameParser, Marker
from tests.unit.agent_world import PYTHON, WAIT
from tests.xenstore_fake import Client, Store

GUEST = 5


class Terminal:
    """The host's end of a console, and an agent at the other."""

    def __init__(self) -> None:
        self.master, slave = pty.openpty()
        self.path = os.ttyname(slave)
        self.slave = slave
        self.parser = FrameParser()
        self.seen = bytearray()
        self.agents: list[subprocess.Popen[bytes]] = []

    def start(self) -> subprocess.Popen[bytes]:
        program = [PYTHON, "-I", agent_module.__file__, "--port", self.path, "--trigger-socket", "", "--database", ""]
        self.agents.append(subprocess.Popen(program, stderr=subprocess.DEVNULL, start_new_session=True))
        return self.agents[-1]

    def send(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.master, data) :]

    def read(self) -> bytes:
        assert select.select([self.master], [], [], WAIT)[0], "the agent says nothing"
        data = os.read(self.master, 65536)
        self.seen += data
        return data

    def next_marker(self, kind: bytes) -> Marker:
        while True:
            while marker := self.parser.next_marker():
                if marker.kind == kind:
                    return marker
            self.parser.feed(self.read())

    def synchronise(self) -> None:
        """Answer the agent as the host does."""
        request = self.next_marker(b"R")
        self.send(frames.encode_marker(Marker(b"S", request.guest_nonce, b"the-host")))
        while (marker := self.next_marker(b"A")).guest_nonce != request.guest_nonce:
            pass
        assert marker.host_nonce == b"the-host"
        self.parser.accept_marker()
        while self.next_frame().type != frames.TRIGGER:
            pass

    def next_frame(self) -> frames.Frame:
        while (frame := self.parser.next_frame()) is None:
            self.parser.feed(self.read())
        return frame

    def run(self, command: bytes, stdin: bytes = b"") -> tuple[bytes, int]:
        """Run a command; return its output and exit code. The largest frame must be one of a terminal's."""
        self.send(frames.encode_frame(1, frames.EXEC_CMDLINE, b"DEFAULT:" + command + b"\0"))
        for part in (stdin, b""):
            self.send(frames.encode_frame(1, frames.DATA_STDIN, part))
        output = b""
        while (frame := self.next_frame()).type != frames.DATA_EXIT_CODE:
            assert len(frame.body) <= agent_module.TERMINAL_BODY_MAX
            if frame.type == frames.DATA_STDOUT and frame.body:
                output += frame.body
                credit = frames.NUMBER.pack(len(frame.body) + frames.HEADER.size)
                self.send(frames.encode_frame(1, frames.CREDIT, credit))
        return output, frames.NUMBER.unpack(frame.body)[0]

    def close(self) -> None:
        for agent in self.agents:
            agent.kill()
            agent.wait(WAIT)
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()


def test_all_bytes_pass_both_ways(terminal: Terminal) -> None:
    terminal.start()
    terminal.synchronise()
    every = bytes(range(256)) * 8
    assert terminal.run(b"cat", every) == (every, 0)
    # With what the host says of bulk data the frames stay as small as the terminal wants them.
    terminal.send(frames.encode_frame(0, frames.HELLO, frames.NUMBER.pack(frames.PROTOCOL_VERSION)))
    output, code = terminal.run(b"head -c 600000 /dev/zero")
    assert (output == bytes(600000), code) == (True, 0)


def test_what_the_host_sent_before_the_agent_came_is_not_taken_for_an_answer(terminal: Terminal) -> None:
    stale = frames.encode_marker(Marker(b"S", b"an-older", b"the-host"))
    terminal.send(frames.SHORT_PADDING[:1000] + stale + b"\x03\x04\x11\x13\x16 lines\r\n\n" + stale)
    terminal.start()
    terminal.synchronise()
    assert terminal.run(b"echo \xc3\xa4") == (b"\xc3\xa4\n", 0)


def test_the_echo_of_what_the_host_sends_before_the_terminal_is_raw_is_no_frame_to_it(terminal: Terminal) -> None:
    terminal.start()
    terminal.synchronise()
    terminal.agents[0].kill()
    terminal.agents[0].wait(WAIT)
    termios.tcsetattr(terminal.slave, termios.TCSANOW, cooked())
    parser = FrameParser()
    parser.is_hunting = False
    sent = frames.encode_frame(7, frames.DATA_STDIN, b"some input") + frames.encode_frame(0, frames.POWEROFF)
    terminal.send(sent)
    parser.feed(terminal.read())
    with pytest.raises(ProtocolError):
        parser.next_frame()
    assert parser.is_hunting
    terminal.parser = FrameParser()
    terminal.start()
    terminal.synchronise()
    assert terminal.run(b"echo here") == (b"here\n", 0)


def cooked() -> list[int | list[bytes | int]]:
    """Return the modes of a console that nobody has set."""
    master, slave = pty.openpty()
    modes = termios.tcgetattr(slave)
    assert modes[3] & termios.ECHO
    os.close(master)
    os.close(slave)
    return modes


def test_an_agent_that_died_within_a_frame_is_followed_by_one_that_is_heard(terminal: Terminal) -> None:
    terminal.start()
    terminal.synchronise()
    terminal.send(frames.encode_frame(3, frames.EXEC_CMDLINE, b"DEFAULT:cat /dev/zero\0"))
    while terminal.next_frame().type != frames.DATA_STDOUT:
        pass
    terminal.agents[0].kill()
    terminal.agents[0].wait(WAIT)
    terminal.start()
    # The host believes what it reads until it loses step, and then asks for markers.
    with pytest.raises(ProtocolError):
        list(iter(terminal.next_frame, None))
    terminal.synchronise()
    assert terminal.run(b"echo here") == (b"here\n", 0)


def test_a_host_in_the_middle_of_a_long_frame_is_padded_out_of_it(terminal: Terminal) -> None:
    terminal.start()
    parser = FrameParser()
    parser.is_hunting = False
    parser.feed(frames.HEADER.pack(0, frames.TRIGGER_SERVICE4, frames.BODY_MAX))
    terminal.parser = parser
    with pytest.raises(ProtocolError):
        list(iter(terminal.next_frame, None))
    assert len(terminal.seen) >= frames.BODY_MAX
    terminal.synchronise()


def test_a_host_that_restarts_is_answered(terminal: Terminal) -> None:
    terminal.start()
    terminal.synchronise()
    terminal.send(frames.encode_frame(0, frames.CREDIT, frames.NUMBER.pack(1))[:7])  # it dies here
    terminal.parser = FrameParser()
    terminal.send(frames.SHORT_PADDING)
    terminal.synchronise()
    assert terminal.run(b"echo here") == (b"here\n", 0)


def test_a_terminal_that_hangs_up_is_opened_again(terminal: Terminal, tmp_path: Path) -> None:
    first, slave = pty.openpty()
    link = tmp_path / "hvc1"
    link.symlink_to(os.ttyname(slave))
    path, terminal.path = terminal.path, str(link)
    terminal.start()
    assert select.select([first], [], [], WAIT)[0]
    os.close(slave)
    os.close(first)  # all reads at the other end say from now on that it has ended
    link.unlink()
    link.symlink_to(path)
    terminal.synchronise()


# -- XenStore


class Bus:
    """A guest's /dev/xen/xenbus: a terminal without any rules, with a store at its other end."""

    def __init__(self, store: Store) -> None:
        master, self.slave = pty.openpty()
        tty.setraw(self.slave)
        self.path = os.ttyname(self.slave)
        self.client = Client(store, master, GUEST)
        self.thread = threading.Thread(target=self.client.serve, daemon=True)
        self.thread.start()


@pytest.fixture
def store() -> Store:
    store = Store()
    store.add_domain(GUEST)
    return store


@pytest.fixture
def bus(store: Store) -> Iterator[Bus]:
    bus = Bus(store)
    yield bus
    os.close(bus.slave)
    bus.thread.join(WAIT)


def add_console(store: Store, number: int, name: str = "") -> None:
    folder = f"/local/domain/{GUEST}/device/console/{number}"
    store.write(0, f"{folder}/state", b"4")
    if name:
        store.write(0, f"{folder}/name", name.encode())


def test_the_console_is_found_by_its_name(store: Store, bus: Bus) -> None:
    with XenStore(bus.path) as xenstore:
        with pytest.raises(FileNotFoundError):
            find_console(xenstore)
        add_console(store, 0)
        add_console(store, 1, "com.example.other")
        with pytest.raises(FileNotFoundError):
            find_console(xenstore)
        add_console(store, 2, "org.crannog.agent.0")
        assert find_console(xenstore) == "/dev/hvc2"


def test_a_guest_announces_itself_where_its_host_wants_that(store: Store, bus: Bus) -> None:
    folder = f"/local/domain/{GUEST}"
    announce_in_xenstore({"os": "Linux", "version": "1"}, bus.path)
    assert f"{folder}/qubes-tools" not in store.values, "a host that made no room does not want to know"
    store.write(0, f"{folder}/qubes-tools", b"")
    store.permissions[f"{folder}/qubes-tools"] = ["n0", f"b{GUEST}"]
    announce_in_xenstore({"os": "Linux", "version": "1"}, bus.path)
    assert (store.values[f"{folder}/qubes-tools/os"], store.values[f"{folder}/qubes-tools/version"]) == (b"Linux", b"1")


def test_a_guest_that_may_not_announce_itself_says_so_and_goes_on(
    store: Store, bus: Bus, capfd: pytest.CaptureFixture[str]
) -> None:
    store.write(0, f"/local/domain/{GUEST}/qubes-tools", b"")
    announce_in_xenstore({"os": "Linux"}, bus.path)
    assert "cannot announce the guest in XenStore: [Errno 13]" in capfd.readouterr().err


def test_refusals_are_errors_of_the_system(store: Store, bus: Bus) -> None:
    store.permissions[f"/local/domain/{GUEST}"] = ["n0"]
    with XenStore(bus.path) as xenstore, pytest.raises(PermissionError) as caught:
        xenstore.read("device")
    assert caught.value.errno == errno.EACCES


def test_without_xen_nothing_is_announced(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    announce_in_xenstore({"os": "Linux"}, str(tmp_path / "nothing"))
    assert capfd.readouterr().err == ""


def test_a_guest_without_the_channel_does_not_ask_xenstore_all_the_time(
    store: Store, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("crannog.guest.agent.time.sleep", pauses.append)
    monkeypatch.setattr("crannog.guest.agent.XENBUS", bus.path)
    monkeypatch.setattr(XenStore.__init__, "__defaults__", (bus.path,))
    port = agent_module.Port("", is_socket=False)
    monkeypatch.setattr("crannog.guest.agent.find_port", lambda: (_ for _ in ()).throw(FileNotFoundError(2, "none")))
    assert not port.open()
    assert pauses == [agent_module.ASK_AGAIN]
    assert store.clients, "it has asked"
