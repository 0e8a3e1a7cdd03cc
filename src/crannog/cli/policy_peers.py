"""The agent's socket, those who send to it, and how much of what they tell is shown."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import time
from collections import deque
from contextlib import suppress

from crannog.cli.policy_question import Question, parse_message
from crannog.errors import DaemonError, InUseError, ProtocolError
from crannog.shortpath import provide_short_path

# Importing typing would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from crannog.cli.policy_question import Notice
    from crannog.config import Paths

MESSAGE_MAX = 1 << 20
"""Bytes: a question names every target that can be chosen."""
MESSAGE_SECONDS = 5.0
NOTICES_MAX, NOTICES_SECONDS = 5, 10.0
"""So many notices are shown in so many seconds; guests cause them."""
_BACKLOG = 128
"""Connections that the kernel keeps for us: more than the daemon makes at once, as it waits for none of them."""
_CREDENTIALS = struct.Struct("3i")


def open_listener(paths: Paths) -> tuple[socket.socket, int]:
    """Return the socket at which questions arrive, and the descriptor of the lock that makes this the only agent.

    Raises InUseError when another one listens, DaemonError when the socket cannot be made.
    """
    path = paths.policy_agent_socket
    try:
        os.makedirs(paths.home, mode=0o700, exist_ok=True)
        provide_short_path(paths.home)
        os.makedirs(paths.run, mode=0o700, exist_ok=True)
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove_dead(path)
        return _listen(path), lock
    except BlockingIOError:
        raise InUseError(f"another program asks the user already, at {path}; end that one first") from None
    except OSError as error:
        raise DaemonError(f"the agent cannot listen at {path}: {error.strerror}; see to its folder") from error


def _remove_dead(path: str) -> None:
    """Delete the socket of an agent that was killed; raises BlockingIOError when somebody is there."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise BlockingIOError


def _listen(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        listener.bind(path)
        listener.listen(_BACKLOG)
    finally:
        os.umask(before)
    return listener


class Peer:
    """One who has connected: first its message is read, then it waits for the answer to its question."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._untrusted_data = b""
        self.question: Question | None = None
        self.is_complete = False
        self.deadline = time.monotonic() + MESSAGE_SECONDS
        """When (monotonic) it has waited, or been waited for, long enough."""
        self.fileno = connection.fileno()

    def read(self) -> Question | Notice | None:
        """Return the message when its end has come; raises ProtocolError, also for what another user but root sends."""
        if not self._is_trusted():
            raise ProtocolError("its sender is another user")
        try:
            untrusted_block = self._connection.recv(MESSAGE_MAX)
        except BlockingIOError:
            return None
        except OSError:
            raise ProtocolError("its sender broke off") from None
        self._untrusted_data += untrusted_block
        if len(self._untrusted_data) > MESSAGE_MAX:
            raise ProtocolError(f"it is longer than {MESSAGE_MAX} bytes")
        return None if untrusted_block else self._complete()

    def _is_trusted(self) -> bool:
        credentials = self._connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return _CREDENTIALS.unpack(credentials)[1] in (0, os.geteuid())

    def _complete(self) -> Question | Notice:
        self.is_complete = True
        message = parse_message(self._untrusted_data)
        self._untrusted_data = b""
        if isinstance(message, Question):
            self.question = message
        return message

    def answer(self, answer: str) -> bool:
        """Send the answer; tell whether the peer was still there."""
        try:
            self._connection.sendall(answer.encode("ascii"))
        except OSError:
            return False
        return True

    def close(self) -> None:
        """End the connection."""
        with suppress(OSError):
            self._connection.close()


class Notices:
    """Sentences to tell, of which there can be more than anybody wants to read."""

    def __init__(self) -> None:
        self._sentences: deque[str] = deque()
        self._told: deque[float] = deque(maxlen=NOTICES_MAX)
        self._left_out = 0

    def add(self, sentence: str) -> None:
        """Keep a sentence to be told, if not too many are kept already."""
        if len(self._sentences) < NOTICES_MAX:
            self._sentences.append(sentence)
        else:
            self._left_out += 1

    def wake(self) -> float | None:
        """Return the time (monotonic) at which the next can be told; None when there is nothing to tell."""
        if not self._sentences and not self._left_out:
            return None
        return self._told[0] + NOTICES_SECONDS if len(self._told) == NOTICES_MAX else 0.0

    def take(self) -> list[str]:
        """Return what is to be told now."""
        now, found = time.monotonic(), []
        while (moment := self.wake()) is not None and moment <= now:
            self._told.append(now)
            found.append(self._next())
        return found

    def _next(self) -> str:
        if self._sentences:
            return self._sentences.popleft()
        count, self._left_out = self._left_out, 0
        return f"{count} more were decided without a question; 'crannog policy log' lists them"
