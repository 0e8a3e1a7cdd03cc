"""Volumes as values: what a VM's disks are, wherever they are kept.

The four flags are those of the Admin API (`admin.vm.volume.Info`); together they say what one start and stop do:

=============  =============  ====================================================================
snap_on_start  save_on_stop   meaning
=============  =============  ====================================================================
yes            no             a layer over the template's volume, dropped at the next start (B1)
no             yes            the VM's own data
no             no             empty at every start (volatile), or the host's (kernel)
=============  =============  ====================================================================

Volume `kernel` is in no pool of volumes: it is the disk with the modules of the kernel that the VM gets from the host.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from crannog.errors import ValueRefusedError

GIB = 2**30
DEFAULT_ROOT_SIZE = 10 * GIB
DEFAULT_PRIVATE_SIZE = 2 * GIB
DEFAULT_VOLATILE_SIZE = 10 * GIB
MAX_SIZE = 2**51
"""Bytes: a qcow2 layer with clusters of 64 KiB cannot be larger (QEMU's docs/interop/qcow2.txt, and its limits)."""

ROOT, PRIVATE, VOLATILE, KERNEL = ORDER = ("root", "private", "volatile", "kernel")
"""In which order volumes are listed, and guests see them as disks."""

DEFAULT_SIZES = {ROOT: DEFAULT_ROOT_SIZE, PRIVATE: DEFAULT_PRIVATE_SIZE, VOLATILE: DEFAULT_VOLATILE_SIZE, KERNEL: 0}
"""Bytes that the volumes of new VMs have."""


@dataclass(frozen=True)
class Volume:
    """One volume of one VM. `size` is in bytes; `vid` is unique in its pool; `source` is another volume's vid."""

    name: str
    pool: str
    vid: str
    size: int
    rw: bool = True
    snap_on_start: bool = False
    save_on_stop: bool = False
    revisions_to_keep: int = 0
    source: str = ""
    keeps_layer: bool = False
    """What a VM wrote to this layer is there at its next start, unless what is below has changed (design.md, B2)."""
    extra: tuple[tuple[str, str], ...] = ()
    """What the store says of it besides, as pairs: kept as it is."""

    @property
    def ephemeral(self) -> bool:
        """Whether a file from elsewhere says that what is written shall be unreadable later. It has no effect here."""
        return dict(self.extra).get("ephemeral", "").lower() in ("true", "1", "yes", "on")

    def without_ephemeral(self) -> "Volume":
        """Return this volume without that."""
        return replace(self, extra=tuple(pair for pair in self.extra if pair[0] != "ephemeral"))

    @property
    def is_volatile(self) -> bool:
        """Whether it is empty at every start of its VM."""
        return not (self.snap_on_start or self.save_on_stop or self.is_kernel)

    @property
    def is_kernel(self) -> bool:
        """Whether it is what the VM's kernel brings along: the host's, and in no pool of volumes."""
        return self.name == KERNEL

    @property
    def is_in_place(self) -> bool:
        """Whether what a VM writes is the content at once: there is no other that could be used meanwhile."""
        return self.save_on_stop and self.revisions_to_keep <= 0

    def can_be_used_beside(self, *, shares_live: bool) -> bool:
        """Tell whether others can use its finished content while its own VM runs (design.md, B12).

        `shares_live` says whether its pool's driver keeps that apart from what the VM writes.
        """
        return shares_live and self.revisions_to_keep > 0

    def with_source(self, vid: str, size: int) -> "Volume":
        """Return this volume as a layer over another one."""
        return replace(self, source=vid, size=size)


@dataclass(frozen=True)
class Location:
    """Where a started volume is found on the host: absolute path, and image format as QEMU calls it."""

    path: str
    format: str

    @property
    def is_block(self) -> bool:
        """Whether it is a block device of the host, not a file."""
        return self.path.startswith("/dev/")


class LayerState(StrEnum):
    """What there is of a layer when nobody uses it."""

    ABSENT = "absent"
    CURRENT = "current"
    """It stands on what its source holds now."""
    OUTDATED = "outdated"


def check_size(size: int) -> int:
    """Return a size in bytes if a volume can have it; raises ValueRefusedError."""
    if not 0 < size <= MAX_SIZE:
        raise ValueRefusedError(f"a volume cannot have {size} bytes; use 1 to {MAX_SIZE}")
    return size
