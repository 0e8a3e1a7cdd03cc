"""What Crannog asks of the folders that policy is in."""

from typing import Protocol

from crannog.policy.loader import Reader


class PolicyShelf(Protocol):
    """Policy files as they are kept."""

    def reader(self) -> Reader:
        """Return what policy is loaded with."""

    def read(self, path: str) -> bytes | None:
        """Return a file's content; None when there is no such file. Raises StorageError."""

    def write(self, path: str, data: bytes) -> None:
        """Write a file so that a crash at any point leaves the old one or the new one, whole. Raises StorageError.

        Its folder is made if there is none; the rights of a file that is replaced stay.
        """

    def delete(self, path: str) -> None:
        """Delete a file that is there. Raises StorageError."""
