"""RPC processes that serve nobody: of a VM that ended while its process hung, or of one that got another process."""

import os
from collections.abc import Mapping

from crannog.hostprocesses import find_option, is_own, kill, list_processes, read_command
from crannog.rpc.place import PROGRAM

_PROGRAM = os.fsencode(PROGRAM)
_LISTEN = b"--listen"


def end_strays(folder: str, used: Mapping[str, int | None]) -> list[str]:
    """End every RPC process that listens in `folder` and is not used; return a sentence for each. Blocks.

    `used` are the sockets in use, each with the number of the process behind it if that is known.
    """
    ended = []
    for number in list_processes():
        socket = _find_socket(read_command(number))
        if os.path.dirname(socket) != folder or not is_own(number):
            continue
        process = used.get(socket)
        if socket in used and process in (None, number):
            continue
        if kill(number, lambda words, socket=socket: _find_socket(words) == socket):  # type: ignore[misc]
            ended.append(
                f"process {number}: an RPC process for {os.path.basename(socket)} that served nobody was ended"
            )
    return ended


def _find_socket(words: list[bytes]) -> str:
    return find_option(words, _LISTEN) if _PROGRAM in words else ""
