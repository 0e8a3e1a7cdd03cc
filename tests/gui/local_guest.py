"""A guest without a VM: the agent, the graphical session and the RPC process as processes of this host."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gui.bounds import list_clients
from tests.gui.desktop import Desktop, wait_for
from tests.processes import list_children, read_words
from tests.unit.rpc_world import World

TOP = Path(__file__).resolve().parents[2]
GUI = TOP / "src/crannog/guest/gui"
NAME, COLOUR = "work", "cc0000"
SESSION = """
import os, pwd, sys
from crannog.guest.gui import session
folder = sys.argv[1]
session.RUN, session.FOLDER = folder, folder + "/gui"
session.SOCKET, session.AUTHORITY = folder + "/gui/xpra.sock", folder + "/gui/Xauthority"
session.MODE_FILE, session.CONFIG, session.PROGRAMS = folder + "/mode", folder + "/gui.conf", "/dev/null"
session.LAYOUT_FILE, session.AUTOSTART = folder + "/layout", "/dev/null"  # whose files would be this host's
first = 200 + 20 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))  # another for each worker
number = next(n for n in range(first, first + 20) if not os.path.exists(f"/tmp/.X11-unix/X{n}"))
session.DISPLAY = f":{number}"
session.X_SOCKET, session.X_LOCK = f"/tmp/.X11-unix/X{number}", f"/tmp/.X{number}-lock"
session.find_user = lambda: pwd.getpwuid(os.getuid())
make_authority = session.make_authority
session.make_authority = lambda cookie: make_authority(cookie).replace(b"\\0\\x010", b"\\0\\x03%d" % number)
sys.exit(session.main())
"""


@contextlib.contextmanager
def settings_taken_back() -> Iterator[None]:
    """Take back afterwards what a guest without a VM sets in this process's environment when it starts."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("QREXEC_SERVICE_PATH", "QUBES_RPC_CONFIG_PATH", "CRANNOG_SESSION_FOLDER"):
            patch.setenv(name, "")
            patch.delenv(name)
        yield


class LocalGuest:
    """What a guest has that matters for its windows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run_folder = folder / "run"
        self.world = World(folder)

    def start(self) -> None:
        """Start everything, and wait for the display."""
        services, configs = self.folder / "services", self.folder / "rpc-config"
        for path in (services, configs, self.run_folder):
            path.mkdir()
        (self.run_folder / "gui.conf").write_text("size = 1280x960\n")
        (services / "crannog.Display").symlink_to(self.run_folder / "gui/xpra.sock")
        display = self.run_folder / "gui/xpra.sock"
        self._offer("crannog.Display+wait", f"CRANNOG_GUI_SOCKET={display} exec {GUI}/services/crannog.Display+wait")
        places = f"CRANNOG_GUI_SOCKET={display} CRANNOG_SESSION_FOLDER={self.run_folder}"
        self._offer("crannog.Screenshot", f"{places} exec {GUI}/services/crannog.Screenshot")
        (configs / "crannog.Display").symlink_to(GUI / "rpc-config/crannog.Display")
        self._offer("qubes.SetGuiMode", f"cd {self.run_folder}; cat >mode.new; mv mode.new mode")
        os.environ |= {
            "QREXEC_SERVICE_PATH": str(services),
            "QUBES_RPC_CONFIG_PATH": str(configs),
            "CRANNOG_SESSION_FOLDER": str(self.run_folder),
        }
        self.session = self.world.start("-c", SESSION, str(self.run_folder))
        self.world.start_all()
        user = "root" if os.getuid() == 0 else os.environ["USER"]
        wait_for("the session's display", (self.run_folder / f"session.{user}").exists)

    def _offer(self, service: str, script: str) -> None:
        path = self.folder / "services" / service
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def set_layout(self, layout: str) -> None:
        """Write the keyboard layout into what is the guest DB here."""
        (self.run_folder / "layout.new").write_text(layout)
        (self.run_folder / "layout.new").rename(self.run_folder / "layout")

    def spawn(self, command: str) -> int:
        """Start a program of the guest's, as a call does; return its process number."""
        code, output, _ = self.world.run(f"{command} </dev/null >/dev/null 2>&1 & echo $!")
        assert code == 0
        return int(output)

    def find_xpra(self) -> int:
        """Return the process number of its xpra."""
        for pid in list_children(self.session.pid):
            if read_words(pid)[1:2] == ["/usr/bin/xpra"]:
                return pid
        raise AssertionError("the guest has no xpra")

    def close(self) -> None:
        """End everything."""
        self.session.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.session.wait(60)
        self.world.close()


class Forwarder:
    """A forwarder on a desktop, and one who watches its status."""

    def __init__(self, desktop: Desktop, rpc: str, folder: Path, name: str = NAME, colour: str = COLOUR) -> None:
        self.status = str(folder / "display.sock")
        self.log = folder / "display.log"
        self.lines: list[str] = []
        words = ["--name", name, "--colour", f"#{colour}", "--rpc", rpc, "--status", self.status]
        command = [sys.executable, "-I", "-m", "crannog.display.forwarder", *words]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=desktop.environment, stderr=log, start_new_session=True)
        self._connection = socket.socket(socket.AF_UNIX)
        wait_for("the status socket", lambda: self._connection.connect_ex(self.status) == 0)
        self._connection.settimeout(90)
        self._reader = self._connection.makefile("r")

    def wait_for(self, beginning: str) -> str:
        """Return the next line of the status that begins so."""
        while True:
            line = self._reader.readline()
            self.lines.append(line.strip())
            assert line, f"the status ended: {self.lines}; {self.log.read_text()}"
            if line.startswith(beginning):
                return line.strip()

    def change_look(self, line: str) -> None:
        """Have the windows look otherwise."""
        self._connection.sendall(f"look {line}\n".encode())

    def set_mode(self, mode: str) -> None:
        """Have the guest told its mode, and wait until its display is there again."""
        self._connection.sendall(f"mode {mode}\n".encode())
        self.wait_for("mode-sent")
        self.wait_for("lost")
        self.wait_for("connected")

    def clients(self) -> list[int]:
        """Return the process numbers of what runs in the sandbox, xpra's client among them."""
        return list_clients(self.process.pid)

    def close(self) -> int:
        """End it; return its exit code."""
        self._reader.close()
        self._connection.close()
        self.process.terminate()
        return self.process.wait(60)
