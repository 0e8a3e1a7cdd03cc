"""QEMU's guest agent in the place of ours: when it comes in, and when it goes.

Loaded only where our agent has not come for a while. QEMU's agent is asked what it is; when ours has not come
either PATIENCE seconds after the answer, calls go through rpc/qga_channel.py, and the status says so. As soon as ours
answers, new calls are its own.
"""

import math
import select
import time
from collections.abc import Callable, Iterator

from crannog.core.announcement import AgentState, QemuAgent
from crannog.rpc.channel import GuestChannel
from crannog.rpc.qga_channel import QgaChannel
from crannog.rpc.qga_facts import OSINFO, parse_info, parse_osinfo
from crannog.rpc.qga_messages import Reply
from crannog.rpc.qga_port import QgaPort

PATIENCE = 10.0
"""Seconds that ours gets after QEMU's agent has answered: a system may start that one first, and it runs as root."""
PING_PAUSE = 30.0
"""Seconds after which an agent that has nothing to do is asked whether it is still there."""


class Fallback:
    """Watches the port of QEMU's agent for one guest."""

    def __init__(self, channel: GuestChannel, path: str, log: Callable[[str], None]) -> None:
        self._main = channel
        self._log = log
        self._port = QgaPort(path, self._greet, self._note_loss)
        self._calls = QgaChannel(channel.vm, log, self._port)
        self._facts: QemuAgent | None = None
        self._answered_at = self._last_sign = 0.0

    # -- what the loop calls

    def advance(self, now: float) -> None:
        """Do what is due."""
        is_needed = self._main.status.agent is not AgentState.READY
        if not is_needed:
            self._main.stand_in(None)
        if is_needed or self._calls.is_busy:
            self._port.advance(now)
            self._calls.advance(now)
            self._check(now, is_needed=is_needed)
        elif self._port.fd() >= 0:
            self._facts = None  # it is not lost: it is let alone
            self._port.close(now)

    def _check(self, now: float, *, is_needed: bool) -> None:
        """Come in, once it is time for that; ask an idle agent for a sign."""
        if not self._facts:
            return
        if is_needed and now >= self._answered_at + PATIENCE and self._main.status.agent is AgentState.WAITING:
            self._main.stand_in(self._calls, self._facts)
        if self._port.is_idle and now >= self._last_sign + PING_PAUSE:
            self._last_sign = now
            self._port.ask("guest-ping", lambda _reply: None)

    def due(self, now: float) -> float | None:
        """Return when `advance` has something to do; None when only news can bring something."""
        if self._main.status.agent is AgentState.READY and not self._calls.is_busy:
            return now if self._port.fd() >= 0 else None
        times = [self._port.due(), self._calls.due(now)]
        if self._facts and self._main.status.agent is AgentState.WAITING:
            times.append(self._answered_at + PATIENCE)
        elif self._facts and self._port.is_idle:
            times.append(self._last_sign + PING_PAUSE)
        first = min(times)
        return None if first == math.inf else first

    def wants(self) -> Iterator[tuple[int, int, "Fallback"]]:
        """Give the file descriptor to wait for, with its poll events."""
        if self._port.fd() >= 0:
            yield self._port.fd(), select.POLLIN | (select.POLLOUT if self._port.wants_to_write else 0), self

    def serve(self, fd: int) -> None:
        """Read what is there."""
        del fd
        self._port.read(time.monotonic())

    # -- the agent

    def _greet(self) -> None:
        self._port.ask("guest-info", self._take_info)

    def _take_info(self, reply: Reply) -> None:
        ability = parse_info(reply)
        self._calls.commands = ability.commands
        if OSINFO in ability.commands:
            self._port.ask(OSINFO, lambda facts: self._note_facts(parse_osinfo(facts, ability.version)))
        else:
            self._note_facts(QemuAgent(ability.version, "", "", ""))

    def _note_facts(self, facts: QemuAgent) -> None:
        self._calls.system = facts.os
        self._facts = facts
        self._answered_at = self._last_sign = time.monotonic()
        self._log("QEMU's guest agent answers")

    def _note_loss(self, reason: str) -> None:
        if self._facts:
            self._log(f"QEMU's guest agent is gone: {reason}")
        self._facts = None
        self._main.stand_in(None)
        self._calls.lose(f"QEMU's guest agent in '{self._main.vm}' is gone ({reason}); run the command again")
