"""What LVM reports of a volume group, as values: the thin pool, and the LVs in it that are ours. Pure."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from crannog.adapters.storage.dm_tables import round_up
from crannog.adapters.storage.files import BLOCK
from crannog.adapters.storage.lvm_names import Owner, State, ThinVolume, parse_volume, vm_of
from crannog.errors import StorageError

FIELDS = "lv_name,lv_attr,lv_size,lv_tags,pool_lv,origin,data_percent,vg_extent_size"
"""What is asked of lvs(8)."""
_TYPE, _RIGHTS, _ACTIVE, _OPEN, _ZERO = 0, 1, 4, 5, 7
"""Which character of lv_attr says what (lvs(8))."""


@dataclass(frozen=True)
class Picture:
    """What there is in a thin pool of one pool of ours. Sizes are in bytes."""

    size: int
    used: int
    extent: int
    is_zeroing: bool
    """Whether the thin pool fills what it hands out with zeros, so that nobody reads what a deleted volume held."""
    volumes: Mapping[str, ThinVolume] = field(default_factory=dict)
    """Our LVs by their names."""

    def with_volume(self, volume: ThinVolume) -> "Picture":
        """Return this picture with an LV that is new, or has changed."""
        return replace(self, volumes={**self.volumes, volume.name: volume})

    def without(self, names: Iterable[str]) -> "Picture":
        """Return this picture without some LVs. What is a snapshot of one of them stays, and stands alone."""
        gone = set(names)
        left = [volume for name, volume in self.volumes.items() if name not in gone]
        return replace(self, volumes={v.name: replace(v, origin="") if v.origin in gone else v for v in left})

    def of_volume(self, vid: str) -> list[ThinVolume]:
        """Return all LVs of a volume."""
        return [volume for volume in self.volumes.values() if volume.vid == vid]

    def of_vm(self, vm: str) -> list[ThinVolume]:
        """Return all LVs of a VM."""
        return [volume for volume in self.volumes.values() if vm_of(volume.vid) == vm]

    def finished(self, vid: str) -> list[ThinVolume]:
        """Return the contents of a volume, oldest first."""
        found = [volume for volume in self.of_volume(vid) if volume.state is State.FINISHED]
        return sorted(found, key=lambda volume: volume.number)

    def dirty(self, vid: str) -> ThinVolume | None:
        """Return what a session writes to that is not finished, if there is such an LV."""
        return next((volume for volume in self.of_volume(vid) if volume.state is State.DIRTY), None)

    def next_number(self, vid: str) -> int:
        """Return the number of a volume's next content."""
        return max((volume.number for volume in self.of_volume(vid)), default=0) + 1

    def round_up(self, size: int) -> int:
        """Return the size of an LV in which so many bytes have room."""
        return round_up(size, self.extent)


def parse_report(text: str, thin_pool: str, owner: Owner) -> Picture | None:
    """Return what `lvs --reportformat json` says; None when there is no such thin pool.

    Raises StorageError when it makes no sense.
    """
    try:
        rows = json.loads(text)["report"][0]["lv"]
        pool = next((row for row in rows if row["lv_name"] == thin_pool and row["lv_attr"][_TYPE] == "t"), None)
        volumes = [_parse_row(row, owner) for row in rows if row["pool_lv"] == thin_pool]
        ours = {volume.name: volume for volume in volumes if volume}
        return replace(_parse_pool(pool), volumes=ours) if pool else None
    except (ValueError, LookupError, TypeError) as error:
        raise StorageError(f"lvs reports nothing of thin pool {thin_pool} that makes sense") from error


def _parse_pool(row: Mapping[str, str]) -> Picture:
    size = int(row["lv_size"])
    used = int(size * float(row["data_percent"] or 0) / 100)
    return Picture(size, used, int(row["vg_extent_size"]), is_zeroing=row["lv_attr"][_ZERO] == "z")


def _parse_row(row: Mapping[str, str], owner: Owner) -> ThinVolume | None:
    volume = parse_volume(owner, row["lv_name"], row["lv_tags"].split(","), int(row["lv_size"]))
    if volume is None:
        return None
    attributes = row["lv_attr"]
    is_idle = attributes[_ACTIVE] == "a" and attributes[_OPEN] != "o"
    return replace(volume, origin=row["origin"], is_readonly=attributes[_RIGHTS] == "r", is_idle=is_idle)


def parse_mapped(status: str) -> int | None:
    """Return the bytes that a thin LV has in its pool, of what `dmsetup status` says of it; None when it cannot tell.

    The kernel's Documentation/admin-guide/device-mapper/thin-provisioning.rst has the order of the words.
    """
    words = status.split()
    return int(words[3]) * BLOCK if len(words) > 3 and words[2] == "thin" and words[3].isdecimal() else None
