"""The process that shows the windows which one VM's GUI agent forwards (design.md, B9: the agent display).

It waits until the guest has a display (service crannog.Display), starts the xpra client in a sandbox
(forwarder_command.py), and lets it have one socket: the other end of a call of that service. When the client ends, or
the guest goes away, it begins again, so that windows are there as soon as the guest is. It outlives the daemon, and
says on its status socket how things are (status.py):

    connected           the client has agreed with the guest's server, and knows its windows
    windows N           how many there are
    lost REASON         nothing is shown any more, and it is tried again
    failed REASON       it ends, as trying again would be of no use
    mode-sent, mode-failed      the answer to a line `mode SEAMLESS` or `mode FULLSCREEN` that a watcher sends

A line `look ...` (look.py) that a watcher sends changes the frames and titles of all windows. Reasons are sentences of
this file: no text of the guest is in them.
"""

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

from crannog.client.rpc import is_served
from crannog.config import Paths
from crannog.display.forwarder_children import Client, ended, feed, start_client
from crannog.display.forwarder_command import build_command
from crannog.display.look import WORD as LOOK
from crannog.display.look import Look, parse_look
from crannog.display.session import Session
from crannog.display.status import StatusSocket
from crannog.errors import CrannogError, ValueRefusedError

SERVICE = "crannog.Display"
SET_MODE = "qubes.SetGuiMode"
MODES = ("SEAMLESS", "FULLSCREEN")
PAUSES = (0.1, 0.5, 2.0, 5.0)
"""Seconds between attempts; the last one counts for all further ones, and the first after a connection that stood."""
STOOD_SECONDS = 20.0
"""Seconds after which a connection has stood."""
SHORT_PAUSES = (*PAUSES, 15.0, 30.0)
"""Seconds after connections that did not stand: a guest that ends its clients does not keep this host busy."""
AGREE_SECONDS = 30.0
"""Seconds in which client and guest have to agree."""
WAIT_SECONDS = 75.0
"""Seconds that a guest may take to say whether it has a display; it is asked again then."""
GONE_SECONDS = 60.0
"""Seconds without an RPC process of the VM after which this process ends: there is no VM any more."""
MODE_SECONDS = 2.0
MakeClient = Callable[[Look, str], list[str]]
"""Returns the command line of a client for a look and a socket."""
_REASONS = {126: "the guest refuses to forward its windows", 127: "the guest has no GUI agent: install its GUI tools"}


def choose_pause(failures: int, *, was_connected: bool) -> float:
    """Return the seconds until the next attempt after so many that were over soon, the last of which was connected."""
    pauses = SHORT_PAUSES if was_connected else PAUSES
    return pauses[min(failures, len(pauses) - 1)]


class Lost(Exception):  # noqa: N818
    """An attempt is over; its text is the reason."""


class Forwarder:
    """The attempts to show one VM's windows, one after the other, and the calls beside them."""

    _status: StatusSocket

    def __init__(
        self, rpc_path: str, client_path: str, look: Look, make_client: MakeClient, clock: Callable[[], float]
    ) -> None:
        self._rpc_path = rpc_path
        self._client_path = client_path
        self._look = look
        self._make_client = make_client
        self._client: Client | None = None
        self._clock = clock
        self._mode_call: subprocess.Popen[bytes] | None = None
        self._last_lost = ""
        self._is_connected = False
        self._connected_at = 0.0

    def run(self, status: StatusSocket) -> int:
        """Show the windows for as long as there is a VM; return the exit code."""
        self._status = status
        failures, seen = 0, self._clock()
        while True:
            try:
                self._attempt()
            except Lost as reason:
                failures = 0 if self._has_stood() else failures + 1
                self._say_lost(str(reason))
            if is_served(self._rpc_path):
                seen = self._clock()
            elif self._clock() - seen >= GONE_SECONDS:
                self._status.say("failed the VM has no RPC process any more")
                return 1
            self._rest(choose_pause(failures, was_connected=self._is_connected))

    def _has_stood(self) -> bool:
        """Tell whether the connection that has ended was one that lasted."""
        return self._is_connected and self._clock() - self._connected_at >= STOOD_SECONDS

    def take_line(self, line: str) -> None:
        """Do what a watcher says: `mode MODE`, or `look #rrggbb STATE`."""
        word, _, mode = line.partition(" ")
        if word == LOOK:
            self._change_look(line)
        elif word == "mode" and mode in MODES and self._mode_call is None:
            self._mode_call = self._call(SET_MODE, subprocess.PIPE)
            feed(self._mode_call, mode.encode())
        elif word == "mode":
            self._answer_mode("mode-failed")

    def _change_look(self, line: str) -> None:
        with contextlib.suppress(ValueRefusedError):
            self._look = self._look.change(line)
            if self._client:
                self._client.tell(f"{LOOK} {self._look.colour} {self._look.state}".rstrip())

    def _attempt(self) -> None:
        """Wait for the guest's display, and show it until something ends. Raises Lost."""
        self._is_connected = False
        self._wait_for_guest()
        self._unlink()  # a process that was killed has left it
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self._client_path)
            try:
                os.chmod(self._client_path, 0o600)
                listener.listen(1)
                self._show(listener)
            finally:
                self._unlink()

    def _unlink(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._client_path)

    def _wait_for_guest(self) -> None:
        with ended(self._call(f"{SERVICE}+wait", subprocess.DEVNULL)) as waiting:
            code = self._wait_for_end(waiting)
        if code is None:
            raise Lost("the guest does not answer")
        if code:
            raise Lost(_REASONS.get(code, "the guest's display is not there yet"))

    def _show(self, listener: socket.socket) -> None:
        with start_client(self._make_client(self._look, self._client_path)) as client:
            self._client = client
            try:
                self._lead(client, listener)
            finally:
                self._client = None

    def _lead(self, client: Client, listener: socket.socket) -> None:
        """Wait until the client wants its one connection, and follow it then. Raises Lost."""
        deadline = self._clock() + AGREE_SECONDS
        while not client.is_over and self._clock() < deadline:
            ready = self._turn(deadline - self._clock(), [listener.fileno(), *client.output.filenos()])
            if listener.fileno() in ready:
                with ended(self._accept(listener)) as call:
                    self._follow(client, call, deadline)
            client.output.read(ready)
        raise Lost("xpra does not start on this host; why, is in the log")

    def _follow(self, client: Client, call: "subprocess.Popen[bytes]", deadline: float) -> None:
        """Pass on what the client says, until it or the call has ended. Raises Lost."""
        pidfd = os.pidfd_open(call.pid)
        try:
            while not client.is_over:
                left = None if self._is_connected else deadline - self._clock()
                ready = self._turn(left, [pidfd, *client.output.filenos()])
                for line in client.output.read(ready):
                    self._note(line)
                if pidfd in ready:
                    raise Lost("the connection to the guest's display ended")
                if not self._is_connected and self._clock() >= deadline:
                    raise Lost("the guest's display does not answer")
        finally:
            os.close(pidfd)
        raise Lost("the client ended: it was killed, or the guest was silent for too long")

    def _accept(self, listener: socket.socket) -> "subprocess.Popen[bytes]":
        """Let the client have the guest's display, over its one connection; return the call."""
        connection, _ = listener.accept()
        listener.close()  # what else may run in the sandbox gets none
        with connection:
            return self._call(SERVICE, connection.fileno(), connection.fileno())

    def _note(self, line: str) -> None:
        """Pass on a line of the client, which output.py has checked."""
        if line == "wrong-version":
            raise Lost("the xpra of this host is none of version 3.1, which its sandbox is made for")
        if line == "connected":
            self._is_connected, self._connected_at = True, self._clock()
            self._status.unsay("lost")
        self._status.say(line)

    def _say_lost(self, reason: str) -> None:
        """Tell that nothing is shown, once for each reason; after the answer to a new mode, which may be the cause."""
        deadline = self._clock() + MODE_SECONDS
        while self._mode_call and self._clock() < deadline:
            self._turn(deadline - self._clock(), [])
        self._status.unsay("connected")
        self._status.unsay("windows")
        if self._is_connected or reason != self._last_lost:
            self._status.say(f"lost {reason}")
        self._last_lost = reason

    def _call(self, service: str, stdin: int, stdout: int = subprocess.DEVNULL) -> "subprocess.Popen[bytes]":
        module = "crannog.display.forwarder_call"
        command = [sys.executable, "-I", "-m", module, self._rpc_path, service]
        return subprocess.Popen(command, stdin=stdin, stdout=stdout)

    def _wait_for_end(self, process: "subprocess.Popen[bytes]") -> int | None:
        """Return the exit code of a call; None when it takes too long."""
        deadline = self._clock() + WAIT_SECONDS
        pidfd = os.pidfd_open(process.pid)
        try:
            while pidfd not in self._turn(deadline - self._clock(), [pidfd]):
                if self._clock() >= deadline:
                    return None
        finally:
            os.close(pidfd)
        return process.wait()

    def _rest(self, seconds: float) -> None:
        deadline = self._clock() + seconds
        while (left := deadline - self._clock()) > 0:
            self._turn(left, [])

    def _turn(self, timeout: float | None, waits: list[int]) -> list[int]:
        """Serve the watchers once, and see whether the guest was told its mode; return which of `waits` are ready."""
        if self._mode_call:
            timeout = 0.05 if timeout is None else min(timeout, 0.05)
        ready = self._status.wait(None if timeout is None else max(0.0, timeout), waits)
        if self._mode_call and self._mode_call.poll() is not None:
            code, self._mode_call = self._mode_call.returncode, None
            self._answer_mode("mode-failed" if code else "mode-sent")
        return ready

    def _answer_mode(self, word: str) -> None:
        self._status.say(word)
        self._status.unsay(word)


def main(arguments: list[str] | None = None) -> int:
    """Run the process; return its exit code: 0 after SIGTERM, 1 when it is of no use."""
    parser = argparse.ArgumentParser(prog="crannog-forwarder", description="Show the windows of one VM's GUI agent.")
    parser.add_argument("--name", required=True, help="the VM's name")
    parser.add_argument("--colour", required=True, help="its label's, as #rrggbb")
    parser.add_argument("--state", default="", help="its state, unless it just runs")
    parser.add_argument("--rpc", required=True, help="the socket of its RPC process")
    parser.add_argument("--status", required=True, help="where to say how things are")
    options = parser.parse_args(arguments)
    try:
        look = parse_look(options.name, options.colour, options.state)
        session = Session.find(os.environ)
        return serve(options.rpc, options.status, look, lambda look, path: build_command(look, session, path))
    except (CrannogError, OSError) as error:
        sys.stderr.write(f"{options.name[:80]}: its windows cannot be shown: {error}\n")
        return 1


def serve(rpc_path: str, status_path: str, look: Look, make_client: MakeClient) -> int:
    """Show windows, and say on a socket at `status_path` how things are. Raises OSError."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    forwarder = Forwarder(rpc_path, Paths.client_socket(status_path), look, make_client, time.monotonic)
    with contextlib.closing(StatusSocket(status_path, forwarder.take_line)) as status:
        missing = [program for program in ("bwrap", "prlimit", "xpra") if not shutil.which(program)]
        if missing:
            status.say(f"failed install the packages bubblewrap, util-linux and xpra: {missing[0]} is not there")
            return 1
        return forwarder.run(status)


if __name__ == "__main__":
    sys.exit(main())
