"""A guest that wants to do harm, what its real RPC process holds meanwhile, and another VM that goes on calling."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from crannog.rpc import frames
from crannog.rpc.frames import FrameParser, Marker
from crannog.rpc.guest_calls import CALLS_MAX
from tests.unit.guest_peer import SECONDS, GuestPeer
from tests.unit.rpc_world import World

MEGABYTE = 1 << 20
DESCRIPTORS_OF_A_CALL = 5
DESCRIPTORS_MAX = 40 + CALLS_MAX * DESCRIPTORS_OF_A_CALL


@dataclass(frozen=True)
class Memory:
    """What a process holds, in bytes: what it shares with nobody, its resident memory, and the peak of that."""

    unshared: int
    resident: int
    peak: int


def read_memory(pid: int) -> Memory:
    """Return what a process holds now (proc(5): smaps_rollup, status)."""
    rollup = _read_sizes(f"/proc/{pid}/smaps_rollup")
    status = _read_sizes(f"/proc/{pid}/status")
    unshared = rollup["Private_Clean"] + rollup["Private_Dirty"]
    return Memory(unshared, status["VmRSS"], status["VmHWM"])


def _read_sizes(path: str) -> dict[str, int]:
    lines = (line.split() for line in Path(path).read_text(encoding="ascii").splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[-1] == "kB"}


def count_descriptors(pid: int) -> int:
    """Return how many files a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


@contextlib.contextmanager
def bounded(pid: int, megabytes: float) -> Iterator[None]:
    """Expect that a process never grows by more than so much: neither at its peak, nor in what it has for itself."""
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew (proc(5))
    before = read_memory(pid)
    yield
    after = read_memory(pid)
    grown, peak = (after.unshared - before.unshared) / MEGABYTE, (after.peak - before.resident) / MEGABYTE
    print(f"process {pid}: {grown:.1f} MB more than before, {peak:.1f} MB at its peak; bound {megabytes:.0f} MB")
    assert grown <= megabytes, f"it holds {grown:.1f} MB more than before"
    assert peak <= megabytes, f"it held {peak:.1f} MB more than before"


class HostileGuest(GuestPeer):
    """Writes without end and reads only what it likes."""

    def __init__(self, home: Path, *options: str) -> None:
        super().__init__(home, *options)
        self.sent = self.pieces = 0
        self.most_children = self.most_descriptors = 0

    @contextlib.contextmanager
    def flood(self, pattern: Callable[[int], bytes], reads: bool = False) -> Iterator[None]:
        """Send `pattern(0)`, `pattern(1)`, ... until the context ends; with `reads`, answers are read and forgotten."""
        is_over = threading.Event()
        self.connection.settimeout(0.2)
        threads = [threading.Thread(target=self._write, args=(pattern, is_over))]
        threads += [threading.Thread(target=self._drain, args=(is_over,))] if reads else []
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            is_over.set()
            for thread in threads:
                thread.join(SECONDS)
            self.connection.settimeout(SECONDS)
        assert self.sent, "nothing was sent at all"

    def _write(self, pattern: Callable[[int], bytes], is_over: threading.Event) -> None:
        number, data = 0, b""
        while not is_over.is_set():
            if not data:
                data, number = pattern(number), number + 1
                self.pieces = number
            with contextlib.suppress(TimeoutError):
                count = self.connection.send(data)
                data, self.sent = data[count:], self.sent + count

    def _drain(self, is_over: threading.Event) -> None:
        while not is_over.is_set():
            with contextlib.suppress(TimeoutError):
                self.connection.recv(1 << 20)

    def look(self) -> None:
        """Note how many children and open files the RPC process has now."""
        self.most_children = max(self.most_children, len(self.children()))
        self.most_descriptors = max(self.most_descriptors, count_descriptors(self.process.pid))
        assert self.most_children <= CALLS_MAX + 1
        assert self.most_descriptors <= DESCRIPTORS_MAX

    def recover(self) -> None:
        """Become an honest agent again, as one that was restarted: whatever was half sent or unread is given up."""
        nonce, self._parser = os.urandom(8), FrameParser()
        request = frames.GUEST_PADDING + frames.encode_marker(Marker(frames.REQUEST, nonce, bytes(8)))
        sender = threading.Thread(target=self.connection.sendall, args=(request,))  # while answers are read
        sender.start()
        while (marker := self._parser.next_marker()) is None or marker.guest_nonce != nonce:
            self._parser.feed(self.connection.recv(1 << 20))
        sender.join(SECONDS)
        self._parser.accept_marker()
        self._credit.clear()
        self.connection.sendall(frames.encode_marker(Marker(frames.ACKNOWLEDGE, nonce, marker.host_nonce)))
        self.send(0, frames.HELLO, frames.NUMBER.pack(2))


class OtherVM(World):
    """Another VM with a real agent, which nobody disturbs."""

    def works(self, guest: HostileGuest, calls: int = 8) -> None:
        """Expect that all of so many calls come out right, while the hostile guest does what it does."""
        for number in range(calls):
            text = f"call-{number}"
            assert self.run(f"cat; printf {text}; exit {number}", b"input ") == (number, b"input " + text.encode(), b"")
            guest.look()
