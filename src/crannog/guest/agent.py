"""The guest agent: announces the guest to its host, and runs the commands that the host asks for.

It runs as root in the guest, needs Python 3.9 with what Debian's python3-minimal holds, and is one file, so
that an image gets it by a copy. The channel is the virtio-serial port `org.crannog.agent.0`; its format is
described in crannog/rpc/frames.py, of which this file has its own small copy (a test holds both equal).

How a command ends: when its main process has exited, what the pipes hold at that moment is still sent. If a
background process keeps them open, the call ends after a short grace all the same, as with qrexec; what that
process writes later is lost. When the caller goes away, the command's process group gets SIGHUP, and SIGKILL
after KILL_GRACE.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pwd
import select
import signal
import struct
import sys
import time
from collections.abc import Iterable

VERSION = "0.1.0"
PORT_NAME = "org.crannog.agent.0"

PROTOCOL_VERSION = 1
DATA_STDIN, DATA_STDOUT, DATA_STDERR, DATA_EXIT_CODE = 0x190, 0x191, 0x192, 0x193
EXEC_CMDLINE, HELLO = 0x200, 0x300
CREDIT, CLOSE, GUESTDB_WRITE, TRIGGER, POWEROFF = 0x700, 0x701, 0x702, 0x703, 0x704
TYPES = {DATA_STDIN, DATA_STDOUT, DATA_STDERR, DATA_EXIT_CODE, EXEC_CMDLINE, HELLO}
TYPES |= {CREDIT, CLOSE, GUESTDB_WRITE, TRIGGER, POWEROFF}
HEADER = struct.Struct("<III")
NUMBER = struct.Struct("<I")
BODY_MAX = 65536
WINDOW = 262144
GRANT_MIN = 65536
CREDIT_MIN = 4096 + HEADER.size
STREAMS_MAX = 256
MAGIC = b"\xffcrannog-sync\xff\xfe"
MARKER_SIZE = 32
PADDING = bytes(BODY_MAX + 2 * HEADER.size)

OUT_HIGH = 262144
"""Children are not read while this many bytes wait for the port."""
ASK_AGAIN = 1.0
AWAY_POLL = 0.05
EXIT_GRACE = 0.2
KILL_GRACE = 3.0
FIONREAD = 0x541B
F_SETPIPE_SZ = 1031
EXIT_TROUBLE = 125


class BadFrame(Exception):  # noqa: N818
    """The bytes from the port are not a frame: one side was restarted in the middle of one."""


def log(sentence: str) -> None:
    """Write one line to stderr, which is the console or the journal."""
    with contextlib.suppress(OSError):  # a console that is gone must not end the agent
        os.write(2, f"crannog-agent: {sentence}\n".encode(errors="replace"))


def make_nonce() -> bytes:
    """Return 8 bytes that no other process can guess. At early boot it does not wait for entropy."""
    try:
        return os.getrandom(8, os.GRND_NONBLOCK)
    except OSError:
        return struct.pack("<Q", time.time_ns() & 0xFFFFFFFFFFFFFFFF)


class Port:
    """The channel's file: the virtio-serial port, or a unix socket in tests."""

    def __init__(self, path: str, is_socket: bool) -> None:
        self.path = path
        self.is_socket = is_socket
        self.fd = -1

    def open(self) -> bool:
        """Try once to open the port; return whether it is open now."""
        try:
            self.fd = self._connect() if self.is_socket else self._open_device()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ECONNREFUSED):
                log(f"cannot open the port {self.path or PORT_NAME}: {error}")
                time.sleep(1)
            return False
        return True

    def close(self) -> None:
        """Close the port, if it is open."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def is_host_away(self) -> bool:
        """Tell whether nobody has the host's end open (the driver then reports POLLHUP)."""
        poll = select.poll()
        poll.register(self.fd, 0)
        return bool(poll.poll(0))

    def _connect(self) -> int:
        import socket

        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            client.connect(self.path)
            client.setblocking(False)
            return client.detach()
        finally:
            client.close()

    def _open_device(self) -> int:
        path = self.path or find_port()
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


def find_port(ports: str = "/sys/class/virtio-ports") -> str:
    """Return the device of the virtio-serial port named PORT_NAME; works without udev.

    Raises FileNotFoundError while there is none.
    """
    for device in os.listdir(ports):
        with open(f"{ports}/{device}/name", encoding="ascii", errors="replace") as file:
            if file.read().strip() == PORT_NAME:
                return f"/dev/{device}"
    raise FileNotFoundError(errno.ENOENT, "no such virtio-serial port", PORT_NAME)


class Parser:
    """Cuts the port's bytes into frames, or hunts for the host's sync marker."""

    def __init__(self) -> None:
        self.buffer = bytearray()

    def next_frame(self) -> tuple[int, int, bytes] | None:
        """Return (stream, type, body), or None when more bytes are needed. Raises BadFrame."""
        if len(self.buffer) < HEADER.size:
            return None
        stream, kind, length = HEADER.unpack_from(self.buffer)
        if kind not in TYPES or length > BODY_MAX:
            raise BadFrame
        end = HEADER.size + length
        if len(self.buffer) < end:
            return None
        body = bytes(self.buffer[HEADER.size : end])
        del self.buffer[:end]
        return stream, kind, body

    def find_sync(self, nonce: bytes) -> bytes | None:
        """Drop everything up to the SYNC that answers `nonce`; return the host's nonce once it is there."""
        wanted = MAGIC + b"S" + nonce
        at = self.buffer.find(wanted)
        if at < 0:
            del self.buffer[: -len(wanted)]
            return None
        del self.buffer[:at]
        if len(self.buffer) < MARKER_SIZE:
            return None
        host_nonce = bytes(self.buffer[len(wanted) : MARKER_SIZE])
        del self.buffer[:MARKER_SIZE]
        return host_nonce


def close_all(fds: Iterable[int]) -> None:
    """Close all of `fds`."""
    for fd in fds:
        os.close(fd)


class Command:
    """One running command: its main process, its pipes, and the windows of its stream."""

    def __init__(self, stream: int, user: pwd.struct_passwd, command: bytes) -> None:
        self.stream = stream
        self.pid = -1
        self.stdin = bytearray()
        self.has_stdin_ended = False
        self.ungranted = 0
        self.credit = WINDOW
        self.exit_code: int | None = None
        self.deadline = 0.0
        self.left: dict[int, int] = {}
        stdin, stdout, stderr = os.pipe(), os.pipe(), os.pipe()
        theirs = (stdin[0], stdout[1], stderr[1])
        self.stdin_fd = stdin[1]
        self.outputs = {DATA_STDOUT: stdout[0], DATA_STDERR: stderr[0]}
        try:
            self.pid = os.fork()
        except OSError:
            self.close()
            raise
        finally:
            if self.pid != 0:
                close_all(theirs)
        if self.pid == 0:
            run_child(user, command, theirs)
        for fd in (self.stdin_fd, *self.outputs.values()):
            os.set_blocking(fd, False)
            with contextlib.suppress(OSError):  # larger pipes need fewer switches between processes
                fcntl.fcntl(fd, F_SETPIPE_SZ, WINDOW)

    def write_stdin(self) -> None:
        """Hand the command what it takes now; what a command with a closed stdin does not take is dropped."""
        try:
            while self.stdin and self.stdin_fd >= 0:
                with memoryview(self.stdin) as view, view[:BODY_MAX] as part:
                    count = os.write(self.stdin_fd, part)
                del self.stdin[:count]
        except BlockingIOError:
            return
        except OSError:
            self.close_stdin()
        if self.has_stdin_ended or self.stdin_fd < 0:
            self.close_stdin()

    def close_stdin(self) -> None:
        """Close the command's stdin and drop what it has not taken."""
        self.stdin.clear()
        if self.stdin_fd >= 0:
            os.close(self.stdin_fd)
            self.stdin_fd = -1

    def take_grant(self) -> int:
        """Return how many bytes the host may send in addition now (0: not worth a frame yet)."""
        grant = self.ungranted - len(self.stdin)
        if grant < GRANT_MIN:
            return 0
        self.ungranted -= grant
        return grant

    def note_exit(self, exit_code: int) -> None:
        """Remember the exit code, and how much is in the pipes now: that much is still sent."""
        self.exit_code = exit_code
        self.deadline = time.monotonic() + EXIT_GRACE
        self.close_stdin()
        for kind, fd in self.outputs.items():
            self.left[kind] = NUMBER.unpack(fcntl.ioctl(fd, FIONREAD, bytes(4)))[0]

    def is_over(self) -> bool:
        """Tell whether everything was sent that is to be sent before the exit code."""
        if self.exit_code is None:
            return False
        if not self.outputs:
            return True
        is_drained = all(self.left[kind] <= 0 for kind in self.outputs)
        return is_drained and time.monotonic() >= self.deadline

    def close(self) -> None:
        """Close all pipes."""
        self.close_stdin()
        close_all(self.outputs.values())
        self.outputs = {}


def make_environment(user: pwd.struct_passwd) -> dict[str, str]:
    """Return the environment of a login of `user`, as login(1) sets it."""
    sbin = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    environment = {
        "HOME": user.pw_dir,
        "USER": user.pw_name,
        "LOGNAME": user.pw_name,
        "SHELL": user.pw_shell or "/bin/sh",
        "PATH": sbin if user.pw_uid == 0 else "/usr/local/bin:/usr/bin:/bin",
    }
    if "LANG" in os.environ:
        environment["LANG"] = os.environ["LANG"]
    return environment


def run_child(user: pwd.struct_passwd, command: bytes, stdio: tuple[int, int, int]) -> None:
    """Become `user`'s login shell that runs `command`. Called in the child; never returns."""
    try:
        os.setsid()
        for target, fd in enumerate(stdio):
            os.dup2(fd, target)
        os.closerange(3, 1024)
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        if os.geteuid() == 0:
            for fd in (0, 1, 2):
                os.fchown(fd, user.pw_uid, user.pw_gid)  # else /dev/stderr cannot be opened by its name
            os.initgroups(user.pw_name, user.pw_gid)
            os.setgid(user.pw_gid)
            os.setuid(user.pw_uid)
        elif os.geteuid() != user.pw_uid:
            raise PermissionError(errno.EPERM, "the agent does not run as root")
        os.umask(0o022)
        try:
            os.chdir(user.pw_dir)
        except OSError:
            os.chdir("/")
        # A first letter "-" makes any shell a login shell (POSIX leaves -l to each shell).
        os.execve("/bin/sh", [b"-sh", b"-c", command], make_environment(user))  # noqa: S606
    except OSError as error:
        os.write(2, f"the guest cannot run this as '{user.pw_name}': {error}\n".encode(errors="replace"))
    finally:
        os._exit(EXIT_TROUBLE)


def find_default_user() -> str:
    """Return the user that commands run as when the host names none."""
    with contextlib.suppress(KeyError):
        return pwd.getpwnam("user").pw_name
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(os.geteuid()).pw_name
    return "root"


def find_user(untrusted_name: bytes) -> pwd.struct_passwd:
    """Return the account that the host named. Raises LookupError with a sentence."""
    name = untrusted_name.decode("ascii", "replace")
    try:
        user = pwd.getpwnam(find_default_user() if name == "DEFAULT" else name)
    except (KeyError, ValueError):
        raise LookupError(f"the guest has no user '{name}'") from None
    if os.geteuid() not in (0, user.pw_uid):
        raise LookupError(f"the guest's agent is not root, so it cannot run commands as '{name}'")
    return user


def power_off() -> None:
    """Start the guest's clean shutdown."""
    arguments = ["systemctl", "poweroff"] if os.path.isdir("/run/systemd/system") else ["poweroff"]
    log("the host asks for a shutdown: " + " ".join(arguments))
    if os.fork() == 0:
        try:
            os.setsid()
            os.environ["PATH"] = os.environ.get("PATH", "") + ":/usr/sbin:/usr/bin:/sbin:/bin"
            os.execvp(arguments[0], arguments)  # noqa: S606
        except OSError as error:
            log(f"cannot run {arguments[0]}: {error}")
        finally:
            os._exit(EXIT_TROUBLE)


class Agent:
    """The loop: one port, any number of commands, one thread."""

    def __init__(self, port: Port) -> None:
        self.port = port
        self.parser = Parser()
        self.out = bytearray()
        self.nonce = b""
        self.is_synced = False
        self.asked_at = 0.0
        self.commands: dict[int, Command] = {}
        self.doomed: dict[int, float] = {}
        self.wake_fd, self.wake_write_fd = os.pipe()
        for fd in (self.wake_fd, self.wake_write_fd):
            os.set_blocking(fd, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.wake_write_fd, warn_on_full_buffer=False)

    def close(self) -> None:
        """Give back what the agent holds of its process: the signal handler and its pipe."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        close_all((self.wake_fd, self.wake_write_fd))

    def run(self) -> None:
        """Serve for ever."""
        while True:
            if self.port.fd < 0 and not self._open():
                time.sleep(AWAY_POLL)
            else:
                self._turn()

    def _open(self) -> bool:
        if not self.port.open():
            return False
        self.desync()
        return True

    def desync(self) -> None:
        """Start over: end all commands, and ask the host for a SYNC. Padding completes what was half sent."""
        for stream in list(self.commands):
            self.close_stream(stream)
        self.nonce = make_nonce()
        self.is_synced = False
        self.out[:] = PADDING
        self.ask_sync()

    def ask_sync(self) -> None:
        """Send a SYNC-REQUEST. It is repeated until answered: a dying host process may have eaten it."""
        self.out += MAGIC + b"R" + self.nonce + bytes(8)
        self.asked_at = time.monotonic()

    def _turn(self) -> None:
        pipes = self._pipes()
        poll = select.poll()
        poll.register(self.port.fd, select.POLLIN | (select.POLLOUT if self.out else 0))
        poll.register(self.wake_fd, select.POLLIN)
        for fd, (_, kind) in pipes.items():
            poll.register(fd, select.POLLOUT if kind == DATA_STDIN else select.POLLIN)
        for fd, _ in poll.poll(self._timeout() * 1000):
            if fd == self.wake_fd:
                os.read(self.wake_fd, 512)
                self.reap()
            elif fd in pipes:
                self.serve_pipe(*pipes[fd], fd)
            elif fd == self.port.fd:
                self.read_port()
        self._look_at_clock()
        self.write_port()

    def _pipes(self) -> dict[int, tuple[Command, int]]:
        """Return the pipes that may move bytes now. The others must stay out: poll reports their hang-ups."""
        pipes = {}
        may_read = len(self.out) < OUT_HIGH
        for command in self.commands.values():
            if command.stdin and command.stdin_fd >= 0:
                pipes[command.stdin_fd] = (command, DATA_STDIN)
            if may_read and command.credit >= CREDIT_MIN:
                pipes.update({fd: (command, kind) for kind, fd in command.outputs.items()})
        return pipes

    def _timeout(self) -> float:
        """Return the seconds until the next thing that the clock decides."""
        now = time.monotonic()
        times = [*self.doomed.values(), *(command.deadline for command in self.commands.values())]
        if not self.is_synced and not self.out:
            times.append(self.asked_at + ASK_AGAIN)
        return max(0.0, min((moment - now for moment in times if moment > now), default=3600.0)) + 0.001

    def _look_at_clock(self) -> None:
        now = time.monotonic()
        for command in [command for command in self.commands.values() if command.is_over()]:
            self.finish(command)
        for pid in [pid for pid, deadline in self.doomed.items() if deadline <= now]:
            del self.doomed[pid]
            signal_group(pid, signal.SIGKILL)
        if not self.is_synced and not self.out and now >= self.asked_at + ASK_AGAIN:
            self.ask_sync()

    def write_port(self) -> None:
        """Write what the port takes now."""
        done = 0
        try:
            with memoryview(self.out) as view:
                while done < len(view) and self.port.fd >= 0:
                    done += os.write(self.port.fd, view[done : done + BODY_MAX])
        except BlockingIOError:
            pass
        except OSError as error:
            self.lose_port(str(error))
        del self.out[:done]

    def read_port(self) -> None:
        """Act on what the host has sent, or on its absence."""
        try:
            data = os.read(self.port.fd, BODY_MAX)
        except BlockingIOError:
            return
        except OSError as error:
            self.lose_port(str(error))
            return
        if data:
            self.receive(data)
        else:
            self.wait_for_host()

    def lose_port(self, reason: str) -> None:
        """Close a port that is gone; it is opened again when it is there again."""
        log(f"lost the port: {reason}")
        self.port.close()

    def wait_for_host(self) -> None:
        """End all calls, as the host is away (a read returned nothing), and wait for it without spinning."""
        if self.port.is_socket:
            self.lose_port("the socket's other end is closed")
        self.desync()
        while self.port.fd >= 0 and self.port.is_host_away():
            self.reap()
            self._look_at_clock()
            time.sleep(AWAY_POLL)

    def receive(self, data: bytes) -> None:
        """Act on bytes from the port. A bad frame starts a new synchronisation, nothing else."""
        self.parser.buffer += data
        try:
            while self.is_synced or self.find_sync():
                frame = self.parser.next_frame()
                if frame is None:
                    return
                self.dispatch(*frame)
        except BadFrame:
            self.desync()

    def find_sync(self) -> bool:
        """Hunt for the host's SYNC; when found, acknowledge it and announce the guest."""
        host_nonce = self.parser.find_sync(self.nonce)
        if host_nonce is None:
            return False
        self.is_synced = True
        self.out += MAGIC + b"A" + self.nonce + host_nonce
        self.send(0, HELLO, NUMBER.pack(PROTOCOL_VERSION))
        self.announce()
        return True

    def announce(self) -> None:
        """Tell the host what this guest is (qubes.NotifyTools)."""
        facts = {
            "version": VERSION,
            "os": "Linux",
            "qrexec": "1",
            "gui": "0",
            "default-user": find_default_user(),
        }
        for key, value in facts.items():
            self.send(0, GUESTDB_WRITE, f"/qubes-tools/{key}\0{value}".encode())
        self.send(0, TRIGGER, b"qubes.NotifyTools")

    def send(self, stream: int, kind: int, body: bytes) -> None:
        """Queue one frame for the port."""
        self.out += HEADER.pack(stream, kind, len(body))
        self.out += body

    def dispatch(self, stream: int, kind: int, body: bytes) -> None:
        """Act on one frame from the host. Frames for a stream that has ended are late, not wrong."""
        command = self.commands.get(stream)
        if kind == EXEC_CMDLINE:
            self.start(stream, body)
        elif kind == POWEROFF:
            with contextlib.suppress(OSError):  # no more processes: the host will pull the plug
                power_off()
        elif command is None:
            return
        elif kind == DATA_STDIN:
            self.take_stdin(command, body)
        elif kind == CREDIT and len(body) == NUMBER.size:
            command.credit += NUMBER.unpack(body)[0]
        elif kind == CLOSE:
            self.close_stream(stream)

    def start(self, stream: int, body: bytes) -> None:
        """Run `USER:COMMAND` as the new stream `stream`."""
        name, _, text = body.partition(b"\0")[0].partition(b":")
        try:
            if stream in self.commands or len(self.commands) >= STREAMS_MAX:
                raise LookupError("the guest's agent runs too many commands already")
            self.commands[stream] = Command(stream, find_user(name), text)
        except LookupError as error:
            self.refuse(stream, str(error))
        except OSError as error:
            self.refuse(stream, f"the guest cannot start another process: {error}")

    def refuse(self, stream: int, sentence: str) -> None:
        """End a stream whose command was never run."""
        self.send(stream, DATA_STDERR, sentence.encode(errors="replace")[:1024] + b"\n")
        for kind in (DATA_STDOUT, DATA_STDERR):
            self.send(stream, kind, b"")
        self.send(stream, DATA_EXIT_CODE, NUMBER.pack(EXIT_TROUBLE))

    def take_stdin(self, command: Command, body: bytes) -> None:
        """Pass on what the host sent; an empty body is the end."""
        if body:
            command.ungranted += HEADER.size + len(body)
            command.stdin += body
        else:
            command.has_stdin_ended = True
        self.serve_pipe(command, DATA_STDIN, command.stdin_fd)

    def serve_pipe(self, command: Command, kind: int, fd: int) -> None:
        """Move bytes between one pipe of a command and its stream."""
        if kind == DATA_STDIN:
            command.write_stdin()
            grant = command.take_grant()
            if grant:
                self.send(command.stream, CREDIT, NUMBER.pack(grant))
        elif command.outputs.get(kind) == fd and command.credit >= CREDIT_MIN:
            self.read_output(command, kind, fd)

    def read_output(self, command: Command, kind: int, fd: int) -> None:
        """Send what the command has written, or the end of it."""
        try:
            data = os.read(fd, min(BODY_MAX, command.credit - HEADER.size))
        except BlockingIOError:
            return
        if data:
            command.credit -= HEADER.size + len(data)
            if kind in command.left:
                command.left[kind] -= len(data)
        else:
            os.close(command.outputs.pop(kind))
        self.send(command.stream, kind, data)

    def reap(self) -> None:
        """Collect every child that has ended, also adopted ones (the agent may be PID 1)."""
        by_pid = {command.pid: command for command in self.commands.values()}
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self.doomed.pop(pid, None)
            if pid in by_pid:
                code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
                by_pid[pid].note_exit(code)

    def finish(self, command: Command) -> None:
        """Send the ends of the outputs that are still open, and the exit code."""
        for kind in command.outputs:
            self.send(command.stream, kind, b"")
        self.send(command.stream, DATA_EXIT_CODE, NUMBER.pack(command.exit_code or 0))
        command.close()
        del self.commands[command.stream]

    def close_stream(self, stream: int) -> None:
        """Close the pipes of a caller that is gone, hang up the process group, and kill it after a grace."""
        command = self.commands.pop(stream)
        command.close()
        if command.exit_code is None:
            signal_group(command.pid, signal.SIGHUP)
            self.doomed[command.pid] = time.monotonic() + KILL_GRACE


def signal_group(pid: int, number: int) -> None:
    """Signal the process group that `pid` leads. The leader is not reaped yet, so the number is still its."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        # The child has not reached setsid yet: it is alone.
        os.kill(pid, number)


def main(arguments: list[str]) -> int:
    """Run the agent: `agent.py [--port DEVICE | --socket PATH]`."""
    path, is_socket = "", False
    if len(arguments) == 2 and arguments[0] in ("--port", "--socket"):
        path, is_socket = arguments[1], arguments[0] == "--socket"
    elif arguments:
        log("usage: agent.py [--port DEVICE | --socket PATH]")
        return 2
    while True:  # an init without a console may have closed 0-2, which pipes must never become
        fd = os.open("/dev/null", os.O_RDWR)
        if fd > 2:
            os.close(fd)
            break
    Agent(Port(path, is_socket)).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
