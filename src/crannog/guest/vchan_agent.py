"""The guest agent on vchans, for a host whose qrexec daemon somebody else wrote.

`vchan_agent.py DOMAIN [--trigger-socket PATH]`, beside agent.py, of which it is a transport: calls and clients are
those of agent.py, and each stream of a call is a vchan here: a unix socket in VCHAN_SOCKET_DIR (/var/run/vchan).
Messages: qrexec protocol, "Messages", versions 2 to 4. It is the server of the control vchan, port 512. For a command
the caller is the server of the data's vchan, for a call of this guest we are. One loop, one thread.
"""

from __future__ import annotations

import _socket
import contextlib
import os
import select
import signal
import struct
import sys
import time
from collections.abc import Callable

if __package__:
    from . import agent
else:
    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
    import agent  # type: ignore[import-not-found, no-redef, unused-ignore]

JUST_EXEC, CONNECTION_TERMINATED = 0x201, 0x211
PARAMS = struct.Struct("<II")
VERSION, OLDEST = 4, 2
CONTROL_PORT = 512
RETRY = 0.002
PATIENCE = 120.0
"""Seconds that the other side of a call has to come and say HELLO."""
READ_SIZE = 262144
COMMAND_MAX = 65536 + PARAMS.size
DATA = (agent.DATA_STDIN, agent.DATA_STDOUT, agent.DATA_STDERR)
ANSWERS = {agent.SERVICE_CONNECT: range(PARAMS.size + 1, PARAMS.size + 33), agent.SERVICE_REFUSED: range(32, 33)}
"""Lengths of the daemon's answers; an ident may come without all of its filling."""


class Lost(Exception):  # noqa: N818
    """The other side is gone, or broke the protocol."""


class Wire:
    """A connection as messages; it never blocks."""

    def __init__(self) -> None:
        self.fd = -1
        self.version = 0
        self.has_ended = False
        self.out = bytearray()
        self.inbox = bytearray()

    def put(self, kind: int, body: bytes) -> None:
        """Queue a message, as pieces when it is data that an old peer could not take at once."""
        size = len(body) or 1
        if kind in DATA and self.version == OLDEST:
            size = 4096
        for at in range(0, len(body) or 1, size):
            part = body[at : at + size]
            self.out += agent.LOCAL_HEADER.pack(kind, len(part)) + part

    def write(self) -> None:
        """Write what is taken now. Raises Lost."""
        try:
            while self.out and self.fd >= 0:
                with memoryview(self.out) as view:
                    count = os.write(self.fd, view)
                del self.out[:count]
        except BlockingIOError:
            return
        except OSError as error:
            raise Lost(str(error)) from None

    def read(self) -> None:
        """Read what is there, or note the end."""
        try:
            data = os.read(self.fd, READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self.inbox += data
        self.has_ended = not data

    def next(self, most: int) -> tuple[int, bytes] | None:
        """Return the next message if it is there. Raises Lost when it is longer than `most`."""
        if len(self.inbox) < agent.LOCAL_HEADER.size:
            return None
        kind, length = agent.LOCAL_HEADER.unpack_from(self.inbox)
        if length > most:
            raise Lost(f"a message of {length} bytes")
        end = agent.LOCAL_HEADER.size + length
        if len(self.inbox) < end:
            return None
        body = bytes(memoryview(self.inbox)[agent.LOCAL_HEADER.size : end])
        del self.inbox[:end]
        return kind, body

    def take_hello(self) -> bool:
        """Take the HELLO if it is there; return whether it has come. Raises Lost when something else has."""
        message = None if self.version else self.next(4)
        if message:
            self.version = min(agent.NUMBER.unpack(message[1])[0], VERSION) if len(message[1]) == 4 else 0
            if message[0] != agent.HELLO or self.version < OLDEST:
                raise Lost("no HELLO of a known version")
        return self.version > 0

    def close(self) -> None:
        """Close it."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1


class Link(Wire):
    """The data of one call. `command` is what is to be run, with its message's type; a call of ours has none."""

    def __init__(self, stream: int, params: tuple[int, int], kind: int = 0, command: bytes = b"") -> None:
        super().__init__()
        self.stream, self.params = stream, params
        self.kind, self.command = kind, command
        self.listener: _socket.socket | None = None
        self.path = ""
        self.room = agent.WINDOW
        self.ungranted = 0
        self.is_begun = self.is_ending = False
        self.deadline = time.monotonic() + PATIENCE
        self.put(agent.HELLO, agent.NUMBER.pack(VERSION))

    def listen(self, path: str) -> None:
        """Wait for the other side at `path`. Raises OSError."""
        self.path = path
        self.listener = listen(path)

    def try_meet(self, path: str) -> None:
        """Connect, or accept, if the other side is there. Raises Lost."""
        peer = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        peer.setblocking(False)
        if not self.listener:
            try:
                if not peer.connect_ex(path):
                    self.fd = peer.detach()
            except OSError as error:
                raise Lost(str(error)) from None
            finally:
                peer.close()
            return
        peer.close()
        with contextlib.suppress(BlockingIOError):
            self.fd, _ = self.listener._accept()  # type: ignore[attr-defined]
            os.set_blocking(self.fd, False)
            self._stop_listening()

    def _stop_listening(self) -> None:
        if self.listener:
            self.listener.close()
            self.listener = None
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)

    def next_data(self) -> tuple[int, bytes] | None:
        """Return the next message, if the window has room for any. Raises Lost."""
        if not self.has_room():
            return None
        message = self.next(agent.BODY_MAX)
        if message and message[0] in DATA and message[1]:
            self.room -= agent.HEADER.size + len(message[1])
        return message

    def take_grant(self) -> int:
        """Return how much more our side may send."""
        grant = self.ungranted - len(self.out)
        if grant < agent.GRANT_MIN:
            return 0
        self.ungranted -= grant
        return grant

    def has_room(self) -> bool:
        """Tell whether the window has room for any message."""
        return self.room >= agent.HEADER.size + agent.BODY_MAX

    def events(self) -> int:
        """Return what to poll for."""
        reads = self.has_room() and not self.is_ending and not self.has_ended
        return (select.POLLIN if reads else 0) | (select.POLLOUT if self.out else 0)

    def close(self) -> None:
        """Close it."""
        super().close()
        self._stop_listening()


def listen(path: str) -> _socket.socket:
    """Return a socket that listens at `path`; a left-over one is replaced. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        listener.bind(path)
        listener.listen(1)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


class VchanAgent:
    """The loop."""

    def __init__(self, domain: int, trigger_socket: str) -> None:
        self.domain = domain
        self.folder = os.environ.get("VCHAN_SOCKET_DIR") or "/var/run/vchan"
        self.calls = agent.Calls(self.send)
        self.callers = agent.Callers(trigger_socket, self.send)
        self.control = Wire()
        self.listener: _socket.socket | None = None
        self.links: dict[int, Link] = {}
        self.last_stream = 0
        self.looked_at = 0.0
        self.unheard = (0, b"")
        """The last exit code of a command that nobody waits for, and its stream."""
        self.wake_fd, self.wake_write_fd = os.pipe()
        for fd in (self.wake_fd, self.wake_write_fd):
            os.set_blocking(fd, False)
        for number in (signal.SIGCHLD, signal.SIGUSR1):  # services of others ask with it for a socket as their stdin
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self.wake_write_fd, warn_on_full_buffer=False)

    def path_of(self, server: int, client: int, port: int) -> str:
        """Return the socket of a vchan."""
        return f"{self.folder}/vchan.{server}.{client}.{port}.sock"

    def run(self) -> None:
        """Serve for ever. Raises OSError when the control vchan cannot be made."""
        if self.callers.path:
            self.callers.listen()
        while True:
            if self.control.fd < 0 and self.listener is None:
                self.listener = listen(self.path_of(self.domain, 0, CONTROL_PORT))
            self._turn()

    # -- the daemon

    def accept(self) -> None:
        """Take the daemon's connection, and say HELLO first."""
        if self.listener:
            with contextlib.suppress(OSError):
                fd, _ = self.listener._accept()  # type: ignore[attr-defined]
                os.set_blocking(fd, False)
                self.listener.close()
                self.listener = None
                self.control = Wire()
                self.control.fd = fd
                self.control.put(agent.HELLO, agent.NUMBER.pack(VERSION))

    def lose_daemon(self, reason: str) -> None:
        """End all calls; the daemon may come again."""
        agent.log(f"lost the daemon: {reason}")
        self.control.close()
        for link in list(self.links.values()):
            self.end(link)
        self.calls.close_all()
        self.callers.drop_all()

    def read_control(self) -> None:
        """Act on what the daemon says. Raises Lost."""
        self.control.read()
        if self.control.has_ended:
            raise Lost("it was closed")
        while self.control.take_hello() and (message := self.control.next(COMMAND_MAX)):
            kind, body = message
            if kind in (agent.EXEC_CMDLINE, JUST_EXEC) and len(body) > PARAMS.size:
                self.add(Link(self.new_stream(), PARAMS.unpack_from(body), kind, body[PARAMS.size :]))
            elif len(body) not in ANSWERS.get(kind, ()):
                raise Lost(f"a message of type {kind:#x} with {len(body)} bytes")
            elif kind == agent.SERVICE_CONNECT:
                self.meet_service(PARAMS.unpack_from(body), body[PARAMS.size :])
            else:
                self.callers.answer(0, kind, body)

    def new_stream(self) -> int:
        """Return a number for a call."""
        self.last_stream += 1
        return self.last_stream

    def add(self, link: Link) -> None:
        """Keep a call, unless there are too many."""
        if len(self.links) < 2 * agent.STREAMS_MAX:
            self.links[link.stream] = link
        else:
            self.control.put(CONNECTION_TERMINATED, PARAMS.pack(*link.params))

    def meet_service(self, params: tuple[int, int], ident: bytes) -> None:
        """Be the server of the vchan to a service that a client asked for."""
        link = Link(self.new_stream(), params)
        self.add(link)
        try:
            link.listen(self.path_of(self.domain, *params))
        except OSError as error:
            agent.log(f"nobody can be met: {error}")
            self.links.pop(link.stream, None)
            self.callers.answer(0, agent.SERVICE_REFUSED, ident)
            self.control.put(CONNECTION_TERMINATED, PARAMS.pack(*params))
            return
        link.is_begun = True
        self.callers.answer(link.stream, agent.SERVICE_CONNECT, ident)

    # -- what calls and clients send

    def send(self, stream: int, kind: int, body: bytes) -> None:
        """Take a frame of agent.py's to where it belongs."""
        link = self.links.get(stream)
        cost = agent.HEADER.size + len(body) if body and kind in DATA else 0
        if stream == 0:
            self.send_trigger(body)
        elif link is None:
            if cost:  # of a command that nobody waits for
                self.calls.dispatch(stream, agent.CREDIT, agent.NUMBER.pack(cost))
            elif kind == agent.DATA_EXIT_CODE:
                self.unheard = (stream, body)
        elif kind == agent.CREDIT:
            link.room += agent.NUMBER.unpack(body)[0]
        elif kind == agent.CLOSE:
            self.end(link)
        else:
            link.put(kind, body)
            link.ungranted += cost
            link.is_ending = link.is_ending or kind == agent.DATA_EXIT_CODE

    def send_trigger(self, body: bytes) -> None:
        """Ask the daemon for a service, in its version."""
        kind, fields, name = (
            agent.TRIGGER_SERVICE4,
            body[: agent.TRIGGER_PARAMS.size],
            body[agent.TRIGGER_PARAMS.size :],
        )
        _, target, ident = agent.TRIGGER_PARAMS.unpack(fields)
        if self.control.version == 3:
            kind, body = agent.TRIGGER_SERVICE3, target + ident + name
        elif self.control.version == OLDEST:
            kind, body = agent.TRIGGER_SERVICE, struct.pack("<64s32s32s", name[:63], target[:31], ident)
        self.control.put(kind, body)

    # -- data

    def end(self, link: Link) -> None:
        """End the data of a call, and say so to both sides."""
        if self.links.pop(link.stream, None) is None:
            return
        link.close()
        self.control.put(CONNECTION_TERMINATED, PARAMS.pack(*link.params))
        if link.stream in self.calls.by_stream:
            self.calls.close_stream(link.stream)
        elif link.stream in self.callers.streams:
            self.callers.dispatch(link.stream, agent.CLOSE, b"")

    def move(self, link: Link, events: int) -> None:
        """Read and write what can be. Raises Lost."""
        if events & ~select.POLLOUT and not link.is_ending:
            link.read()
        self.pass_on(link)
        # What a service said before its end still goes to its client; a command without a caller is ended at once.
        if link.has_ended and not link.is_ending and (link.kind or link.has_room()):
            raise Lost("it was closed")
        link.write()
        grant = link.take_grant()
        if grant:
            self.give_credit(link.stream, grant)
        if link.is_ending and not link.out and link.fd >= 0:
            self.end(link)

    def give_credit(self, stream: int, grant: int) -> None:
        """Let our side of a call send more."""
        side = self.callers if stream in self.callers.streams else self.calls
        side.dispatch(stream, agent.CREDIT, agent.NUMBER.pack(grant))

    def pass_on(self, link: Link) -> None:
        """Hand on messages of the other side. Raises Lost."""
        if not link.take_hello():
            return
        if not link.is_begun:
            self.begin(link)
        while not link.is_ending and (message := link.next_data()):
            self.take(link, *message)

    def begin(self, link: Link) -> None:
        """Start the command of a call; for one that nobody waits for, that is all: its code says whether it was."""
        link.is_begun = True
        if link.kind == JUST_EXEC:
            stream = self.new_stream()
            self.calls.dispatch(stream, agent.EXEC_CMDLINE, link.command)
            self.calls.dispatch(stream, agent.DATA_STDIN, b"")
            code = self.unheard[1] if self.unheard[0] == stream else agent.NUMBER.pack(0)
            link.put(agent.DATA_EXIT_CODE, code)
            link.is_ending = True
        else:
            self.calls.dispatch(link.stream, agent.EXEC_CMDLINE, link.command)

    def take(self, link: Link, kind: int, body: bytes) -> None:
        """Act on one message of data. Raises Lost."""
        is_ours = link.kind == 0
        if is_ours and link.stream not in self.callers.streams:
            raise Lost("the client is gone")
        if is_ours and kind in (agent.DATA_STDOUT, agent.DATA_STDERR):
            self.callers.dispatch(link.stream, kind, body)
        elif is_ours and kind == agent.DATA_EXIT_CODE and len(body) == agent.NUMBER.size:
            self.callers.dispatch(link.stream, kind, body)
            raise Lost("the call is over")
        elif not is_ours and kind == agent.DATA_STDIN:
            self.calls.dispatch(link.stream, kind, body)
        else:
            raise Lost(f"a message of type {kind:#x}")

    # -- the loop

    def _turn(self) -> None:
        pipes = {fd: wait for fd, wait in self.calls.list_waits(True).items() if self.has_room(wait[0].stream)}
        callers = self.callers.list_waits(True) if self.control.version else {}
        links = {link.fd: link for link in self.links.values() if link.fd >= 0}
        poll = select.poll()
        poll.register(self.wake_fd, select.POLLIN)
        if self.listener:
            poll.register(self.listener.fileno(), select.POLLIN)
        elif self.control.fd >= 0:
            poll.register(self.control.fd, select.POLLIN | (select.POLLOUT if self.control.out else 0))
        waits = {fd: wait[2] for fd, wait in pipes.items()} | {fd: wait[1] for fd, wait in callers.items()}
        # Of a command's link its end is wanted always; of a service's link only when its output is.
        waits |= {fd: link.events() for fd, link in links.items() if link.kind or link.events()}
        for fd, events in waits.items():
            poll.register(fd, events)
        for fd, events in poll.poll(self._timeout() * 1000):
            if fd in links:
                self._attempt(links[fd], events)
            elif fd in pipes:
                self.calls.serve(*pipes[fd][:2], fd, events)
            elif fd in callers:
                self.callers.serve(callers[fd][0], events)
            else:
                self._serve_own(fd)
        self._look_at_clock()

    def has_room(self, stream: int) -> bool:
        """Tell whether the pipes of a call may be read."""
        link = self.links.get(stream)
        return link is None or len(link.out) < agent.OUT_HIGH

    def _serve_own(self, fd: int) -> None:
        if fd == self.wake_fd:
            os.read(self.wake_fd, 512)
            self.calls.reap()
        elif self.listener:
            self.accept()
        else:
            self._keep(self.read_control)

    def _keep(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Lost as loss:
            self.lose_daemon(str(loss))

    def _attempt(self, link: Link, events: int) -> None:
        if self.links.get(link.stream) is not link:
            return
        try:
            self.move(link, events)
        except Lost:
            self.end(link)

    def _timeout(self) -> float:
        now = time.monotonic()
        times = self.calls.list_deadlines(now) + self.callers.list_deadlines()
        times += [now + RETRY for link in self.links.values() if link.fd < 0]
        return max(0.0, min((moment - now for moment in times if moment > self.looked_at), default=3600.0)) + 0.001

    def _look_at_clock(self) -> None:
        self.looked_at = now = time.monotonic()  # what is due from now on has not been done
        self.calls.look_at_clock(now)
        if self.control.version:
            self.callers.look_at_clock(now)
        for link in list(self.links.values()):
            self._advance(link, now)
        if self.control.fd >= 0:
            self._keep(self.control.write)

    def _advance(self, link: Link, now: float) -> None:
        """Meet the other side of a call, and write what has been said meanwhile."""
        try:
            if link.fd < 0:
                link.try_meet(self.path_of(link.params[0], self.domain, link.params[1]))
            if not link.version and now >= link.deadline:
                raise Lost("nobody came")
            if link.fd >= 0:
                self.move(link, 0)
        except Lost:
            self.end(link)


def main(arguments: list[str]) -> int:
    """Run the agent."""
    paths = arguments[1:]
    if len(arguments) not in (1, 3) or not arguments[0].isdigit() or paths[:1] not in ([], ["--trigger-socket"]):
        agent.log("usage: vchan_agent.py DOMAIN [--trigger-socket PATH]")
        return 2
    try:
        VchanAgent(int(arguments[0]), paths[1] if paths else agent.TRIGGER_SOCKET).run()
    except OSError as error:
        agent.log(f"no vchan can be made: {error}; VCHAN_SOCKET_DIR says where")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
