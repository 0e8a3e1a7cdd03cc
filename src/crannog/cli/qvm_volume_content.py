"""Reading the content of a volume from its files.

Of an image that stands on others, `qemu-img map` says which part of the volume is in which file, and where in it; the
parts are read from those files. Whoever calls has made sure that nobody writes to them.
"""

from __future__ import annotations

import errno
import os

from crannog.errors import StorageError

# Importing typing and collections.abc would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Any, Self

    from crannog.cli.qvm_volume_digest import Digest

_BLOCK = 2**20
"""Bytes that are read at once."""


class Content:
    """The content at a path. Leaving the context closes its files."""

    def __init__(self, path: str, format_: str) -> None:
        self._path = path
        self._format = format_
        self._files: list[int] = []
        self.size = 0
        """Bytes, as a guest sees it."""

    def __enter__(self) -> Self:
        try:
            paths = [self._path] if self._format == "raw" else self._read_chain()
            for path in paths:
                self._files.append(_open(path))
            self.size = self.size or os.lseek(self._files[0], 0, os.SEEK_END)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        while self._files:
            os.close(self._files.pop())

    def _read_chain(self) -> list[str]:
        """Return the image and those below it, and learn its size."""
        images = _ask(self._path, "info", "--backing-chain")
        try:
            self.size = int(images[0]["virtual-size"])
            return [str(image["filename"]) for image in images]
        except (LookupError, TypeError, ValueError):
            raise _misunderstood(self._path) from None

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """Give the data in their order, each with its position; what is between them are zeros."""
        for start, length, file, offset in self._data() if self._format == "raw" else self._mapped():
            done = 0
            while done < length:
                data = _read(file, min(_BLOCK, length - done), offset + done)
                if not data:
                    raise StorageError(f"{self._path} ends too early; see 'crannog storage check'")
                yield start + done, data
                done += len(data)

    def _data(self) -> Iterator[tuple[int, int, int, int]]:
        """Give the parts of a raw file that are no holes: where, how much, in which file, and where there."""
        file, end = self._files[0], 0
        while end < self.size:
            try:
                start = os.lseek(file, end, os.SEEK_DATA)
                end = os.lseek(file, start, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return  # no data from there to the end
                start, end = end, self.size  # its kind knows no holes
            yield start, end - start, file, start

    def _mapped(self) -> Iterator[tuple[int, int, int, int]]:
        """Give the same of an image and those below it."""
        for part in _ask(self._path, "map"):
            try:
                if part["zero"] or not part["data"]:
                    continue
                yield int(part["start"]), int(part["length"]), self._files[part["depth"]], int(part["offset"])
            except (LookupError, TypeError, ValueError):
                raise _misunderstood(self._path) from None


def read_all(path: str, digest: Digest) -> None:
    """Have a digest see all of a raw file; raises StorageError when it cannot be read."""
    with Content(path, "raw") as content:
        done = 0
        for position, data in content.pieces():
            digest.skip(position - done)
            digest.update(data)
            done = position + len(data)
        digest.skip(content.size - done)


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error


def _read(file: int, count: int, offset: int) -> bytes:
    try:
        return os.pread(file, count, offset)
    except OSError as error:
        raise StorageError(f"the volume's content cannot be read: {error.strerror}") from error


def _ask(path: str, action: str, *options: str) -> list[dict[str, Any]]:
    """Return what qemu-img says about an image, which others may be reading as well."""
    import json
    import subprocess

    command = ["qemu-img", action, "--force-share", "--output=json", "-f", "qcow2", *options, path]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        raise StorageError("qemu-img is not installed; 'crannog doctor' names the package") from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"it ended with {done.returncode}"]
        raise StorageError(f"{path} cannot be read: {lines[0]}")
    try:
        found: list[dict[str, Any]] = json.loads(done.stdout)
    except ValueError:
        raise _misunderstood(path) from None
    return found


def _misunderstood(path: str) -> StorageError:
    return StorageError(f"{path} cannot be read: qemu-img says nothing of it that makes sense")
