"""A digest of a sparse file that costs as much time as it holds data, not as it is long."""

import errno
import hashlib
import os
import struct
from collections.abc import Iterator

_BLOCK = 4096
_ZEROS = bytes(_BLOCK)


def digest_sparse(path: str) -> str:
    """Return the SHA-256, as hex digits, of the file's length and of each 4 KiB block that is not all zeros.

    Each block is preceded by its number, both numbers being 8 bytes, little endian. So the digest depends on the
    content alone: a copy with other holes has the same.
    """
    digest = hashlib.sha256(struct.pack("<Q", os.path.getsize(path)))
    with open(path, "rb", buffering=0) as file:
        for start, end in _find_data(file.fileno()):
            file.seek(start)
            for number in range(start // _BLOCK, -(-end // _BLOCK)):
                block = file.read(_BLOCK)
                if block != _ZEROS[: len(block)]:
                    digest.update(struct.pack("<Q", number))
                    digest.update(block)
    return digest.hexdigest()


def _find_data(handle: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of each part that is not a hole, start being rounded down to a block (lseek(2))."""
    end = 0
    while True:
        try:
            start = os.lseek(handle, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        start = max(start // _BLOCK * _BLOCK, end)
        end = -(-os.lseek(handle, start, os.SEEK_HOLE) // _BLOCK) * _BLOCK
        yield start, end
