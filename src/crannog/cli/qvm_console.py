"""qvm-console: use the console of a VM from this terminal."""

from __future__ import annotations

import os
import select
import sys

from crannog.cli.options import COMMON, Command, Operand
from crannog.cli.tool import complain, end, refuse_host, run
from crannog.client.connection import Client
from crannog.errors import DaemonError, HypervisorError

# Importing typing and collections.abc would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from crannog.cli.options import Values

TAKEN = 200
"""Exit code when somebody else uses the console (Admin API, admin.vm.Console)."""

ESCAPE = 0x1D
"""Ctrl-], as telnet and libvirt have it."""

CHUNK = 4096
LIMIT = 65536
"""Most bytes kept for a VM that does not read; what is typed beyond that is lost, as on a serial line."""

COMMAND = Command(
    "qvm-console",
    "Use the console of a running VM from this terminal; Ctrl-] ends. What the VM sends reaches the terminal as it is, "
    "as with any console. Standard input may also be a file or a pipe, which is then passed on as it is.",
    Operand("vm", "VM", "the running VM"),
    *COMMON,
    examples="  qvm-console work\n  qvm-console work < /dev/null | tee console.log",
)


def _console(options: Values) -> int:
    refuse_host(options.vm)
    return open_console(COMMAND.program, options.vm, is_terminal=os.isatty(0))


def open_console(program: str, vm: str, *, is_terminal: bool) -> int:
    """Join standard input and output to the console of a VM until one of them ends; return the exit code.

    Raises what the daemon answers, or HypervisorError when the console cannot be opened.
    """
    client = Client()
    path = client.text("admin.vm.Console", vm)
    lock = _lock(client.paths.console_lock(vm))
    if lock is None:
        complain(program, f"the console of {vm} is in use by another qvm-console; end that one first")
        return TAKEN
    device = _open(vm, path)
    if is_terminal:
        complain(program, f"this is the console of {vm}; Ctrl-] ends")
    has_left = _use(device, is_terminal=is_terminal)
    if is_terminal or not has_left:
        complain(program, f"left the console of {vm}" if has_left else f"{vm} closed its console")
    return 0


def _lock(path: str) -> int | None:
    """Return a file that is locked as long as this process lives; None when another process has the lock."""
    import fcntl

    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError as error:
        raise DaemonError(f"the console cannot be locked: {path}: {error.strerror}") from error
    return file


def _open(vm: str, path: str) -> int:
    """Return the VM's console, open for reading and writing without ever waiting."""
    try:
        device = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise HypervisorError(f"the console of {vm} cannot be opened: {path[:200]}: {error.strerror}") from error
    # Else the line discipline between us and the VM would echo, and keep lines back, once more.
    _make_raw(device)
    return device


def _make_raw(terminal: int) -> list[Any] | None:
    """Make a terminal pass each byte on as it is; return how it was, None for what is no terminal."""
    import termios
    import tty

    try:
        before = termios.tcgetattr(terminal)
        # Neither what the VM has said already nor what was typed ahead is thrown away.
        tty.setraw(terminal, termios.TCSANOW)
    except termios.error:
        return None
    return before


def _use(device: int, *, is_terminal: bool) -> bool:
    """Copy both ways; return True when the user has ended it, False when the VM has. Leave the terminal as it was."""
    import signal
    import termios

    # These signals end the tool by an exception, so that the terminal is restored then, too.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    before = termios.tcgetattr(0) if is_terminal else None
    try:
        if is_terminal:
            _make_raw(0)
        return Copier(device, is_terminal=is_terminal).run()
    finally:
        if before is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, before)
            # The VM may have left the cursor anywhere.
            os.write(2, b"\n")


class Copier:
    """The bytes between standard input and output and a VM's console."""

    def __init__(self, device: int, *, is_terminal: bool) -> None:
        self._device = device
        self._is_terminal = is_terminal
        self._has_input = True
        self._pending = b""
        self._has_left = False

    def run(self) -> bool:
        """Copy until the user leaves (True) or the VM closes its console (False)."""
        while not self._has_left:
            for file, events in self._wait():
                if file == 0:
                    self._read_input()
                elif events & select.POLLOUT and self._pending:
                    self._send()
                elif not self._show():
                    return False
        return True

    def _wait(self) -> Iterator[tuple[int, int]]:
        poll = select.poll()
        poll.register(self._device, select.POLLIN | (select.POLLOUT if self._pending else 0))
        # A file waits until the VM has read what it got; at a terminal Ctrl-] must work also when it never reads.
        if self._has_input and (self._is_terminal or not self._pending):
            poll.register(0, select.POLLIN)
        return iter(poll.poll())

    def _read_input(self) -> None:
        try:
            data = os.read(0, CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # the terminal has gone
        self._has_input = bool(data)
        place = data.find(ESCAPE) if self._is_terminal else -1
        self._has_left = place >= 0 or (self._is_terminal and not data)
        self._pending = (self._pending + (data[:place] if place >= 0 else data))[:LIMIT]
        if self._has_left:
            self._send()

    def _send(self) -> None:
        try:
            self._pending = self._pending[os.write(self._device, self._pending) :]
        except BlockingIOError:
            return
        except OSError:
            self._pending = b""  # the console has gone; reading it will say so

    def _show(self) -> bool:
        """Print what the VM sent; return False at the end of its console."""
        try:
            data = os.read(self._device, CHUNK)
        except BlockingIOError:
            return True
        except OSError:
            return False  # Linux reports the end of a terminal's other side as EIO
        _write(data)
        return bool(data)


def _write(data: bytes) -> None:
    sys.stdout.flush()
    while data:
        data = data[os.write(1, data) :]


def main() -> None:
    """Run qvm-console."""
    end(run(COMMAND, _console))
