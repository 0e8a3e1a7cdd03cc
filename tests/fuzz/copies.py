"""Target: the receiver of file copies. Nothing is written outside its folder, and a copy that fails leaves nothing."""

import errno
import os
import stat
import tempfile
from unittest import mock

from crannog.guest import qfile
from crannog.guest.qfile import Receiver
from tests.fuzz.taken import Taken

FILES_MAX, BYTES_MAX = 12, 100_000
KINDS = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK, 0)
NAMES = (b"a", b"a/b", b"a/b/c", b"a/l", b"l", b"l/x", b"d", b"..", b"/etc", b"a/../x", b"old", b".crannog-copy-", b"")
TARGETS = (b"b", b"a", b"..", b"../d", b"../../outside", b"/outside", b"b/../../x", b".", b"", b"l")
SIZES = (0, 1, 3, 4096, qfile.CHUNK, qfile.NAME_MAX, BYTES_MAX, 1 << 50, (1 << 64) - 1)


def fuzz_qfile(data: bytes) -> None:
    """Unpack any stream; look at all that is there afterwards."""
    take = Taken(data)
    allow_any, is_raw = bool(take.number(2)), take.number(8) == 0
    stream = take.rest() if is_raw else b"".join(_entry(take) for _ in range(10)) + take.one_of((qfile.END, b""))
    with tempfile.TemporaryDirectory(dir="/dev/shm") as outer:
        _plant(outer)
        code, receiver = _receive(stream, f"{outer}/in", allow_any)
        _check_answer(receiver, code, stream)
        _check_outside(outer)
        count, size = _check_inside(f"{outer}/in", allow_any)
        assert count <= FILES_MAX
        assert size <= BYTES_MAX
        if code:
            assert count == 0, "a copy that failed leaves nothing"


def _entry(take: Taken) -> bytes:
    known = take.one_of(NAMES)
    name = take.one_of((known, known + b"/" + take.block(3), take.block(60), b"a/" * take.number()))
    kind = take.one_of(KINDS)
    body = take.one_of((b"", take.one_of(TARGETS), take.block(), bytes(take.number(4) * 20_000)))
    size = len(body) if take.number(8) else take.one_of(SIZES)
    times = (take.number(1 << 32), take.one_of((0, 999_999_999, 1 << 31)), take.number(1 << 32), 0)
    length = len(name) + 1 if take.number(8) else take.number(1 << 15)
    header = qfile.HEADER.pack(length, kind | take.number(1 << 12), size, *times)
    return header + name + b"\0" + body


def _plant(outer: str) -> None:
    """Make the receiver's folder, with something in it already, and something beside it."""
    os.mkdir(f"{outer}/in")
    for path in (f"{outer}/in/old", f"{outer}/outside"):
        with open(path, "wb") as file:
            file.write(b"mine")


def _receive(stream: bytes, folder: str, allow_any: bool) -> tuple[int, Receiver]:
    source = os.memfd_create("stream")
    qfile.write_all(source, stream)
    os.lseek(source, 0, os.SEEK_SET)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    opened = len(os.listdir("/proc/self/fd"))
    receiver = Receiver(source, fd, FILES_MAX, BYTES_MAX)
    receiver.allow_any = allow_any
    try:
        with mock.patch("os.sync"):  # the disk is memory
            return receiver.run(), receiver
    finally:
        assert len(os.listdir("/proc/self/fd")) == opened, "it left a file open"
        os.close(source)
        os.close(fd)


def _check_answer(receiver: Receiver, code: int, stream: bytes) -> None:
    """Check that the answer is one, and about bytes that came."""
    result = receiver.make_result(code)
    found, _, _ = qfile.RESULT.unpack_from(result)
    assert found == code
    assert code == 0 or code in errno.errorcode
    assert len(receiver.name) <= qfile.NAME_MAX
    assert receiver.name in stream
    assert qfile.clean(receiver.name).isprintable()


def _check_outside(outer: str) -> None:
    assert sorted(os.listdir(outer)) == ["in", "outside"]
    for path in (f"{outer}/in/old", f"{outer}/outside"):
        with open(path, "rb") as file:
            assert file.read() == b"mine", "it was written to"


def _check_inside(folder: str, allow_any: bool) -> tuple[int, int]:
    """Check each thing that has arrived; return how many there are, and their bytes."""
    count = size = 0
    for parent, folders, files in os.walk(os.fsencode(folder)):
        for name in [*folders, *files]:
            path = parent + b"/" + name
            if path == os.fsencode(folder) + b"/old":
                continue
            facts = os.lstat(path)
            assert stat.S_IFMT(facts.st_mode) in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
            assert not facts.st_mode & 0o7000 or stat.S_ISLNK(facts.st_mode)
            assert allow_any or qfile.is_plain(name)
            assert not name.startswith(qfile.STAGING.encode())
            if stat.S_ISLNK(facts.st_mode):
                _check_link(path, os.fsencode(folder))
            count += 1
            size += facts.st_size if stat.S_ISREG(facts.st_mode) else 0
    return count, size


def _check_link(path: bytes, folder: bytes) -> None:
    """Check that a link stays below the first folder of its own path."""
    top = path[len(folder) + 1 :].split(b"/")[0]
    end = os.path.realpath(path)
    inside = os.path.realpath(folder) + b"/"
    assert end.startswith(inside), f"{path!r} leads to {end!r}"
    if path != folder + b"/" + top:
        assert (end + b"/").startswith(inside + top + b"/"), f"{path!r} leads to {end!r}"
