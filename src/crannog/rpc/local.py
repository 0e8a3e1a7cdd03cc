"""The connections of local clients to a VM's RPC process: handshake, calls, status followers, requests."""

import socket
import time
from collections.abc import Callable

from crannog.core.announcement import AgentStatus
from crannog.core.guestdb import check_path
from crannog.errors import ProtocolError
from crannog.rpc import frames
from crannog.rpc.allowance import Allowance
from crannog.rpc.call_end import AGENT_WAIT, READ_SIZE, CallEnd, Item
from crannog.rpc.channel import GuestChannel
from crannog.rpc.frames import MessageParser

STATUS_RATE, STATUS_BURST = 1.0, 20
"""Changes of the status that a follower is told a second, after so many at once. A guest can make thousands; the daemon
saves what is new, for each VM."""

DomainListener = Callable[[int], None]
"""Called with the number that the hypervisor gave the VM's domain."""


class LocalClient(CallEnd):
    """One connection of a program of ours."""

    def __init__(
        self,
        connection: socket.socket,
        channel: GuestChannel,
        default_user: str,
        on_domain: DomainListener = lambda _number: None,
    ) -> None:
        super().__init__(connection, channel, MessageParser())
        self._default_user = default_user
        self._on_domain = on_domain
        self._out += frames.encode_message(frames.HELLO, frames.NUMBER.pack(frames.LOCAL_VERSION))
        self._take = self._take_hello
        self._is_follower = False
        self._changes = Allowance(STATUS_RATE, STATUS_BURST)

    def show_status(self, status: AgentStatus) -> None:
        """Tell a follower the new status, or a little later what it is then; one that does not read is dropped."""
        if not self._is_follower or self.is_closed:
            return
        if len(self._out) >= READ_SIZE:
            self.close()
        elif self._changes.take():
            self._out += frames.encode_message(frames.STATUS_FOLLOW, status.encode())
        elif self.deadline is None:
            self.deadline = time.monotonic() + 1 / STATUS_RATE

    def advance(self, now: float) -> None:
        """Do what has become possible; tell a follower what could not be told at once."""
        if not self._is_follower or self._command_line is not None:
            super().advance(now)
        elif self.deadline is not None and now >= self.deadline:
            self.deadline = None
            self.show_status(self._channel.status)

    def _take_hello(self, message: Item) -> None:
        if message.type != frames.HELLO or frames.NUMBER.unpack(message.body)[0] < frames.LOCAL_VERSION:
            raise ProtocolError("a local client does not begin with HELLO(3)")
        self._take = self._take_request

    def _take_request(self, message: Item) -> None:
        if message.type == frames.EXEC_CMDLINE:
            self._take = self._take_stdin
            self._take_command(message.body)
        elif message.type == frames.STATUS_FOLLOW:
            self._is_follower = True
            self.show_status(self._channel.status)
        elif message.type == frames.DOMAIN_NUMBER:
            self._on_domain(frames.NUMBER.unpack(message.body)[0])
        elif message.type == frames.POWEROFF:
            answer = frames.NUMBER.pack(self._channel.power_off())
            self._out += frames.encode_message(frames.POWEROFF, answer)
        elif message.type in (frames.GUESTDB_WRITE, frames.GUESTDB_REMOVE, frames.GUESTDB_LIST):
            self._take_database(message)
        else:
            raise ProtocolError("a local client asks for something unknown")

    def _take_database(self, message: Item) -> None:
        """Change the guest DB, or tell what is in it."""
        tree = self._channel.tree
        if message.type == frames.GUESTDB_WRITE:
            path, _, value = message.body.partition(b"\0")
            tree.db.write(check_path(path), value)
        elif message.type == frames.GUESTDB_REMOVE:
            tree.db.remove(check_path(message.body, may_be_folder=True))
        else:
            for name, value in tree.db.list(message.body.decode("ascii", "replace")):
                self._out += frames.encode_message(frames.GUESTDB_WRITE, name.encode("ascii") + b"\0" + value)
            self._out += frames.encode_message(frames.GUESTDB_READY)

    def _take_command(self, body: bytes) -> None:
        command_line = body[len(frames.EXEC_PARAMS) :].partition(b"\0")[0]
        user, colon, command = command_line.partition(b":")
        if not colon:
            raise ProtocolError("a local client sent a command without a user")
        if user == b"DEFAULT":
            user = self._default_user.encode()
        self._command_line = user + b":" + command
        self._is_due, self.deadline = True, time.monotonic() + AGENT_WAIT
