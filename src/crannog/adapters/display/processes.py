"""Displays on the X desktop of this host: one process a VM and display, followed by its status socket.

The processes read what guests draw, in sandboxes of their own; here only the words of their status are read.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
from dataclasses import dataclass

from crannog.adapters.display.parts import describe_parts, missing_parts
from crannog.adapters.display.spare import Spare
from crannog.config import Paths
from crannog.core.displays import DisplayKind, DisplayNews, Shown
from crannog.core.handover import GuiMode
from crannog.errors import DisplayError
from crannog.ports.display import DisplayListener

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 10.0
"""Seconds in which a process must have its status socket."""
ADOPTION_TIMEOUT = 0.5
_RETRY = 0.01
_LINE_MAX = 512
_WORDS = {
    "drawn": DisplayNews.DRAWN,
    "closed": DisplayNews.CLOSED,
    "connected": DisplayNews.CONNECTED,
    "lost": DisplayNews.LOST,
    "mode-sent": DisplayNews.MODE_SENT,
    "mode-failed": DisplayNews.MODE_FAILED,
}
_SCREEN = ("crannog.display.screen",)
_FORWARDER = ("crannog.display.forwarder",)
_CREDENTIALS = struct.Struct("iII")


@dataclass
class _Process:
    """One display's process: the link to its status socket, and the process when this daemon started it."""

    path: str
    shown: Shown
    child: asyncio.subprocess.Process | None = None
    pidfd: int | None = None
    writer: asyncio.StreamWriter | None = None
    task: asyncio.Task[None] | None = None


class DesktopDisplays:
    """Implements `ports.display.Displays`."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._processes: dict[tuple[str, DisplayKind], _Process] = {}
        self._listeners: list[DisplayListener] = []
        self._environment = dict(os.environ)
        """What the processes get: the daemon's own as it was, with the X display that was named last."""
        self._spare = Spare(
            lambda: self._spawn([*_SCREEN, "--spare"], "spare", stdin=subprocess.PIPE),
            may_start=lambda: not self.describe_problem(DisplayKind.SCREEN),
        )

    def listen(self, listener: DisplayListener) -> None:
        """Have `listener` called with all news."""
        self._listeners.append(listener)

    def diagnose(self) -> list[str]:
        """Return where VMs are shown and what is missing for it, a sentence each, for a person to read."""
        return describe_parts(self._environment)

    def describe_problem(self, kind: DisplayKind) -> str:
        """Return why this host cannot show such displays, a sentence; empty when it can."""
        return missing_parts(kind, self._environment)

    def move(self, display: str, authority: str) -> None:
        """Show VMs on another X display from now on."""
        self._environment |= {"DISPLAY": display, "XAUTHORITY": authority}
        self._spare.drop()

    def prepare(self) -> None:
        """Have the next VM's screen shown at once, where VMs can be shown."""
        self._spare.prepare()

    async def close_all(self) -> None:
        """Leave the processes to themselves, as the daemon ends; they go on. A spare ends."""
        await self._spare.drop()

    async def adopt(self, shown: Shown) -> frozenset[DisplayKind]:
        """Follow the processes of a VM that a former daemon started; return which there are."""
        found = set()
        for kind in DisplayKind:
            process = _Process(self._paths.display_socket(kind.name.lower(), shown.uuid), shown)
            reader = await _connect(process, ADOPTION_TIMEOUT) if os.path.exists(process.path) else None
            if reader:
                self._keep(kind, process, reader)
                found.add(kind)
        return frozenset(found)

    async def open(self, kind: DisplayKind, shown: Shown) -> None:
        """Start a display's process. Raises DisplayError when this host cannot show VMs."""
        problem = self.describe_problem(kind)
        if problem:
            raise DisplayError(problem)
        process = _Process(self._paths.display_socket(kind.name.lower(), shown.uuid), shown)
        options = ["--name", shown.name, "--colour", shown.colour, "--state", shown.state, "--status", process.path]
        if kind is DisplayKind.SCREEN:
            process.child = await self._show_screen(
                [*options, "--vnc", self._paths.screen_socket(shown.uuid)], shown.name
            )
        else:
            options += ["--rpc", self._paths.rpc_socket(shown.name)]
            process.child = await self._spawn([*_FORWARDER, *options], shown.name)
        process.pidfd = os.pidfd_open(process.child.pid)
        self._keep(kind, process, None)

    def close(self, kind: DisplayKind, uuid: str) -> None:
        """Tell a display's process to end."""
        self._signal(kind, uuid, signal.SIGTERM)

    def kill(self, kind: DisplayKind, uuid: str) -> None:
        """End a display's process that does not end by itself."""
        self._signal(kind, uuid, signal.SIGKILL)

    def dress(self, shown: Shown) -> None:
        """Have the open displays of a VM look as it says."""
        for kind in DisplayKind:
            process = self._processes.get((shown.uuid, kind))
            if process:
                process.shown = shown
                _tell_look(process)

    def send_mode(self, uuid: str, mode: GuiMode) -> None:
        """Have the guest told its mode."""
        process = self._processes.get((uuid, DisplayKind.AGENT))
        if process and process.writer:
            process.writer.write(f"mode {mode}\n".encode())
        else:
            self._tell(uuid, DisplayKind.AGENT, DisplayNews.MODE_FAILED)

    async def _show_screen(self, options: list[str], name: str) -> asyncio.subprocess.Process:
        """Have a screen shown by the spare process, else by a new one; return it."""
        process = await self._spare.take()
        if process is None or process.stdin is None:
            return await self._spawn([*_SCREEN, *options], name)
        process.stdin.write(json.dumps(options).encode() + b"\n")
        process.stdin.close()
        return process

    async def _spawn(
        self, words: tuple[str, ...] | list[str], name: str, stdin: int = subprocess.DEVNULL
    ) -> asyncio.subprocess.Process:
        log_file = os.open(self._paths.display_log(name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-m", *words),
                stdin=stdin,
                stdout=log_file,
                stderr=log_file,
                env=self._environment,
                start_new_session=True,
            )
        except OSError as error:
            raise DisplayError(f"the display of {name} cannot be started: {error.strerror}") from error
        finally:
            os.close(log_file)

    def _keep(self, kind: DisplayKind, process: _Process, reader: asyncio.StreamReader | None) -> None:
        self._processes[process.shown.uuid, kind] = process
        process.task = asyncio.ensure_future(self._follow(kind, process, reader))

    async def _follow(self, kind: DisplayKind, process: _Process, reader: asyncio.StreamReader | None) -> None:
        """Pass on what the process says until it has ended."""
        key = process.shown.uuid, kind
        try:
            reader = reader or await _connect(process, CONNECT_TIMEOUT)
            _tell_look(process)  # it may have changed while nobody could say so
            while reader and (line := await reader.readline()):
                self._note_line(process.shown, kind, line.decode("ascii", "replace").strip())
        except (OSError, ValueError) as error:  # ValueError: a line without end
            log.error("%s: its display process: %s", process.shown.name, error)
        finally:
            await _bury(process)
            if self._processes.get(key) is process:
                del self._processes[key]
                _discard_sockets(process.path)
            self._tell(*key, DisplayNews.ENDED)

    def _note_line(self, shown: Shown, kind: DisplayKind, line: str) -> None:
        word, _, reason = line.partition(" ")
        if word in _WORDS:
            self._tell(shown.uuid, kind, _WORDS[word])
        if word in ("failed", "lost") and reason:
            log.warning("%s: %s", shown.name, reason)

    def _signal(self, kind: DisplayKind, uuid: str, number: signal.Signals) -> None:
        process = self._processes.get((uuid, kind))
        if process and process.pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(process.pidfd, number)

    def _tell(self, uuid: str, kind: DisplayKind, news: DisplayNews) -> None:
        for listener in self._listeners:
            listener(uuid, kind, news)


def _tell_look(process: _Process) -> None:
    """Tell a process how its VM looks; one that is not connected yet is told when it is."""
    if process.writer:
        process.writer.write(f"look {process.shown.colour} {process.shown.state}".rstrip().encode() + b"\n")


async def _connect(process: _Process, seconds: float) -> asyncio.StreamReader | None:
    """Connect to a process's status socket; None when it ended, or does not answer in time."""
    deadline = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < deadline:
        try:
            reader, process.writer = await asyncio.open_unix_connection(process.path, limit=_LINE_MAX)
        except OSError:
            if process.child and process.child.returncode is not None:
                return None
            await asyncio.sleep(_RETRY)
            continue
        if process.pidfd is None:
            process.pidfd = _open_peer(process.writer.get_extra_info("socket"))
        return reader
    return None


def _open_peer(connection: socket.socket) -> int | None:
    """Return a descriptor of the process at the other end (unix(7), SO_PEERCRED); None when it has just ended."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    try:
        return os.pidfd_open(_CREDENTIALS.unpack(data)[0])
    except OSError:
        return None


async def _bury(process: _Process) -> None:
    """Wait until a process has ended whose status socket was closed, and let go of it."""
    if process.writer:
        process.writer.close()
    if process.child:
        await process.child.wait()
    elif process.pidfd is not None:
        loop, gone = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(process.pidfd, gone.set)
        try:
            await gone.wait()
        finally:
            loop.remove_reader(process.pidfd)
    if process.pidfd is not None:
        os.close(process.pidfd)
        process.pidfd = None


def _discard_sockets(path: str) -> None:
    """Delete what a display's process leaves when it is killed."""
    for left in (path, Paths.client_socket(path)):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(left)
