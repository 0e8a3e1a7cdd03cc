"""Services of this host: where the program or socket of one is, and what it is told (qrexec protocol, section 4).

The guest agent has its own look-up (crannog/guest/agent.py), as it stands alone.
"""

import os
import stat
from enum import Enum
from typing import NamedTuple

from crannog.errors import NotFoundError, RpcError

FOLDERS = ("/run/qubes-rpc", "/usr/local/etc/qubes-rpc", "/etc/qubes-rpc")
NAME_MAX = 255
_DEVICE = "/dev/tcp"


class Kind(Enum):
    """What a service is."""

    PROGRAM = "program"
    SOCKET = "socket"


class Service(NamedTuple):
    """One service that was found: a program to run, or a unix socket to connect to."""

    kind: Kind
    path: str


class Caller(NamedTuple):
    """Who calls what: `call` is the service with `+` and its argument, `target` is what the caller asked for."""

    source: str
    call: str
    target: str

    @property
    def service(self) -> str:
        """The service without its argument."""
        return self.call.partition("+")[0]

    @property
    def argument(self) -> str:
        """What stands behind the first `+`."""
        return self.call.partition("+")[2]

    @property
    def target_kind(self) -> str:
        """`keyword` for what begins with `@`, else `name`."""
        return "keyword" if self.target.startswith("@") else "name"

    def descriptor(self) -> bytes:
        """Return what a socket is told first: NUL ends it."""
        return f"{self.call} {self.source} {self.target_kind} {self.target.removeprefix('@')}\0".encode("ascii")

    def arguments(self, path: str) -> list[str]:
        """Return what a program is started with."""
        return [path, *([self.argument] if self.argument else [])]

    def environment(self, base: dict[str, str]) -> dict[str, str]:
        """Return the environment of a program, made from another one."""
        kept = {key: value for key, value in base.items() if not key.startswith("QREXEC_")}
        kept["QREXEC_REMOTE_DOMAIN"] = self.source
        kept["QREXEC_SERVICE_FULL_NAME"] = self.call
        kept["QREXEC_SERVICE_ARGUMENT"] = self.argument
        kept["QREXEC_REQUESTED_TARGET_TYPE"] = self.target_kind
        name = "QREXEC_REQUESTED_TARGET" + ("_KEYWORD" if self.target_kind == "keyword" else "")
        kept[name] = self.target.removeprefix("@")
        if "QREXEC_SERVICE_PATH" in base:
            kept["QREXEC_SERVICE_PATH"] = base["QREXEC_SERVICE_PATH"]
        return kept


def find_service(call: str, folders: tuple[str, ...] = FOLDERS) -> Service:
    """Return the service of a call: that for the argument before the general one, in each the first folder that has it.

    Raises NotFoundError when there is none, RpcError for what is neither a program that can be run nor a socket.
    """
    service = call.partition("+")[0]
    if len(service) > NAME_MAX:
        raise NotFoundError(f"there is no service with a name of {len(service)} characters")
    for name in (call, service):
        for folder in folders if len(name) <= NAME_MAX else ():
            path = os.path.join(folder, name)
            try:
                os.lstat(path)
            except OSError:
                continue
            return _judge(path)
    raise NotFoundError(f"there is no service {service[:80]} on this host; they are files in {', '.join(folders)}")


def _judge(path: str) -> Service:
    if os.path.islink(path) and os.readlink(path).startswith(_DEVICE):
        raise RpcError(f"{path} leads into a network, which services of this host do not")
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise RpcError(f"{path} cannot be used: {error.strerror}") from error
    if stat.S_ISSOCK(mode):
        return Service(Kind.SOCKET, path)
    if stat.S_ISREG(mode) and os.access(path, os.X_OK):
        return Service(Kind.PROGRAM, path)
    raise RpcError(f"{path} is neither a socket nor a program that can be run; 'chmod +x' makes it one")
