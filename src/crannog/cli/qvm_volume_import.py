"""qvm-volume import: new content of a volume, from a file or a stream."""

from __future__ import annotations

import os
import stat
import sys

from crannog.cli.connect import open_client
from crannog.cli.qvm_volume import COMMAND, Volume
from crannog.cli.qvm_volume_content import read_all
from crannog.cli.qvm_volume_digest import wanted_digest
from crannog.cli.rpc_import import OK, VolumeImport
from crannog.cli.sizes import parse_size, show_size
from crannog.client.connection import Client
from crannog.errors import NotFoundError, OfflineError, UsageError, ValueRefusedError

# Importing typing would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from crannog.cli.options import Values
    from crannog.cli.qvm_volume_digest import Digest

STDIN = "-"
PAUSE = 0.3
"""Seconds between two looks at how far an import is that crannogd does."""


def import_volume(options: Values, vm: str, name: str, source: str) -> int:
    """Make the content of a file, or of standard input, that of a halted VM's volume."""
    if options.size and options.no_resize:
        raise UsageError("--size and --no-resize exclude each other")
    digest = wanted_digest(options)
    if source != STDIN and not options.size and (not digest or options.offline):
        volume = Volume(open_client(COMMAND.program, options), vm, name)
        _import_file(volume, source, digest, is_resized=not options.no_resize)
        return 0
    if options.offline:
        raise OfflineError("--offline imports whole files only; give a file, and leave out --size")
    data = 0 if source == STDIN else _open(source)
    try:
        _import_stream(vm, name, _find_size(options, data), data, digest)
    finally:
        if data:
            os.close(data)
    return 0


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {path} to import") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error


def _import_file(volume: Volume, path: str, digest: Digest | None, *, is_resized: bool) -> None:
    """Have the daemon take the file over by itself, which copies less than a stream does."""
    data = _open(path)
    try:
        status = os.fstat(data)
    finally:
        os.close(data)
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"{path} is not a file; give --size and its size to import it")
    if not is_resized and status.st_size != volume.size():
        raise ValueRefusedError(
            f"{path} has {status.st_size} bytes and {volume.vm}:{volume.name} {volume.size()}; without --no-resize the "
            "volume gets the size of the file"
        )
    if digest:
        read_all(path, digest)
        digest.check()
    _have_imported(volume, os.fsencode(os.path.abspath(path)), status.st_blocks * 512)


def _have_imported(volume: Volume, path: bytes, amount: int) -> None:
    """Have a file taken over, and show on a terminal how far that is: by the bytes that the volume takes."""

    def act() -> None:
        volume.client.call("crannog.vm.volume.ImportFile", volume.vm, volume.name, path)

    if not sys.stderr.isatty() or not isinstance(volume.client, Client) or not amount:
        act()
        return
    before = volume.usage()
    progress = Progress()
    try:
        _watch(act, lambda: progress(max(0, min(volume.usage() - before, amount)), amount))
    finally:
        progress.end()


def _watch(act: Callable[[], None], look: Callable[[], None]) -> None:
    """Do something that takes its time, look now and then how far it is, and once more at its end.

    Raises what it raises.
    """
    import threading

    failures: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001 - it is raised where somebody waits for it
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    is_over = False
    while not is_over:
        thread.join(PAUSE)
        is_over = not thread.is_alive()
        if failures:
            raise failures[0]
        look()


def _find_size(options: Values, data: int) -> str:
    """Return the size of what is imported, empty for that of the volume; raises UsageError when nothing says it."""
    if options.size:
        return str(parse_size(options.size))
    if options.no_resize:
        return ""
    status = os.fstat(data)
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(
            "nobody knows how long standard input is; give --size, or --no-resize if it is as long as the volume"
        )
    return str(max(0, status.st_size - os.lseek(data, 0, os.SEEK_CUR)))


def _import_stream(vm: str, name: str, size: str, data: int, digest: Digest | None) -> None:
    task = VolumeImport(vm, name)
    progress = Progress() if sys.stderr.isatty() else None
    try:
        reply = task.run(size, data, progress, digest)
    finally:
        if progress:
            progress.end()
    if task.failure:
        raise type(task.failure)(f"{vm}:{name} was not changed: {task.failure}")
    if not reply.startswith(OK):
        raise Client.parse_error(reply)


class Progress:
    """A line on standard error that tells how far an import is."""

    def __init__(self) -> None:
        self._shown = -1

    def __call__(self, done: int, size: int) -> None:
        """Show that `done` of `size` bytes are written, once a percent."""
        percent = 100 * done // size
        if percent != self._shown:
            self._shown = percent
            print(f"\r{percent:3} %  {show_size(done)} of {show_size(size)}  ", end="", flush=True, file=sys.stderr)

    def end(self) -> None:
        """Leave the line."""
        if self._shown >= 0:
            print(file=sys.stderr)
