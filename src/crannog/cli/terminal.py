"""What a VM writes, made harmless for a terminal.

A terminal obeys what it is sent: it can be made to change its title, to answer as if the user had typed, to show
text that is not there. Who copies the output is a process of its own, because the caller is busy with the VM.
"""

from __future__ import annotations

import codecs
import os

# Importing typing would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

KEPT = frozenset("\n\r\t")
"""Control characters that only move on; the others become `_`."""
_CHUNK = 65536


class Harmless:
    """Turns pieces of output into pieces that no terminal obeys, in a colour if one is given."""

    def __init__(self, colour: str = "") -> None:
        self._before, self._after = (f"\x1b[{colour}m", "\x1b[0m") if colour else ("", "")
        # Characters may be cut in two by the pieces; what is no UTF-8 at all becomes the replacement character.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, untrusted_data: bytes, *, is_last: bool = False) -> bytes:
        """Return what to print for a piece."""
        untrusted_text = self._decoder.decode(untrusted_data, is_last)
        text = "".join([char if char.isprintable() or char in KEPT else "_" for char in untrusted_text])
        # Each piece ends its colour itself: a tool that is killed leaves the terminal as it was.
        return f"{self._before}{text}{self._after}".encode() if text else b""


class Filters:
    """Outputs that are made harmless. Leaving the context waits until everything is printed."""

    def __init__(self) -> None:
        self._inputs: list[int] = []
        self._processes: list[int] = []

    def __enter__(self) -> Self:
        return self

    def open(self, output: int, colour: str) -> int:
        """Return where to write what shall arrive at `output` harmless."""
        source, sink = os.pipe()
        process = os.fork()
        if not process:
            _copy(source, output, Harmless(colour), [sink, *self._inputs])
        os.close(source)
        self._inputs.append(sink)
        self._processes.append(process)
        return sink

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sink in self._inputs:
            os.close(sink)
        for process in self._processes:
            os.waitpid(process, 0)


def _copy(source: int, output: int, harmless: Harmless, others: list[int]) -> None:
    """Copy until all who write have ended, and end this process."""
    import signal

    try:
        # Ctrl-C ends the command; what it has written before is still printed.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for file in others:
            os.close(file)
        while data := os.read(source, _CHUNK):
            _write(output, harmless.feed(data))
        _write(output, harmless.feed(b"", is_last=True))
    except OSError:
        pass  # the reader has gone: the writer will get EPIPE
    finally:
        os._exit(0)


def _write(output: int, data: bytes) -> None:
    while data:
        data = data[os.write(output, data) :]
