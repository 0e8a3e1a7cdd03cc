"""A fuzzer's bytes as choices: numbers, blocks, one of several. When they have run out, all numbers are zero."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Taken:
    """Takes values from the front of a fuzzer's bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def rest(self, most: int = 1 << 20) -> bytes:
        """Return what is left, or its first `most` bytes."""
        found = self._data[self._at : self._at + most]
        self._at += len(found)
        return found

    def number(self, below: int = 256) -> int:
        """Return a number below `below`: of one byte when that is enough, of four otherwise."""
        return int.from_bytes(self.rest(1 if below <= 256 else 4), "little") % below

    def block(self, most: int = 255) -> bytes:
        """Return a block of bytes; its length comes first."""
        return self.rest(self.number(min(most, 255) + 1))

    def one_of(self, values: Sequence[T]) -> T:
        """Return one of the values."""
        return values[self.number(len(values))]
