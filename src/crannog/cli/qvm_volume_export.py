"""qvm-volume export: the newest finished content of a volume, as a raw image.

crannogd says where the content is, and keeps it as it is until this process has read it there.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager

from crannog.cli.connect import open_client
from crannog.cli.qvm_volume import COMMAND, Volume
from crannog.cli.qvm_volume_content import Content, read_all
from crannog.cli.qvm_volume_digest import Digest, wanted_digest
from crannog.cli.qvm_volume_import import Progress
from crannog.cli.server_text import misunderstood
from crannog.cli.tool import say
from crannog.client.connection import Client
from crannog.client.events import EventStream
from crannog.errors import InUseError, StorageError, UsageError, from_wire

# Importing typing and collections.abc would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from crannog.cli.options import Values

STDOUT = "-"
_PART = ".part"
_ZEROS = bytes(2**20)
_GRAIN = 65536
"""Bytes of zeros that become a hole in a file."""
EXPORT, LOCATE = "crannog.vm.volume.Export", "crannog.vm.volume.Locate"


def export_volume(options: Values, vm: str, name: str, target: str) -> int:
    """Write the content of a volume to a file, whole or not at all, or to standard output."""
    digest = wanted_digest(options) or (Digest() if options.verify else None)
    if target != STDOUT:
        _check_target(target, is_forced=options.force)
    elif options.verify:
        raise UsageError("--verify reads again what was written, which standard output cannot do")
    elif sys.stdout.isatty():
        raise UsageError("a volume's content is nothing for a terminal; name a file, or write to a pipe")
    with _held(options, Volume(open_client(COMMAND.program, options), vm, name)) as place, Content(*place) as content:
        if target == STDOUT:
            _copy(content, Stream(1), digest)
        else:
            _export_file(content, target, digest)
    if digest and target != STDOUT:
        if options.verify:
            _verify(target, digest)
        say(f"{digest.text()}  {target}")
    return 0


def _check_target(path: str, *, is_forced: bool) -> None:
    if os.path.lexists(path) and not os.path.isfile(path):
        raise UsageError(f"{path} is there and is no file; write to standard output (-), and from there to it")
    if os.path.lexists(path) and not is_forced:
        raise InUseError(f"{path} exists already; name another file, or add --force to replace it")


# -- where the content is


@contextmanager
def _held(options: Values, volume: Volume) -> Iterator[tuple[str, str]]:
    """Give out path and format of the content, which stays as it is meanwhile; offline this process is alone."""
    if options.offline:
        yield _parse_place(volume.ask(LOCATE))
        return
    stream = EventStream(Client(), volume.vm, EXPORT, volume.name)
    try:
        yield _parse_place(_await_place(stream, volume))
    finally:
        stream.close()


def _await_place(stream: EventStream, volume: Volume) -> str:
    while (event := volume.explain(stream.next_event)) is not None:
        if event.name == "export-failed":
            raise from_wire(event.details.get("kind", ""), event.details.get("reason", ""))
        if event.name == "export-ready":
            return event.details.get("place", "")
    raise misunderstood(EXPORT, "it does not say where the content is")


def _parse_place(text: str) -> tuple[str, str]:
    """Return path and format of the content; raises DaemonError when they are not what was said."""
    from urllib.parse import unquote_to_bytes

    format_, _, quoted = text.partition(" ")
    path = os.fsdecode(unquote_to_bytes(quoted))
    if format_ not in ("raw", "qcow2") or not path.startswith("/") or "\0" in path:
        raise misunderstood(EXPORT, f"'{text[:80]}' is no place")
    return path, format_


# -- writing


class Stream:
    """Takes everything in its order: a pipe."""

    def __init__(self, file: int) -> None:
        self._file = file

    def skip(self, position: int, count: int) -> None:
        """Take so many zeros."""
        while count > 0:
            self.write(position, _ZEROS[:count])
            count -= len(_ZEROS)

    def write(self, position: int, data: bytes) -> None:
        """Take data."""
        del position
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._file, rest) :]

    def finish(self, size: int) -> None:
        """Be complete."""


class SparseFile(Stream):
    """Takes data where they belong: zeros need not be written."""

    def skip(self, position: int, count: int) -> None:
        """Leave a hole."""

    def write(self, position: int, data: bytes) -> None:
        """Write data, but for zeros."""
        for start in range(0, len(data), _GRAIN):
            grain = data[start : start + _GRAIN]
            if grain.rstrip(b"\0"):
                os.lseek(self._file, position + start, os.SEEK_SET)
                super().write(position, grain)

    def finish(self, size: int) -> None:
        """Give the file its length, and bring it to the disk."""
        os.ftruncate(self._file, size)
        os.fsync(self._file)


def _copy(content: Content, target: Stream, digest: Digest | None) -> None:
    """Write the content; raises OSError, and StorageError when it is not what was wanted, or cannot be read."""
    progress = Progress() if sys.stderr.isatty() and content.size else None
    done = 0
    try:
        for position, data in content.pieces():
            _pass(target, digest, done, position - done)
            target.write(position, data)
            if digest:
                digest.update(data)
            done = position + len(data)
            if progress:
                progress(done, content.size)
        _pass(target, digest, done, content.size - done)
        if progress:
            progress(content.size, content.size)
        if digest:
            digest.check()
        target.finish(content.size)
    finally:
        if progress:
            progress.end()


def _pass(target: Stream, digest: Digest | None, position: int, count: int) -> None:
    """Pass over zeros."""
    target.skip(position, count)
    if digest:
        digest.skip(count)


def _export_file(content: Content, path: str, digest: Digest | None) -> None:
    part = path + _PART
    try:
        file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            _copy(content, SparseFile(file), digest)
            os.replace(part, path)
        finally:
            os.close(file)
            if os.path.lexists(part):
                os.unlink(part)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}") from error


def _verify(path: str, digest: Digest) -> None:
    """Read a file again; raises StorageError when it does not hold what was written."""
    again = Digest(digest.text())
    try:
        read_all(path, again)
        again.check()
    except StorageError as error:
        raise StorageError(f"{path} does not hold what was written to it: {error}") from error
