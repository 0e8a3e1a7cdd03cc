"""What is said to QEMU's guest agent and what it answers (QEMU, docs/interop/qemu-ga-ref). Pure: no I/O.

Requests and answers are lines of JSON, one answer a request, in their order. Whoever takes up a conversation does not
know what is still under way: `guest-sync-delimited` is answered with the byte 0xff and the number that was sent with
it, and what came before is dropped. The guest is hostile: no line that it sends is kept beyond a bound, and the JSON
parser sees no more than LINE_MAX bytes of one, as nested lists take 20 times the memory of their text.
"""

import binascii
import json
import re
from typing import Any, NamedTuple

from crannog.errors import ProtocolError

LINE_MAX = 65536
"""Longest answer, in bytes, the output of a command left out. guest-info, the longest, is 5 KB."""
OUTPUT_MAX = 16 << 20
"""What QEMU's agent keeps of each output of a command (QEMU, qga/commands.c)."""
BIG_LINE_MAX = LINE_MAX + 2 * (OUTPUT_MAX + 2) // 3 * 4
OUTPUTS = ("out-data", "err-data")
FLUSH = b"\xff"
"""Makes the agent forget half of a request that somebody else has sent. 0xff is in no JSON."""
REASON_MAX = 200

_OUTPUT_STARTS = {name: re.compile(rb'"' + name.encode() + rb'"[ \t]{0,8}:[ \t]{0,8}"') for name in OUTPUTS}


class Reply(NamedTuple):
    """One answer: `untrusted_value` is what it returns, `error` why it failed, as printable text."""

    untrusted_value: Any
    error: str = ""
    outputs: tuple[bytes, bytes] = (b"", b"")
    """What a command has written to stdout and stderr."""


def encode_request(name: str, arguments: dict[str, object] | None = None) -> bytes:
    """Return a request as its line."""
    return json.dumps({"execute": name, **({"arguments": arguments} if arguments else {})}).encode() + b"\n"


def encode_sync(number: int) -> bytes:
    """Return the request that begins a conversation."""
    return FLUSH + encode_request("guest-sync-delimited", {"id": number})


class ReplyParser:
    """Cuts what the guest sends into answers; before `hunt` has found its number, everything is dropped."""

    def __init__(self) -> None:
        self.is_hunting = True
        self._number = -1
        self._buffer = bytearray()
        self._searched = 0

    def hunt(self, number: int) -> None:
        """Drop everything up to the answer to `encode_sync(number)`."""
        self.is_hunting, self._number = True, number
        self._buffer.clear()
        self._searched = 0

    def feed(self, untrusted_data: bytes) -> None:
        """Add bytes of the guest."""
        self._buffer += untrusted_data

    def found(self) -> bool:
        """Tell whether the answer that was hunted for is there; what comes after it is kept."""
        while self.is_hunting:
            start = self._buffer.rfind(FLUSH)
            del self._buffer[: len(self._buffer) if start < 0 else start]
            end = self._buffer.find(b"\n")
            if end < 0:
                if len(self._buffer) > LINE_MAX:
                    self._buffer.clear()
                return False
            untrusted_line = bytes(self._buffer[1:end])
            del self._buffer[: end + 1]
            self.is_hunting = not self._is_answer(untrusted_line)
        return True

    def _is_answer(self, untrusted_line: bytes) -> bool:
        try:
            untrusted_number = parse_reply(untrusted_line).untrusted_value
        except ProtocolError:
            return False
        return type(untrusted_number) is int and untrusted_number == self._number

    def next_reply(self, *, has_output: bool) -> Reply | None:
        """Return the next answer, if it is complete; `has_output` tells whether it may hold that of a command.

        Raises ProtocolError for what is no answer.
        """
        end = self._buffer.find(b"\n", self._searched)
        if (len(self._buffer) if end < 0 else end) > (BIG_LINE_MAX if has_output else LINE_MAX):
            raise ProtocolError("it sent an answer that is too long")
        self._searched = len(self._buffer) if end < 0 else 0
        if end < 0:
            return None
        untrusted_line = bytes(memoryview(self._buffer)[:end])
        del self._buffer[: end + 1]
        return parse_reply(untrusted_line, has_output=has_output)


def parse_reply(untrusted_line: bytes, *, has_output: bool = False) -> Reply:
    """Return the answer in a line. Raises ProtocolError."""
    outputs = [b"", b""]
    if has_output:
        for number, name in enumerate(OUTPUTS):
            untrusted_line, outputs[number] = _cut_output(untrusted_line, name)
    if len(untrusted_line) > LINE_MAX:
        raise ProtocolError("it sent an answer that is too long")
    try:
        untrusted_answer: Any = json.loads(untrusted_line.decode())
    except (ValueError, RecursionError) as error:
        raise ProtocolError("it sent an answer that is no JSON") from error
    if not isinstance(untrusted_answer, dict) or ("error" in untrusted_answer) == ("return" in untrusted_answer):
        raise ProtocolError("it sent an answer that neither returns something nor fails")
    if "error" in untrusted_answer:
        return Reply(None, _clean_reason(untrusted_answer["error"]))
    return Reply(untrusted_answer["return"], "", (outputs[0], outputs[1]))


def _cut_output(untrusted_line: bytes, name: str) -> tuple[bytes, bytes]:
    """Return the line without an output of a command, and that output. Raises ProtocolError."""
    found = _OUTPUT_STARTS[name].search(untrusted_line)
    if found is None:
        return untrusted_line, b""
    end = untrusted_line.find(b'"', found.end())
    try:
        output = binascii.a2b_base64(memoryview(untrusted_line)[found.end() : max(end, 0)], strict_mode=True)
    except binascii.Error as error:
        raise ProtocolError("it sent an output that is no base64") from error
    if len(output) > OUTPUT_MAX:
        raise ProtocolError("it sent an output that is too long")
    return untrusted_line[: found.end()] + untrusted_line[max(end, 0) :], output


def _clean_reason(untrusted_error: object) -> str:
    untrusted_text = untrusted_error.get("desc") if isinstance(untrusted_error, dict) else None
    text = untrusted_text if isinstance(untrusted_text, str) else ""
    return "".join(c for c in text[:REASON_MAX] if c.isascii() and c.isprintable()) or "it gives no reason"
