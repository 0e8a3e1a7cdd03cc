"""RPC processes that serve nobody: of a VM that ended while its process hung, or of one that got another process.

And the sockets of those that were killed.
"""

import contextlib
import glob
import os
import socket
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
        path = _find_socket(read_command(number))
        if os.path.dirname(path) != folder or not is_own(number):
            continue
        process = used.get(path)
        if path in used and process in (None, number):
            continue
        if kill(number, lambda words, path=path: _find_socket(words) == path):  # type: ignore[misc]
            ended.append(f"process {number}: an RPC process for {os.path.basename(path)} that served nobody was ended")
    return ended


def _find_socket(words: list[bytes]) -> str:
    return find_option(words, _LISTEN) if _PROGRAM in words else ""


def discard_dead_sockets(folder: str) -> None:
    """Delete the sockets of RPC processes that were killed while no daemon ran: a tool would take them for a VM."""
    paths = [path for name in ("rpc-*.sock", "qrexec.*") for path in glob.glob(f"{glob.escape(folder)}/{name}")]
    dead = [path for path in paths if _is_dead(path)]  # all first: links are dead because of what they lead to
    for path in dead:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _is_dead(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return True
    return False
