"""The process that shows the screen of one VM's device model (design.md, B9: the device-model display).

It waits for the VNC socket of QEMU, and hands the connection to a viewer in a sandbox (viewer.py). As a spare it has
its viewer ready before it is told what to show. It outlives the daemon, ends with the VM, and says on its status socket
how things are (status.py): `drawn`, `failed REASON`, and `closed` when the user closed the window: nothing is shown
from then on, and the process waits to be told to end, so that a daemon which comes later learns of it. A line
`look ...` (look.py) that a watcher sends changes the colour and the title.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

from crannog.display.look import Look, parse_look
from crannog.display.sandbox import sandboxed
from crannog.display.session import Session
from crannog.display.status import StatusSocket
from crannog.errors import CrannogError, ValueRefusedError

PYTHON = "/usr/bin/python3"
"""The distribution's own: it has the distribution's GTK."""
VIEWER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "viewer.py")
INSIDE = "/tmp/viewer.py"  # noqa: S108  inside the sandbox
CONNECT_WAIT = 60.0
POLL = 0.005
GRACE = 1.5
"""Seconds in which the viewer ends by itself, once nobody is at its socket any more."""


class Screen:
    """The viewer, the VNC socket and the status socket, in one loop."""

    def __init__(self, vnc_path: str, status: StatusSocket, control: socket.socket, look: Look) -> None:
        """`control` is the socket to the viewer."""
        self._vnc_path = vnc_path
        self._status = status
        self._control = control
        self._look = look
        status.on_line = self.take_line
        self._tell_look()

    def run(self) -> int:
        """Show the screen until the viewer ends; return the exit code."""
        vnc = self._connect()
        if vnc is None:
            return 1
        with vnc:
            socket.send_fds(self._control, [b"connect"], [vnc.fileno()])
        while self._follow():
            pass
        return 0

    def take_line(self, line: str) -> None:
        """Do what a watcher says: `look #rrggbb STATE`."""
        with contextlib.suppress(ValueRefusedError):
            self._look = self._look.change(line)
            self._tell_look()

    def _tell_look(self) -> None:
        look = self._look
        with contextlib.suppress(OSError):  # a viewer that has ended is noticed by the loop
            self._control.send(f"look {look.name} #{look.colour} {look.state}".encode(), socket.MSG_DONTWAIT)

    def _follow(self) -> bool:
        """Wait once; return whether the viewer goes on."""
        if not self._status.wait(None, [self._control.fileno()]):
            return True
        untrusted_message = self._receive()
        if untrusted_message == b"drawn":
            self._status.say("drawn")
            return True
        if untrusted_message == b"closed":
            self._stay_closed()
        return False

    def _connect(self) -> socket.socket | None:
        """Return the connection to QEMU's VNC server; None when the viewer ended, or nothing came."""
        deadline = time.monotonic() + CONNECT_WAIT
        while time.monotonic() < deadline:
            vnc = _connect(self._vnc_path)
            if vnc:
                return vnc
            if self._control.fileno() in self._status.wait(POLL, [self._control.fileno()]):
                if self._receive() == b"closed":
                    self._stay_closed()
                else:
                    self._status.say("failed the viewer ended before the VM had a screen")
                return None
        self._status.say("failed the VM has no screen")
        return None

    def _receive(self) -> bytes:
        """Return the viewer's message; nothing when it has ended. It may be in the guest's hands."""
        try:
            return self._control.recv(64)
        except OSError:
            return b""

    def _stay_closed(self) -> None:
        """Keep that the user closed the window, for as long as the VM runs."""
        self._status.unsay("drawn")
        self._status.say("closed")
        while probe := _connect(self._vnc_path):
            probe.close()
            self._status.wait(2.0, [])


def _connect(vnc_path: str) -> socket.socket | None:
    """Return the connection to QEMU's VNC server; None when there is none."""
    vnc = socket.socket(socket.AF_UNIX)
    try:
        vnc.connect(vnc_path)
    except OSError:
        vnc.close()
        return None
    return vnc


def start_viewer(session: Session) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start a viewer in its sandbox; return it and the socket to it. Raises OSError."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    words = sandboxed([PYTHON, "-I", INSIDE], {**session.sockets, INSIDE: VIEWER}, session.environment)
    with its:
        viewer = subprocess.Popen(words, stdin=its.fileno(), stdout=subprocess.DEVNULL)
    return viewer, ours


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace | None:
    """Return what is to be shown; None when standard input ended before it was said there."""
    parser = argparse.ArgumentParser(prog="crannog-screen", description="Show the screen of one VM's device model.")
    parser.add_argument("--spare", action="store_true", help="read the other options from standard input, a line")
    parser.add_argument("--name", default="", help="the VM's name")
    parser.add_argument("--colour", default="#000000", help="its label's, as #rrggbb")
    parser.add_argument("--state", default="", help="the VM's state, unless it just runs")
    parser.add_argument("--vnc", default="", help="QEMU's VNC socket")
    parser.add_argument("--status", default="", help="where to say how things are")
    options = parser.parse_args(arguments)
    if options.spare:
        words = json.loads(sys.stdin.readline() or "null")
        return parser.parse_args(words) if words else None
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the process; return its exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        viewer, control = start_viewer(Session.find(os.environ))
    except (OSError, CrannogError) as error:
        sys.stderr.write(f"no screen can be shown: {error}\n")
        return 1
    try:
        options = parse_arguments(arguments)
        return show(options, control) if options else 0
    finally:
        end(viewer, control)


def show(options: argparse.Namespace, control: socket.socket) -> int:
    """Show what the options say with the viewer at the other end of `control`; return the exit code."""
    try:
        look = parse_look(options.name, options.colour, options.state)
        status = StatusSocket(options.status)
    except (CrannogError, OSError) as error:
        sys.stderr.write(f"{options.name}: {options.status}: {error}\n")
        return 1
    with contextlib.closing(status):
        return Screen(options.vnc, status, control, look).run()


def end(viewer: subprocess.Popen[bytes], control: socket.socket) -> None:
    """End the viewer; one that does not end is killed.

    A signal to a sandbox that is just being set up would leave its first process behind, waiting for the others.
    """
    control.close()
    try:
        viewer.wait(GRACE)
    except subprocess.TimeoutExpired:
        viewer.kill()
        viewer.wait()


if __name__ == "__main__":
    sys.exit(main())
