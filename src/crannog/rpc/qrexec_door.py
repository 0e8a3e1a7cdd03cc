"""Other programs' way to a VM of ours: the socket of its qrexec daemon, and the data of their calls.

The program is the server of a vchan, and this process comes there in the agent's place (qrexec protocol, "Flows").
"""

import socket
import time
from collections.abc import Callable

from crannog.errors import CrannogError, ProtocolError, RpcError
from crannog.rpc import frames, vchan
from crannog.rpc import qrexec_messages as qm
from crannog.rpc.call_end import AGENT_WAIT, CallEnd, Item
from crannog.rpc.channel import GuestChannel
from crannog.rpc.qrexec_clients import CLIENTS_MAX, QrexecClient
from crannog.rpc.qrexec_messages import ExecParams, MessageParser
from crannog.rpc.qrexec_ports import PortTable
from crannog.rpc.qrexec_sockets import DaemonSocket, mask_for

MEET_PATIENCE = 10.0
"""Seconds in which the program has to listen where it was told to."""
HELLO_PATIENCE = 10.0
DOMAINS = range(1, 2**31)


class QrexecCall(CallEnd):
    """One call: a connection to the program's vchan, and a stream of the guest."""

    exit_mask = 0xFFFFFFFF

    def __init__(self, connection: socket.socket, channel: GuestChannel, command: bytes, kind: int) -> None:
        super().__init__(connection, channel, MessageParser(qm.FROM_CALLER))
        self._wanted, self._kind = command, kind
        self._out += qm.encode_hello(qm.AGENT_VERSION)
        self._take = self._take_hello
        self.deadline = time.monotonic() + HELLO_PATIENCE
        self.on_close: Callable[[], None] = lambda: None

    def _take_hello(self, message: Item) -> None:
        if message.type != qm.HELLO:
            raise ProtocolError("it did not begin with HELLO")
        version = min(qm.decode_number(message.body), qm.AGENT_VERSION)
        if version < qm.OLDEST_VERSION:
            raise ProtocolError(f"it speaks version {version} of qrexec")
        self.chunk_max = qm.chunk_max(version)
        self._take = self._take_stdin
        self._command_line = self._wanted
        self._is_due, self.deadline = True, time.monotonic() + AGENT_WAIT

    def _start(self) -> None:
        if self._kind == qm.JUST_EXEC and len(self._channel.calls) < frames.STREAMS_MAX:
            self._is_due, self.deadline = False, None
            JustExec.start(self._channel.current, self._wanted)
            self._open_outputs.clear()  # nothing but the exit code is sent
            self.end(0)
        else:
            super()._start()

    def _give_up(self) -> None:
        if self._command_line is None:
            self.close()
        else:
            super()._give_up()

    def close(self) -> None:
        """Close the connection, and free its port."""
        was_closed = self.is_closed
        super().close()
        if not was_closed:
            self.on_close()


class JustExec:
    """A command that nobody waits for: what it says is dropped."""

    data_kinds = frozenset({frames.DATA_STDOUT, frames.DATA_STDERR})

    def __init__(self, channel: GuestChannel) -> None:
        self._channel = channel
        self._stream = 0

    @classmethod
    def start(cls, channel: GuestChannel, command: bytes) -> None:
        """Start the command, without input."""
        call = cls(channel)
        call._stream = channel.open_call(call, command)
        channel.send(call._stream, frames.DATA_STDIN)

    def deliver(self, kind: int, untrusted_body: bytes) -> None:
        """Drop output, and let more come."""
        del kind
        if untrusted_body:
            count = frames.HEADER.size + len(untrusted_body)
            self._channel.send(self._stream, frames.CREDIT, frames.NUMBER.pack(count))

    def add_credit(self, untrusted_count: int) -> None:
        """Ignore it: no input is sent."""

    def end(self, untrusted_exit_code: int) -> None:
        """Ignore it: nobody waits."""

    def fail(self, sentence: str) -> None:
        """Ignore it: nobody waits."""


class Meeting:
    """A call whose program does not listen yet."""

    def __init__(self, port: int, params: ExecParams, kind: int, command: bytes, client: QrexecClient) -> None:
        self.port, self.peer = port, params.domain
        self.kind, self.command, self.client = kind, command, client
        self.began = time.monotonic()
        self.is_late = False
        self._next = 0.0

    def due(self, now: float) -> float:
        """Return when to look again."""
        return max(self._next, now)

    def try_meet(self, path: str, now: float) -> socket.socket | None:
        """Return the connection once the program listens; `is_late` says that it will not."""
        if now < self._next:
            return None
        since = now - self.began
        self._next = now + vchan.pause(since)
        self.is_late = since >= MEET_PATIENCE
        return vchan.try_connect(path)


class QrexecDoor:
    """The socket of one VM of ours for other programs, and their calls. It opens when the VM's number is known."""

    def __init__(
        self, channel: GuestChannel, folder: str, default_user: str, uuid: str, log: Callable[[str], None]
    ) -> None:
        self.channel = channel
        self.log = log
        self.domain = 0
        self._folder = folder
        self._default_user = default_user.encode()
        self._uuid = uuid
        self._socket: DaemonSocket | None = None
        self._ports = PortTable(0)
        self._meetings: list[Meeting] = []
        self._clients: list[QrexecClient] = []

    @property
    def listener(self) -> socket.socket | None:
        """The socket to accept from, None while there is none, or no more clients may come."""
        self._clients = [client for client in self._clients if not client.is_closed]
        if self._socket is None or len(self._clients) >= CLIENTS_MAX:
            return None
        return self._socket.listener

    def open(self, domain: int) -> None:
        """Listen as that number. Raises InUseError when another process serves it, RpcError."""
        if domain == self.domain:
            return
        if domain not in DOMAINS:
            raise RpcError(f"a VM cannot be called by the number {domain}")
        self.close()
        self.domain, self._ports = domain, PortTable(domain)
        links = (self.channel.vm, *([f"uuid:{self._uuid}"] if self._uuid else []))
        made = DaemonSocket(self._folder, domain, links, mask_for(self._folder))
        made.open()
        self._socket = made

    def learn(self, domain: int) -> None:
        """Open, if it can be: calls of our own tools do not need it."""
        try:
            self.open(domain)
        except CrannogError as error:
            self.log(f"other programs cannot call this VM: {error}")

    def close(self) -> None:
        """Stop listening."""
        if self._socket:
            self._socket.close()
            self._socket = None
        self._meetings.clear()

    def accept(self) -> QrexecClient | None:
        """Return a new client, which the loop has to serve."""
        try:
            connection, _ = self.listener.accept() if self.listener else (None, None)
        except OSError:
            return None
        if connection is None:
            return None
        client = QrexecClient(connection, self, self._default_user)
        self._clients.append(client)
        return client

    # -- what clients ask for

    def begin(self, client: QrexecClient, kind: int, params: ExecParams, command: bytes) -> ExecParams:
        """Begin a command; return where its data is. Raises CrannogError."""
        if params.port:
            raise ProtocolError(f"it chose port {params.port} itself")
        port = self._ports.allocate(params.domain)
        self._meetings.append(Meeting(port, params, kind, command, client))
        return ExecParams(self.domain, port)

    def connect(self, client: QrexecClient, params: ExecParams, ident: bytes) -> ExecParams | None:
        """Refuse: calls of this guest are connected by the process that asked the policy, and nobody else."""
        del client, params
        name = ident.rstrip(b"\0").decode("ascii", "replace")
        raise RpcError(f"no call of this VM with the ident '{name}' waits to be connected")

    # -- the loop

    def due(self, now: float) -> float | None:
        """Return when `meet` has something to do."""
        return min((meeting.due(now) for meeting in self._meetings), default=None)

    def meet(self, now: float) -> list[QrexecCall]:
        """Return the calls whose programs listen now; the loop has to serve them. Gives up on those that are late."""
        found = []
        for meeting in list(self._meetings):
            path = vchan.path_of(meeting.peer, self.domain, meeting.port)
            try:
                connection = meeting.try_meet(path, now)
            except RpcError as error:
                self.log(str(error))
                connection, meeting.is_late = None, True
            if connection:
                found.append(self._begin_call(meeting, connection))
            elif meeting.is_late:
                self._free(meeting)
            else:
                continue
            self._meetings.remove(meeting)
        return found

    def _begin_call(self, meeting: Meeting, connection: socket.socket) -> QrexecCall:
        call = QrexecCall(connection, self.channel, meeting.command, meeting.kind)
        call.on_close = lambda: self._free(meeting)
        return call

    def _free(self, meeting: Meeting) -> None:
        """Free a call's port, and tell the program that waits for its end."""
        self._ports.release(meeting.port, meeting.peer)
        meeting.client.close()
