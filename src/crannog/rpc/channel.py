"""The host's end of the channel to one guest agent: synchronisation, streams, announcement. No I/O.

Bytes go in through `receive` and come out of `out`; rpc/vm_process.py moves them. Nothing that a guest sends
makes it raise, and everything that a guest can grow is bounded: unread data by each stream's window, answers
by the loop (it stops reading while OUT_MAX bytes wait for the guest), its part of the guest DB by that one's limits.
"""

import os
from collections.abc import Callable, Mapping
from typing import Protocol

from crannog.core.announcement import AgentState, AgentStatus, QemuAgent, parse_announcement
from crannog.errors import ProtocolError
from crannog.rpc import frames
from crannog.rpc.frames import Frame, FrameParser, Marker
from crannog.rpc.guest_tree import GuestTree
from crannog.rpc.triggers import Trigger, parse_trigger

OUT_HIGH = 262144
"""Callers' data is not taken while this many bytes wait for the guest."""
OUT_MAX = 1048576
"""The guest is not read while this many bytes wait for it."""
NOTIFY_TOOLS = b"qubes.NotifyTools"


class Call(Protocol):
    """What a channel tells the host's side of a stream, whoever has called."""

    @property
    def data_kinds(self) -> frozenset[int]:
        """The types of data that the guest may send on it: output of a command, or input of a service."""

    def deliver(self, kind: int, untrusted_body: bytes) -> None:
        """Take data from the guest; raises ProtocolError when it overran the window."""

    def add_credit(self, untrusted_count: int) -> None:
        """Note that the guest takes more data."""

    def end(self, untrusted_exit_code: int) -> None:
        """Note that the guest has nothing more to do with it: its command has ended, or its caller is gone."""

    def fail(self, sentence: str) -> None:
        """Note that the call broke off, and why."""


class GuestChannel:
    """One guest's agent, as the host sees it."""

    def __init__(self, vm: str, log: Callable[[str], None], padding: bytes = frames.PADDING) -> None:
        """Begin with `padding`, which completes a frame that was half sent; where the channel is slow it is short."""
        self.vm = vm
        self._padding = padding
        self._is_padded = padding == frames.PADDING
        self.out = bytearray(padding)
        self.status = AgentStatus()
        self.on_status: Callable[[AgentStatus], None] = lambda _: None
        self.on_trigger: Callable[[Trigger], None] = lambda trigger: self.refuse(trigger.ident)
        self.on_break: Callable[[], None] = lambda: None
        """Called when the agent is lost: what it asked for and has not got it does not wait for any more."""
        self.calls: dict[int, Call] = {}
        self._fallback: GuestChannel | None = None
        self._log = log
        self._parser = FrameParser()
        self._last_stream = 0
        self._guest_nonce = b""
        self._host_nonce = b""
        self._version = 0
        self.wide_count = 0
        """Streams whose output has a wide window."""
        self.tree = GuestTree(self.send, log)

    @property
    def is_ready(self) -> bool:
        """Whether the agent takes commands."""
        return self.status.agent is AgentState.READY or self._fallback is not None

    @property
    def current(self) -> "GuestChannel":
        """Where a call goes now: here, or to what stands in while the agent does not answer."""
        if self._fallback is None or self.status.agent is AgentState.READY:
            return self
        return self._fallback

    def stand_in(self, fallback: "GuestChannel | None", facts: QemuAgent | None = None) -> None:
        """Have new calls go to `fallback` while the agent does not answer; None ends that."""
        self._fallback = fallback
        if self.status.agent is not AgentState.READY:
            state = AgentState.FALLBACK if fallback else AgentState.WAITING
            self._set_status(AgentStatus(state, None, facts))

    @property
    def has_room(self) -> bool:
        """Whether callers' data may be added to `out`."""
        return len(self.out) < OUT_HIGH

    @property
    def may_widen(self) -> bool:
        """Whether one more stream may have a wide window."""
        return self._version >= frames.BULK_VERSION and self.wide_count < frames.WIDE_STREAMS

    def send(self, stream: int, kind: int, body: bytes = b"") -> None:
        """Queue one frame for the guest."""
        self.out += frames.HEADER.pack(stream, kind, len(body))
        self.out += body

    def open_call(self, call: Call, command_line: bytes) -> int:
        """Start a command (`USER:COMMAND`, without NUL) and return its stream. The agent must be ready."""
        return self._open(call, frames.EXEC_CMDLINE, command_line + b"\0")

    def _open(self, call: Call, kind: int, body: bytes) -> int:
        self._last_stream = self._last_stream % 0xFFFFFFFF + 1
        while self._last_stream in self.calls:
            self._last_stream = self._last_stream % 0xFFFFFFFF + 1
        self.calls[self._last_stream] = call
        self.send(self._last_stream, kind, body)
        return self._last_stream

    def connect(self, ident: bytes, call: Call) -> int:
        """Tell the guest that the service it asked for is there; return the stream of its data."""
        return self._open(call, frames.SERVICE_CONNECT, ident)

    def refuse(self, ident: bytes) -> None:
        """Tell the guest that it does not get what it asked for."""
        self.send(0, frames.SERVICE_REFUSED, ident)

    def finish_call(self, stream: int, exit_code: int) -> None:
        """Tell the guest that the service that it called has ended; all its output has been sent."""
        if self.calls.pop(stream, None) is not None:
            self.send(stream, frames.DATA_EXIT_CODE, frames.NUMBER.pack(exit_code & 0xFFFFFFFF))

    def close_call(self, stream: int) -> None:
        """Give up a call; the guest ends its command. A call that has ended already is no error."""
        if self.calls.pop(stream, None) is not None:
            self.send(stream, frames.CLOSE)

    def power_off(self) -> bool:
        """Ask the guest to shut down; return whether there is an agent to ask."""
        if self.current is not self:
            return self.current.power_off()
        if self.is_ready:
            self.send(0, frames.POWEROFF)
        return self.is_ready

    def fail_calls(self, sentence: str) -> None:
        """Break off all calls with `sentence`."""
        calls, self.calls = self.calls, {}
        for call in calls.values():
            call.fail(sentence)

    def receive(self, untrusted_data: bytes) -> None:
        """Act on bytes from the guest."""
        self._parser.feed(untrusted_data)
        while self._take_item():
            pass

    def _take_item(self) -> bool:
        """Act on the next frame or marker; return whether there was one."""
        try:
            if self._parser.is_hunting:
                marker = self._parser.next_marker()
                if marker is not None:
                    self._answer(marker)
                return marker is not None
            frame = self._parser.next_frame()
            if frame is not None:
                self._dispatch(frame)
        except ProtocolError as error:
            self._lose_step(str(error))
            return True
        return frame is not None

    def _lose_step(self, reason: str) -> None:
        """Break off everything, and make the agent ask for a new synchronisation."""
        self._log(f"lost step with the agent: {reason}")
        self._parser.is_hunting = True
        self._version, self._parser.data_max = 0, frames.BODY_MAX
        self._guest_nonce = self._host_nonce = b""
        self.tree.end()
        self.out[:] = self._padding
        self._is_padded = self._padding == frames.PADDING
        self.fail_calls(f"the agent of the VM '{self.vm}' was restarted or broke off; run the command again")
        self.on_break()
        self._set_status(AgentStatus())
        self._announce_stored()

    def _answer(self, marker: Marker) -> None:
        if marker.kind == frames.REQUEST and marker.guest_nonce != self._guest_nonce:
            self._guest_nonce, self._host_nonce = marker.guest_nonce, os.urandom(frames.NONCE_SIZE)
            if self._padding != frames.PADDING:
                self.out.clear()  # who asks hunts, and needs no more padding
            self.out += frames.encode_marker(Marker(frames.SYNC, self._guest_nonce, self._host_nonce))
        elif marker == (frames.ACKNOWLEDGE, self._guest_nonce, self._host_nonce):
            self._parser.accept_marker()

    def _dispatch(self, frame: Frame) -> None:
        if frame.stream == 0:
            self._dispatch_control(frame)
            return
        call = self.calls.get(frame.stream)
        if call is None:
            return
        is_from_guest = frames.DATA_STDIN in call.data_kinds
        if frame.type in call.data_kinds:
            self._deliver(call, frame)
        elif frame.type == frames.CREDIT:
            call.add_credit(frames.NUMBER.unpack(frame.body)[0])
        elif frame.type == (frames.CLOSE if is_from_guest else frames.DATA_EXIT_CODE):
            del self.calls[frame.stream]
            call.end(frames.NUMBER.unpack(frame.body or bytes(4))[0])

    def _deliver(self, call: Call, frame: Frame) -> None:
        try:
            call.deliver(frame.type, frame.body)
        except ProtocolError as error:
            self._log(str(error))
            self.close_call(frame.stream)
            call.fail(f"the agent of the VM '{self.vm}' broke the protocol: {error}")

    def _dispatch_control(self, frame: Frame) -> None:
        if frame.type == frames.HELLO:
            version = frames.NUMBER.unpack(frame.body)[0]
            if version < frames.OLDEST_VERSION:
                raise ProtocolError("the agent speaks a version of the protocol that is too old")
            self._greet(version)
            self.tree.begin(version)
            self._set_status(AgentStatus(AgentState.READY, self.status.announced))
        elif frame.type in (frames.GUESTDB_WRITE, frames.GUESTDB_REMOVE):
            self.tree.take(frame.type, frame.body)
        elif frame.type == frames.TRIGGER and frame.body == NOTIFY_TOOLS:
            self._take_announcement()
        elif frame.type == frames.TRIGGER_SERVICE4:
            self._take_trigger(frame.body)

    def _greet(self, version: int) -> None:
        """Tell an agent that can use it what we speak; once, as thousands of HELLOs must not fill our memory."""
        if version >= frames.BULK_VERSION and not self._version:
            self._version, self._parser.data_max = version, frames.BULK_MAX
            self.send(0, frames.HELLO, frames.NUMBER.pack(frames.PROTOCOL_VERSION))

    def _take_trigger(self, untrusted_body: bytes) -> None:
        try:
            trigger = parse_trigger(untrusted_body)
        except ProtocolError as error:
            self._log(f"dropped a call: {error}")
            return
        if trigger.is_possible:
            self.on_trigger(trigger)
        else:
            self.refuse(trigger.ident)

    def _take_announcement(self) -> None:
        try:
            announced = parse_announcement(self.tree.announced())
        except ProtocolError as error:
            self._log(f"refused the announcement, nothing is changed: {error}")
        else:
            self._set_status(self.status._replace(announced=announced))

    @property
    def may_need_padding(self) -> bool:
        """Whether the agent does not ask for a synchronisation, and was sent a short padding only."""
        return self._parser.is_hunting and not self._guest_nonce and not self._is_padded

    def pad(self) -> None:
        """Complete any frame that was half sent, as the agent may be in the middle of one that is long."""
        if self.may_need_padding:
            self._is_padded = True
            self.out += frames.PADDING

    def take_stored(self, untrusted_entries: Mapping[str, bytes]) -> None:
        """Take over what the guest has written to XenStore; it may announce itself there."""
        if self.tree.take_stored(untrusted_entries):
            self._announce_stored()

    def _announce_stored(self) -> None:
        if self.tree.has_stored:
            self._take_announcement()

    def _set_status(self, status: AgentStatus) -> None:
        if status != self.status:
            self.status = status
            self.on_status(status)
