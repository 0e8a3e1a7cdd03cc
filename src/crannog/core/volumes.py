"""Volumes as values: what a VM's disks are, wherever they are kept.

The four flags are those of the Admin API (`admin.vm.volume.Info`); together they say what one start and stop do:

=============  =============  ====================================================================
snap_on_start  save_on_stop   meaning
=============  =============  ====================================================================
yes            no             a layer over the template's volume, dropped at the next start (B1)
no             yes            the VM's own data
no             no             empty at every start (volatile)
=============  =============  ====================================================================
"""

from dataclasses import dataclass, replace

GIB = 2**30
DEFAULT_ROOT_SIZE = 10 * GIB
DEFAULT_PRIVATE_SIZE = 2 * GIB


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
    extra: tuple[tuple[str, str], ...] = ()
    """What the store says of it besides, as pairs: kept as it is."""

    def with_source(self, vid: str, size: int) -> "Volume":
        """Return this volume as a layer over another one."""
        return replace(self, source=vid, size=size)


@dataclass(frozen=True)
class Location:
    """Where a started volume is found on the host: absolute path, and image format as QEMU calls it."""

    path: str
    format: str
