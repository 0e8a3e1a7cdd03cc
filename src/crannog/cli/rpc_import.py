"""The services admin.vm.volume.Import and ImportWithSize: new content of a volume, as a stream (Admin API, section 6).

A request to crannogd holds 64 KiB at most, so the data takes another way: crannogd says where they belong
(`internal.vm.volume.ImportBegin`), this process writes them there, and crannogd then takes them over or forgets them
(`ImportEnd`). crannogd itself never reads a byte of them.

The program is called by either service's name, as qrexec calls it (QREXEC_REMOTE_DOMAIN, QREXEC_REQUESTED_TARGET, the
volume as argument, the data on standard input). Its output is crannogd's own response, byte for byte.
"""

from __future__ import annotations

import _socket
import errno
import os
import signal
import sys

from crannog.cli.interrupts import hold_interrupts
from crannog.cli.sizes import MAX_DIGITS
from crannog.client.connection import check_destination, connect, read_all
from crannog.config import Paths
from crannog.errors import CrannogError, DaemonError, ProtocolError, StorageError, UsageError

# Importing typing and collections.abc would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Protocol

    class Digest(Protocol):
        """What sees all data that are written, and raises CrannogError in the end when they are wrong."""

        def update(self, data: bytes) -> None:
            """See the next of them."""

        def check(self) -> None:
            """Judge all of them."""

    Report = Callable[[int, int], None]

BLOCK = 65536
"""Bytes that are read at once, and the grain of holes in what is written."""
SERVICES = {"admin.vm.volume.Import": False, "admin.vm.volume.ImportWithSize": True}
"""The names that the program has, and whether a line with the size comes before the data."""
OK = b"0\0"
BEGIN_TIMEOUT = 60
"""Seconds in which crannogd must say where the data belong; nothing can interrupt that."""
_ARGUMENT_MARKS = frozenset("_.-")


class VolumeImport:
    """One import into a VM's volume. `source` is the VM that asks for it."""

    def __init__(self, vm: str, volume: str, *, source: str = "dom0", paths: Paths | None = None) -> None:
        check_destination(vm)
        check_destination(source)
        if not all((char.isascii() and char.isalnum()) or char in _ARGUMENT_MARKS for char in volume):
            raise ProtocolError(f"{volume[:80]!a} is the name of no volume")
        self._paths = paths or Paths()
        self._header = f"+{volume} {source} name {vm}\0".encode()
        self._is_open = False
        self.failure: CrannogError | None = None
        """Why the data could not be written."""

    def run(self, size: str, data: int, report: Report | None = None, digest: Digest | None = None) -> bytes:
        """Import what can be read from the file descriptor `data`; return crannogd's last response as it is.

        `size` is in bytes, or empty for the volume's present size. Raises DaemonError when crannogd cannot be reached.
        """
        try:
            begun = self._begin(size)
            if not self._is_open:
                return begun
            self.failure = _try_copy(begun[len(OK) :], data, report, digest)
            return self._end(self.failure)
        except BaseException:
            if self._is_open:
                self._end(CrannogError("it was interrupted"))
            raise

    def _begin(self, size: str) -> bytes:
        connection = connect(self._paths, self._paths.internal_socket)
        connection.settimeout(BEGIN_TIMEOUT)
        # An interrupt that came between crannogd's beginning and our knowing of it would leave the import open.
        with hold_interrupts():
            self._send(connection, "ImportBegin", size.encode())
            reply = self._receive(connection)
            self._is_open = reply.startswith(OK)
        return reply

    def _end(self, failure: CrannogError | None) -> bytes:
        connection = connect(self._paths, self._paths.internal_socket)
        with hold_interrupts():
            reason = b"fail\n" + ascii(str(failure))[1:-1].encode()
            self._send(connection, "ImportEnd", reason if failure else b"ok")
            self._is_open = False
        return self._receive(connection)

    def _send(self, connection: _socket.socket, method: str, payload: bytes) -> None:
        try:
            connection.sendall(f"internal.vm.volume.{method}".encode() + self._header + payload)
            connection.shutdown(_socket.SHUT_WR)
        except OSError as error:
            connection.close()
            raise self._broken(error) from error

    def _receive(self, connection: _socket.socket) -> bytes:
        try:
            return read_all(connection)
        except OSError as error:
            raise self._broken(error) from error
        finally:
            connection.close()

    def _broken(self, error: OSError) -> DaemonError:
        reason = error.strerror or str(error)
        return DaemonError(f"crannogd broke off during an import: {reason}; its log is {self._paths.daemon_log}")


def _try_copy(place: bytes, data: int, report: Report | None, digest: Digest | None) -> CrannogError | None:
    """Write the data where crannogd wants them; return why that failed, if it did."""
    try:
        path, size = _parse_place(place)
        copy(data, path, size, report, digest)
    except CrannogError as error:
        return error
    return None


def _parse_place(data: bytes) -> tuple[str, int]:
    """Return the path and the size in the reply to ImportBegin; raises ProtocolError when it is neither."""
    size, _, path = data.partition(b" ")
    if not size.isdigit() or len(size) > MAX_DIGITS or not path.startswith(b"/") or b"\0" in path:
        raise ProtocolError("crannogd did not say where the data belong")
    return os.fsdecode(path), int(size)


def copy(data: int, path: str, size: int, report: Report | None = None, digest: Digest | None = None) -> None:
    """Write exactly `size` bytes from the file descriptor `data` to the file at `path`, which must be there.

    Blocks of zeros become holes where the file has none yet. `report` is called with the bytes done, and `size`.
    Raises StorageError when there are more or fewer bytes, or they cannot be written.
    """
    try:
        target = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}") from error
    try:
        done = 0
        while done < size:
            block = _read(data, min(BLOCK, size - done))
            if not block:
                raise StorageError(f"the data end after {done} bytes, but {size} were expected")
            _write(target, path, block, done)
            if digest:
                digest.update(block)
            done += len(block)
            if report:
                report(done, size)
        if _read(data, 1):
            raise StorageError(f"there are more data than the {size} bytes that were expected")
        if digest:
            digest.check()
        _finish(target, path, size)
    finally:
        os.close(target)


def _read(data: int, count: int) -> bytes:
    try:
        return os.read(data, count)
    except OSError as error:
        raise StorageError(f"the data cannot be read: {error.strerror}") from error


def _write(target: int, path: str, block: bytes, position: int) -> None:
    if not block.rstrip(b"\0") and _is_hole(target, position, len(block)):
        return
    rest = memoryview(block)
    try:
        while rest:
            count = os.pwrite(target, rest, position)
            position, rest = position + count, rest[count:]
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}") from error


def _is_hole(target: int, position: int, length: int) -> bool:
    """Tell whether the file has no data in a range (lseek(2), SEEK_DATA), so that zeros need not be written there."""
    try:
        return os.lseek(target, position, os.SEEK_DATA) >= position + length
    except OSError as error:
        # ENXIO: no data from there to the end. Anything else: the file's kind knows no holes.
        return error.errno == errno.ENXIO


def _finish(target: int, path: str, size: int) -> None:
    """Give the file its length, of which zeros at the end may be missing, and bring it to the disk."""
    try:
        if os.fstat(target).st_size < size:
            os.ftruncate(target, size)
        os.fsync(target)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}") from error


def read_size(data: int) -> str:
    """Return the decimal number in the line that comes before the data; raises ProtocolError when it is none."""
    untrusted_line = b""
    # Byte by byte: what comes after the line belongs to the data.
    while (byte := _read(data, 1)) not in (b"\n", b"") and len(untrusted_line) <= MAX_DIGITS:
        untrusted_line += byte
    if byte != b"\n" or not untrusted_line.isdigit() or len(untrusted_line) > MAX_DIGITS:
        raise ProtocolError(f"a line with the size in bytes, at most {MAX_DIGITS} digits, must come before the data")
    return untrusted_line.decode()


def serve(arguments: Sequence[str], environment: Mapping[str, str], data: int) -> bytes:
    """Return the response of the service that the program was called as."""
    service = os.path.basename(arguments[0]).partition("+")[0]
    try:
        if service not in SERVICES:
            raise UsageError(f"'{service}' is none of the services {' and '.join(SERVICES)}; call it by their names")
        volume = arguments[1] if len(arguments) > 1 else ""
        source = environment.get("QREXEC_REMOTE_DOMAIN", "dom0")
        task = VolumeImport(environment.get("QREXEC_REQUESTED_TARGET", ""), volume, source=source)
        return task.run(read_size(data) if SERVICES[service] else "", data)
    except CrannogError as error:
        from crannog.api.framing import encode_error

        return encode_error(error)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Run the service. An end by signal is told to crannogd first."""
    from crannog.cli.tool import BROKEN_PIPE, INTERRUPTED

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    code = 0
    try:
        response = serve(sys.argv, os.environ, 0)
        while response:
            response = response[os.write(1, response) :]
    except KeyboardInterrupt:
        code = INTERRUPTED
    except OSError:
        code = BROKEN_PIPE
    os._exit(code)
