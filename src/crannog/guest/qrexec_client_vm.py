#!/usr/bin/python3 -IS
"""qrexec-client-vm: call a service of another VM, from a guest (qrexec protocol, "qrexec-client-vm").

One file of the standard library, which imports little, as each call starts it: signal and socket themselves, and
contextlib, would cost 5 ms more. It asks the guest's agent on the trigger
socket (agent.py says how) and then carries the data between the service and its own stdin and stdout, or those of a
local program. Exit codes: the service's, or the local program's when there is one; 126 refused, 125 trouble, 2 usage.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import os
import select
import stat
import struct
import sys

AGENT_SOCKET = "/run/qubes/qrexec-agent"
DATA_STDIN, DATA_STDOUT, DATA_STDERR, DATA_EXIT_CODE = 0x190, 0x191, 0x192, 0x193
SERVICE_CONNECT, TRIGGER_SERVICE4 = 0x202, 0x213
LOCAL_HEADER = struct.Struct("<II")
NUMBER = struct.Struct("<I")
TRIGGER_PARAMS = struct.Struct("<64s64s32s")
BODY_MAX = 65536
SERVICE_NAME_MAX = 65000
PIPE_STEP = 4096
"""What a pipe takes without blocking when poll(2) says that it is writable (pipe(7))."""
EXIT_USAGE, EXIT_TROUBLE, EXIT_REFUSED, EXIT_PIPE = 2, 125, 126, 141
PRINTABLE = bytes(byte if 32 <= byte < 127 or byte in b"\t\n\r" else ord("_") for byte in range(256))
"""What a service may do to a terminal: text, and no escape sequences."""

USAGE = """usage: qrexec-client-vm [options] TARGET SERVICE[+ARGUMENT] [PROGRAM [ARGUMENTS...]]
  -t, --filter-escape-chars-stdout     show only plain text on stdout (the default on a terminal)
  -T, --filter-escape-chars-stderr     show only plain text on stderr (the default on a terminal)
  --no-filter-escape-chars-stdout      the opposite of -t
  --no-filter-escape-chars-stderr      the opposite of -T
  -p DATA, --prefix-data=DATA          send DATA before the input
  -s NAME, --source=NAME               call in the name of another VM (for relays)
  --use-stdin-socket                   stdin is a socket that is used for the output too
  --agent-socket=PATH                  where the agent listens
  --buffer-size=BYTES                  accepted, without effect
"""
FLAGS = {
    "t": ("filter_stdout", True),
    "T": ("filter_stderr", True),
    "filter-escape-chars-stdout": ("filter_stdout", True),
    "filter-escape-chars-stderr": ("filter_stderr", True),
    "no-filter-escape-chars-stdout": ("filter_stdout", False),
    "no-filter-escape-chars-stderr": ("filter_stderr", False),
    "use-stdin-socket": ("use_stdin_socket", True),
}
VALUES = {"p": "prefix", "prefix-data": "prefix", "s": "source", "source": "source", "a": "agent_socket"}
VALUES |= {"agent-socket": "agent_socket", "buffer-size": "buffer_size"}


class Trouble(Exception):  # noqa: N818
    """The call cannot go on: a sentence, and the exit code."""

    def __init__(self, sentence: str, exit_code: int = EXIT_TROUBLE) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


class Options:
    """What the command line says."""

    def __init__(self, arguments: list[str]) -> None:
        self.filter_stdout: bool | None = None
        self.filter_stderr: bool | None = None
        self.use_stdin_socket = False
        self.prefix = self.source = self.buffer_size = ""
        self.agent_socket = AGENT_SOCKET
        rest = self._parse(arguments)
        if len(rest) < 2:
            raise Trouble(USAGE, EXIT_USAGE)
        # Old tools write keywords as $default; since qrexec 2 they begin with @.
        self.target, self.service, self.program = rest[0].replace("$", "@"), rest[1], rest[2:]
        if self.use_stdin_socket and self.program:
            raise Trouble("--use-stdin-socket is for calls without a local program\n", EXIT_USAGE)

    def _parse(self, arguments: list[str]) -> list[str]:
        """Set the options that come before the first other word; return the words from there on."""
        rest = list(arguments)
        while rest and rest[0].startswith("-") and rest[0] != "-":
            word = rest.pop(0)
            if word == "--":
                break
            name, sign, value = word[2:].partition("=") if word.startswith("--") else (word[1:2], word[2:], word[2:])
            if name in VALUES and (sign or rest):
                setattr(self, VALUES[name], value if sign else rest.pop(0))
            elif name in FLAGS and (not sign or not word.startswith("--")):
                setattr(self, *FLAGS[name])
                if sign:
                    rest.insert(0, "-" + value)
            else:
                raise Trouble(USAGE, EXIT_USAGE)
        return rest


class Sink:
    """Where bytes go, with what it has not taken yet. An inherited descriptor stays blocking: others share it."""

    def __init__(self, fd: int, is_ours: bool = False, is_socket: bool = False) -> None:
        self.fd = fd
        self.buffer = bytearray()
        self.is_ended = False
        self.socket = _socket.socket(fileno=fd) if is_socket else None
        self.step = BODY_MAX if is_ours or is_socket or stat.S_ISREG(os.fstat(fd).st_mode) else PIPE_STEP
        if is_ours:
            os.set_blocking(fd, False)

    def write(self) -> None:
        """Write what is taken now, one step; at the end of it all, close. Raises OSError."""
        if self.fd < 0:
            self.buffer.clear()
        if self.buffer:
            try:
                with memoryview(self.buffer) as view, view[: self.step] as part:
                    count = self.socket.send(part, _socket.MSG_DONTWAIT) if self.socket else os.write(self.fd, part)
            except BlockingIOError:
                return
            del self.buffer[:count]
        if self.is_ended and not self.buffer:
            self.close()

    def close(self) -> None:
        """Tell the other side that nothing more comes."""
        fd, self.fd = self.fd, -1
        self.buffer.clear()
        if fd >= 0 and not self.socket:
            os.close(fd)
        elif self.socket:
            try:
                self.socket.shutdown(_socket.SHUT_WR)
            except OSError:
                return  # it is gone already


class Conversation:
    """The data of one call: `source` is read, `sink` is written; -1 is a source that has ended."""

    def __init__(self, agent: _socket.socket, options: Options, source: int, sink: Sink) -> None:
        self.agent = agent
        self.source = source
        self.sink = sink
        self.inbox = bytearray()
        self.outbox = bytearray()
        self.exit_code: int | None = None
        self.is_local = bool(options.program)
        is_shown = not self.is_local and os.isatty(1) if options.filter_stdout is None else options.filter_stdout
        self.filter_stdout = bool(is_shown)
        self.filter_stderr = os.isatty(2) if options.filter_stderr is None else options.filter_stderr
        if options.prefix:
            self._queue(os.fsencode(options.prefix))

    def run(self) -> int:
        """Carry data until the service has ended and its output is written; return the service's exit code."""
        self.agent.setblocking(False)
        while self.exit_code is None or self.sink.buffer:
            self._turn()
        return self.exit_code

    def _turn(self) -> None:
        poll = select.poll()
        for fd, events in self._list_waits().items():
            poll.register(fd, events)
        for fd, events in poll.poll():
            if fd == self.agent.fileno():
                self._serve_agent(events)
            if fd == self.source and events & ~select.POLLOUT:
                self._read_source()
            if fd == self.sink.fd and self.sink.buffer:
                self._write_sink()

    def _list_waits(self) -> dict[int, int]:
        """Return what to poll for. Nothing is read while what was read before has not been taken."""
        waits = {}
        if self.exit_code is None:
            reads = 0 if self.sink.buffer else select.POLLIN
            waits[self.agent.fileno()] = reads | (select.POLLOUT if self.outbox else 0)
            if self.source >= 0 and not self.outbox:
                waits[self.source] = select.POLLIN
        if self.sink.buffer and self.sink.fd >= 0:
            waits[self.sink.fd] = waits.get(self.sink.fd, 0) | select.POLLOUT
        return waits

    def _serve_agent(self, events: int) -> None:
        """Move bytes to and from the agent. Raises Trouble when it is gone before the exit code came."""
        if events & select.POLLOUT:
            self._write_agent()
        if not events & ~select.POLLOUT:
            return
        try:
            data = self.agent.recv(BODY_MAX)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            raise Trouble("the connection to the service was lost\n")
        self.inbox += data
        self._take_messages()

    def _write_agent(self) -> None:
        """Write what the agent takes now. When it takes nothing more, the exit code may still be there to be read."""
        try:
            count = self.agent.send(self.outbox)
            del self.outbox[:count]
        except BlockingIOError:
            return
        except OSError:
            self.outbox.clear()
            self.source = -1

    def _take_messages(self) -> None:
        while len(self.inbox) >= LOCAL_HEADER.size and self.exit_code is None:
            kind, length = LOCAL_HEADER.unpack_from(self.inbox)
            end = LOCAL_HEADER.size + length
            if length > BODY_MAX:
                raise Trouble("the guest's agent does not speak this program's language\n")
            if len(self.inbox) < end:
                return
            body = bytes(self.inbox[LOCAL_HEADER.size : end])
            del self.inbox[:end]
            self._take(kind, body)

    def _take(self, kind: int, body: bytes) -> None:
        if kind == DATA_STDOUT and body:
            self.sink.buffer += body.translate(PRINTABLE) if self.filter_stdout else body
            self._write_sink()
        elif kind == DATA_STDOUT:
            self.sink.is_ended = True
            self._write_sink()
        elif kind == DATA_STDERR:
            write_stderr(body.translate(PRINTABLE) if self.filter_stderr else body)
        elif kind == DATA_EXIT_CODE and len(body) == NUMBER.size:
            self.exit_code = NUMBER.unpack(body)[0] & 0xFF

    def _write_sink(self) -> None:
        """Write, when that does not block. A local program may stop reading; a reader of ours that is gone ends all."""
        poll = select.poll()
        if self.sink.fd >= 0:
            poll.register(self.sink.fd, select.POLLOUT)
        try:
            if self.sink.fd < 0 or not self.sink.buffer or poll.poll(0):
                self.sink.write()
        except OSError:
            self.sink.close()
            if not self.is_local:
                raise Trouble("", EXIT_PIPE) from None

    def _read_source(self) -> None:
        try:
            data = os.read(self.source, BODY_MAX)
        except OSError:
            data = b""
        if not data:
            self.source = -1
        self._queue(data)

    def _queue(self, data: bytes) -> None:
        """Queue data for the service; empty data are their end, so they are sent as such."""
        parts = [data[at : at + BODY_MAX] for at in range(0, len(data), BODY_MAX)] or [b""]
        for part in parts:
            self.outbox += LOCAL_HEADER.pack(DATA_STDIN, len(part)) + part


def write_stderr(data: bytes) -> None:
    """Write all of it to stderr; a stderr that is gone is no reason to end a call."""
    while data:
        try:
            data = data[os.write(2, data) :]
        except OSError:
            return


def ask(options: Options) -> _socket.socket:
    """Return the connection to the agent once the call is allowed. Raises Trouble."""
    name = os.fsencode(options.service) + b"\0"
    source, target = os.fsencode(options.source), os.fsencode(options.target)
    if max(len(source), len(target)) > 63 or len(name) > SERVICE_NAME_MAX:
        raise Trouble("the name of the service or of the VM is too long\n", EXIT_USAGE)
    body = TRIGGER_PARAMS.pack(source, target, b"SOCKET") + name
    agent = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        agent.connect(options.agent_socket)
        agent.sendall(LOCAL_HEADER.pack(TRIGGER_SERVICE4, len(body)) + body)
    except OSError as error:
        raise Trouble(f"cannot reach the guest's agent at {options.agent_socket}: {error.strerror}\n") from None
    answer = b""
    while len(answer) < LOCAL_HEADER.size:
        try:
            data = agent.recv(LOCAL_HEADER.size - len(answer))
        except ConnectionResetError:
            data = b""
        if not data:
            raise Trouble("Request refused\n", EXIT_REFUSED)
        answer += data
    if answer != LOCAL_HEADER.pack(SERVICE_CONNECT, 0):
        raise Trouble("the guest's agent does not speak this program's language\n")
    return agent


def start_program(program: list[str]) -> tuple[int, int, int]:
    """Start the local program; return its pid, where its output is read, and where its input is written."""
    stdin, stdout = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            saved = range(3 if "PASS_LOCAL_STDERR" in os.environ else 2)
            for number in saved:
                copy = os.dup(number)
                os.set_inheritable(copy, True)
                os.environ[f"SAVED_FD_{number}"] = str(copy)
            os.dup2(stdin[0], 0)
            os.dup2(stdout[1], 1)
            _signal.signal(_signal.SIGPIPE, _signal.SIG_DFL)
            os.execvp(program[0], program)  # noqa: S606
        except OSError as error:
            write_stderr(f"cannot run {program[0]}: {error.strerror}\n".encode())
        finally:
            os._exit(EXIT_TROUBLE)
    os.close(stdin[0])
    os.close(stdout[1])
    return pid, stdout[0], stdin[1]


def converse(agent: _socket.socket, options: Options) -> int:
    """Carry the call's data; return the exit code."""
    if not options.program:
        sink = Sink(0, is_socket=True) if options.use_stdin_socket else Sink(1)
        return Conversation(agent, options, 0, sink).run()
    pid, source, fd = start_program(options.program)
    sink = Sink(fd, is_ours=True)
    trouble = 0
    try:
        Conversation(agent, options, source, sink).run()
    except Trouble as problem:
        trouble = problem.exit_code
        write_stderr(str(problem).encode())
    sink.close()
    os.close(source)
    status = os.waitpid(pid, 0)[1]
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
    return code or trouble


def main(arguments: list[str]) -> int:
    """Run one call; return the exit code."""
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    fd = os.open("/dev/null", os.O_RDWR)
    while fd <= 2:  # 0-2 that are closed must not become the connection
        fd = os.open("/dev/null", os.O_RDWR)
    os.close(fd)
    try:
        options = Options(arguments)
        return converse(ask(options), options)
    except Trouble as trouble:
        write_stderr(str(trouble).encode(errors="replace"))
        return trouble.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
