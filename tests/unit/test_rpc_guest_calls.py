"""Calls that a guest makes: real processes on the host, and a peer that plays the guest's end of the channel."""

import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog.config import Paths
from crannog.rpc import frames
from tests.processes import is_alive
from tests.unit.guest_peer import SECONDS, GuestPeer, guest_peer, policy_stand_in


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Path]:
    with policy_stand_in(tmp_path) as log:
        yield log


@pytest.fixture
def peer(tmp_path: Path, asked: Path) -> Iterator[GuestPeer]:
    del asked
    (tmp_path / "log").mkdir()
    with guest_peer(tmp_path) as peer:
        yield peer


def install(peer: GuestPeer, name: str, script: str) -> None:
    folder = peer.home / "qubes-rpc"
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(0o755)


def call(peer: GuestPeer, service: str, data: bytes = b"", target: str = "dom0") -> tuple[bytes, bytes, int]:
    peer.trigger(service, target)
    stream = peer.connected()
    if data:
        peer.send(stream, frames.DATA_STDIN, data)
    peer.send(stream, frames.DATA_STDIN)
    return peer.outcome(stream)


def test_a_service_of_the_host(peer: GuestPeer, asked: Path) -> None:
    install(peer, "test.Echo", "cat; echo problem >&2; exit 3")
    assert call(peer, "test.Echo+x", b"hello\0\xff") == (b"hello\0\xff", b"", 3)
    assert (peer.home / "log" / "services.log").read_text() == "problem\n", "complaints stay on this host"
    assert asked.read_text().split() == ["source=work", "intended_target=dom0", "service_and_arg=test.Echo+x"]
    peer.wait_for_no_children()


def test_what_a_service_is_told(peer: GuestPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    del monkeypatch
    install(peer, "test.Env", "env | grep ^QREXEC_ | sort; echo args: $# $1")
    output, _, code = call(peer, "test.Env+one+two", target="@default")
    assert (output.decode().splitlines(), code) == (
        [
            "QREXEC_REMOTE_DOMAIN=work",
            "QREXEC_REQUESTED_TARGET_KEYWORD=default",
            "QREXEC_REQUESTED_TARGET_TYPE=keyword",
            "QREXEC_SERVICE_ARGUMENT=one+two",
            "QREXEC_SERVICE_FULL_NAME=test.Env+one+two",
            "args: 1 one+two",
        ],
        0,
    )
    assert call(peer, "test.Env")[0].endswith(b"args: 0\n")


def test_the_service_for_an_argument_comes_first(peer: GuestPeer) -> None:
    install(peer, "test.S", "echo general")
    install(peer, "test.S+special", "echo special")
    assert call(peer, "test.S+special")[0] == b"special\n"
    assert call(peer, "test.S+other")[0] == b"general\n"


def test_what_is_refused(peer: GuestPeer, asked: Path) -> None:
    for service in ("denied", "silent", "+x", ""):
        peer.trigger(service)
        assert peer.refused() == b"SOCKET7"
    assert "service_and_arg=+x" not in asked.read_text(), "what is no service at all is nobody's question"
    peer.wait_for_no_children()


def test_a_service_that_is_not_there_is_127(peer: GuestPeer) -> None:
    """It was allowed, so that is no secret."""
    peer.trigger("test.Nothing")
    assert peer.outcome(peer.connected()) == (b"", b"", 127)
    assert "there is no service test.Nothing on this host" in peer.log.read_text()


def test_odd_characters_never_reach_the_policy(peer: GuestPeer, asked: Path) -> None:
    peer.trigger("denied;$(id)\n+a b", "do m0'\n")
    peer.refused()
    assert asked.read_text().split("\n")[0] == "source=work intended_target=do_m0__ service_and_arg=denied___id__+a_b"


def test_the_crossing_of_megabytes(peer: GuestPeer) -> None:
    """Both ways at once, as fast as each side takes it; the service's input waits for room."""
    install(peer, "test.Cat", "cat")
    peer.trigger("test.Cat")
    stream = peer.connected()
    data = os.urandom(3 * 2**20)
    received = bytearray()
    sent, credit_used = 0, 0
    while len(received) < len(data):
        while sent < len(data) and credit_used + 60012 <= peer.credit(stream):
            part = data[sent : sent + 60000]
            peer.send(stream, frames.DATA_STDIN, part)
            sent, credit_used = sent + len(part), credit_used + len(part) + frames.HEADER.size
        frame = peer.next_frame()
        received += frame.body
        peer.send(stream, frames.CREDIT, frames.NUMBER.pack(frames.HEADER.size + len(frame.body)))
    assert received == data
    peer.send(stream, frames.DATA_STDIN)
    assert peer.outcome(stream) == (b"", b"", 0)


def test_a_guest_that_overruns_the_window_loses_the_call(peer: GuestPeer) -> None:
    install(peer, "test.Sleep", "exec sleep 60")
    peer.trigger("test.Sleep")
    stream = peer.connected()
    for _ in range(8):
        peer.send(stream, frames.DATA_STDIN, bytes(60000))
    while (frame := peer.next_frame()).type != frames.CLOSE:
        assert frame == (stream, frames.DATA_STDERR, b"")
    assert frame.stream == stream
    peer.wait_for_no_children()


def test_a_caller_that_goes_away_ends_its_call(peer: GuestPeer) -> None:
    install(peer, "test.Sleep", "exec sleep 60")
    peer.trigger("test.Sleep")
    stream = peer.connected()
    assert len(peer.children()) == 1
    peer.send(stream, frames.CLOSE)
    peer.wait_for_no_children()


def test_the_end_of_the_guest_ends_its_calls(tmp_path: Path, asked: Path) -> None:
    del asked
    (tmp_path / "log").mkdir()
    with guest_peer(tmp_path) as peer:
        install(peer, "test.Sleep", "echo $$ > " + str(tmp_path / "pid") + "; exec sleep 60")
        peer.trigger("test.Sleep")
        peer.connected()
        deadline = time.monotonic() + SECONDS
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + SECONDS
    while is_alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_service_that_dies_of_a_signal(peer: GuestPeer) -> None:
    install(peer, "test.Die", "kill -9 $$")
    assert call(peer, "test.Die") == (b"", b"", 128 + signal.SIGKILL)


def test_a_process_that_stays_behind_holds_up_nothing(peer: GuestPeer) -> None:
    install(peer, "test.Leave", "sleep 60 & echo $!")
    output, _, code = call(peer, "test.Leave")
    assert code == 0
    os.kill(int(output), signal.SIGKILL)


def test_a_socket_service(peer: GuestPeer) -> None:
    """It is told who calls first; what it says then is the call's output."""
    (peer.home / "qubes-rpc").mkdir()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(peer.home / "qubes-rpc" / "test.Socket"))
    listener.listen(1)
    heard = bytearray()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            while data := connection.recv(65536):
                heard.extend(data)
            connection.sendall(b"answer")

    thread = threading.Thread(target=serve)
    thread.start()
    assert call(peer, "test.Socket+arg", b"question") == (b"answer", b"", 0)
    thread.join(SECONDS)
    assert bytes(heard) == b"test.Socket+arg work name dom0\0question"
    listener.close()


def test_a_socket_service_that_says_nothing_more_but_listens(peer: GuestPeer) -> None:
    (peer.home / "qubes-rpc").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(peer.home / "qubes-rpc" / "test.Socket"))
        listener.listen(1)
        peer.trigger("test.Socket")
        service, _ = listener.accept()
    with service:
        service.settimeout(SECONDS)
        stream = peer.connected()
        service.sendall(b"answer")
        service.shutdown(socket.SHUT_WR)
        frames_seen = [peer.next_frame() for _ in range(3)]
        assert sorted((frame.type, frame.body) for frame in frames_seen) == [
            (frames.DATA_STDOUT, b""),
            (frames.DATA_STDOUT, b"answer"),
            (frames.DATA_STDERR, b""),
        ]
        peer.send(stream, frames.DATA_STDIN, b"question")
        head = b"test.Socket+ work name dom0\0question"
        with service.makefile("rb") as file:
            assert file.read(len(head)) == head
    assert peer.next_frame() == (stream, frames.DATA_EXIT_CODE, bytes(4))


def test_calls_of_the_api_go_to_the_daemons_socket(peer: GuestPeer) -> None:
    paths = Paths(str(peer.home))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(paths.daemon_socket)
        listener.listen(1)
        peer.trigger("admin.vm.List")
        connection, _ = listener.accept()
        with connection:
            assert connection.recv(100) == b"admin.vm.List+ work name dom0\0"
            connection.sendall(b"0\0nothing")
        stream = peer.connected()
        assert peer.outcome(stream) == (b"0\0nothing", b"", 0)


def test_the_hosts_own_service(peer: GuestPeer) -> None:
    output, _, code = call(peer, "qubes.GetDate+nanoseconds")
    assert code == 0
    assert output.endswith(b"+00:00\n")
    assert call(peer, "qubes.GetDate+weeks")[2] == 1


def test_a_hundred_calls_at_once(peer: GuestPeer) -> None:
    install(peer, "test.Echo", "cat; exit $1")
    for number in range(100):
        peer.trigger(f"test.Echo+{number}", ident=b"SOCKET%d" % number)
    streams: dict[int, int] = {}
    codes: dict[int, int] = {}
    output: dict[int, bytes] = {}
    while len(codes) < 100:
        frame = peer.next_frame()
        if frame.type == frames.SERVICE_CONNECT:
            streams[frame.stream] = int(frame.body.rstrip(b"\0").removeprefix(b"SOCKET"))
            peer.send(frame.stream, frames.DATA_STDIN, b"%d" % frame.stream)
            peer.send(frame.stream, frames.DATA_STDIN)
        elif frame.type == frames.DATA_STDOUT:
            output[frame.stream] = output.get(frame.stream, b"") + frame.body
        elif frame.type == frames.DATA_EXIT_CODE:
            codes[frame.stream] = struct.unpack("<I", frame.body)[0]
    assert codes == streams
    assert output == {stream: b"%d" % stream for stream in streams}
    peer.wait_for_no_children()


def test_a_guest_cannot_start_processes_without_end(peer: GuestPeer) -> None:
    install(peer, "test.Sleep", "exec sleep 60")
    for number in range(150):
        peer.trigger("test.Sleep", ident=b"SOCKET%d" % number)
    answers: list[int] = []
    while len(answers) < 150:
        kind = peer.next_frame().type
        answers += [kind] if kind in (frames.SERVICE_CONNECT, frames.SERVICE_REFUSED) else []
    assert answers.count(frames.SERVICE_CONNECT) == 128
    assert len(peer.children()) == 128


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"x" * 100,
        frames.TRIGGER_PARAMS.pack(b"", b"dom0", b"SOCKET7"),
        frames.TRIGGER_PARAMS.pack(b"", b"dom0", b"SOCKET7") + b"no end",
        frames.TRIGGER_PARAMS.pack(b"", b"dom0", b"SOCK\nET") + b"x\0",
        frames.TRIGGER_PARAMS.pack(b"", b"dom0", b"") + b"x\0",
        frames.TRIGGER_PARAMS.pack(b"", b"dom0", b"SOCKET7") + b"x\0y\0",
        frames.TRIGGER_PARAMS.pack(b"", b"dom0", b"SOCKET7") + b"x" * 65000 + b"\0",
    ],
)
def test_wishes_that_are_none_are_dropped(peer: GuestPeer, body: bytes) -> None:
    peer.send(0, frames.TRIGGER_SERVICE4, body)
    peer.trigger("denied")
    assert peer.refused() == b"SOCKET7"


def test_streams_are_what_they_are(peer: GuestPeer) -> None:
    """A guest that takes its own call for a command, or ends it as one, changes nothing."""
    install(peer, "test.Cat", "cat")
    peer.trigger("test.Cat")
    stream = peer.connected()
    for kind, body in (
        (frames.DATA_STDOUT, b"x"),
        (frames.DATA_EXIT_CODE, bytes(4)),
        (frames.EXEC_CMDLINE, b"x\0"),
        (frames.SERVICE_CONNECT, bytes(32)),
    ):
        peer.send(stream, kind, body)
    peer.send(stream, frames.DATA_STDIN, b"still here")
    peer.send(stream, frames.DATA_STDIN)
    assert peer.outcome(stream) == (b"still here", b"", 0)
