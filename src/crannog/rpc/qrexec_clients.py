"""Clients of a VM's qrexec socket: programs like qrexec-client, which ask for a call and then for its end.

A client gets HELLO, answers it, sends one request and gets one answer. After that its connection only says, by its end,
that the call is over. Formats: qrexec protocol, "Messages" and "Flows".
"""

import select
import socket
import time
from enum import Enum
from typing import Protocol

from crannog.core.announcement import AgentStatus
from crannog.errors import CrannogError, ProtocolError
from crannog.rpc import qrexec_messages as qm
from crannog.rpc.qrexec_messages import ExecParams, Message, MessageParser

PATIENCE = 10.0
"""Seconds that a client has for its hello and its request."""
CLIENTS_MAX = 256
READ_SIZE = 65536
DEFAULT_USER = b"DEFAULT:"


class Broker(Protocol):
    """Who does what clients ask for."""

    def begin(self, client: "QrexecClient", kind: int, params: ExecParams, command: bytes) -> ExecParams:
        """Begin a command; return where its data is. Raises CrannogError when it cannot be."""

    def connect(self, client: "QrexecClient", params: ExecParams, ident: bytes) -> ExecParams | None:
        """Have a call of the guest connected; return where its data is, if that was left to us. Raises CrannogError.

        `ident` may have less filling than the guest's had; it ends with NUL.
        """

    def log(self, sentence: str) -> None:
        """Log what went wrong."""


class Stage(Enum):
    """How far a client is."""

    HELLO = "hello"
    REQUEST = "request"
    WAITING = "waiting"


class QrexecClient:
    """One connection. It never blocks, and holds at most one request."""

    def __init__(self, connection: socket.socket, broker: Broker, default_user: bytes = b"") -> None:
        """`default_user` is whom DEFAULT means; when it is empty, the agent decides."""
        self.connection = connection
        self.is_closed = False
        self.deadline: float | None = time.monotonic() + PATIENCE
        self._broker = broker
        self._default_user = default_user
        self._parser = MessageParser(qm.FROM_CLIENT)
        self._out = bytearray(qm.encode_hello(qm.CLIENT_VERSION))
        self._stage = Stage.HELLO
        connection.setblocking(False)

    def peer_process(self) -> int:
        """Return the number of the process that connected (unix(7), SO_PEERCRED)."""
        credentials = self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int.from_bytes(credentials[:4], "little", signed=True)

    def events(self) -> int:
        """Return the poll events to wait for."""
        return select.POLLIN | (select.POLLOUT if self._out else 0)

    def serve(self, events: int) -> None:
        """Act on what poll has found out."""
        if not events & ~select.POLLOUT:
            return
        try:
            data = self.connection.recv(READ_SIZE)
            if not data or self._stage is Stage.WAITING:
                self.close()
                return
            for message in self._parser.feed(data):
                self._take(message)
        except BlockingIOError:
            pass
        except OSError:
            self.close()
        except CrannogError as error:
            self._broker.log(f"a client is turned away: {error}")
            self.close()

    @property
    def has_unsent(self) -> bool:
        """Whether the client has not taken all that is for it."""
        return bool(self._out) and not self.is_closed

    def flush(self) -> None:
        """Send what the client takes now."""
        if not self._out or self.is_closed:
            return
        try:
            del self._out[: self.connection.send(self._out)]
        except BlockingIOError:
            pass
        except OSError:
            self.close()

    def advance(self, now: float) -> None:
        """Close a client that took too long."""
        if self.deadline is not None and now >= self.deadline:
            self.close()

    def show_status(self, status: AgentStatus) -> None:
        """Ignore what the agent is: these clients do not ask."""

    def close(self) -> None:
        """Close the connection: the call that it waited for is over, or it is turned away."""
        if not self.is_closed:
            self.flush_last()
            self.is_closed = True
            self.deadline = None
            self.connection.close()

    def flush_last(self) -> None:
        """Send what goes at once, before the end."""
        try:
            while self._out and not self.is_closed:
                del self._out[: self.connection.send(self._out)]
        except OSError:
            self._out.clear()

    def _take(self, message: Message) -> None:
        if self._stage is Stage.HELLO:
            self._take_hello(message)
        elif self._stage is Stage.REQUEST and message.type != qm.HELLO:
            self._stage, self.deadline = Stage.WAITING, None
            self._take_request(message)
        else:
            raise ProtocolError("it sent more than one request")

    def _take_hello(self, message: Message) -> None:
        if message.type != qm.HELLO:
            raise ProtocolError("it did not begin with HELLO")
        version = qm.decode_number(message.body)
        if version < qm.CLIENT_VERSION:
            raise ProtocolError(f"it speaks version {version} of qrexec; {qm.CLIENT_VERSION} is the oldest")
        self._stage = Stage.REQUEST

    def _take_request(self, message: Message) -> None:
        answer: ExecParams | None
        if message.type == qm.SERVICE_CONNECT:
            answer = self._broker.connect(self, *qm.decode_connect(message.body))
        else:
            command = self._name_user(qm.decode_command(message.body))
            answer = self._broker.begin(self, message.type, qm.decode_params(message.body), command)
        if answer is not None:
            self._out += qm.encode_params(message.type, answer)

    def _name_user(self, command: bytes) -> bytes:
        if self._default_user and command.startswith(DEFAULT_USER):
            command = self._default_user + command[len(DEFAULT_USER) - 1 :]
        if len(command) >= qm.COMMAND_MAX or b":" not in command:
            raise ProtocolError("it sent a command that is too long, or has no user")
        return command
