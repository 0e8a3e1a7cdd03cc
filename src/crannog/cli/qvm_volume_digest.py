"""SHA-256 of what is exported or imported."""

from __future__ import annotations

from crannog.errors import StorageError, UsageError

# Importing typing would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from crannog.cli.options import Values

_ZEROS = bytes(2**20)
_LENGTH = 64


class Digest:
    """Sees data as they pass. With `wanted`, hexadecimal digits, they must have that digest in the end."""

    def __init__(self, wanted: str = "") -> None:
        import hashlib

        self._wanted = wanted.lower()
        self._sha256 = hashlib.sha256()

    def update(self, data: bytes) -> None:
        """See the next data."""
        self._sha256.update(data)

    def skip(self, count: int) -> None:
        """See so many zeros."""
        while count > 0:
            self._sha256.update(_ZEROS[:count])
            count -= len(_ZEROS)

    def check(self) -> None:
        """Raise StorageError when the data are not those that were wanted."""
        if self._wanted and self.text() != self._wanted:
            raise StorageError(f"the data have the SHA-256 {self.text()}, and {self._wanted} was expected")

    def text(self) -> str:
        """Return the digest of all that was seen, as hexadecimal digits."""
        return self._sha256.hexdigest()


def wanted_digest(options: Values) -> Digest | None:
    """Return what checks the data, if a digest was given; raises UsageError when it is none."""
    text = options.sha256
    if text and (len(text) != _LENGTH or not all(char in "0123456789abcdefABCDEF" for char in text)):
        raise UsageError(f"'{text[:80]}' is no SHA-256; it has {_LENGTH} hexadecimal digits, as sha256sum prints them")
    return Digest(text) if text else None
