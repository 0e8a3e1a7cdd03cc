"""Calls through QEMU's guest agent: what a channel does with streams, done with guest-exec.

The agent takes all input of a command before it starts it, and gives all output after it has ended. So input is
gathered up to INPUT_MAX until it ends, the agent is asked again and again how far the command is, and what it has
written then flows through the windows of the stream like any output.
"""

import binascii
import math
import time
from collections.abc import Callable

from crannog.errors import ProtocolError, RpcError
from crannog.rpc import frames
from crannog.rpc.channel import GuestChannel
from crannog.rpc.qga_command import SHELL, plan_command, plan_end
from crannog.rpc.qga_facts import EXEC, EXEC_STATUS, SHUTDOWN, WINDOWS, Outcome, parse_outcome, parse_pid
from crannog.rpc.qga_messages import OUTPUT_MAX, Reply
from crannog.rpc.qga_port import QgaPort

INPUT_MAX = 4 << 20
"""Most input of one command, in bytes."""
HELD_MAX = 2 * OUTPUT_MAX
"""While so much output waits for callers, the agent is not asked for more."""
FIRST_PAUSE, PAUSE_GROWTH, PAUSE_MAX = 0.02, 1.3, 0.25
"""Seconds between two questions how far a command is."""
TROUBLE = 125


class Run:
    """One command: its input until that ends, its process, then its output. `stream` is 0 if nobody waits for it."""

    def __init__(self, stream: int, arguments: list[str]) -> None:
        self.stream = stream
        self.arguments = arguments
        self.input = bytearray()
        self.ungranted = 0
        self.pid = 0
        self.is_asked = self.is_abandoned = False
        self.pause, self.next_look = FIRST_PAUSE, 0.0
        self.output: list[tuple[int, memoryview]] = []
        self.credit = frames.WINDOW
        self.code: int | None = None

    @property
    def is_running(self) -> bool:
        """Whether its process runs, as far as is known, and nobody asks just now."""
        return self.pid > 0 and not self.is_asked and self.code is None

    @property
    def held(self) -> int:
        """Bytes of output that nobody has taken yet."""
        return sum(len(data) for _, data in self.output)


class QgaChannel(GuestChannel):
    """The streams of one guest whose commands QEMU's agent runs. What is said on a stream comes to `send`."""

    def __init__(self, vm: str, log: Callable[[str], None], port: QgaPort) -> None:
        super().__init__(vm, log)
        self.commands: frozenset[str] = frozenset()
        """What the agent can do."""
        self.system = ""
        """What system it runs on; empty when it did not say."""
        self._port = port
        self._runs: list[Run] = []

    @property
    def is_busy(self) -> bool:
        """Whether anybody waits for a command."""
        return bool(self.calls)

    def send(self, stream: int, kind: int, body: bytes = b"") -> None:
        """Take what a caller says on a stream; the frames are those of the channel to our own agent."""
        if kind == frames.EXEC_CMDLINE:
            self._open_run(stream, body.rstrip(b"\0"))
            return
        run = next((run for run in self._runs if run.stream == stream), None)
        if run is None:
            return
        if kind == frames.DATA_STDIN:
            self._take_input(run, body)
        elif kind == frames.CREDIT:
            run.credit = min(frames.WINDOW, run.credit + frames.NUMBER.unpack(body)[0])
        elif kind == frames.CLOSE:
            self._abandon(run)

    def power_off(self) -> bool:
        """Have the guest shut down; return whether its agent can do that."""
        if SHUTDOWN in self.commands:
            self._port.ask(SHUTDOWN, self._note_refusal, {"mode": "powerdown"})
        return SHUTDOWN in self.commands

    def _note_refusal(self, reply: Reply) -> None:
        self._log(f"QEMU's guest agent does not shut the guest down: {reply.error}")

    def due(self, now: float) -> float:
        """Return when `advance` has something to do."""
        may_look = self._held < HELD_MAX
        looks = [run.next_look for run in self._runs if may_look and run.is_running]
        ready = [now for run in self._runs if run.ungranted or self._can_deliver(run) or self._is_over(run)]
        return min(looks + ready, default=math.inf)

    def advance(self, now: float) -> None:
        """Give callers credit and output, and look how far commands are."""
        for run in list(self._runs):
            if run.ungranted and run.stream in self.calls:
                count, run.ungranted = run.ungranted, 0
                self.calls[run.stream].add_credit(count)
            self._deliver_output(run)
            if self._is_over(run):
                self._finish(run)
        for run in self._runs:
            if run.is_running and now >= run.next_look and self._held < HELD_MAX:
                run.is_asked = True
                self._port.ask(EXEC_STATUS, self._taker(run, self._take_status), {"pid": run.pid}, has_output=True)

    @property
    def _held(self) -> int:
        return sum(run.held for run in self._runs)

    # -- the beginning

    def _open_run(self, stream: int, command_line: bytes) -> None:
        run = Run(stream, [])
        self._runs.append(run)
        try:
            if EXEC not in self.commands:
                raise RpcError(f"QEMU's guest agent in '{self.vm}' may not run commands: its system forbids {EXEC}")
            if self.system == WINDOWS:
                raise RpcError(f"'{self.vm}' runs Windows: commands are run there by Crannog's agent alone")
            run.arguments = plan_command(command_line)
        except RpcError as error:
            self._refuse(run, str(error))

    def _take_input(self, run: Run, body: bytes) -> None:
        if run.pid or run.is_asked or run.code is not None:
            return
        if body:
            run.input += body
            run.ungranted += frames.HEADER.size + len(body)
            if len(run.input) > INPUT_MAX:
                self._refuse(run, f"QEMU's guest agent takes at most {INPUT_MAX >> 20} MiB of input; copy it as a file")
            return
        run.is_asked = True
        self._start(run)
        run.input.clear()

    def _start(self, run: Run) -> None:
        wanted: dict[str, object] = {"path": SHELL, "arg": run.arguments, "capture-output": True}
        if run.input:
            wanted["input-data"] = binascii.b2a_base64(run.input, newline=False).decode()
        self._port.ask(EXEC, self._taker(run, self._take_pid), wanted)

    def _taker(self, run: Run, take: Callable[[Run, Reply], None]) -> Callable[[Reply], None]:
        """Return what takes an answer about a command; one that failed, or is nonsense, ends that command alone."""

        def take_reply(reply: Reply) -> None:
            run.is_asked = False
            try:
                if reply.error:
                    raise ProtocolError(f"QEMU's guest agent: {reply.error}")
                take(run, reply)
            except ProtocolError as error:
                self._refuse(run, str(error))

        return take_reply

    def _take_pid(self, run: Run, reply: Reply) -> None:
        run.pid = parse_pid(reply)
        if run.is_abandoned:
            self._end_process(run.pid)

    # -- the end

    def _take_status(self, run: Run, reply: Reply) -> None:
        outcome = parse_outcome(reply)
        if outcome is None:
            run.pause = min(PAUSE_MAX, run.pause * PAUSE_GROWTH)
            run.next_look = time.monotonic() + run.pause
        else:
            self._take_outcome(run, outcome)

    def _take_outcome(self, run: Run, outcome: Outcome) -> None:
        run.code = outcome.code
        outputs = [*zip((frames.DATA_STDOUT, frames.DATA_STDERR), outcome.outputs, strict=True)]
        if outcome.is_cut:
            sentence = f"the output is cut: QEMU's guest agent keeps {OUTPUT_MAX >> 20} MiB of each\n"
            outputs.append((frames.DATA_STDERR, sentence.encode()))
            run.code = run.code or TROUBLE
        if run.stream:
            run.output = [(kind, memoryview(data)) for kind, data in outputs if data]

    def _can_deliver(self, run: Run) -> bool:
        return bool(run.output) and run.stream in self.calls and run.credit >= frames.CREDIT_MIN

    def _deliver_output(self, run: Run) -> None:
        """Pass on what the caller's window takes."""
        while self._can_deliver(run):
            kind, data = run.output[0]
            count = min(frames.BODY_MAX, run.credit - frames.HEADER.size, len(data))
            run.credit -= frames.HEADER.size + count
            self.calls[run.stream].deliver(kind, bytes(data[:count]))
            run.output[0] = (kind, data[count:])
            if count == len(data):
                del run.output[0]

    @staticmethod
    def _is_over(run: Run) -> bool:
        return run.code is not None and not run.output

    def _finish(self, run: Run) -> None:
        self._runs.remove(run)
        call = self.calls.pop(run.stream, None)
        if call is not None and run.code is not None:
            call.end(run.code)

    def _refuse(self, run: Run, sentence: str) -> None:
        """End a command with a sentence for its caller."""
        run.input.clear()
        run.output = [(frames.DATA_STDERR, memoryview(f"{sentence}\n".encode()))] if run.stream else []
        run.code = TROUBLE

    def _abandon(self, run: Run) -> None:
        """End a command whose caller is gone. Its process is looked after until it has ended, then forgotten."""
        run.stream = run.ungranted = 0
        run.is_abandoned = True
        run.output = []
        if run.pid and run.code is None:
            self._end_process(run.pid)
        elif not run.is_asked and not run.pid:
            run.code = TROUBLE

    def _end_process(self, pid: int) -> None:
        helper = Run(0, plan_end(pid))
        helper.is_asked = True
        self._runs.append(helper)
        self._start(helper)

    def lose(self, sentence: str) -> None:
        """Break off all calls: the agent is gone, and what it would have told of its commands with it."""
        self._runs.clear()
        self.fail_calls(sentence)
