"""Asking the qrexec daemon of a VM for a call, as qrexec-client does (qrexec protocol, "Flows"). Blocks."""

import os
import socket
from collections.abc import Callable

from crannog.errors import ProtocolError, RpcError
from crannog.rpc import qrexec_messages as qm
from crannog.rpc import vchan
from crannog.rpc.qrexec_data import CallerPump, shake_hands
from crannog.rpc.qrexec_messages import ExecParams, MessageParser
from crannog.rpc.qrexec_sockets import is_served

PATIENCE = 10.0
"""Seconds in which a daemon answers."""
MEET_PATIENCE = 120.0
"""Seconds in which the other domain must come to where it was told to; a guest can be slow."""
_ANSWERS = frozenset({qm.HELLO, qm.EXEC_CMDLINE, qm.JUST_EXEC, qm.SERVICE_CONNECT})


def find_socket(target: str, folders: tuple[str, ...]) -> str:
    """Return the socket of the daemon of `target`, a name or `uuid:` and a UUID; empty when none is served."""
    paths = (f"{folder}/qrexec.{target}" for folder in folders if "/" not in target)
    return next((path for path in paths if is_served(path)), "")


class Control:
    """A connection to a daemon. Its end says that the call is over."""

    def __init__(self, path: str) -> None:
        """Connect and exchange HELLO. Raises RpcError."""
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        self._parser = MessageParser(_ANSWERS)
        try:
            self.socket.connect(path)
            body = self._next(qm.HELLO)
            if qm.decode_number(body) < qm.CLIENT_VERSION:
                raise ProtocolError(f"{path} speaks an old version of qrexec")
            self.socket.sendall(qm.encode_hello(qm.CLIENT_VERSION))
        except OSError as error:
            self.socket.close()
            raise RpcError(f"the qrexec daemon at {path} does not answer: {error}") from error
        except BaseException:
            self.socket.close()
            raise

    def ask(self, message: bytes, kind: int) -> ExecParams:
        """Send a request and return the answer: where the data of the call is. Raises RpcError when refused."""
        self.send(message)
        return qm.decode_params(self._next(kind))

    def send(self, message: bytes) -> None:
        """Send a request that has no answer."""
        try:
            self.socket.sendall(message)
        except OSError as error:
            raise RpcError(f"the qrexec daemon at {self.path} took no request: {error}") from error

    def wait_for_end(self) -> None:
        """Return when the call is over, or the daemon is gone."""
        self.socket.settimeout(None)
        try:
            while self.socket.recv(4096):
                pass
        except OSError:
            return

    def _next(self, kind: int) -> bytes:
        while True:
            try:
                data = self.socket.recv(4096)
            except OSError as error:
                raise RpcError(f"the qrexec daemon at {self.path} does not answer: {error}") from error
            if not data:
                raise RpcError(f"the qrexec daemon at {self.path} refuses the call; its log says why")
            for message in self._parser.feed(data):
                if message.type != kind:
                    raise ProtocolError(f"{self.path} answers with a message of type {message.type:#x}")
                return message.body


def call_vm(path: str, own_domain: int, user: str, command: str, on_begun: Callable[[], None]) -> int:
    """Run a command in the VM whose daemon listens at `path`; our standard streams are its. Return its exit code.

    Raises RpcError when it is refused, or breaks off.
    """
    control = Control(path)
    try:
        line = os.fsencode(f"{user}:{command}")
        asked = qm.encode_exec(qm.EXEC_CMDLINE, ExecParams(own_domain, 0), line)
        answer = control.ask(asked, qm.EXEC_CMDLINE)
        listener = vchan.listen(own_domain, *answer)
    finally:
        control.socket.close()
    on_begun()
    connection = vchan.accept(listener, MEET_PATIENCE)
    parser = shake_hands(connection, qm.FROM_SERVICE, PATIENCE)
    return CallerPump(connection, parser).run() & 0xFF
