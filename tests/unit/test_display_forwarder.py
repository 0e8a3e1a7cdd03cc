"""The forwarder with the real agent and RPC process, and with a program in xpra's place that says what a test wants."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog.config import Paths
from crannog.display.forwarder import choose_pause
from crannog.display.forwarder_command import build_command
from crannog.display.forwarder_output import LOG_LINES_MAX, Output
from crannog.display.look import Look, parse_look
from crannog.display.session import Session
from crannog.errors import ValueRefusedError
from tests.processes import is_alive
from tests.unit.rpc_world import World, wait_until

CLIENT = """
import os, socket, sys, time
client = socket.socket(socket.AF_UNIX)
client.connect(sys.argv[1])
open(sys.argv[2], "w").write(str(os.getpid()))
client.sendall(b"ping")
if client.recv(4) == b"ping":
    print("nonsense\\nwindows many\\nconnected to you\\n" + "x" * 100000, flush=True)
    print("connected\\nwindows 1\\nwindows 3", flush=True)
    sys.stderr.write("\\x1b[31m" + "noise\\n" * 1000)
while client.recv(4096):
    pass
time.sleep(0 if len(sys.argv) < 4 else 60)
"""
SERVE = """
import sys
from crannog.display import forwarder
forwarder.AGREE_SECONDS, forwarder.WAIT_SECONDS, forwarder.GONE_SECONDS, forwarder.PAUSES = 3.0, 2.0, 0.5, (0.05,)
forwarder.SHORT_PAUSES = (0.05,)
command = [sys.executable, "-c", sys.argv[3]]
look = forwarder.parse_look("work", "#cc0000")
sys.exit(forwarder.serve(sys.argv[1], sys.argv[2], look, lambda look, path: [*command, path, *sys.argv[4:]]))
"""


class Forwarding:
    """A forwarder, its guest, and one who watches its status."""

    def __init__(self, world: World, services: Path) -> None:
        self.world = world
        self.services = services
        self.status = str(world.folder / "display.sock")
        self.pid_file = world.folder / "client.pid"
        self.lines: list[str] = []

    def offer(self, name: str, script: str) -> None:
        path = self.services / name
        path.with_suffix(".new").write_text(f"#!/bin/sh\n{script}\n")
        path.with_suffix(".new").chmod(0o755)
        path.with_suffix(".new").rename(path)

    def start(self, client: str = CLIENT, *words: str) -> None:
        command = ["-c", SERVE, self.world.rpc_socket, self.status, client, str(self.pid_file), *words]
        self.process = self.world.start(*command)
        wait_until(lambda: os.path.exists(self.status))
        self.watch()

    def watch(self) -> None:
        self.connection = socket.socket(socket.AF_UNIX)
        wait_until(lambda: self.connection.connect_ex(self.status) == 0)
        self.connection.settimeout(60)
        self.reader = self.connection.makefile("r")

    def leave(self) -> None:
        self.reader.close()
        self.connection.close()

    def wait_for(self, beginning: str) -> str:
        while True:
            line = self.reader.readline()
            assert line, f"the status ended without {beginning}: {self.lines}; {self.world.log.read_text()}"
            self.lines.append(line.strip())
            if line.startswith(beginning):
                return line.strip()

    def client(self) -> int:
        return int(self.pid_file.read_text())


@pytest.fixture
def forwarding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Forwarding]:
    services = tmp_path / "services"
    services.mkdir()
    monkeypatch.setenv("QREXEC_SERVICE_PATH", str(services))
    world = World(tmp_path)
    found = Forwarding(world, services)
    found.offer("crannog.Display+wait", "exit 0")
    found.offer("crannog.Display", "exec cat")
    try:
        world.start_all()
        yield found
    finally:
        with contextlib.suppress(AttributeError):
            found.leave()
        world.close()


def test_it_says_what_the_client_says_and_nothing_else(forwarding: Forwarding) -> None:
    forwarding.start()
    forwarding.wait_for("windows 3")
    assert set(forwarding.lines) <= {"connected", "windows 1", "windows 3"}
    assert forwarding.lines[0] == "connected"
    forwarding.leave()
    forwarding.lines = []
    forwarding.watch()  # as a daemon that was started anew
    forwarding.wait_for("windows")
    assert forwarding.lines == ["connected", "windows 3"]


def test_the_clients_noise_is_cut_short(forwarding: Forwarding) -> None:
    forwarding.start()
    forwarding.wait_for("windows")
    wait_until(lambda: forwarding.world.log.read_text().count("client: noise") >= LOG_LINES_MAX - 2)
    log = forwarding.world.log.read_text()
    assert log.count("client: ") <= LOG_LINES_MAX
    assert "\x1b" not in log


def test_a_killed_client_is_lost_and_another_one_comes(forwarding: Forwarding) -> None:
    forwarding.start()
    forwarding.wait_for("connected")
    first = forwarding.client()
    os.kill(first, signal.SIGKILL)
    assert "ended" in forwarding.wait_for("lost")
    forwarding.wait_for("connected")
    assert forwarding.client() != first
    forwarding.leave()
    forwarding.lines = []
    forwarding.watch()
    forwarding.wait_for("windows")
    assert "lost" not in " ".join(forwarding.lines)


def test_a_guest_that_goes_away_is_lost_also_when_the_client_stays(forwarding: Forwarding) -> None:
    forwarding.offer("crannog.Display", f"echo $$ >{forwarding.world.folder}/service; exec cat")
    forwarding.start(CLIENT, "stay")
    forwarding.wait_for("connected")
    client, service = forwarding.client(), int((forwarding.world.folder / "service").read_text())
    forwarding.offer("crannog.Display+wait", f"test -e {forwarding.world.folder}/ready")
    os.kill(service, signal.SIGKILL)
    assert forwarding.wait_for("lost") == "lost the connection to the guest's display ended"
    assert not is_alive(client)
    assert forwarding.wait_for("lost") == "lost the guest's display is not there yet"
    (forwarding.world.folder / "ready").touch()
    forwarding.wait_for("connected")


def test_a_guest_without_gui_agent(forwarding: Forwarding) -> None:
    (forwarding.services / "crannog.Display+wait").unlink()
    (forwarding.services / "crannog.Display").unlink()
    forwarding.start()
    assert "no GUI agent" in forwarding.wait_for("lost")


def test_a_guest_that_does_not_answer(forwarding: Forwarding) -> None:
    forwarding.offer("crannog.Display", "exec sleep 60")
    forwarding.start()
    assert forwarding.wait_for("lost") == "lost the guest's display does not answer"
    assert forwarding.lines == ["lost the guest's display does not answer"]


def test_a_guest_that_never_says_whether_it_has_a_display(forwarding: Forwarding) -> None:
    forwarding.offer("crannog.Display+wait", "exec sleep 60")
    forwarding.start()
    assert forwarding.wait_for("lost") == "lost the guest does not answer"


LISTENER = """
import socket, sys
client = socket.socket(socket.AF_UNIX)
client.connect(sys.argv[1])
print("connected", flush=True)
for line in sys.stdin:
    with open(sys.argv[2], "a") as file:
        file.write(line)
"""


def test_a_guest_that_ends_its_clients_waits_ever_longer_for_the_next() -> None:
    pauses = [choose_pause(failures, was_connected=True) for failures in range(10)]
    assert pauses == sorted(pauses)
    assert pauses[0] < 1
    assert pauses[-1] > 10
    assert choose_pause(100, was_connected=False) < pauses[-1], "a guest that is not there yet is looked for more often"


def test_the_client_is_told_how_to_look(forwarding: Forwarding) -> None:
    told = forwarding.pid_file
    forwarding.start(LISTENER)
    forwarding.wait_for("connected")
    forwarding.connection.sendall(b"look #3465A4 debug, paused\nlook red x\nlook\nlook #00ff00 [vault]\nlook #00ff00\n")
    wait_until(lambda: told.exists() and told.read_text().count("\n") == 2)
    assert told.read_text() == "look 3465a4 debug, paused\nlook 00ff00\n"


def test_a_client_that_does_not_listen_is_started_again(forwarding: Forwarding) -> None:
    forwarding.start(CLIENT, "stay")
    forwarding.wait_for("connected")
    client = forwarding.client()
    line = b"look #3465a4 " + b"a" * 50 + b"\n"
    for _ in range(3000):
        forwarding.connection.sendall(line)
    assert "ended" in forwarding.wait_for("lost")
    forwarding.wait_for("connected")
    assert not is_alive(client)


def test_the_guest_is_told_its_mode(forwarding: Forwarding) -> None:
    told = forwarding.world.folder / "told"
    forwarding.offer("qubes.SetGuiMode", f"cat >{told}")
    forwarding.start()
    forwarding.connection.sendall(b"mode FULLSCREEN\n")
    forwarding.wait_for("mode-sent")
    assert told.read_text() == "FULLSCREEN"
    forwarding.offer("qubes.SetGuiMode", "exit 1")
    forwarding.connection.sendall(b"mode SEAMLESS\n")
    forwarding.wait_for("mode-failed")
    forwarding.connection.sendall(b"mode $(reboot)\n")
    forwarding.wait_for("mode-failed")
    assert told.read_text() == "FULLSCREEN"


def test_the_answer_to_a_mode_comes_before_what_it_causes(forwarding: Forwarding) -> None:
    forwarding.offer("crannog.Display", f"echo $$ >{forwarding.world.folder}/service; exec cat")
    forwarding.offer("qubes.SetGuiMode", f"kill $(cat {forwarding.world.folder}/service); sleep 0.3")
    forwarding.start()
    forwarding.wait_for("connected")
    forwarding.lines = []
    forwarding.connection.sendall(b"mode FULLSCREEN\n")
    forwarding.wait_for("lost")
    assert [line.split()[0] for line in forwarding.lines if not line.startswith("windows")] == ["mode-sent", "lost"]


def test_sigterm_ends_everything(forwarding: Forwarding) -> None:
    forwarding.start()
    forwarding.wait_for("connected")
    client = forwarding.client()
    forwarding.process.terminate()
    assert forwarding.process.wait(60) == 0
    wait_until(lambda: not is_alive(client))
    assert not os.path.exists(forwarding.status)


def test_what_a_kill_leaves_is_replaced(forwarding: Forwarding) -> None:
    """Killed while its client starts, it leaves its two sockets, and nothing anywhere else."""
    waiting = Paths.client_socket(forwarding.status)
    forwarding.start("import os, sys, time; open(sys.argv[2], 'w').write(str(os.getpid())); time.sleep(60)")
    wait_until(lambda: forwarding.pid_file.exists() and forwarding.pid_file.read_text() != "")
    assert os.path.exists(waiting)
    forwarding.process.kill()
    forwarding.process.wait(60)
    assert os.path.exists(waiting)
    os.kill(forwarding.client(), signal.SIGKILL)  # a real one dies with it: its sandbox does
    forwarding.leave()
    forwarding.start()
    forwarding.wait_for("connected")
    forwarding.process.terminate()
    assert forwarding.process.wait(60) == 0
    assert not os.path.exists(waiting)


def test_it_outlives_its_watchers_and_ends_with_the_vm(forwarding: Forwarding) -> None:
    forwarding.start()
    forwarding.wait_for("connected")
    forwarding.leave()
    assert forwarding.process.poll() is None
    forwarding.watch()
    forwarding.world.children[1].kill()  # the RPC process, which ends with its VM
    forwarding.wait_for("failed the VM has no RPC process")
    assert forwarding.process.wait(60) == 1


def test_the_status_of_a_client_is_read_line_by_line() -> None:
    reads, writes = zip(*(os.pipe() for _ in range(2)), strict=True)
    try:
        output = Output(*reads)
        os.write(writes[0], b"conn")
        assert output.read([reads[0]]) == []
        os.write(writes[0], b"ected\nwindows 1\nwindows 22\nwindows -1\nwindows 1000000\nlost x\nwrong-ver")
        assert output.read([reads[0]]) == ["connected", "windows 22"]
        os.write(writes[0], b"sion\n\xff\xfeconnected\n")
        assert output.read([reads[0]]) == ["wrong-version"]
        os.close(writes[0])
        assert output.read([reads[0]]) == []
        assert output.has_ended
        assert output.filenos() == [reads[1]]
    finally:
        for fd in (*reads, writes[1]):
            os.close(fd)


@pytest.mark.parametrize(
    ("name", "colour"),
    [
        ("../x", "#cc0000"),
        ("", "#cc0000"),
        ("a" * 32, "#cc0000"),
        ("work", "red"),
        ("work", "#cc00000"),
    ],
)
def test_what_is_no_look_is_refused(name: str, colour: str) -> None:
    with pytest.raises(ValueRefusedError):
        parse_look(name, colour)


def test_the_command_line() -> None:
    look = parse_look("work", "0xCC0000")
    assert look == Look("work", "cc0000")
    session = Session(7, "/home/somebody/.Xauthority")
    words = build_command(look, session, "/tmp/crannog-x/guest.sock")
    inside = words[words.index("--clearenv") :]
    bound = [inside[at + 1 : at + 3] for at, word in enumerate(inside) if word == "--ro-bind"]
    outside = {path for path, _ in bound if not path.startswith("/usr")}
    assert {path for path in outside if not path.endswith(".py")} == {
        "/tmp/.X11-unix/X7",
        "/home/somebody/.Xauthority",
        "/tmp/crannog-x/guest.sock",
    }
    assert {os.path.basename(path) for path in outside if path.endswith(".py")} == {
        "forwarder_client.py",
        "forwarder_dress.py",
        "forwarder_fields.py",
        "forwarder_hello.py",
        "forwarder_packets.py",
        "forwarder_room.py",
        "forwarder_rules.py",
        "forwarder_window.py",
        "titles.py",
    }
    client = words[words.index("attach") - 4 :]
    assert client[1:6] == ["work", "cc0000", "", "attach", "socket:///crannog/guest.sock"]
    off = (
        "clipboard",
        "file-transfer",
        "open-url",
        "open-files",
        "printing",
        "notifications",
        "webcam",
        "tray",
        "bell",
    )
    assert {f"--{option}=no" for option in off} <= set(client)
    environment = {words[at + 1]: words[at + 2] for at, word in enumerate(words) if word == "--setenv"}
    assert (environment["XPRA_USE_YAML"], environment["XPRA_SIGNAL_WATCHER"]) == ("0", "0")


def test_a_host_without_a_desktop(tmp_path: Path) -> None:
    words = ["--name", "work", "--colour", "#cc0000", "--rpc", f"{tmp_path}/rpc", "--status", f"{tmp_path}/status"]
    command = [sys.executable, "-I", "-m", "crannog.display.forwarder", *words]
    done = subprocess.run(command, env={"PATH": "/usr/bin"}, capture_output=True, check=False, timeout=30)
    assert done.returncode == 1
    assert done.stderr.startswith(b"work: its windows cannot be shown: there is no desktop here")
