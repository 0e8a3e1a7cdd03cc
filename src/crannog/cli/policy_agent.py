"""crannog policy agent: takes the daemon's questions and has the user answer them, one at a time.

A question whose asker has gone is nobody's any more: it disappears. Whatever goes wrong is a denial: a peer that gets
no answer takes that for one.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from contextlib import suppress

from crannog.cli.policy import COMMAND
from crannog.cli.policy_peers import Notices, Peer, open_listener
from crannog.cli.policy_question import DENY, NO_ANSWER, Question
from crannog.cli.tool import complain
from crannog.config import Paths
from crannog.errors import ProtocolError, UsageError

# Importing typing and collections.abc would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from crannog.cli.options import Values

    class Asker(Protocol):
        """How the user is asked. At most one question is open."""

        def open(self, question: Question, waiting: int) -> None:
            """Show a question; `waiting` is how many others there are."""

        def files(self) -> list[int]:
            """Return the descriptors to wait for."""

        def wake(self) -> float | None:
            """Return the time (monotonic) at which `take` wants to be called although nothing came; None: never."""

        def take(self) -> str | None:
            """Return the answer to the open question when there is one. Raises KeyboardInterrupt when the user left."""

        def close(self, why: str) -> None:
            """End the open question without an answer, and say why."""

        def tell(self, sentence: str) -> None:
            """Tell the user something; no question is open."""


DEFAULT_TIMEOUT = 60
PEERS_MAX = 64
"""Connections at once; the daemon opens far fewer."""


def serve(options: Values) -> int:
    """Ask until interrupted."""
    timeout = _read_timeout(options.timeout)
    asker = _choose_asker(options, timeout)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    listener, lock = open_listener(Paths())
    path = str(listener.getsockname())
    try:
        print("questions about calls are asked here from now on; Ctrl-C ends that, and they are denied", flush=True)
        Agent(listener, asker, timeout).run()
    finally:
        listener.close()
        with suppress(FileNotFoundError):
            os.unlink(path)
        os.close(lock)
    return 0


def _interrupt(_number: int, _frame: Any) -> None:  # noqa: ANN401 - signal.signal's own type is not loaded here
    raise KeyboardInterrupt


def _read_timeout(text: str) -> int:
    if not text:
        return DEFAULT_TIMEOUT
    if not (text.isascii() and text.isdigit()) or not 0 < int(text[:9]) <= 86400 or len(text) > 9:
        raise UsageError(f"--timeout takes 1 to 86400 seconds, not '{text[:80]}'")
    return int(text)


def _choose_asker(options: Values, timeout: int) -> Asker:
    if options.command and options.notify:
        raise UsageError("--command and --notify cannot be used together; choose one of them")
    if options.command:
        from crannog.cli.policy_programs import ProgramAsker

        return ProgramAsker(options.command)
    if options.notify:
        from crannog.cli.policy_programs import NotificationAsker

        return NotificationAsker(timeout)
    from crannog.cli.policy_terminal import TerminalAsker

    return TerminalAsker()


class Agent:
    """Serves one socket."""

    def __init__(self, listener: socket.socket, asker: Asker, timeout: float) -> None:
        """`timeout` is how many seconds after its arrival a question is denied."""
        self._listener = listener
        self._asker = asker
        self._timeout = timeout
        self._peers: list[Peer] = []
        self._waiting: list[Peer] = []
        self._open: Peer | None = None
        self._notices = Notices()

    def run(self) -> None:
        """Serve until interrupted; what is open then is denied."""
        try:
            while True:
                self._turn()
        except BaseException:
            for peer in self._peers:
                peer.answer(DENY if peer.question else NO_ANSWER)
            if self._open:
                self._asker.close("denied: the agent ends")
            raise

    def _turn(self) -> None:
        """Wait once, and do what there is to do."""
        ready = self._wait()
        if self._listener.fileno() in ready:
            self._accept()
        for peer in list(self._peers):
            self._serve(peer, ready.get(peer.fileno, 0))
        self._take_answer()
        self._open_next()

    def _wait(self) -> dict[int, int]:
        poll = select.poll()
        for peer in self._peers:
            poll.register(peer.fileno, 0 if peer.is_complete else select.POLLIN)  # a hang-up is always told
        if len(self._peers) < PEERS_MAX:
            poll.register(self._listener, select.POLLIN)
        for file in self._asker.files():
            poll.register(file, select.POLLIN)
        times = [peer.deadline for peer in self._peers] + [self._asker.wake()]
        times += [] if self._open else [self._notices.wake()]
        wanted = [moment for moment in times if moment is not None]
        pause = max(0.0, min(wanted) - time.monotonic()) * 1000 + 1 if wanted else None
        return dict(poll.poll(pause))

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        self._peers.append(Peer(connection))

    def _serve(self, peer: Peer, events: int) -> None:
        """Read a peer's message, or notice that the peer has gone or has waited too long."""
        if peer.is_complete and events:
            self._drop(peer, "the question is gone: crannogd did not wait any longer")
        elif events:
            self._read(peer)
        elif time.monotonic() >= peer.deadline:
            self._drop(peer, "denied: nobody answered in time")

    def _read(self, peer: Peer) -> None:
        try:
            message = peer.read()
        except ProtocolError as error:
            complain(COMMAND.program, f"a message was refused: {error}")
            self._drop(peer, "")
            return
        if isinstance(message, Question):
            peer.deadline = time.monotonic() + self._timeout
            self._waiting.append(peer)
        elif message is not None:
            self._notices.add(message.sentence)
            self._drop(peer, "")

    def _drop(self, peer: Peer, why: str) -> None:
        if peer is self._open:
            self._asker.close(why)
            self._open = None
        if peer in self._waiting:
            self._waiting.remove(peer)
        self._peers.remove(peer)
        peer.close()

    def _take_answer(self) -> None:
        peer = self._open
        answer = self._asker.take() if peer else None
        if peer is None or answer is None:
            return
        self._open = None
        if not peer.answer(answer):
            self._asker.tell("that was too late: crannogd did not wait any longer, and has denied it")
        self._drop(peer, "")

    def _open_next(self) -> None:
        """Show the next question, or, when there is none, what was decided meanwhile."""
        if self._open is None and not self._waiting:
            for sentence in self._notices.take():
                self._asker.tell(sentence)
        if self._open is None and self._waiting:
            self._open = self._waiting.pop(0)
            if self._open.question:
                self._asker.open(self._open.question, len(self._waiting))
