"""A daemon's end of the control vchan to an agent that somebody else wrote. It never blocks, and holds little."""

import select
import socket
from collections.abc import Callable, Iterator

from crannog.errors import ProtocolError
from crannog.rpc import qrexec_messages as qm
from crannog.rpc.qrexec_messages import Message, MessageParser

OUT_MAX = 1048576
"""The agent is not read, nor clients' requests taken, while this many bytes wait for it."""
READ_SIZE = 65536
TRIGGERS = {qm.TRIGGER_SERVICE: range(2, 3), qm.TRIGGER_SERVICE3: range(3, 5), qm.TRIGGER_SERVICE4: range(4, 5)}
"""In which versions an agent may ask so."""


class AgentLink:
    """One connection to an agent. Its `version` is 0 until it has said HELLO."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.version = 0
        self.out = bytearray()
        self._parser = MessageParser(qm.FROM_AGENT)

    @property
    def has_room(self) -> bool:
        """Whether more may be sent."""
        return len(self.out) < OUT_MAX

    def events(self) -> int:
        """Return the poll events to wait for."""
        return (select.POLLIN if self.has_room else 0) | (select.POLLOUT if self.out else 0)

    def flush(self) -> None:
        """Send what the agent takes now. Raises OSError when it is gone."""
        try:
            while self.out:
                with memoryview(self.out) as view:
                    count = self.connection.send(view)
                del self.out[:count]
        except BlockingIOError:
            return

    def receive(self) -> Iterator[Message]:
        """Give the messages that are here, but for HELLO. Raises ProtocolError, or OSError when the agent is gone."""
        try:
            untrusted_data = self.connection.recv(READ_SIZE)
        except BlockingIOError:
            return
        if not untrusted_data:
            raise ConnectionResetError("it closed the connection")
        for message in self._parser.feed(untrusted_data):
            self._check(message)
            if message.type != qm.HELLO:
                yield message

    def _check(self, message: Message) -> None:
        if (message.type == qm.HELLO) != (self.version == 0):
            raise ProtocolError("it does not say HELLO once, and first")
        if message.type == qm.HELLO:
            self._take_hello(qm.decode_number(message.body))
        elif self.version not in TRIGGERS.get(message.type, (self.version,)):
            raise ProtocolError(f"it sent a message of type {message.type:#x} in version {self.version}")

    def _take_hello(self, untrusted_version: int) -> None:
        """Answer with the version that both speak: for agents of all versions so far, their own number."""
        if untrusted_version < qm.OLDEST_VERSION:
            raise ProtocolError(f"it speaks version {untrusted_version}; {qm.OLDEST_VERSION} is the oldest")
        self.version = min(untrusted_version, qm.AGENT_VERSION)
        self.out += qm.encode_hello(self.version)


def fails(action: Callable[[], None]) -> str:
    """Do it; return why the agent is lost by that, empty if it is not."""
    try:
        action()
    except OSError as error:
        return str(error.strerror or error)
    except ProtocolError as error:
        return str(error)
    return ""
