"""What a hostile guest writes to its channel, from a fuzzer's choices: frames, near-frames, markers, rubbish."""

from collections.abc import Callable

from crannog.rpc import frames
from crannog.rpc.frames import Marker
from tests.fuzz.taken import Taken

KINDS = sorted(frames.CHANNEL_TYPES | frames.LOCAL_TYPES | {0, frames.GUESTDB_WATCH})
NONCES = (b"guest-01", b"guest-02", bytes(8))
PATHS = (b"/qubes-tools/os", b"/qubes-tools/", b"/features-request/gui", b"/features-request/", b"/name", b"/", b"")
STREAMS = (0, 1, 2, 3, 0xFFFFFFFF)
REPEATS = (1, 2, 40)


def _frame(take: Taken) -> bytes:
    kind, stream = take.one_of(KINDS), take.one_of(STREAMS)
    body = take.block()
    if kind in frames.FIXED_SIZES and take.number(4):
        body = body[: frames.FIXED_SIZES[kind]].ljust(frames.FIXED_SIZES[kind], b"\0")
    return frames.encode_frame(stream, kind, body * take.one_of(REPEATS))


def _lying_frame(take: Taken) -> bytes:
    """Return a header with any length, and a body that has nothing to do with it."""
    return frames.HEADER.pack(take.one_of(STREAMS), take.one_of(KINDS), take.number(1 << 32)) + take.block()


def _large_frame(take: Taken) -> bytes:
    size = take.one_of((frames.BODY_MAX, frames.BULK_MAX, frames.BODY_MAX - frames.HEADER.size, 4096))
    return frames.encode_frame(take.one_of(STREAMS), take.one_of(KINDS), bytes([take.number()]) * size)


def _marker(take: Taken) -> bytes:
    kind = take.one_of((frames.REQUEST, frames.SYNC, frames.ACKNOWLEDGE, b"?"))
    return frames.encode_marker(Marker(kind, take.one_of(NONCES), take.one_of(NONCES)))


def _entry(take: Taken) -> bytes:
    path = take.one_of(PATHS) + take.block(70)
    kind = take.one_of((frames.GUESTDB_WRITE, frames.GUESTDB_REMOVE))
    body = path if kind == frames.GUESTDB_REMOVE else path + b"\0" + take.block() * take.one_of(REPEATS)
    return frames.encode_frame(0, kind, body)


def _hello(take: Taken) -> bytes:
    return frames.encode_frame(0, frames.HELLO, frames.NUMBER.pack(take.number(6))) * take.one_of(REPEATS)


def _trigger(take: Taken) -> bytes:
    ident = take.one_of((b"SOCKET1", b"SOCKET2", take.block(40)))
    params = frames.TRIGGER_PARAMS.pack(take.block(64), take.block(64), ident)
    name = take.one_of((b"qubes.Filecopy", b"x" * 64999, take.block()))
    return frames.encode_frame(0, frames.TRIGGER_SERVICE4, params + name + take.one_of((b"\0", b"", b"\0x")))


def _announcement(take: Taken) -> bytes:
    facts = {b"version": b"1", b"os": b"Linux", b"qrexec": b"1", b"gui": b"0", b"default-user": b"user"}
    facts[take.one_of(list(facts))] = take.block()
    writes = [frames.encode_frame(0, frames.GUESTDB_WRITE, b"/qubes-tools/%b\0%b" % entry) for entry in facts.items()]
    return b"".join(writes) + frames.encode_frame(0, frames.TRIGGER, b"qubes.NotifyTools")


def _all_entries(take: Taken) -> bytes:
    """Fill the guest's part of the DB, and more."""
    value = bytes([take.number()]) * take.one_of((3072, 10))
    writes = [
        frames.encode_frame(0, frames.GUESTDB_WRITE, b"/features-request/%d\0%b" % (number, value))
        for number in range(130)
    ]
    return b"".join(writes)


_MAKERS: tuple[Callable[[Taken], bytes], ...] = (
    Taken.block,
    _frame,
    _lying_frame,
    _large_frame,
    _marker,
    _entry,
    _hello,
    _trigger,
    _announcement,
    _all_entries,
    lambda _take: frames.GUEST_PADDING,
)


def guest_bytes(take: Taken) -> bytes:
    """Return one piece of what the guest sends."""
    return take.one_of(_MAKERS)(take)
