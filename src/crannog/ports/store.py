"""What Crannog asks of the store."""

from typing import Protocol

from crannog.core.registry import Registry


class Store(Protocol):
    """The file that holds the registry."""

    def load(self) -> Registry:
        """Read the registry; an absent file is an empty one. Raises StorageError with line and reason."""

    def save(self, registry: Registry) -> None:
        """Write the registry so that a crash at any point leaves the old file or the new one, whole."""

    def notes(self, uuid: str) -> str:
        """Return the notes of the VM with that UUID, empty when there are none. Raises StorageError."""

    def save_notes(self, uuid: str, text: str) -> None:
        """Keep a VM's notes; the empty text removes them. Raises ValueRefusedError or StorageError."""

    def firewall(self, uuid: str) -> str | None:
        """Return the firewall rules of the VM with that UUID as text, None when it was never given any.

        Raises StorageError. The empty text is no rule at all, which is something else.
        """

    def save_firewall(self, uuid: str, text: str | None) -> None:
        """Keep a VM's firewall rules; None forgets them. Raises StorageError."""
