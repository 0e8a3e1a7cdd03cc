"""The guest agent: announces the guest, runs what the host asks for, and passes on calls from the guest.

It runs as root in the guest (as another user it serves that user alone), needs Python 3.9 with what Debian's
python3-minimal holds, and is one file, so that an image gets it by a copy. The channel is the virtio-serial port
`org.crannog.agent.0`, on Xen the console of that name; its format is described in crannog/rpc/frames.py, of which this
file has its own small copy (a test holds both equal).

What the host asks for is `USER:COMMAND`, for the shell, or `USER:[nogui:]QUBESRPC SERVICE+ARGUMENT SOURCE`. Services
are looked up, started and configured as in Qubes (qrexec protocol, "Service lookup").

How a command ends: when its main process has exited, what the pipes hold at that moment is still sent. If a
background process keeps them open, the call ends after a short grace all the same; what that process writes later
is lost. When the caller goes away, the command's process group gets SIGHUP, and SIGKILL after KILL_GRACE.

Calls from the guest come in on the trigger socket, as messages `u32 type, u32 length, body`. A client sends one
TRIGGER_SERVICE4 (older ones: 3 or 2); its socket is closed when the call is refused. Else it gets an empty
SERVICE_CONNECT, sends DATA_STDIN (empty: the end), and gets DATA_STDOUT, DATA_STDERR and, last, DATA_EXIT_CODE.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # what signal.py wraps, which takes ten times as long
import _socket  # socket.py would cost each boot some 20 ms of imports
import contextlib
import errno
import fcntl
import os
import pwd
import select
import signal
import stat
import struct
import sys
import time
from collections.abc import Callable, Iterable

VERSION = "0.1.0"
PORT_NAME = "org.crannog.agent.0"
XENBUS = "/dev/xen/xenbus"
"""A guest's way to XenStore; /proc/xen/xenbus is the same."""

PROTOCOL_VERSION = 4
BULK_VERSION = 4
DATA_STDIN, DATA_STDOUT, DATA_STDERR, DATA_EXIT_CODE = 0x190, 0x191, 0x192, 0x193
EXEC_CMDLINE, SERVICE_CONNECT, SERVICE_REFUSED, HELLO = 0x200, 0x202, 0x203, 0x300
TRIGGER_SERVICE, TRIGGER_SERVICE3, TRIGGER_SERVICE4 = 0x210, 0x212, 0x213
CREDIT, CLOSE, GUESTDB_WRITE, TRIGGER, POWEROFF = 0x700, 0x701, 0x702, 0x703, 0x704
TYPES = {DATA_STDIN, DATA_STDOUT, DATA_STDERR, DATA_EXIT_CODE, EXEC_CMDLINE, HELLO}
TYPES |= {CREDIT, CLOSE, GUESTDB_WRITE, TRIGGER, POWEROFF}
GUESTDB_REMOVE, GUESTDB_READY, GUESTDB_WATCH = 0x705, 0x706, 0x707
DATA_TYPES = frozenset({DATA_STDIN, DATA_STDOUT, DATA_STDERR})
TYPES |= {SERVICE_CONNECT, SERVICE_REFUSED, TRIGGER_SERVICE4, GUESTDB_REMOVE, GUESTDB_READY}
HEADER = struct.Struct("<III")
LOCAL_HEADER = struct.Struct("<II")
NUMBER = struct.Struct("<I")
TRIGGER_PARAMS = struct.Struct("<64s64s32s")
OLD_TRIGGERS = {TRIGGER_SERVICE: struct.Struct("<64s32s32s"), TRIGGER_SERVICE3: struct.Struct("<64s32s")}
BODY_MAX = 65536
BULK_MAX = 262144
WINDOW = 262144
WIDE_WINDOW = 2097152
WIDE_GRANT = 524288
WIDE_AFTER = 524288
WIDE_STREAMS = 8
GRANT_MIN = 65536
CREDIT_MIN = 4096 + HEADER.size
STREAMS_MAX = 256
MAGIC = b"\xffcrannog-sync\xff\xfe"
MARKER_SIZE = 32
GUEST_PADDING = bytes(BULK_MAX + 2 * HEADER.size)
TERMINAL_BODY_MAX = 4096
"""Most data in a frame where the port is a terminal: all that it holds are two pages."""
TERMINAL_PADDING = bytes(TERMINAL_BODY_MAX + 2 * HEADER.size)
LONG_PADDING = bytes(BODY_MAX + 2 * HEADER.size)
"""For a terminal whose other end does not answer at once: a frame that is no data may be larger."""

READ_SIZE = 262144
OUT_HIGH = 262144
"""Children are not read while this many bytes wait for the port."""
PIPE_READS = 4
"""Reads of one pipe in a turn of the loop."""
PAGE = 4096
"""What the port's driver gives at a time, and the least buffer that programs fill before they write."""
BULK_MIN = 16384
"""From so many bytes on it takes less time to move a pipe's pages than to copy them."""
PIPE_MAX = 1048576
REST_LEAST, REST_MOST = 0.001, 0.004
"""Seconds that a pipe with bulk data is left alone, so that it fills: each look at it stops who is filling it."""
ASK_AGAIN = 1.0
AWAY_POLL = 0.05
EXIT_GRACE = 0.2
KILL_GRACE = 3.0
DEFAULT_SIGNALS = tuple(map(int, (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP, signal.SIGINT, signal.SIGTERM)))
FIONREAD = 0x541B
F_SETPIPE_SZ = 1031
EXIT_TROUBLE, EXIT_REFUSED, EXIT_MISSING = 125, 126, 127

SERVICE_FOLDERS = "/run/qubes-rpc:/usr/local/etc/qubes-rpc:/etc/qubes-rpc"
CONFIG_FOLDERS = "/run/qubes/rpc-config:/usr/local/etc/qubes/rpc-config:/etc/qubes/rpc-config"
NAME_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.@:-")
NAME_MAX = 255
DATABASE = "/run/qubes/guestdb"
SECRETS = frozenset({"%qubes-random-seed"})
CLOCK = b"/crannog-clock\0"
"""Beginning of what the host writes when this guest was stopped for a while: the time, in nanoseconds since 1970."""
READY = b"/crannog-ready\0"
"""Beginning of what the host writes when a command of the user who is named will have to start quickly."""
SLEEP = b"/crannog-sleep\0"
"""Beginning of what the host writes before it saves this guest: all other processes are stopped then."""
RENEW = b"/crannog-renew\0"
"""Beginning of what the host writes to a guest that was restored: who it is from now on."""
IDENTITY = "/usr/lib/crannog/fresh-identity"
"""Program that gives a disposable what is its own."""
CAN_RENEW, ASLEEP = "1", "asleep"
RNDADDENTROPY, RNDRESEEDCRNG = 0x40085203, 0x5207
NO_CALL = -1
"""Number of a client that wants something else than a call."""
CONFIG_MAX = 4096
SESSION_FOLDER = "/run/crannog"
GUI = "/usr/lib/crannog/gui/session.py"
"""Program of the graphical session: where it is installed, the guest has a GUI agent."""
SESSION_WAIT = float(os.environ.get("CRANNOG_SESSION_WAIT") or 60)
CONNECT_WAIT = 10.0
RETRY = 0.05

TRIGGER_SOCKET = "/run/qubes/qrexec-agent"
SERVICE_NAME_MAX = 65000
CALLERS_MAX = 128
"""Clients of the trigger socket; with STREAMS_MAX commands of three pipes they stay below 1024 open files."""
TRIGGERS_MAX = 64
"""Calls from the guest that may wait for the host's answer."""
ASK_TIME = 10.0
"""Seconds that a client has to send its request."""


class BadFrame(Exception):  # noqa: N818
    """The bytes from the port are not a frame: one side was restarted in the middle of one."""


class Refusal(LookupError):  # noqa: N818
    """A call that cannot be: a sentence for the caller, and the exit code."""

    def __init__(self, sentence: str, exit_code: int = EXIT_TROUBLE) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


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


TERMIOS = struct.Struct("<IIIIB19s")
TCGETS, TCSETS, TCFLSH, TCIFLUSH = 0x5401, 0x5402, 0x540B, 0
CONTROL_MODES = 0x8B0
"""8 bits, the receiver is on, no modem lines (termios(3): CS8, CREAD, CLOCAL)."""
CHARACTERS = bytes((0, 0, 0, 0, 0, 0, 1)).ljust(19, b"\0")
"""Of the control characters VMIN alone: a read without data is told from the end."""


def make_raw(fd: int) -> None:
    """Have a terminal pass all bytes as they are, and drop what it has taken as lines until now.

    Until then it echoes what it gets. The host takes that for rubbish: it waits for an answer to its nonce. The module
    termios is not in python3-minimal.
    """
    _, _, control, _, discipline, _ = TERMIOS.unpack(fcntl.ioctl(fd, TCGETS, bytes(TERMIOS.size)))
    fcntl.ioctl(fd, TCSETS, TERMIOS.pack(0, 0, control | CONTROL_MODES, 0, discipline, CHARACTERS))
    fcntl.ioctl(fd, TCFLSH, TCIFLUSH)


class Port:
    """The channel's file: the virtio-serial port, Xen's console of its name, or a unix socket in tests."""

    def __init__(self, path: str, is_socket: bool) -> None:
        self.path = path
        self.is_socket = is_socket
        self.is_terminal = False
        self.fd = -1

    @property
    def tells_absence(self) -> bool:
        """Whether a read of nothing says that the host is away for now: else the port has ended."""
        return not self.is_socket and not self.is_terminal

    @property
    def padding(self) -> bytes:
        """What completes the frame that was half sent, if there is one. A terminal is slow: see `Agent.ask_again`."""
        return TERMINAL_PADDING if self.is_terminal else GUEST_PADDING

    @property
    def body_max(self) -> int:
        """Most data in a frame, unless the host takes more."""
        return TERMINAL_BODY_MAX if self.is_terminal else BODY_MAX

    @property
    def out_high(self) -> int:
        """With so many bytes waiting for it no more output is read: what is urgent waits behind them."""
        return 4 * TERMINAL_BODY_MAX if self.is_terminal else OUT_HIGH

    def open(self) -> bool:
        """Try once to open the port; return whether it is open now."""
        try:
            self.fd = self._connect() if self.is_socket else self._open_device()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ECONNREFUSED, errno.ENODEV):
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
        path = self.path or find_device()
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        self.is_terminal = os.isatty(fd)
        if self.is_terminal:
            make_raw(fd)
        return fd


def find_device() -> str:
    """Return the device of the channel. Raises OSError while there is none."""
    try:
        return find_port()
    except FileNotFoundError:
        with XenStore() as store:
            try:
                return find_console(store)
            except FileNotFoundError:
                time.sleep(ASK_AGAIN)  # XenStore serves all guests of the host
                raise


def find_port(ports: str = "/sys/class/virtio-ports") -> str:
    """Return the device of the virtio-serial port named PORT_NAME; works without udev.

    Raises FileNotFoundError while there is none.
    """
    for device in os.listdir(ports):
        with open(f"{ports}/{device}/name", encoding="ascii", errors="replace") as file:
            if file.read().strip() == PORT_NAME:
                return f"/dev/{device}"
    raise FileNotFoundError(errno.ENOENT, "no such virtio-serial port", PORT_NAME)


class XenStore:
    """XenStore, as far as a guest needs it; paths are below its own folder (Xen, io/xs_wire.h; docs/misc/xenstore.txt).

    What the host answers is trusted, like all that it tells. Every call raises OSError with XenStore's own reason.
    """

    DIRECTORY, READ, TRANSACTION_START, TRANSACTION_END, WRITE, WATCH_EVENT, ERROR = 1, 2, 6, 7, 11, 15, 16
    HEADER = struct.Struct("<IIII")

    def __init__(self, path: str = XENBUS) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self.transaction = 0

    def __enter__(self) -> XenStore:  # noqa: PYI034  Self is not in Python 3.9
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def list(self, path: str) -> list[str]:
        """Return the names in a folder."""
        return [name.decode("ascii", "replace") for name in self._ask(self.DIRECTORY, path + "\0").split(b"\0") if name]

    def read(self, path: str) -> bytes:
        """Return a value."""
        return self._ask(self.READ, path + "\0")

    def write_all(self, entries: dict[str, str]) -> None:
        """Set values, all at once for those who watch."""
        while True:
            self.transaction = int(self._ask(self.TRANSACTION_START, "\0").rstrip(b"\0"))
            try:
                for path, value in entries.items():
                    self._ask(self.WRITE, f"{path}\0{value}")
                self._ask(self.TRANSACTION_END, "T\0")
            except OSError as error:
                if error.errno == errno.EAGAIN:  # somebody else changed something meanwhile
                    continue
                if self.transaction:
                    with contextlib.suppress(OSError):
                        self._ask(self.TRANSACTION_END, "F\0")
                raise
            else:
                return
            finally:
                self.transaction = 0

    def _ask(self, kind: int, words: str) -> bytes:
        body = words.encode()
        os.write(self.fd, self.HEADER.pack(kind, 0, self.transaction, len(body)) + body)
        answer = self.WATCH_EVENT
        while answer == self.WATCH_EVENT:
            answer, _, _, length = self.HEADER.unpack(self._read(self.HEADER.size))
            body = self._read(length)
        if answer != self.ERROR:
            return body
        name = body.rstrip(b"\0").decode("ascii", "replace")
        number = getattr(errno, name, errno.EIO)
        raise OSError(number, os.strerror(number), words.partition("\0")[0])

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = os.read(self.fd, count - len(data))
            if not part:
                raise OSError(errno.EIO, "XenStore has gone")
            data += part
        return data


def find_console(store: XenStore) -> str:
    """Return the device of Xen's console named PORT_NAME: the N-th is /dev/hvcN (Xen, docs/misc/channel.txt).

    Raises OSError while there is none.
    """
    for number in store.list("device/console"):
        with contextlib.suppress(FileNotFoundError):  # the first console has no name
            if store.read(f"device/console/{number}/name") == PORT_NAME.encode():
                return f"/dev/hvc{int(number)}"
    raise FileNotFoundError(errno.ENOENT, "no such console of Xen", PORT_NAME)


def announce_in_xenstore(facts: dict[str, str], path: str = XENBUS) -> None:
    """Write what this guest is where its host has made room for it; that works without a channel, too."""
    try:
        with XenStore(path) as store:
            store.read("qubes-tools")  # a host that wants to know has made it; dom0 itself has none
            store.write_all({f"qubes-tools/{key}": value for key, value in facts.items()})
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            log(f"cannot announce the guest in XenStore: {error}")


class Parser:
    """Cuts the port's bytes into frames, or hunts for the host's sync marker.

    `buffer` holds what it hunts in, or the beginning of a frame. The body of data is given in pieces as they come.
    """

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.stream = self.kind = self.left = 0

    def reset(self) -> None:
        """Forget the frame that has begun."""
        self.buffer.clear()
        self.left = 0

    def cut(self, data: memoryview) -> tuple[tuple[int, int, bytes | memoryview, int] | None, memoryview]:
        """Return stream, type, body and the bytes it took of a window, and what of `data` is left after that.

        None instead when more bytes are needed. Raises BadFrame.
        """
        if self.left:
            return self._cut_data(data, 0)
        data = self._fill(data, HEADER.size)
        if len(self.buffer) < HEADER.size:
            return None, data
        stream, kind, length = HEADER.unpack_from(self.buffer)
        if kind not in TYPES or length > BODY_MAX:
            raise BadFrame
        if length and kind in DATA_TYPES and data:
            self.buffer.clear()
            self.stream, self.kind, self.left = stream, kind, length
            return self._cut_data(data, HEADER.size)
        data = self._fill(data, HEADER.size + length)
        if len(self.buffer) < HEADER.size + length:
            return None, data
        body = bytes(self.buffer[HEADER.size :])
        self.buffer.clear()
        return (stream, kind, body, 0), data

    def _cut_data(
        self, data: memoryview, extra: int
    ) -> tuple[tuple[int, int, bytes | memoryview, int] | None, memoryview]:
        part = data[: self.left]
        self.left -= len(part)
        return (self.stream, self.kind, part, extra + len(part)) if part else None, data[len(part) :]

    def _fill(self, data: memoryview, size: int) -> memoryview:
        """Have `size` bytes in the buffer, if they are there; return the others."""
        count = max(0, size - len(self.buffer))
        self.buffer += data[:count]
        return data[count:]

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


class Call:
    """A stream of the host: what waits for its stdin, its outputs, and its windows."""

    def __init__(self, stream: int) -> None:
        self.stream = stream
        self.stdin = bytearray()
        self.has_stdin_ended = False
        self.ungranted = self.granted = 0
        self.is_wide = False
        self.credit = WINDOW
        self.rests: dict[int, Rest] = {}
        self.large: set[int] = set()
        self.exit_code: int | None = None
        self.deadline = 0.0
        self.stdin_fd = -1
        self.outputs: dict[int, int] = {}
        self.left: dict[int, int] = {}

    def take_stdin(self, pieces: list[bytes | memoryview]) -> None:
        """Hand over what the host sent: without a copy where nothing waits yet, and with one switch to its reader."""
        count = 0
        if not self.stdin and self.stdin_fd >= 0:
            with contextlib.suppress(OSError):  # write_stdin looks at what it was
                count = os.writev(self.stdin_fd, pieces)
        for piece in pieces:
            self.stdin += piece[count:]
            count = max(0, count - len(piece))

    def write_stdin(self) -> None:
        """Hand over what is taken now; what a command with a closed stdin does not take is dropped."""
        try:
            while self.stdin and self.stdin_fd >= 0:
                with memoryview(self.stdin) as view:
                    count = os.write(self.stdin_fd, view)
                del self.stdin[:count]
        except BlockingIOError:
            if self.is_wide:
                self.enlarge(self.stdin_fd)
            return
        except OSError:
            self.close_stdin()
        if self.has_stdin_ended or self.stdin_fd < 0:
            self.close_stdin()

    def close_stdin(self) -> None:
        """Close the stdin and drop what it has not taken."""
        self.stdin.clear()
        if self.stdin_fd >= 0:
            os.close(self.stdin_fd)
            self.stdin_fd = -1

    def take_grant(self) -> int:
        """Return how many bytes the host may send in addition now (0: not worth a frame yet)."""
        grant = self.ungranted - len(self.stdin)
        if grant < (WIDE_GRANT if self.is_wide else GRANT_MIN):
            return 0
        self.ungranted -= grant
        self.granted += grant
        return grant

    def list_outputs(self) -> dict[int, int]:
        """Return the outputs that do not rest, by their type."""
        if not self.rests:
            return self.outputs
        now = time.monotonic()
        return {kind: fd for kind, fd in self.outputs.items() if kind not in self.rests or self.rests[kind].end <= now}

    def note_output(self, kind: int, count: int, is_empty: bool) -> None:
        """Note how much was in an output this time; a page or more is bulk data, and has an empty pipe rest."""
        if (count < PAGE and is_empty) or self.exit_code is not None:
            self.rests.pop(kind, None)
            return
        self.rests.setdefault(kind, Rest()).note(count, is_empty)
        if count >= WINDOW // 2 and kind in self.outputs:
            self.enlarge(self.outputs[kind])

    def enlarge(self, fd: int) -> None:
        """Let one of the pipes hold more, once. More for each pipe from the beginning could be too much memory."""
        if fd not in self.large:
            self.large.add(fd)
            enlarge(fd)

    def is_over(self) -> bool:
        """Tell whether everything was sent that is to be sent before the exit code."""
        raise NotImplementedError

    def close(self) -> None:
        """Close everything."""
        self.close_stdin()
        close_all(self.outputs.values())
        self.outputs = {}


class Rest:
    """How long an output with bulk data is left alone: the faster it fills, the shorter."""

    def __init__(self) -> None:
        self.seconds = REST_LEAST
        self.end = 0.0
        self.last = 0

    def note(self, count: int, is_empty: bool) -> None:
        """Begin to rest, after so many bytes that have left the pipe empty, or not."""
        if count >= PIPE_MAX // 2 or not is_empty:
            self.seconds /= 2
        elif count < PIPE_MAX // 4:
            self.seconds = min(REST_MOST, 2 * max(self.seconds, REST_LEAST / 2))
        self.last = count if is_empty else max(count, self.last)
        self.end = time.monotonic() + self.seconds if is_empty and self.seconds >= REST_LEAST else 0.0


def enlarge(fd: int) -> None:
    """Let a pipe hold as much as any user's may, if it is one."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, F_SETPIPE_SZ, PIPE_MAX)


class Command(Call):
    """One running command: its main process and its pipes. Its arguments go to a login shell of `user`."""

    def __init__(
        self,
        stream: int,
        user: pwd.struct_passwd,
        arguments: list[bytes],
        extra: dict[str, str] | None = None,
        session: str = "",
        script: int = -1,
    ) -> None:
        """Start it, with the file `script`, if there is one, as its descriptor 3."""
        super().__init__(stream)
        environment = make_environment(user) | (extra or {})
        groups = os.getgrouplist(user.pw_name, user.pw_gid)  # here, where what looks them up is loaded once
        stdin, stdout, stderr = open_pipes(3)
        theirs = (stdin[0], stdout[1], stderr[1])
        self.stdin_fd = stdin[1]
        self.outputs = {DATA_STDOUT: stdout[0], DATA_STDERR: stderr[0]}
        self.pid = -1
        try:
            self.pid = os.fork()
        except OSError:
            self.close()
            raise
        finally:
            if self.pid != 0:
                close_all(theirs)
        if self.pid == 0:
            run_child(user, groups, arguments, environment, (*theirs, *([script] if script >= 0 else ())), session)
        for fd in (self.stdin_fd, *self.outputs.values()):
            os.set_blocking(fd, False)
            with contextlib.suppress(OSError):  # larger pipes need fewer switches between processes
                fcntl.fcntl(fd, F_SETPIPE_SZ, WINDOW)

    def note_exit(self, exit_code: int) -> None:
        """Remember the exit code, and how much is in the pipes now: that much is still sent."""
        self.exit_code = exit_code
        self.deadline = time.monotonic() + EXIT_GRACE
        self.close_stdin()
        self.rests.clear()
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


class ReadyShell(Command):
    """A login shell that was started before its command is known, as that takes most of the time of a short one.

    It has read its profiles, and waits for its command on descriptor 3. For one call of its user.
    """

    def __init__(self, name: bytes) -> None:
        """Start it for the user `name`. Raises Refusal or OSError."""
        self.user = find_user(name)
        self.environment = make_environment(self.user)
        (theirs, self.script) = open_pipes(1)[0]
        try:
            super().__init__(0, self.user, [b". /dev/fd/3"], script=theirs)
        except OSError:
            os.close(self.script)
            raise
        finally:
            os.close(theirs)

    def fits(self, user: pwd.struct_passwd) -> bool:
        """Tell whether the shell is there, and as one would be that is started now."""
        return user == self.user and make_environment(user) == self.environment and self.is_alive()

    def is_alive(self) -> bool:
        """Tell whether it runs. What its profiles have started may outlive it, and could be given a command too."""
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:
            return False

    def give(self, stream: int, command: bytes) -> None:
        """Have it run its command, as the call of a stream. Raises OSError for one that is gone."""
        self.stream = stream
        with open(self.script, "wb", 0) as file:
            file.write(b"exec 3<&-; " + command + b"\n")
        self.script = -1

    def end(self) -> None:
        """End a shell that is not needed any more: it sees the end of its script."""
        if self.script >= 0:
            os.close(self.script)
            self.script = -1
        self.close()


class Connection(Call):
    """A service behind a socket: it has no stderr, and no exit code but 0."""

    def __init__(
        self,
        stream: int,
        address: tuple[int, str | tuple[str | int, ...]],
        head: bytes,
        config: Config,
        session: str,
    ) -> None:
        super().__init__(stream)
        self.address = address
        self.config = config
        self.session = session
        self.stdin += head
        self.is_open = False
        self.deadline = time.monotonic() + (SESSION_WAIT if session else CONNECT_WAIT)
        self.socket = _socket.socket(address[0], _socket.SOCK_STREAM)
        self.socket.setblocking(False)

    def try_open(self) -> bool:
        """Try to connect; return whether it is done now. Raises Refusal when it cannot be done."""
        is_late = time.monotonic() >= self.deadline
        if self.session and not os.path.exists(self.session):
            if is_late:
                raise Refusal(say_no_session(self.session))
            return False
        if self.session:
            self.session, self.deadline, is_late = "", time.monotonic() + CONNECT_WAIT, False
        error = self.socket.connect_ex(self.address[1])
        if error in (errno.EAGAIN, errno.EINPROGRESS, errno.EALREADY) and not is_late:
            return False
        if error not in (0, errno.EISCONN):
            raise Refusal(f"the service's socket {self.address[1]} cannot be reached: {os.strerror(error)}")
        self.stdin_fd = os.dup(self.socket.fileno())
        self.outputs = {DATA_STDOUT: os.dup(self.socket.fileno())}
        self.is_open = True
        return True

    def take_stdin(self, pieces: list[bytes | memoryview]) -> None:
        """Hand over what the host sent, after what waits already."""
        for piece in pieces:
            self.stdin += piece

    def write_stdin(self) -> None:
        """Hand over what is taken now; before the connection stands, everything waits."""
        if self.is_open:
            super().write_stdin()

    def close_stdin(self) -> None:
        """Tell the service that nothing more comes; it may still answer."""
        if self.stdin_fd >= 0:
            with contextlib.suppress(OSError):
                self.socket.shutdown(_socket.SHUT_WR)
        super().close_stdin()

    def is_over(self) -> bool:
        """Tell whether both directions have ended, or the one that the service's configuration names."""
        if not self.is_open:
            return False
        if self.outputs:
            return self.config.exit_on_client_eof and self.has_stdin_ended and not self.stdin
        return self.config.exit_on_service_eof or self.stdin_fd < 0

    def close(self) -> None:
        """Close everything."""
        super().close()
        self.socket.close()


def open_pipes(count: int) -> list[tuple[int, int]]:
    """Return `count` new pipes, or none of them: OSError when there are too many open files."""
    pipes: list[tuple[int, int]] = []
    try:
        while len(pipes) < count:
            pipes.append(os.pipe())
    except OSError:
        for pipe in pipes:
            close_all(pipe)
        raise
    return pipes


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
    # What the user's graphical session adds, once it is there: DISPLAY and XAUTHORITY.
    folder = os.environ.get("CRANNOG_SESSION_FOLDER", SESSION_FOLDER)
    with contextlib.suppress(OSError), open(f"{folder}/environment.{user.pw_name}", encoding="utf-8") as file:
        for line in file.read().splitlines():
            name, mark, value = line.partition("=")
            if mark:
                environment[name] = value
    return environment


def run_child(
    user: pwd.struct_passwd,
    groups: list[int],
    arguments: list[bytes],
    environment: dict[str, str],
    stdio: tuple[int, ...],
    session: str,
) -> None:
    """Become `user`'s login shell with `arguments`. Called in the child; never returns."""
    try:
        os.setsid()
        for target, fd in enumerate(stdio):
            os.dup2(fd, target)
        os.closerange(len(stdio), 1024)
        for number in DEFAULT_SIGNALS:
            _signal.signal(number, _signal.SIG_DFL)
        wait_for_session(session)
        become(user, groups, len(stdio))
        os.umask(0o022)
        try:
            os.chdir(user.pw_dir)
        except OSError:
            os.chdir("/")
        # A first letter "-" makes any shell a login shell (POSIX leaves -l to each shell).
        os.execve("/bin/sh", [b"-sh", b"-c", *arguments], environment)  # noqa: S606
    except Refusal as refusal:
        os.write(2, f"{refusal}\n".encode(errors="replace"))
    except OSError as error:
        os.write(2, f"the guest cannot run this as '{user.pw_name}': {error}\n".encode(errors="replace"))
    finally:
        os._exit(EXIT_TROUBLE)


def become(user: pwd.struct_passwd, groups: list[int], files: int = 3) -> None:
    """Give up root's rights for those of `user`, who is in these groups and gets so many open files."""
    if os.geteuid() == 0:
        for fd in range(files):
            os.fchown(fd, user.pw_uid, user.pw_gid)  # else /dev/stderr cannot be opened by its name
        os.setgroups(groups)
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
    elif os.geteuid() != user.pw_uid:
        raise PermissionError(errno.EPERM, "the agent does not run as root")


def find_session(user: pwd.struct_passwd) -> str:
    """Return the file that a graphical session of `user` makes when it is ready."""
    return f"{os.environ.get('CRANNOG_SESSION_FOLDER', SESSION_FOLDER)}/session.{user.pw_name}"


def say_no_session(path: str) -> str:
    """Return the sentence for a session that did not come."""
    return (
        f"the service waits for a session, and {path} was not there after {SESSION_WAIT:.0f} s: start the session first"
    )


def wait_for_session(path: str) -> None:
    """Return when `path` is there or empty. Raises Refusal after SESSION_WAIT. Only for a child: it sleeps."""
    deadline = time.monotonic() + SESSION_WAIT
    while path and not os.path.exists(path):
        if time.monotonic() >= deadline:
            raise Refusal(say_no_session(path))
        time.sleep(RETRY)


def find_default_user() -> str:
    """Return the user that commands run as when the host names none: `user`, where there is one to become."""
    if os.geteuid() == 0:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam("user").pw_name
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(os.geteuid()).pw_name
    return "root"


def list_facts() -> dict[str, str]:
    """Return what this guest is, as its host wants to know it (qubes.NotifyTools)."""
    return {
        "version": VERSION,
        "os": "Linux",
        "qrexec": "1",
        "gui": "1" if os.path.exists(GUI) else "0",
        "default-user": find_default_user(),
    }


def find_user(untrusted_name: bytes) -> pwd.struct_passwd:
    """Return the account that the host named. Raises Refusal."""
    name = untrusted_name.decode("ascii", "replace")
    try:
        user = pwd.getpwnam(find_default_user() if name == "DEFAULT" else name)
    except (KeyError, ValueError):
        raise Refusal(f"the guest has no user '{name}'") from None
    if os.geteuid() not in (0, user.pw_uid):
        raise Refusal(f"the guest's agent is not root, so it cannot run commands as '{name}'", EXIT_REFUSED)
    return user


class Config:
    """What a service's configuration file says."""

    def __init__(self) -> None:
        self.wait_for_session = False
        self.skip_service_descriptor = False
        self.exit_on_client_eof = False
        self.exit_on_service_eof = False
        self.force_user = ""


CONFIG_KEYS = {name.replace("_", "-"): name for name in vars(Config())}


def parse_config(text: str) -> Config:
    """Return what lines of `key = value` say. Raises Refusal for the first one that is wrong."""
    config = Config()
    seen = set()
    for number, line in enumerate(text.split("\n"), 1):
        key, sign, value = (part.strip() for part in strip_comment(line).partition("="))
        if not key and not sign:
            continue
        if not sign or key in seen or not set_option(config, key, value):
            raise Refusal(f"the service's configuration is wrong in line {number}")
        seen.add(key)
    if config.force_user and seen & CONFIG_KEYS.keys() - {"force-user", "wait-for-session"}:
        raise Refusal("the service's configuration has force-user, which is for programs, with options for sockets")
    return config


def strip_comment(line: str) -> str:
    """Return the line without a comment; a `#` between quotes begins none."""
    parts = line.split("'")
    for number in range(0, len(parts), 2):
        if "#" in parts[number]:
            return "'".join([*parts[:number], parts[number].partition("#")[0]])
    return line


def set_option(config: Config, key: str, value: str) -> bool:
    """Set one option; return whether the value can be. Unknown keys are for newer agents."""
    words = {"true": True, "false": False}
    if key == "wait-for-session":
        words |= {"1": True, "0": False}
    if key not in CONFIG_KEYS:
        log(f"a service's configuration has the unknown key '{key}'")
    elif key == "force-user":
        config.force_user = value[1:-1]
        is_quoted = len(value) > 2 and value[0] == value[-1] == "'"
        return is_quoted and NAME_LETTERS.issuperset(config.force_user)
    elif value in words:
        setattr(config, CONFIG_KEYS[key], words[value])
    else:
        return False
    return True


def read_config(names: list[str]) -> Config:
    """Return the configuration of the first of `names` that has one. Raises Refusal when it cannot be used."""
    path = find_file(list_folders("QUBES_RPC_CONFIG_PATH", CONFIG_FOLDERS), names)
    if not path:
        return Config()
    try:
        with open(path, "rb") as file:
            data = file.read(CONFIG_MAX + 1)
        if len(data) <= CONFIG_MAX:
            return parse_config(data.decode("ascii"))
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(f"the service's configuration {path} cannot be read: {error}") from None
    raise Refusal(f"the service's configuration {path} is longer than {CONFIG_MAX} bytes")


def list_folders(variable: str, default: str) -> list[str]:
    """Return the folders of a path list; the environment's variable wins, when it is set."""
    return [folder for folder in os.environ.get(variable, default).split(":") if folder]


def find_file(folders: list[str], names: list[str]) -> str:
    """Return the first path that exists, be it a dangling link, each name in all folders; "" if there is none.

    Raises Refusal when a folder cannot be searched.
    """
    for name in names:
        for folder in folders if len(name) <= NAME_MAX else []:
            path = f"{folder}/{name}"
            try:
                os.lstat(path)
            except FileNotFoundError:
                continue
            except OSError as error:  # what cannot be looked at may well be there
                raise Refusal(f"it is not known whether there is a file {path}: {error.strerror}") from None
            return path
    return ""


class Service:
    """A service that was asked for: its names, who asks, its file and its configuration."""

    def __init__(self, request: bytes) -> None:
        self.full_name, self.source = parse_request(request)
        self.name, self.has_argument, self.argument = self.full_name.partition("+")
        if len(self.name) > NAME_MAX:
            raise Refusal(f"a service's name has at most {NAME_MAX} characters")
        names = [f"{self.name}+{self.argument}", self.name]  # without an argument it is empty
        self.path = find_file(list_folders("QREXEC_SERVICE_PATH", SERVICE_FOLDERS), names)
        if not self.path:
            raise Refusal(f"the guest has no service '{self.name}'", EXIT_MISSING)
        self.config = read_config(names)

    def find_address(self) -> tuple[int, str | tuple[str | int, ...]] | None:
        """Return family and address of a service behind a socket; None when it is a program."""
        with contextlib.suppress(OSError):
            target = os.readlink(self.path)
            if target == "/dev/tcp" or target.startswith("/dev/tcp/"):
                return self._parse_tcp([part for part in target.split("/")[3:] if part])
        try:
            mode = os.stat(self.path).st_mode
        except OSError as error:
            raise Refusal(f"the service {self.path} cannot be used: {error.strerror}") from None
        if stat.S_ISSOCK(mode):
            return _socket.AF_UNIX, self.path
        if not stat.S_ISREG(mode) or not os.access(self.path, os.X_OK):
            raise Refusal(f"the service {self.path} is neither an executable file nor a socket")
        return None

    def _parse_tcp(self, parts: list[str]) -> tuple[int, tuple[str | int, ...]]:
        """Return the address that the link's end and, for what it leaves open, the argument name in numbers."""
        is_general = self.path.endswith(f"/{self.name}")  # the link is for any argument
        host, _, port = self.argument.rpartition("+")
        if len(parts) == 2 and not (is_general and self.argument):
            host, port = parts
        elif len(parts) == 1 and not host:
            host = parts[0]
        elif parts:
            raise Refusal(f"the argument of the service '{self.name}' does not fit its link to a TCP port")
        try:
            flags = _socket.AI_NUMERICHOST | _socket.AI_NUMERICSERV
            found = _socket.getaddrinfo(host.replace("+", ":"), port, type=_socket.SOCK_STREAM, flags=flags)
        except (OSError, UnicodeError):
            found = []
        if not found or not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise Refusal(
                f"the service '{self.name}' is to connect to '{host}' '{port}': that is no address in numbers"
            )
        return found[0][0], found[0][4]  # type: ignore[return-value]  # only a Python without IPv6 has bytes here

    def make_environment(self) -> dict[str, str]:
        """Return what a service's program finds in its environment beside a login's variables."""
        environment = {
            "QREXEC_AGENT_PID": str(os.getpid()),
            "QREXEC_REMOTE_DOMAIN": self.source,
            "QREXEC_SERVICE_FULL_NAME": self.full_name,
            "QREXEC_REQUESTED_TARGET_TYPE": "",
        }
        if self.has_argument:
            environment["QREXEC_SERVICE_ARGUMENT"] = self.argument
        if "QREXEC_SERVICE_PATH" in os.environ:
            environment["QREXEC_SERVICE_PATH"] = os.environ["QREXEC_SERVICE_PATH"]
        return environment

    def list_arguments(self) -> list[bytes]:
        """Return the login shell's arguments; a file without an interpreter line is run by that shell."""
        return [b'exec "$0" "$@"', self.path.encode(), *([self.argument.encode()] if self.argument else [])]


def parse_request(request: bytes) -> tuple[str, str]:
    """Return the names of service (with its argument) and caller, or raise Refusal. Neither can be a path."""
    words = request.decode("ascii", "replace").split(" ")
    full_name, source = words if len(words) == 2 else ("", "")
    is_fine = full_name[:1] not in ("", "+", ".") and source[:1] not in ("", ".")
    if not is_fine or not NAME_LETTERS.issuperset(full_name.replace("+", "") + source):
        raise Refusal("the host's request names no service and no caller")
    return full_name, source


def make_call(stream: int, line: bytes) -> Call:
    """Return the started call for a line of the host (qrexec protocol, "Command grammar"). Raises Refusal."""
    name, _, text = line.partition(b":")
    is_headless = text.startswith(b"nogui:")
    text = text[6:] if is_headless else text
    if not text.startswith(b"QUBESRPC "):
        return Command(stream, find_user(name), [text])
    service = Service(text[9:])
    user = find_user(service.config.force_user.encode() or name)
    session = find_session(user) if service.config.wait_for_session and not is_headless else ""
    address = service.find_address()
    if address is None:
        return Command(stream, user, service.list_arguments(), service.make_environment(), session)
    head = f"{service.full_name} {service.source}\0".encode()
    return Connection(stream, address, b"" if service.config.skip_service_descriptor else head, service.config, session)


class Calls:
    """The host's calls: what they run, their pipes, and the processes that are to be killed."""

    def __init__(self, send: Callable[[int, int, bytes], None], outbox: Outbox | None = None) -> None:
        """With an `outbox`, what is in pipes goes there without a copy."""
        self.send = send
        self.outbox = outbox
        self.body_max = BODY_MAX
        self.by_stream: dict[int, Call] = {}
        self.inputs: dict[int, list[bytes | memoryview]] = {}
        """Pieces of input by their stream; they are views of what was read last."""
        self.doomed: dict[int, float] = {}
        self.ready: ReadyShell | None = None

    def prepare(self, name: bytes) -> None:
        """Have a shell ready for the next command of a user; one that there is already is ended."""
        self.drop_ready()
        try:
            self.ready = ReadyShell(name)
        except (Refusal, OSError) as error:
            log(f"no shell is ready: {error}")

    def drop_ready(self) -> None:
        """End the shell that is ready, if there is one."""
        ready, self.ready = self.ready, None
        if ready:
            ready.end()

    def take_ready(self, stream: int, line: bytes) -> Call | None:
        """Return the shell that is ready, as the call for a line of the host; None when it is not for that."""
        name, _, text = line.partition(b":")
        if self.ready is None or text.startswith((b"QUBESRPC ", b"nogui:")) or not self.ready.fits(find_user(name)):
            return None
        ready, self.ready = self.ready, None
        try:
            ready.give(stream, text)
        except OSError:
            ready.end()
            return None
        return ready

    def list_waits(self, may_read: bool) -> dict[int, tuple[Call, int, int]]:
        """Return the pipes that may move bytes now. The others must stay out: poll reports their hang-ups."""
        pipes: dict[int, tuple[Call, int, int]] = {}
        for call in self.by_stream.values():
            # A service's socket without output is watched for its end, a pipe's is told by a write that fails.
            if call.stdin_fd >= 0 and (call.stdin or not call.outputs):
                pipes[call.stdin_fd] = (call, DATA_STDIN, select.POLLOUT if call.stdin else 0)
            if may_read and call.credit >= CREDIT_MIN:
                pipes.update({fd: (call, kind, select.POLLIN) for kind, fd in call.list_outputs().items()})
        return pipes

    def list_deadlines(self, now: float) -> list[float]:
        """Return the moments at which `look_at_clock` has something to do."""
        times = [*self.doomed.values(), *(call.deadline for call in self.by_stream.values())]
        times += [rest.end for call in self.by_stream.values() for rest in call.rests.values()]
        if any(isinstance(call, Connection) and not call.is_open for call in self.by_stream.values()):
            times.append(now + RETRY)
        return times

    def look_at_clock(self, now: float) -> None:
        """Connect what is not connected yet, end what is over, and kill what has had its time."""
        for call in list(self.by_stream.values()):
            if isinstance(call, Connection) and not call.is_open:
                self.try_open(call)
        for call in [call for call in self.by_stream.values() if call.is_over()]:
            self.finish(call)
        for pid in [pid for pid, deadline in self.doomed.items() if deadline <= now]:
            del self.doomed[pid]
            signal_group(pid, signal.SIGKILL)

    def dispatch(self, stream: int, kind: int, body: bytes | memoryview, cost: int = 0) -> None:
        """Act on a frame from the host for one of our streams, or for a new one; `cost` is what it took of a window."""
        call = self.by_stream.get(stream)
        if kind == EXEC_CMDLINE:
            self.start(stream, bytes(body))
        elif call is None:
            return
        elif kind == DATA_STDIN:
            self.take_stdin(call, body, cost or HEADER.size + len(body))
            if not cost:
                self.pass_input()
        elif kind == CREDIT and len(body) == NUMBER.size:
            call.credit += NUMBER.unpack(body)[0]
        elif kind == CLOSE:
            self.close_stream(stream)

    def start(self, stream: int, body: bytes) -> None:
        """Run `USER:COMMAND` or a service as the new stream `stream`."""
        try:
            if stream in self.by_stream or len(self.by_stream) >= STREAMS_MAX:
                raise Refusal("the guest's agent runs too many commands already")
            line = body.partition(b"\0")[0]
            call = self.take_ready(stream, line) or make_call(stream, line)
            self.by_stream[stream] = call
            if isinstance(call, Connection):
                self.try_open(call)
        except Refusal as refusal:
            self.refuse(stream, str(refusal), refusal.exit_code)
        except OSError as error:
            self.refuse(stream, f"the guest cannot start another process: {error}")

    def try_open(self, call: Connection) -> None:
        """Try to reach a service's socket; it has no stderr, so that ends when the connection stands."""
        try:
            if call.try_open():
                self.send(call.stream, DATA_STDERR, b"")
                self.serve(call, DATA_STDIN, call.stdin_fd)
        except Refusal as refusal:
            self.by_stream.pop(call.stream).close()
            self.refuse(call.stream, str(refusal), refusal.exit_code)

    def refuse(self, stream: int, sentence: str, exit_code: int = EXIT_TROUBLE) -> None:
        """End a stream whose command was never run."""
        self.send(stream, DATA_STDERR, sentence.encode(errors="replace")[:1024] + b"\n")
        for kind in (DATA_STDOUT, DATA_STDERR):
            self.send(stream, kind, b"")
        self.send(stream, DATA_EXIT_CODE, NUMBER.pack(exit_code))

    def take_stdin(self, call: Call, body: bytes | memoryview, cost: int) -> None:
        """Pass on what the host sent; an empty body is the end."""
        call.rests.clear()  # what it is asked for, it may answer at once
        if body:
            call.ungranted += cost
            self.inputs.setdefault(call.stream, []).append(body)
        else:
            self.inputs.setdefault(call.stream, [])
            call.has_stdin_ended = True

    def pass_input(self) -> None:
        """Hand over all input that has come."""
        inputs, self.inputs = self.inputs, {}
        for stream, pieces in inputs.items():
            call = self.by_stream.get(stream)
            if call:
                if pieces:
                    call.take_stdin(pieces)
                self.serve(call, DATA_STDIN, call.stdin_fd)

    def serve(self, call: Call, kind: int, fd: int, events: int = 0) -> None:
        """Move bytes between one pipe of a command and its stream."""
        if kind == DATA_STDIN:
            if events & (select.POLLHUP | select.POLLERR):
                call.close_stdin()
            call.write_stdin()
            self.give_credit(call)
        elif call.outputs.get(kind) == fd and call.credit >= CREDIT_MIN:
            self.read_output(call, kind, fd)

    def give_credit(self, call: Call) -> None:
        """Let the host send more; a stream with much data gets a wider window, while there are few of these."""
        grant = call.take_grant()
        if not grant:
            return
        if call.granted >= WIDE_AFTER and not call.is_wide and self.may_widen():
            call.is_wide = True
            grant += WIDE_WINDOW - WINDOW
        self.send(call.stream, CREDIT, NUMBER.pack(grant))

    def may_widen(self) -> bool:
        """Tell whether one more stream may have a wide window; an older host would not take what it is given."""
        return self.body_max == BULK_MAX and sum(call.is_wide for call in self.by_stream.values()) < WIDE_STREAMS

    def read_output(self, call: Call, kind: int, fd: int) -> None:
        """Send what the command has written, or the end of it: more than once in a turn, if there is more."""
        total, is_empty = 0, False
        try:
            for _ in range(PIPE_READS):
                if call.outputs.get(kind) != fd or call.credit < CREDIT_MIN:
                    break
                total += self.pass_output(call, kind, fd)
        except BlockingIOError:
            is_empty = not (self.outbox and self.outbox.moved)  # else it is the port that takes no more
        call.note_output(kind, total, is_empty)

    def pass_output(self, call: Call, kind: int, fd: int) -> int:
        """Send one frame of it, and return the bytes in it. Raises BlockingIOError when there is none."""
        most = min(self.body_max, call.credit - HEADER.size)
        is_bulk = kind in call.rests and call.rests[kind].last >= BULK_MIN
        try:
            count = self.outbox.move(call.stream, kind, fd, most) if self.outbox and is_bulk else -1
            data = os.read(fd, most) if count < 0 else b""
        except BlockingIOError:
            raise
        except OSError:  # a service's socket that was reset
            count, data = 0, b""
        if data:
            count = len(data)
        if count > 0:
            call.credit -= HEADER.size + count
            if kind in call.left:
                call.left[kind] -= count
        else:
            os.close(call.outputs.pop(kind))
        if data or count <= 0:
            self.send(call.stream, kind, data)
        return max(count, 0)

    def reap(self) -> None:
        """Collect every child that has ended, also adopted ones (the agent may be PID 1)."""
        by_pid = {call.pid: call for call in self.by_stream.values() if isinstance(call, Command)}
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self.doomed.pop(pid, None)
            if self.ready and pid == self.ready.pid:
                self.drop_ready()
            if pid in by_pid:
                code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
                by_pid[pid].note_exit(code)

    def finish(self, call: Call) -> None:
        """Send the ends of the outputs that are still open, and the exit code."""
        for kind in call.outputs:
            self.send(call.stream, kind, b"")
        self.send(call.stream, DATA_EXIT_CODE, NUMBER.pack(call.exit_code or 0))
        call.close()
        self.inputs.pop(call.stream, None)
        del self.by_stream[call.stream]

    def close_stream(self, stream: int) -> None:
        """Close the pipes of a caller that is gone, hang up the process group, and kill it after a grace."""
        call = self.by_stream.pop(stream)
        self.inputs.pop(stream, None)
        call.close()
        if isinstance(call, Command) and call.exit_code is None:
            signal_group(call.pid, signal.SIGHUP)
            self.doomed[call.pid] = time.monotonic() + KILL_GRACE

    def close_all(self) -> None:
        """End all calls: their callers are gone."""
        self.drop_ready()
        for stream in list(self.by_stream):
            self.close_stream(stream)


class DatabaseCopy:
    """What the host says in the guest DB, as files for whoever reads it: `/a/b` is the file `%a%b`.

    The host sends all entries after each HELLO, and says when that is all; what was there before and is not any more
    goes then. So readers never find less than there is.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.fresh: set[str] | None = None

    def begin(self) -> None:
        """Expect all entries anew."""
        self.fresh = set()

    def write(self, body: bytes) -> bytes:
        """Keep an entry; return its path."""
        path, _, value = body.partition(b"\0")
        name = self._name(path)
        if name and self.fresh is not None:
            self.fresh.add(name)
        if name and self.folder:
            self._write(name, value)
        return path

    def _write(self, name: str, value: bytes) -> None:
        try:
            if not os.path.isdir(self.folder):
                os.makedirs(self.folder, 0o755)
            temporary = f"{self.folder}/.new"
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600 if name in SECRETS else 0o644)
            try:
                os.write(fd, value)
            finally:
                os.close(fd)
            os.rename(temporary, f"{self.folder}/{name}")
        except OSError as error:
            log(f"cannot keep the guest DB in {self.folder}: {error}")

    def remove(self, path: bytes) -> None:
        """Forget an entry, or all below a path that ends with a slash."""
        for name in self._list() if path.endswith(b"/") else [self._name(path)]:
            if name and name.startswith(self._name(path)):
                with contextlib.suppress(OSError):
                    os.unlink(f"{self.folder}/{name}")

    def finish(self) -> None:
        """Forget what was not told this time."""
        for name in set(self._list()) - (self.fresh or set()):
            with contextlib.suppress(OSError):
                os.unlink(f"{self.folder}/{name}")
        self.fresh = None

    def _list(self) -> list[str]:
        try:
            return [name for name in os.listdir(self.folder) if name.startswith("%")]
        except OSError:
            return []

    @staticmethod
    def _name(path: bytes) -> str:
        """Return the name of an entry's file; empty for what can be none."""
        name = path.decode("ascii", "replace").replace("/", "%")
        is_harmless = name.startswith("%") and len(name) <= NAME_MAX and not set(name[1:]) - NAME_LETTERS - {"%"}
        return name if is_harmless else ""


class Caller:
    """A client of the trigger socket: at first it asks, then it waits for the answer, then it has a stream."""

    def __init__(self, fd: int, may_write: bool = False) -> None:
        self.fd = fd
        self.may_write = may_write
        self.watched: bytes | None = None
        self.inbox = bytearray()
        self.outbox = bytearray()
        self.number = 0
        self.stream = 0
        self.credit = WINDOW
        self.ungranted = 0
        self.has_ended = False
        self.is_over = False
        self.deadline = time.monotonic() + ASK_TIME

    def list_events(self, may_read: bool) -> int:
        """Return what to poll for. A hang-up is always reported."""
        reads = (may_read if self.stream else not self.number) and not self.is_over and not self.has_message()
        return (select.POLLIN if reads else 0) | (select.POLLOUT if self.outbox else 0)

    def has_message(self) -> bool:
        """Tell whether a whole message waits, for credit or for its turn."""
        if len(self.inbox) < LOCAL_HEADER.size:
            return False
        length = LOCAL_HEADER.unpack_from(self.inbox)[1]
        return bool(length > BODY_MAX or len(self.inbox) >= LOCAL_HEADER.size + length)

    def take_message(self) -> tuple[int, bytes]:
        """Return type and body of the message that is there. Raises BadFrame when it is too long."""
        kind, length = LOCAL_HEADER.unpack_from(self.inbox)
        if length > BODY_MAX:
            raise BadFrame
        end = LOCAL_HEADER.size + length
        body = bytes(self.inbox[LOCAL_HEADER.size : end])
        del self.inbox[:end]
        return kind, body

    def take_data(self) -> bytes | None:
        """Return the next data, b"" being their end; None when there are none or no credit. Raises BadFrame."""
        if not self.has_message() or self.credit < HEADER.size + LOCAL_HEADER.unpack_from(self.inbox)[1]:
            return None
        kind, data = self.take_message()
        if kind != DATA_STDIN or self.has_ended:
            raise BadFrame
        self.has_ended = not data
        self.credit -= HEADER.size + len(data) if data else 0
        return data

    def put(self, kind: int, body: bytes | memoryview) -> None:
        """Queue a message for the client, and write what it takes now. Raises OSError when it is gone."""
        self.outbox += LOCAL_HEADER.pack(kind, len(body))
        self.outbox += body
        self.write()

    def write(self) -> None:
        """Write what the client takes now. Raises OSError when it is gone."""
        with contextlib.suppress(BlockingIOError):
            while self.outbox:
                with memoryview(self.outbox) as view, view[:BODY_MAX] as part:
                    count = os.write(self.fd, part)
                del self.outbox[:count]

    def take_grant(self) -> int:
        """Return how many bytes the host may send in addition now (0: not worth a frame yet)."""
        grant = self.ungranted - len(self.outbox)
        if grant < GRANT_MIN:
            return 0
        self.ungranted -= grant
        return grant


DATABASE_WISHES = (GUESTDB_WRITE, GUESTDB_REMOVE, GUESTDB_WATCH)


def find_peer(fd: int) -> int:
    """Return the user at the other end of a unix socket (unix(7), SO_PEERCRED); -1 when it is not known."""
    peer = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, fd)
    try:
        return int(struct.unpack("3i", peer.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12))[1])
    except OSError:
        return -1
    finally:
        peer.detach()


def parse_trigger(kind: int, body: bytes) -> bytes:
    """Return a client's request as the body of TRIGGER_SERVICE4, with an empty ident. Raises BadFrame."""
    source = b""
    if kind == TRIGGER_SERVICE4 and len(body) > TRIGGER_PARAMS.size:
        source, target, _ = TRIGGER_PARAMS.unpack_from(body)
        name = body[TRIGGER_PARAMS.size :]
    elif kind == TRIGGER_SERVICE3 and len(body) > OLD_TRIGGERS[kind].size:
        target, _ = OLD_TRIGGERS[kind].unpack_from(body)
        name = body[OLD_TRIGGERS[kind].size :]
    elif kind == TRIGGER_SERVICE and len(body) == OLD_TRIGGERS[kind].size:
        name, target, _ = OLD_TRIGGERS[kind].unpack(body)
        name = name.partition(b"\0")[0] + name[-1:]
    else:
        raise BadFrame
    if len(name) > SERVICE_NAME_MAX or name.find(b"\0") != len(name) - 1 or (source + b"\0")[63:64] not in (b"", b"\0"):
        raise BadFrame
    if target[-1:] != b"\0":
        raise BadFrame
    source, target = source.partition(b"\0")[0], target.partition(b"\0")[0]
    return TRIGGER_PARAMS.pack(source, target, b"") + name


class Callers:
    """The trigger socket and its clients. What they do wrong ends their own call, nothing else."""

    def __init__(self, path: str, send: Callable[[int, int, bytes], None]) -> None:
        self.path = path
        self.send = send
        self.listener: _socket.socket | None = None
        self.clients: dict[int, Caller] = {}
        self.asked: dict[bytes, Caller | None] = {}
        self.streams: dict[int, Caller] = {}
        self.count = 0

    def listen(self) -> None:
        """Make the trigger socket, for all users of the guest. Without it there are no calls from the guest."""
        listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        folder, temporary = os.path.dirname(self.path), f"{self.path}.{os.getpid()}"
        try:
            if not os.path.isdir(folder):
                os.mkdir(folder)
                os.chmod(folder, 0o755)  # noqa: S103
            listener.bind(temporary)
            os.chmod(temporary, 0o666)  # noqa: S103
            listener.listen(CALLERS_MAX)
            os.rename(temporary, self.path)  # whoever sees the socket can connect to it
        except OSError as error:
            log(f"cannot make {self.path}, so this guest cannot call services: {error}")
            listener.close()
            return
        listener.setblocking(False)
        self.listener = listener

    def list_waits(self, may_read: bool) -> dict[int, tuple[Caller | None, int]]:
        """Return what to poll for. New clients wait in the listener's queue while there are too many."""
        waits: dict[int, tuple[Caller | None, int]] = {}
        waits.update({fd: (client, client.list_events(may_read)) for fd, client in self.clients.items()})
        if self.listener and len(self.clients) < CALLERS_MAX:
            waits[self.listener.fileno()] = (None, select.POLLIN)
        return waits

    def serve(self, client: Caller | None, events: int) -> None:
        """Act on what poll(2) has reported for a client, or for the listener."""
        if client is None:
            self.accept()
        elif self.clients.get(client.fd) is not client:
            return  # dropped since, and its descriptor may be another's
        elif events & (select.POLLHUP | select.POLLERR) and not client.is_over:
            self.drop(client)
        else:
            self._attempt(client, lambda: self._move(client, events))

    def accept(self) -> None:
        """Take one new client, if there is one still."""
        if self.listener:
            try:
                new_fd, _ = self.listener._accept()  # type: ignore[attr-defined]  # what socket.accept is made of
            except BlockingIOError:
                return
            except OSError:  # too many open files: the client waits, and this loop must not spin
                time.sleep(AWAY_POLL)
                return
            os.set_blocking(new_fd, False)
            self.clients[new_fd] = Caller(new_fd, find_peer(new_fd) in (0, os.geteuid()))

    def _attempt(self, client: Caller, action: Callable[[], None]) -> None:
        """Do something for a client; when that fails, its call is over."""
        try:
            action()
        except BlockingIOError:
            pass
        except (OSError, BadFrame):
            self.drop(client)

    def _move(self, client: Caller, events: int) -> None:
        """Read and write what can be. Raises OSError or BadFrame."""
        if events & select.POLLOUT:
            client.write()
            self._grant(client)
        if events & select.POLLIN:
            data = os.read(client.fd, BODY_MAX)
            if not data:
                raise BadFrame
            client.inbox += data
            self._pass_on(client)
        if client.is_over and (not client.outbox or events & (select.POLLHUP | select.POLLERR)):
            self.drop(client)

    def _grant(self, client: Caller) -> None:
        grant = client.take_grant() if client.stream else 0
        if grant:
            self.send(client.stream, CREDIT, NUMBER.pack(grant))

    def _pass_on(self, client: Caller) -> None:
        """Send the host what the client has sent: its request, when it is its turn, or data. Raises BadFrame."""
        while client.stream and (data := client.take_data()) is not None:
            self.send(client.stream, DATA_STDIN, data)
        is_asking = not client.stream and not client.number
        if is_asking and client.has_message() and LOCAL_HEADER.unpack_from(client.inbox)[0] in DATABASE_WISHES:
            self._take_wish(client, *client.take_message())
        elif is_asking and client.has_message() and len(self.asked) < TRIGGERS_MAX:
            request = bytearray(parse_trigger(*client.take_message()))
            self.count += 1
            client.number = self.count
            ident = b"SOCKET%d" % self.count
            request[128 : 128 + len(ident)] = ident
            self.asked[ident] = client
            self.send(0, TRIGGER_SERVICE4, bytes(request))

    def _take_wish(self, client: Caller, kind: int, body: bytes) -> None:
        """Pass on a change of the guest DB to the host, which decides; or have a client told of changes."""
        client.number = NO_CALL
        if kind == GUESTDB_WATCH:
            client.watched = body
            client.put(GUESTDB_WATCH, b"")
            return
        if not client.may_write:
            raise BadFrame
        self.send(0, kind, body)
        client.is_over = True
        client.put(DATA_EXIT_CODE, NUMBER.pack(0))
        self._move(client, 0)

    def tell_watchers(self, path: bytes) -> None:
        """Tell clients of a change of the guest DB. One that does not read what it is told is dropped."""
        for client in [one for one in self.clients.values() if one.watched is not None]:
            watched = client.watched or b""
            is_below = watched.endswith(b"/") and path.startswith(watched)
            if path == watched or is_below or (path.endswith(b"/") and watched.startswith(path)):
                self._attempt(client, lambda client=client: client.put(GUESTDB_WRITE, path))  # type: ignore[misc]
                if len(client.outbox) > OUT_HIGH:
                    self.drop(client)

    def answer(self, stream: int, kind: int, body: bytes) -> None:
        """Act on the host's answer to a request. When its client is gone, so is the call."""
        client = self.asked.pop(body.partition(b"\0")[0], None)
        if kind == SERVICE_CONNECT and client and stream not in self.streams:
            client.stream = stream
            self.streams[stream] = client
            self._attempt(client, lambda: client.put(SERVICE_CONNECT, b""))
        elif kind == SERVICE_CONNECT:
            self.send(stream, CLOSE, b"")
        elif client:
            self.drop(client)

    def dispatch(self, stream: int, kind: int, body: bytes | memoryview, cost: int = 0) -> None:
        """Act on a frame from the host for one of our streams; `cost` is what it took of a window."""
        client = self.streams[stream]
        if kind == CREDIT and len(body) == NUMBER.size:
            client.credit += NUMBER.unpack(body)[0]
            self._attempt(client, lambda: self._pass_on(client))
        elif kind in (DATA_STDOUT, DATA_STDERR):
            client.ungranted += (cost or HEADER.size + len(body)) if body else 0
            self._attempt(client, lambda: client.put(kind, body))
            self._grant(client)
        elif kind == DATA_EXIT_CODE:
            del self.streams[stream]
            client.stream, client.is_over = 0, True
            self._attempt(client, lambda: client.put(kind, body))
            self._attempt(client, lambda: self._move(client, 0))
        elif kind == CLOSE:
            del self.streams[stream]
            client.stream = 0
            self.drop(client)

    def drop(self, client: Caller) -> None:
        """End a client's call, and close its socket. The host still answers what was asked."""
        if self.clients.pop(client.fd, None) is None:
            return
        os.close(client.fd)
        ident = b"SOCKET%d" % client.number
        if self.asked.get(ident) is client:
            self.asked[ident] = None
        if client.stream:
            del self.streams[client.stream]
            self.send(client.stream, CLOSE, b"")
            client.stream = 0

    def drop_all(self) -> None:
        """End all calls: the host knows nothing of them any more."""
        self.asked.clear()
        self.streams.clear()
        for client in list(self.clients.values()):
            client.stream = 0
            self.drop(client)

    def look_at_clock(self, now: float) -> None:
        """Ask for those whose turn it is now, and end those that have taken too long to ask."""
        for client in [one for one in self.clients.values() if not one.number]:
            if client.has_message():
                self._attempt(client, lambda client=client: self._pass_on(client))  # type: ignore[misc]
            elif now >= client.deadline:
                self.drop(client)

    def list_deadlines(self) -> list[float]:
        """Return the moments at which `look_at_clock` has something to do."""
        return [one.deadline for one in self.clients.values() if not one.number and not one.has_message()]


class Outbox:
    """What waits for the port: frames, among them at most one whose body is still pages of a pipe.

    Pages are moved into a pipe of our own, from there into the port: nobody else can take them out of that one, so that
    the length in the header is true.
    """

    def __init__(self, flush: Callable[[], None]) -> None:
        """`flush` is what writes it."""
        self.flush = flush
        self.frames = bytearray()
        self.moved = 0
        self.later = bytearray()
        self.pipe: tuple[int, int] | None = None
        self.can_move = hasattr(os, "splice")  # from Python 3.10 on

    def __len__(self) -> int:
        return len(self.frames) + self.moved + len(self.later)

    def put(self, header: bytes, body: bytes | memoryview) -> None:
        """Queue one frame."""
        queue = self.later if self.moved else self.frames
        queue += header
        queue += body

    def start_with(self, data: bytes) -> None:
        """Drop everything, and queue `data`."""
        self.close()
        self.frames[:] = data
        self.later.clear()

    def close(self) -> None:
        """Give back the pipe, with what is in it."""
        close_all(self.pipe or ())
        self.pipe, self.moved = None, 0

    def move(self, stream: int, kind: int, fd: int, most: int) -> int:
        """Queue up to `most` bytes of a pipe as a frame, and return how many, 0 at its end; -1: they must be read.

        Raises BlockingIOError when the pipe is empty, or it is not the time to move more.
        """
        if self.moved:
            self.flush()
        if self.moved:
            raise BlockingIOError
        try:
            if not self.can_move:
                return -1
            if self.pipe is None:
                self.pipe = os.pipe()
                enlarge(self.pipe[1])
            count = os.splice(fd, self.pipe[1], most, flags=os.SPLICE_F_NONBLOCK)  # type: ignore[attr-defined, unused-ignore]
        except BlockingIOError:
            raise
        except OSError:  # no pipe, or no more open files
            return -1
        if count:
            self.frames += HEADER.pack(stream, kind, count)
            self.moved = count
        return int(count)

    def write(self, fd: int) -> None:
        """Write what the port `fd` takes now. Raises OSError, BlockingIOError when that is not all."""
        self._write_frames(fd)
        while self.moved:
            self._write_moved(fd)
            if not self.moved:
                self.frames += self.later
                self.later.clear()
            self._write_frames(fd)

    def _write_frames(self, fd: int) -> None:
        done = 0
        try:
            with memoryview(self.frames) as view:
                while done < len(view):
                    done += os.write(fd, view[done : done + BODY_MAX])
        finally:
            del self.frames[:done]

    def _write_moved(self, fd: int) -> None:
        source = self.pipe[0] if self.pipe else -1
        try:
            self.moved -= os.splice(source, fd, self.moved)  # type: ignore[attr-defined, unused-ignore]
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self.can_move = False  # this kind of port takes copies only
            self.frames += os.read(source, self.moved)
            self.moved = 0


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
    """The loop: one port, any number of calls both ways, one thread."""

    def __init__(self, port: Port, trigger_socket: str = "", database: str = "") -> None:
        self.port = port
        self.database = DatabaseCopy(database)
        self.out = Outbox(self.write_port)
        self.calls = Calls(self.send, self.out)
        self.callers = Callers(trigger_socket, self.send)
        self.parser = Parser()
        self.inbox = memoryview(bytearray(READ_SIZE))
        self.pages = [self.inbox[at : at + PAGE] for at in range(0, READ_SIZE, PAGE)]
        self.nonce = b""
        self.is_synced = self.has_asked_again = False
        self.asked_at = 0.0
        self.looked_at = 0.0
        self.identity = os.environ.get("CRANNOG_IDENTITY", "" if port.is_socket else IDENTITY)
        self.renewed = ""
        self.is_asleep = False
        self.held: list[tuple[int, int, bytes, int]] = []
        """What the host sends to calls of a guest that is not renewed yet."""
        self.wake_fd, self.wake_write_fd = os.pipe()
        for fd in (self.wake_fd, self.wake_write_fd):
            os.set_blocking(fd, False)
        for number in (signal.SIGCHLD, signal.SIGUSR1):  # services of others ask with it for a socket as their stdin
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self.wake_write_fd, warn_on_full_buffer=False)

    def close(self) -> None:
        """Give back what the agent holds of its process: the signal handlers and their pipe."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)
        close_all((self.wake_fd, self.wake_write_fd))
        self.out.close()

    def run(self) -> None:
        """Serve for ever."""
        if self.callers.path:
            self.callers.listen()
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
        """Start over: end all calls, and ask the host for a SYNC. Padding completes what was half sent."""
        self.calls.close_all()
        self.callers.drop_all()
        self.held.clear()
        self.nonce = make_nonce()
        self.is_synced = False
        self.calls.body_max = self.port.body_max
        self.has_asked_again = False
        self.parser.reset()
        self.out.start_with(self.port.padding)
        self.ask_sync()

    def ask_sync(self) -> None:
        """Send a SYNC-REQUEST. It is repeated until answered: a dying host process may have eaten it."""
        self.out.put(MAGIC + b"R", self.nonce + bytes(8))
        self.asked_at = time.monotonic()

    def ask_again(self) -> None:
        """Repeat the SYNC-REQUEST. A terminal's host may be in the middle of a longer frame than its padding completes.

        That is so once at most: a host that came later hunts.
        """
        if self.port.is_terminal and not self.has_asked_again:
            self.out.put(LONG_PADDING, b"")
        self.has_asked_again = True
        self.ask_sync()

    def _turn(self) -> None:
        may_read = len(self.out) < self.port.out_high and not self.out.moved
        pipes = self.calls.list_waits(may_read)
        callers = self.callers.list_waits(may_read) if self.is_synced else {}
        poll = select.poll()
        poll.register(self.port.fd, select.POLLIN | (select.POLLOUT if self.out else 0))
        poll.register(self.wake_fd, select.POLLIN)
        for fd, (_, _, wanted) in pipes.items():
            poll.register(fd, wanted)
        for fd, (_, wanted) in callers.items():
            poll.register(fd, wanted)
        for fd, events in poll.poll(self._timeout() * 1000):
            if fd == self.wake_fd:
                os.read(self.wake_fd, 512)
                self.calls.reap()
            elif fd in pipes:
                self.calls.serve(*pipes[fd][:2], fd, events)
            elif fd in callers:
                self.callers.serve(callers[fd][0], events)
            elif fd == self.port.fd:
                self.read_port()
        self._look_at_clock()
        self.write_port()

    def _timeout(self) -> float:
        """Return the seconds until the next thing that the clock decides."""
        now = time.monotonic()
        times = self.calls.list_deadlines(now) + self.callers.list_deadlines()
        if not self.is_synced and not self.out:
            times.append(self.asked_at + ASK_AGAIN)
        return max(0.0, min((moment - now for moment in times if moment > self.looked_at), default=3600.0)) + 0.001

    def _look_at_clock(self) -> None:
        self.looked_at = now = time.monotonic()  # what is due from now on has not been done
        self.calls.look_at_clock(now)
        if self.is_synced:
            self.callers.look_at_clock(now)
        if not self.is_synced and not self.out and now >= self.asked_at + ASK_AGAIN:
            self.ask_again()

    def write_port(self) -> None:
        """Write what the port takes now."""
        if self.port.fd < 0:
            return
        try:
            self.out.write(self.port.fd)
        except BlockingIOError:
            pass
        except OSError as error:
            self.lose_port(str(error))

    def read_port(self) -> None:
        """Act on what the host has sent, or on its absence.

        The driver gives a page at a time: as many as there are come with one call, and stay where they are put.
        """
        try:
            count = os.readv(self.port.fd, self.pages)
        except BlockingIOError:
            return
        except OSError as error:
            self.lose_port(str(error))
            return
        if count:
            self.receive(self.inbox[:count])
        else:
            self.wait_for_host()

    def lose_port(self, reason: str) -> None:
        """Close a port that is gone; it is opened again when it is there again."""
        log(f"lost the port: {reason}")
        self.port.close()

    def wait_for_host(self) -> None:
        """End all calls, as the host is away (a read returned nothing), and wait for it without spinning."""
        if not self.port.tells_absence:
            self.lose_port("its other end is closed")
        self.desync()
        while self.port.fd >= 0 and self.port.is_host_away():
            self.calls.reap()
            self._look_at_clock()
            time.sleep(AWAY_POLL)

    def receive(self, data: bytes | memoryview) -> None:
        """Act on bytes from the port. A bad frame starts a new synchronisation, nothing else."""
        rest = memoryview(data)
        try:
            while rest:
                if not self.is_synced:
                    rest = self.hunt(rest)
                    continue
                frame, rest = self.parser.cut(rest)
                if frame:
                    self.dispatch(*frame)
        except BadFrame:
            self.desync()
        self.calls.pass_input()

    def hunt(self, data: memoryview) -> memoryview:
        """Look for the host's SYNC; return what came after it."""
        self.parser.buffer += data
        if not self.find_sync():
            return data[:0]
        rest = memoryview(bytes(self.parser.buffer))
        self.parser.reset()
        return rest

    def find_sync(self) -> bool:
        """Hunt for the host's SYNC; when found, acknowledge it and announce the guest."""
        host_nonce = self.parser.find_sync(self.nonce)
        if host_nonce is None:
            return False
        self.is_synced = True
        self.out.put(MAGIC + b"A", self.nonce + host_nonce)
        self.database.begin()
        self.send(0, HELLO, NUMBER.pack(PROTOCOL_VERSION))
        self.announce()
        return True

    def announce(self) -> None:
        """Tell the host what this guest is (qubes.NotifyTools)."""
        renewal = {"renewal": self.find_renewal()} if self.can_renew() else {}
        for key, value in (list_facts() | renewal).items():
            self.send(0, GUESTDB_WRITE, f"/qubes-tools/{key}\0{value}".encode())
        self.send(0, TRIGGER, b"qubes.NotifyTools")

    def send(self, stream: int, kind: int, body: bytes) -> None:
        """Queue one frame for the port."""
        self.out.put(HEADER.pack(stream, kind, len(body)), body)

    def dispatch(self, stream: int, kind: int, body: bytes | memoryview, cost: int = 0) -> None:
        """Act on a frame from the host, or a piece of data. What is for a stream that has ended is late, not wrong."""
        if self.is_asleep and stream:
            self.held.append((stream, kind, bytes(body), cost))
        elif kind not in DATA_TYPES:
            self.obey(stream, kind, bytes(body))
        elif stream in self.callers.streams:
            self.callers.dispatch(stream, kind, body, cost)
        else:
            self.calls.dispatch(stream, kind, body, cost)

    def obey(self, stream: int, kind: int, body: bytes) -> None:
        """Act on a frame that is no data."""
        if kind == POWEROFF:
            with contextlib.suppress(OSError):  # no more processes: the host will pull the plug
                power_off()
        elif kind in (SERVICE_CONNECT, SERVICE_REFUSED):
            if stream in self.calls.by_stream or (kind == SERVICE_CONNECT) != (stream != 0):
                raise BadFrame
            self.callers.answer(stream, kind, body)
        elif kind in (GUESTDB_WRITE, GUESTDB_REMOVE, GUESTDB_READY):
            self.keep(kind, body)
        elif kind == HELLO and len(body) == NUMBER.size:
            takes_bulk = NUMBER.unpack(body)[0] >= BULK_VERSION and not self.port.is_terminal
            self.calls.body_max = BULK_MAX if takes_bulk else self.port.body_max
        elif stream in self.callers.streams:
            self.callers.dispatch(stream, kind, body)
        else:
            self.calls.dispatch(stream, kind, body)

    def keep(self, kind: int, body: bytes) -> None:
        """Keep what the host says of the guest DB, and tell those who wait for it."""
        if kind == GUESTDB_READY:
            self.database.finish()
        elif kind == GUESTDB_WRITE and body.startswith(CLOCK):
            set_clock(body[len(CLOCK) :])
        elif kind == GUESTDB_WRITE and body.startswith(READY):
            self.calls.prepare(body[len(READY) :])
        elif kind == GUESTDB_WRITE and body.startswith(SLEEP):
            self.fall_asleep()
        elif kind == GUESTDB_WRITE and body.startswith(RENEW):
            self.renew(body[len(RENEW) :])
        elif kind == GUESTDB_WRITE:
            self.callers.tell_watchers(self.database.write(body))
        else:
            self.database.remove(body)
            self.callers.tell_watchers(body)

    # -- guests that are saved, and restored more than once

    def can_renew(self) -> bool:
        """Tell whether this guest, saved and restored, can be made one of its own: only root can do that."""
        is_root = os.geteuid() == 0
        return is_root and not self.port.is_terminal and bool(self.identity) and os.path.exists(self.identity)

    def find_renewal(self) -> str:
        """Return how far it is: that it could be, that all others are stopped for it, or the last order's number."""
        return ASLEEP if self.is_asleep else self.renewed or CAN_RENEW

    def fall_asleep(self) -> None:
        """Stop all processes but init: what runs on after a restore, before `renew`, would do so in every copy."""
        if not self.can_renew():
            return
        self.calls.close_all()
        self.is_asleep = True
        self.signal_others(signal.SIGSTOP)
        self.announce()

    def renew(self, order: bytes) -> None:
        """Make the guest who the order says it is, let all go on, and announce that by the order's number.

        Where anything fails nothing is announced: the host ends this guest then. Nobody has got it before.
        """
        if not self.is_asleep:
            log("the host wants a guest renewed that was not put to sleep: nothing is changed")
            return
        try:
            number, uuid, name, nanoseconds, seed = order.decode("ascii").split(" ")
            add_entropy(bytes.fromhex(seed))  # first of all: keys will be made
            set_clock(nanoseconds.encode())
            code = os.spawnve(os.P_WAIT, "/bin/sh", ["sh", self.identity, uuid, name], dict(os.environ))  # noqa: S606
        except (OSError, ValueError) as error:
            log(f"this guest cannot be renewed: {error}")
            return
        if code:
            log(f"this guest cannot be renewed: {self.identity} ended with {code}")
            return
        self.is_asleep, self.renewed = False, number
        self.signal_others(signal.SIGCONT)
        self.announce()
        held, self.held = self.held, []
        for frame in held:
            self.dispatch(*frame)

    def signal_others(self, number: int) -> None:
        """Signal all processes of the guest but init and this one. Behind a socket the guest is somebody else's."""
        if not self.port.is_socket:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, number)


def add_entropy(seed: bytes) -> None:
    """Have all random numbers of the kernel depend on a seed from here on (random(4)). Raises OSError."""
    fd = os.open("/dev/urandom", os.O_WRONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, RNDADDENTROPY, struct.pack("ii", 8 * len(seed), len(seed)) + seed)
        fcntl.ioctl(fd, RNDRESEEDCRNG)
    finally:
        os.close(fd)


def set_clock(text: bytes) -> None:
    """Set the guest's clock to what the host says. Who is not root leaves it as it is."""
    try:
        time.clock_settime_ns(time.CLOCK_REALTIME, int(text))
    except (OSError, ValueError, OverflowError) as error:
        log(f"the clock cannot be set: {error}")


def signal_group(pid: int, number: int) -> None:
    """Signal the process group that `pid` leads. The leader is not reaped yet, so the number is still its."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        # The child has not reached setsid yet: it is alone.
        os.kill(pid, number)


def main(arguments: list[str]) -> int:
    """Run the agent: `agent.py [--port DEVICE | --socket PATH] [--trigger-socket PATH] [--database FOLDER]`."""
    options = dict(zip(arguments[::2], arguments[1::2]))  # noqa: B905  not in Python 3.9
    known = {"--port", "--socket", "--trigger-socket", "--database"}
    if len(options) * 2 != len(arguments) or options.keys() - known or {"--port", "--socket"} <= options.keys():
        log("usage: agent.py [--port DEVICE | --socket PATH] [--trigger-socket PATH] [--database FOLDER]")
        return 2
    is_socket = "--socket" in options
    port = Port(options.get("--socket") or options.get("--port", ""), is_socket)
    trigger_socket = options.get("--trigger-socket", "" if is_socket else TRIGGER_SOCKET)
    while True:  # an init without a console may have closed 0-2, which pipes must never become
        fd = os.open("/dev/null", os.O_RDWR)
        if fd > 2:
            os.close(fd)
            break
    if not is_socket:
        announce_in_xenstore(list_facts())
    Agent(port, trigger_socket, options.get("--database", "" if is_socket else DATABASE)).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
