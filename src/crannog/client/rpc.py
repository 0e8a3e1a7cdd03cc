"""Run commands in a VM, through the socket of its RPC process (message format: crannog/rpc/frames.py).

Tools import this at their start, so it uses nothing but os, select, stat, struct and the C part of socket.
"""

import os
import select
import stat
import struct
from _socket import AF_UNIX, SOCK_STREAM
from _socket import socket as Socket  # noqa: N812

from crannog.errors import RpcError

DATA_STDIN, DATA_STDOUT, DATA_STDERR, DATA_EXIT_CODE = 0x190, 0x191, 0x192, 0x193
EXEC_CMDLINE, HELLO, STATUS_FOLLOW = 0x200, 0x300, 0x710
LOCAL_VERSION = 3
LOCAL_HEADER = struct.Struct("<II")
NUMBER = struct.Struct("<I")
BODY_MAX = 65536
COMMAND_MAX = 65000
PIPE_CHUNK = 4096
"""What a pipe takes without blocking when poll calls it writable (pipe(7), PIPE_BUF)."""
BROKEN_PIPE = 141
"""Exit code of a call whose reader went away: 128 + SIGPIPE, as a shell shows it."""
HANDSHAKE_TIMEOUT = 10.0


def run_command(path: str, user: str, command: str, stdin_fd: int, stdout_fd: int, stderr_fd: int) -> int:
    """Run `command` in a VM as `user` (DEFAULT: the VM's default user) and return its exit code.

    `path` is the socket of the VM's RPC process. Data flows both ways as it comes, unchanged. When the reader
    of `stdout_fd` goes away, the command is ended and the result is 141. KeyboardInterrupt passes through; it
    ends the command in the VM too. Raises RpcError when the VM has no RPC process, or the connection breaks
    off.
    """
    command_line = os.fsencode(f"{user}:{command}")
    if len(command_line) > COMMAND_MAX:
        raise RpcError(f"the command is {len(command_line)} bytes long; at most {COMMAND_MAX} can be passed on")
    connection = _Connection(path, HANDSHAKE_TIMEOUT)
    try:
        connection.send(EXEC_CMDLINE, bytes(8) + command_line + b"\0")
        return _Call(connection, stdin_fd, stdout_fd, stderr_fd).run()
    except BrokenPipeError:
        return BROKEN_PIPE
    finally:
        connection.socket.close()


def is_served(path: str) -> bool:
    """Tell whether a process serves the socket at `path`; a file there may be left from one that was killed."""
    probe = Socket(AF_UNIX, SOCK_STREAM)
    try:
        probe.connect(path)
    except OSError:
        return False
    finally:
        probe.close()
    return True


def read_status(path: str, timeout: float) -> dict[str, object]:
    """Return what is known about the agent of the VM whose RPC process serves `path`.

    The keys are those of AgentStatus in crannog/core/announcement.py. Raises RpcError when there is no such
    process, or it does not answer within `timeout` seconds.
    """
    import json

    connection = _Connection(path, timeout)
    try:
        connection.send(STATUS_FOLLOW, b"")
        status: dict[str, object] = json.loads(connection.wait_for(STATUS_FOLLOW))
    finally:
        connection.socket.close()
    return status


class _Connection:
    """A connection to an RPC process, as messages. Its socket blocks, with a timeout, until a call runs."""

    def __init__(self, path: str, timeout: float) -> None:
        self._path = path
        self._buffer = bytearray()
        self.socket = Socket(AF_UNIX, SOCK_STREAM)
        self.socket.settimeout(timeout)
        try:
            self._open()
        except BaseException:
            self.socket.close()
            raise

    def _open(self) -> None:
        try:
            self.socket.connect(self._path)
        except OSError as error:
            raise RpcError(f"the VM is not running, or has no agent ({self._path}: {error})") from error
        self.wait_for(HELLO)
        self.send(HELLO, NUMBER.pack(LOCAL_VERSION))

    def send(self, kind: int, body: bytes) -> None:
        """Send one message."""
        try:
            self.socket.sendall(LOCAL_HEADER.pack(kind, len(body)) + body)
        except OSError as error:
            raise self.broken(error) from error

    def wait_for(self, kind: int) -> bytes:
        """Return the body of the next message, which must be of type `kind`."""
        while True:
            message = self.next_message()
            if message is None:
                self.receive()
            elif message[0] != kind:
                raise self.broken("its other end is no RPC process")
            else:
                return message[1]

    def receive(self) -> None:
        """Read what is there. The end of the connection is an error."""
        try:
            data = self.socket.recv(BODY_MAX + LOCAL_HEADER.size)
        except BlockingIOError:
            return
        except OSError as error:
            raise self.broken(error) from error
        if not data:
            raise self.broken("it was closed")
        self._buffer += data

    def next_message(self) -> tuple[int, bytes] | None:
        """Return the next message (type, body), if it is complete."""
        if len(self._buffer) < LOCAL_HEADER.size:
            return None
        kind, length = LOCAL_HEADER.unpack_from(self._buffer)
        if length > BODY_MAX:
            raise self.broken("its other end is no RPC process")
        end = LOCAL_HEADER.size + length
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[LOCAL_HEADER.size : end])
        del self._buffer[:end]
        return kind, body

    def broken(self, reason: object) -> RpcError:
        """Return the error that says that the connection is of no use any more."""
        return RpcError(f"the connection to the VM's RPC process broke off ({self._path}: {reason})")


class _Call:
    """The data of one call. It holds one message each way; who is slow makes the other side wait."""

    def __init__(self, connection: _Connection, stdin_fd: int, stdout_fd: int, stderr_fd: int) -> None:
        self._connection = connection
        self._stdin_fd = stdin_fd
        self._stdout_fd = stdout_fd
        self._output_fds = {DATA_STDOUT: stdout_fd, DATA_STDERR: stderr_fd}
        self._has_stdin_ended = False
        self._input = b""
        self._output = b""
        self._output_fd = -1
        self._exit_code: int | None = None
        connection.socket.setblocking(False)

    def run(self) -> int:
        """Move data until the exit code has come; return it."""
        while True:
            while not self._output and self._take_message():
                pass
            if self._exit_code is not None and not self._output:
                return self._exit_code
            for fd, events in self._wait():
                if fd == self._connection.socket.fileno():
                    self._serve_socket(events)
                elif fd == self._output_fd and self._output:
                    self._write_output()
                else:
                    self._read_input()

    def _wait(self) -> list[tuple[int, int]]:
        poll = select.poll()
        events = (0 if self._output else select.POLLIN) | (select.POLLOUT if self._input else 0)
        if events:  # else a connection that has ended would end every wait at once
            poll.register(self._connection.socket, events)
        if not self._input and not self._has_stdin_ended:
            poll.register(self._stdin_fd, select.POLLIN)
        if self._output:
            # Last, as a terminal can be all three: then its output goes first.
            poll.register(self._output_fd, select.POLLOUT)
        return poll.poll()

    def _take_message(self) -> bool:
        message = self._connection.next_message()
        if message is None:
            return False
        kind, body = message
        if kind == DATA_EXIT_CODE and len(body) == NUMBER.size:
            self._exit_code = NUMBER.unpack(body)[0]
        elif kind in self._output_fds:
            self._output, self._output_fd = body, self._output_fds[kind]
        return self._exit_code is None

    def _serve_socket(self, events: int) -> None:
        if events & select.POLLOUT:
            try:
                self._input = self._input[self._connection.socket.send(self._input) :]
            except BlockingIOError:
                pass
            except OSError:
                # It takes no more input. Why, it has said in messages that are still to be read.
                self._input, self._has_stdin_ended = b"", True
        if events & ~select.POLLOUT and not self._output:
            self._connection.receive()

    def _read_input(self) -> None:
        try:
            data = os.read(self._stdin_fd, BODY_MAX)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._has_stdin_ended = not data
        self._input = LOCAL_HEADER.pack(DATA_STDIN, len(data)) + data

    def _write_output(self) -> None:
        is_file = stat.S_ISREG(os.fstat(self._output_fd).st_mode)
        try:
            count = os.write(self._output_fd, self._output if is_file else self._output[:PIPE_CHUNK])
        except BlockingIOError:
            return
        except BrokenPipeError:
            if self._output_fd == self._stdout_fd:
                raise
            count = len(self._output)
        except OSError as error:
            raise RpcError(f"the command's output cannot be written: {error.strerror}") from error
        self._output = self._output[count:]
