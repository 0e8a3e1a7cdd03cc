"""A guest without a VM whose xpra server is hostile (hostile_server.py)."""

import contextlib
import os
import signal
import subprocess
from pathlib import Path

from tests.gui.desktop import wait_for
from tests.unit.rpc_world import World

SERVER = Path(__file__).with_name("hostile_server.py")
NAME, COLOUR = "evil", "00cc00"


class HostileGuest:
    """The agent and the RPC process of a guest; what listens behind crannog.Display is the attack of the moment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.world = World(folder)
        self._server: subprocess.Popen[bytes] | None = None
        self._log = folder / "server.log"

    def start(self) -> None:
        """Start agent and RPC process."""
        services, configs = self.folder / "services", self.folder / "rpc-config"
        services.mkdir()
        configs.mkdir()
        (services / "crannog.Display").symlink_to(self.folder / "xpra.sock")
        wait = services / "crannog.Display+wait"
        wait.write_text(f"#!/bin/sh\nwhile ! [ -S {self.folder}/xpra.sock ]; do sleep 0.1; done\n")
        wait.chmod(0o755)
        options = "skip-service-descriptor = true\nexit-on-client-eof = true\nexit-on-service-eof = true\n"
        (configs / "crannog.Display").write_text(options)
        os.environ |= {"QREXEC_SERVICE_PATH": str(services), "QUBES_RPC_CONFIG_PATH": str(configs)}
        self.world.start_all()

    def attack(self, name: str) -> None:
        """Have every client from now on attacked in this way."""
        self.relent()
        self._log.unlink(missing_ok=True)
        words = ["/usr/bin/python3", str(SERVER), str(self.folder / "xpra.sock"), name, str(self._log)]
        with (self.folder / "server.err").open("ab") as errors:
            self._server = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=errors)

    def relent(self) -> None:
        """End the server, and with it the connection."""
        (self.folder / "xpra.sock").unlink(missing_ok=True)
        if self._server:
            self._server.send_signal(signal.SIGKILL)
            self._server.wait()
            self._server = None

    def lines(self) -> list[str]:
        """Return what the server has noted: packets of clients, `begun` and `over` for each attack."""
        with contextlib.suppress(FileNotFoundError):
            return self._log.read_text().splitlines()
        return []

    def wait_for_end(self, seconds: float) -> None:
        """Wait until the server has sent all of its attack."""
        wait_for(f"the end of the attack; {self.complaints()}", lambda: "over" in self.lines(), seconds)

    def complaints(self) -> str:
        """Return what the server has complained of."""
        return (self.folder / "server.err").read_text()

    def close(self) -> None:
        """End everything."""
        self.relent()
        self.world.close()
