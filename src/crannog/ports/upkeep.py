"""What is asked of a pool that can be looked after: what is wrong in it, and what nobody needs."""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from crannog.core.findings import Finding, Stake
from crannog.core.volumes import Volume
from crannog.ports.storage import Pool

Stakes = Callable[[], Sequence[Stake]]
"""Returns the volumes that the store has in a pool, as they are at this moment."""


@runtime_checkable
class TendedPool(Pool, Protocol):
    """A pool whose driver can look after it. Methods raise StorageError with the cause."""

    async def check(self, stakes: Stakes) -> list[Finding]:
        """Return what is wrong or superfluous in the pool. Changes nothing."""

    async def examine(self, volume: Volume) -> list[Finding]:
        """Return what is wrong with the images that a start of the volume would use; seal those that are not yet."""

    async def accept(self, volume: Volume) -> None:
        """Take the images of a volume that is no layer for what they are now; raises StorageError for broken ones."""

    async def reach(self, stakes: Stakes) -> set[str]:
        """Return the real paths of all images that the volumes of the store stand on, or are.

        Raises StorageError when an image cannot be read: nobody knows then what it stands on.
        """

    async def find_waste(self, stakes: Stakes, needed: set[str] | None) -> list[Finding]:
        """Return what can be deleted. Without `needed`, which nobody knows then, only what is half-made."""

    async def discard(self, stakes: Stakes, found: Finding, needed: set[str] | None) -> bool:
        """Delete one thing that was found, unless it is needed by now; tell whether it is gone."""
