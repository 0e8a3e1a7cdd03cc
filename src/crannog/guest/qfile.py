#!/usr/bin/python3 -IS
"""qfile: the stream in which files are copied between VMs, both ends of it (QubesOS, qubes.Filecopy).

The stream, little-endian: for each entry a header (length of the name with its NUL, st_mode, length of the data, access
and modification time as seconds and nanoseconds), the name, and the data: a file's content, a link's target. A folder
comes before what is in it, and once more after that, with its final mode and times. A header of zeros ends it. The
receiver answers with an errno (0: all is well), 4 zero bytes and the CRC-32 of all that it read, then the length and
the bytes of the last name.

`qfile.py send FILES` speaks on stdin and stdout, and with people on stderr. `qfile.py receive FOLDER` unpacks into a
hidden folder in FOLDER; when everything is there, what was sent gets its names there. So half a copy is never seen.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import stat
import struct
import sys
import time
import zlib
from collections.abc import Iterator

HEADER = struct.Struct("<IIQIIII")
RESULT = struct.Struct("<IIQ")
NUMBER = struct.Struct("<I")
END = bytes(HEADER.size)
NAME_MAX = 16384
DEPTH_MAX = 256
"""Folders in each other; removing them takes a descriptor for each."""
CHUNK = 65536
STAGING = ".crannog-copy-"
FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILES_MAX = 1_000_000
BYTES_MAX = 1 << 50


class CopyError(Exception):
    """The copy cannot go on: an errno for the other side, and the name that it was about."""

    def __init__(self, code: int, name: bytes = b"") -> None:
        super().__init__(f"{os.strerror(code)}: {clean(name)}" if name else os.strerror(code))
        self.code = code
        self.name = name


def clean(name: bytes) -> str:
    """Return a name as text that is safe to show on a terminal."""
    return "".join(letter if letter.isprintable() else "_" for letter in name.decode("utf-8", "replace"))


def is_plain(name: bytes) -> bool:
    """Tell whether a name is UTF-8 that only has letters, signs and spaces: nothing that hides or controls."""
    try:
        return name.decode("utf-8").isprintable()
    except UnicodeDecodeError:
        return False


def split_name(untrusted_name: bytes, allow_any: bool) -> list[bytes]:
    """Return the parts of a relative path. Raises CopyError for one that is not, or leads out."""
    parts = untrusted_name.split(b"/")
    if any(part in (b"", b".", b"..") for part in parts) or b"\0" in untrusted_name:
        raise CopyError(errno.EILSEQ, untrusted_name)
    if len(parts) > DEPTH_MAX:
        raise CopyError(errno.ENAMETOOLONG, untrusted_name)
    if not allow_any and not is_plain(untrusted_name):
        raise CopyError(errno.EILSEQ, untrusted_name)
    if parts[0].startswith(STAGING.encode()):
        raise CopyError(errno.EILSEQ, untrusted_name)
    return parts


def is_inner_link(parts: list[bytes], untrusted_target: bytes) -> bool:
    """Tell whether a link stays below the first folder of its own path, whatever other such links it goes through.

    Steps up are only allowed at the beginning, where all folders are known to be real ones. A link that is not in a
    folder of the copy cannot lead to where it is itself: that is not copied.
    """
    steps = untrusted_target.split(b"/")
    ups = 0
    while ups < len(steps) and steps[ups] == b"..":
        ups += 1
    is_relative = steps[0] != b"" and b"\0" not in untrusted_target
    leads_on = len(parts) > 1 or not {b"", b"."}.issuperset(steps)
    return is_relative and leads_on and b".." not in steps[ups:] and ups <= max(len(parts) - 2, 0)


class Receiver:
    """Unpacks one stream from the descriptor `source` into the folder that `folder` is open on."""

    def __init__(self, source: int, folder: int, files_max: int = FILES_MAX, bytes_max: int = BYTES_MAX) -> None:
        self.source = source
        self.folder = folder
        self.files_left = files_max
        self.bytes_left = bytes_max
        self.allow_any = False
        self.crc = 0
        self.name = b""
        self.staging_name = ""
        self.staging = -1
        self.top_folders: dict[bytes, tuple[int, int, int]] = {}

    def run(self) -> int:
        """Unpack the stream; return 0 or the errno of what went wrong, of which nothing is left then."""
        try:
            self._prepare()
            self._take_all()
            os.sync()
            self._publish()
        except CopyError as problem:
            self.name = problem.name or self.name
            return problem.code
        except OSError as problem:
            return problem.errno or errno.EIO
        finally:
            self._clean_up()
        return 0

    def make_result(self, code: int) -> bytes:
        """Return the answer to the sender."""
        return RESULT.pack(code, 0, self.crc) + NUMBER.pack(len(self.name)) + self.name

    def _prepare(self) -> None:
        """Make the hidden folder, whose lock says that it is in use; remove those of receivers that were killed."""
        fcntl.flock(self.folder, fcntl.LOCK_EX)
        for name in os.listdir(self.folder):
            if name.startswith(STAGING):
                remove_if_unused(self.folder, name)
        self.staging_name = f"{STAGING}{os.getpid()}-{time.monotonic_ns()}"
        os.mkdir(self.staging_name, 0o700, dir_fd=self.folder)
        self.staging = os.open(self.staging_name, FOLDER_FLAGS, dir_fd=self.folder)
        fcntl.flock(self.staging, fcntl.LOCK_EX)
        fcntl.flock(self.folder, fcntl.LOCK_UN)

    def _clean_up(self) -> None:
        with contextlib.suppress(OSError):
            fcntl.flock(self.folder, fcntl.LOCK_UN)
        if self.staging >= 0:
            with contextlib.suppress(OSError):
                remove_tree(self.folder, self.staging_name)
            os.close(self.staging)

    def _read(self, count: int) -> bytes:
        """Return exactly `count` bytes, at most CHUNK or NAME_MAX. A stream that ends too early is an error."""
        data = b""
        while len(data) < count:
            part = os.read(self.source, count - len(data))
            if not part:
                raise CopyError(errno.EREMOTEIO)
            data += part
        self.crc = zlib.crc32(data, self.crc)
        return data

    def _take_all(self) -> None:
        while True:
            length, mode, size, atime, atime_ns, mtime, mtime_ns = HEADER.unpack(self._read(HEADER.size))
            if length == 0:
                return
            if length > NAME_MAX:
                raise CopyError(errno.ENAMETOOLONG)
            self.name = self._read(length).rstrip(b"\0")
            if max(atime_ns, mtime_ns) > 999_999_999:
                raise CopyError(errno.EINVAL)
            self._account(size, mode)
            times = (atime * 10**9 + atime_ns, mtime * 10**9 + mtime_ns)
            self._take(split_name(self.name, self.allow_any), mode, size, times)

    def _account(self, size: int, mode: int) -> None:
        """Count an entry against the limits; say at once when a file does not fit on the disk."""
        self.files_left -= 1
        self.bytes_left -= size
        if self.files_left < 0 or self.bytes_left < 0:
            raise CopyError(errno.EDQUOT)
        space = os.fstatvfs(self.folder)
        if stat.S_ISREG(mode) and size > space.f_bavail * space.f_frsize:
            raise CopyError(errno.ENOSPC)

    def _take(self, parts: list[bytes], mode: int, size: int, times: tuple[int, int]) -> None:
        if len(parts) == 1 and exists(self.folder, parts[0]):
            raise CopyError(errno.EEXIST)
        parent = self._open_parent(parts)
        try:
            if stat.S_ISREG(mode):
                self._take_file(parent, parts[-1], mode, size, times)
            elif stat.S_ISDIR(mode) and size == 0:
                self._take_folder(parent, parts, mode, times)
            elif stat.S_ISLNK(mode):
                self._take_link(parent, parts, size, times)
            else:
                raise CopyError(errno.EINVAL)
        finally:
            os.close(parent)

    def _open_parent(self, parts: list[bytes]) -> int:
        """Open the folder that an entry is in, step by step, so that no link is followed."""
        parent = os.dup(self.staging)
        for part in parts[:-1]:
            try:
                child = os.open(part, FOLDER_FLAGS, dir_fd=parent)
            finally:
                os.close(parent)
            parent = child
        return parent

    def _take_file(self, parent: int, name: bytes, mode: int, size: int, times: tuple[int, int]) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=parent)
        try:
            while size:
                data = self._read(min(CHUNK, size))
                size -= len(data)
                write_all(fd, data)
            set_facts(fd, mode, times)
        finally:
            os.close(fd)

    def _take_folder(self, parent: int, parts: list[bytes], mode: int, times: tuple[int, int]) -> None:
        """Make a folder; when it comes for the second time, give it its mode and times."""
        if not exists(parent, parts[-1]):
            os.mkdir(parts[-1], 0o700, dir_fd=parent)
            return
        fd = os.open(parts[-1], FOLDER_FLAGS, dir_fd=parent)
        try:
            if len(parts) == 1:
                self.top_folders[parts[0]] = (mode, *times)  # a folder without `w` could not be moved
            else:
                set_facts(fd, mode, times)
        finally:
            os.close(fd)

    def _take_link(self, parent: int, parts: list[bytes], size: int, times: tuple[int, int]) -> None:
        if size >= NAME_MAX:
            raise CopyError(errno.ENAMETOOLONG)
        untrusted_target = self._read(size)
        is_fine = self.allow_any or is_plain(untrusted_target)
        if not is_fine or not is_inner_link(parts, untrusted_target):
            raise CopyError(errno.EILSEQ)
        os.symlink(untrusted_target, parts[-1], dir_fd=parent)
        os.utime(parts[-1], ns=times, dir_fd=parent, follow_symlinks=False)

    def _publish(self) -> None:
        """Give everything its name in the folder. The lock keeps other receivers from taking the same name."""
        fcntl.flock(self.folder, fcntl.LOCK_EX)
        names = [os.fsencode(name) for name in os.listdir(self.staging)]
        for name in names:
            if exists(self.folder, name):
                raise CopyError(errno.EEXIST, name)
        for name in names:
            if stat.S_ISDIR(os.stat(name, dir_fd=self.staging, follow_symlinks=False).st_mode):
                os.rename(name, name, src_dir_fd=self.staging, dst_dir_fd=self.folder)
            else:  # a link replaces nothing, a rename would
                os.link(name, name, src_dir_fd=self.staging, dst_dir_fd=self.folder, follow_symlinks=False)
                os.unlink(name, dir_fd=self.staging)
        for name, (mode, *times) in self.top_folders.items():
            fd = os.open(name, FOLDER_FLAGS, dir_fd=self.folder)
            set_facts(fd, mode, (times[0], times[1]))
            os.close(fd)


def exists(folder: int, name: bytes) -> bool:
    """Tell whether a name is taken, be it by a dangling link."""
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def set_facts(fd: int, mode: int, times: tuple[int, int]) -> None:
    """Set mode (without set-id bits: the file has another owner now) and times of an open file."""
    os.fchmod(fd, mode & 0o777)
    os.utime(fd, ns=times)


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data`. Raises OSError."""
    while data:
        data = data[os.write(fd, data) :]


def remove_if_unused(folder: int, name: str) -> None:
    """Remove a hidden folder that no living receiver has locked."""
    with contextlib.suppress(OSError):
        fd = os.open(name, FOLDER_FLAGS, dir_fd=folder)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_tree(folder, name)
        finally:
            os.close(fd)


def remove_tree(folder: int, name: str | bytes) -> None:
    """Remove a folder of ours and what is in it, also what its modes forbid."""
    fd = os.open(name, FOLDER_FLAGS, dir_fd=folder)
    try:
        os.fchmod(fd, 0o700)
        for entry in os.listdir(fd):
            if stat.S_ISDIR(os.stat(entry, dir_fd=fd, follow_symlinks=False).st_mode):
                remove_tree(fd, entry)
            else:
                os.unlink(entry, dir_fd=fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=folder)


class Sender:
    """Packs files and folders into the descriptor `sink`, and reads the answer from `source`."""

    def __init__(self, source: int, sink: int, total: int = 0) -> None:
        self.source = source
        self.sink = sink
        self.total = total
        self.sent = 0
        self.crc = 0
        self.shown_at = 0.0

    def run(self, paths: list[str]) -> None:
        """Send all of `paths` and wait for the answer. Raises CopyError, or OSError for what cannot be read."""
        try:
            for path in paths:
                for name, full_path in walk(path):
                    self._send_entry(name, full_path)
            self._write(END)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the receiver has said why
        self.take_answer()

    def take_answer(self) -> None:
        """Read the receiver's answer; raise CopyError when it is no success, or not about what was sent."""
        answer = self._read_answer(RESULT.size)
        if len(answer) < RESULT.size:
            raise CopyError(errno.EREMOTEIO)
        code, _, crc = RESULT.unpack(answer)
        if code:
            length = self._read_answer(NUMBER.size)
            size = min(NUMBER.unpack(length)[0], NAME_MAX) if len(length) == NUMBER.size else 0
            raise CopyError(code, self._read_answer(size))
        if crc != self.crc:
            raise CopyError(errno.EBADMSG)

    def _read_answer(self, count: int) -> bytes:
        data = b""
        while len(data) < count and (part := os.read(self.source, count - len(data))):
            data += part
        return data

    def _write(self, data: bytes) -> None:
        self.crc = zlib.crc32(data, self.crc)
        write_all(self.sink, data)

    def _send_entry(self, name: bytes, path: str) -> None:
        """Send one file, folder or link. An answer that comes before the end says that the copy has failed."""
        if select.select([self.source], [], [], 0)[0]:
            self.take_answer()
        facts = os.lstat(path)
        if stat.S_ISREG(facts.st_mode):
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                self._send_file(name, fd, path)
            finally:
                os.close(fd)
        elif stat.S_ISDIR(facts.st_mode):
            self._send_header(name, facts, 0)
        elif stat.S_ISLNK(facts.st_mode):
            target = os.fsencode(os.readlink(path))
            self._send_header(name, facts, len(target))
            self._write(target)
        else:
            raise OSError(errno.EINVAL, "is neither a file, a folder nor a link", path)

    def _send_header(self, name: bytes, facts: os.stat_result, size: int) -> None:
        times = []
        for moment in (facts.st_atime_ns, facts.st_mtime_ns):
            moment = min(max(moment, 0), 0xFFFFFFFF * 10**9)  # noqa: PLW2901  what the format can say
            times += [moment // 10**9, moment % 10**9]
        self._write(HEADER.pack(len(name) + 1, facts.st_mode, size, *times) + name + b"\0")

    def _send_file(self, name: bytes, fd: int, path: str) -> None:
        """Send as many bytes as the file has now; one that grows meanwhile is cut there."""
        facts = os.fstat(fd)
        left = facts.st_size
        self._send_header(name, facts, left)
        while left:
            data = os.read(fd, min(CHUNK, left))
            if not data:
                raise OSError(errno.EIO, "became shorter while it was copied", path)
            self._write(data)
            left -= len(data)
            self._show_progress(len(data))

    def _show_progress(self, count: int) -> None:
        self.sent += count
        if self.total and time.monotonic() - self.shown_at > 0.5:
            self.shown_at = time.monotonic()
            say(f"sent {self.sent >> 20} of {self.total >> 20} MiB\r", end="")


def walk(path: str) -> Iterator[tuple[bytes, str]]:
    """Yield each entry's name in the stream and its path; a folder comes before and after what is in it."""
    top = os.path.dirname(path.rstrip("/"))
    pending = [path.rstrip("/") or path]
    while pending:
        full_path = pending.pop()
        name = os.fsencode(os.path.relpath(full_path, top or "."))
        yield name, full_path
        if stat.S_ISDIR(os.lstat(full_path).st_mode) and not full_path.endswith("/."):
            pending.append(full_path + "/.")
            pending += [f"{full_path}/{entry}" for entry in sorted(os.listdir(full_path), reverse=True)]


def say(sentence: str, end: str = "\n") -> None:
    """Write to stderr; nobody has to be there."""
    with contextlib.suppress(OSError):
        os.write(2, f"{sentence}{end}".encode(errors="replace"))


def send(paths: list[str]) -> int:
    """Send `paths` on stdout; return 0 when the receiver has confirmed all of it."""
    total = os.environ.get("FILECOPY_TOTAL_SIZE", "")
    shown = int(total) if total.isdecimal() and os.isatty(2) else 0
    try:
        Sender(0, 1, shown).run(paths)
        if shown:
            say(f"sent {shown >> 20} MiB, all of it has arrived")
    except CopyError as problem:
        if problem.code == errno.EEXIST:
            say(f"the other VM has a file '{clean(problem.name)}' from this one already: nothing was copied")
        else:
            say(f"the copy failed: {problem}")
        return 1
    except OSError as problem:
        say(f"the copy failed: {clean(os.fsencode(problem.filename or ''))} {problem.strerror}")
        return 1
    return 0


def open_incoming(home: str, source: str) -> int:
    """Open ~/QubesIncoming/SOURCE, after making it when it is not there. Raises OSError."""
    if not source or source[0] == "." or "/" in source or not source.isprintable():
        raise OSError(errno.EINVAL, "no name of a VM", source)
    incoming = f"{home}/QubesIncoming"
    with contextlib.suppress(FileExistsError):
        os.mkdir(incoming, 0o700)
    with contextlib.suppress(FileExistsError):
        os.mkdir(f"{incoming}/{source}", 0o700)
    return os.open(f"{incoming}/{source}", FOLDER_FLAGS)


def receive(options: dict[str, str]) -> int:
    """Receive from stdin what the VM of the environment sends; answer on stdout."""
    import pwd

    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(1))  # so that the hidden folder is removed
    os.umask(0o077)
    home = pwd.getpwuid(os.geteuid()).pw_dir
    try:
        folder = open_incoming(options.get("--home", home), os.environ.get("QREXEC_REMOTE_DOMAIN", ""))
    except OSError as problem:
        say(f"cannot receive files into {home}/QubesIncoming: {problem.strerror}")
        write_all(1, RESULT.pack(problem.errno or errno.EIO, 0, 0))
        return 1
    limits = int(options.get("--max-files", FILES_MAX)), int(options.get("--max-bytes", BYTES_MAX))
    receiver = Receiver(0, folder, *limits)
    receiver.allow_any = os.environ.get("QREXEC_SERVICE_ARGUMENT") == "allow-unsafe-characters"
    code = receiver.run()
    with contextlib.suppress(OSError):
        write_all(1, receiver.make_result(code))
    return 1 if code else 0


def main(arguments: list[str]) -> int:
    """Run `qfile.py send FILES...` or `qfile.py receive [--max-files=N] [--max-bytes=N] [--home=FOLDER]`."""
    if len(arguments) > 1 and arguments[0] == "send":
        return send(arguments[1:])
    options = dict(word.partition("=")[::2] for word in arguments[1:])
    numbers = [options.get(name, "0") for name in ("--max-files", "--max-bytes")]
    is_known = not options.keys() - {"--max-files", "--max-bytes", "--home"}
    if arguments[:1] == ["receive"] and is_known and all(number.isdecimal() for number in numbers):
        return receive(options)
    say("usage: qfile.py send FILES... | qfile.py receive [--max-files=N] [--max-bytes=N] [--home=FOLDER]")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
