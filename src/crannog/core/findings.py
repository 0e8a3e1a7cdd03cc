"""What a look at pools finds: things that are wrong, or that nobody needs."""

from dataclasses import dataclass
from enum import StrEnum

from crannog.core.volumes import Volume


class Kind(StrEnum):
    """What is found. The words are stable: programs may rely on them."""

    ORPHAN = "orphan"
    """A VM's folder, or a file, that nothing in the store refers to."""
    HALF_MADE = "half-made"
    """What a program began to write, and nobody goes on with."""
    MISSING = "missing"
    """A volume of the store without content, or a pool that is not there."""
    BROKEN = "broken"
    """An image that cannot be used: damaged, or what it stands on is missing or leads elsewhere."""
    CHANGED = "changed"
    """A finished image that somebody changed behind our back."""
    UNSAFE = "unsafe"
    """A file that others can read or write, a link, or a file of another owner."""
    UNNEEDED = "unneeded"
    """A former content beyond those that are kept. It is not wrong: only what collects waste tells of it."""


@dataclass(frozen=True, order=True)
class Finding:
    """One thing that was found. `reason` goes on a sentence that begins with the path."""

    kind: Kind
    path: str
    reason: str
    vid: str = ""
    """The volume that it is about, if it is about one."""
    size: int = 0
    """Bytes on the disk that are free when it is deleted."""
    is_fatal: bool = True
    """Whether a VM that would use it must not be started."""

    @property
    def sentence(self) -> str:
        """What it is, as one sentence without a full stop."""
        return f"{self.path} {self.reason}"


@dataclass(frozen=True)
class Stake:
    """A volume of the store, and what goes on with it."""

    volume: Volume
    is_used: bool = False
    """Whether its VM runs, starts or stops, or somebody works on its volumes."""
