"""What volume groups, thin pools and our logical volumes are called, and the tags that say whose one is. Pure.

lvm(8) says what names and tags may be made of. The names of our own are made of digests: what a VM or a pool is called
can do no harm in them. What they stand for is in the tags.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum

from crannog.adapters.storage.dm_tables import digest
from crannog.core.pools import PoolOption
from crannog.core.volumes import Location
from crannog.errors import ValueRefusedError

_NAME = re.compile(r"(?!-|\.{1,2}$)[A-Za-z0-9+_.-]+")
_RESERVED = re.compile(
    r"(snapshot|pvmove).*|.*_(cdata|cmeta|corig|cpool|cvol|imeta|iorig|mimage|mlog|pmspare|rimage|rmeta|tdata|tmeta|vdata|"
    r"vorigin|wcorig).*"
)
_VID = re.compile(r"(?P<vm>[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99})/[A-Za-z0-9_-]{1,32}")
_OWN = re.compile(r"(?P<stem>crannog-[0-9a-f]{16})-(?P<role>[1-9][0-9]{0,8}|[a-z]+)")
_LONGEST = 127
"""Characters of a device's name, without the NUL (DM_NAME_LEN in linux/dm-ioctl.h)."""
_OWN_LONGEST = len("crannog--") + 16 + len("--") + len("123456789")
_PREFIX = "crannog."

DIRTY, VOLATILE, IMPORT = "dirty", "volatile", "import"
"""What the names of LVs end in that have no number yet, or never get one."""


class State(StrEnum):
    """What an LV is, whatever it is called."""

    FINISHED = "finished"
    """Content of a volume; the one with the largest number is the newest."""
    HALF_MADE = "half-made"
    DIRTY = "dirty"
    """A running VM writes to it; it becomes the newest content when the VM stops."""
    VOLATILE = "volatile"
    """Dropped when the VM stops."""


class Mark(StrEnum):
    """What becomes of all LVs of a VM, if one of them has the mark."""

    NONE = ""
    PROVISIONAL = "provisional"
    """They are deleted, unless the VM is in the store."""
    DOOMED = "doomed"
    """They are deleted."""


@dataclass(frozen=True)
class Owner:
    """A pool of a home. Both are in all names and tags, so that several can share a thin pool."""

    home: str
    """The real path of the home's folder."""
    pool: str

    def name(self, vid: str, role: str | int) -> str:
        """Return what an LV of a volume is called."""
        volume = digest("\0".join((self.home, self.pool, vid)))
        return f"crannog-{volume}-{role}"

    @property
    def tags(self) -> dict[str, str]:
        """What the tags of all LVs of this pool say."""
        return {"home": digest(self.home), "pool": self.pool}


@dataclass(frozen=True)
class ThinVolume:
    """One of our thin LVs. `size` and `mapped` are in bytes; `mapped` is None where nobody has looked since a start."""

    name: str
    vid: str
    state: State
    size: int
    origin: str = ""
    """The name of the LV that it is a snapshot of, as long as that is there."""
    is_readonly: bool = False
    changed: str = ""
    """When its content was finished, UTC, as ISO 8601 has it; of a layer, when that was finished which it shows."""
    mapped: int | None = None
    mark: Mark = Mark.NONE
    is_idle: bool = field(default=False, compare=False)
    """Whether it is active, and nobody had it open when LVM was asked."""

    @property
    def number(self) -> int:
        """Its place in the order of a volume's contents; 0 for one that has none."""
        role = self.name.rpartition("-")[2]
        return int(role) if role.isdecimal() else 0

    @property
    def ident(self) -> str:
        """Number and time, to the second: what a user chooses a revision by."""
        return f"{self.number}-{self.changed[:19]}Z"

    def is_blank(self) -> bool:
        """Tell whether it is what a new volume begins with, which nobody ever goes back to."""
        return self.number <= 1 and self.mapped == 0

    def tags(self, owner: Owner) -> list[str]:
        """Return its tags, as LVM takes them."""
        said = {**owner.tags, "vid": self.vid, "state": self.state, "changed": self.changed, "mark": self.mark}
        said["mapped"] = "" if self.mapped is None else str(self.mapped)
        return [tag(name, value) for name, value in said.items() if value]


def tag(name: str, value: str) -> str:
    """Return one of our tags, as LVM takes it."""
    return f"{_PREFIX}{name}={value}"


def parse_volume(owner: Owner, name: str, tags: list[str], size: int) -> ThinVolume | None:
    """Return what name and tags say of an LV; None for one that is not of this pool, or that somebody changed."""
    own = [tag.removeprefix(_PREFIX).partition("=") for tag in tags if tag.startswith(_PREFIX)]
    said = {key: value for key, _, value in own}
    match = _OWN.fullmatch(name)
    vid = said.get("vid", "")
    if not match or not owner.tags.items() <= said.items() or owner.name(vid, match["role"]) != name:
        return None
    try:
        state, mark = State(said.get("state", "")), Mark(said.get("mark", ""))
    except ValueError:
        return None
    mapped = said.get("mapped", "")
    volume = ThinVolume(name, vid, state, size, changed=said.get("changed", ""), mark=mark)
    return replace(volume, mapped=int(mapped) if mapped.isdecimal() else None)


def vm_of(vid: str) -> str:
    """Return the VM's part of a volume's id; empty when it is not the id of a volume."""
    match = _VID.fullmatch(vid)
    return match["vm"] if match else ""


def device_name(group: str, volume: str) -> str:
    """Return what device-mapper calls an LV (lvm(8)): hyphens inside of a name are doubled."""
    return "-".join(name.replace("-", "--") for name in (group, volume))


def locate_volume(group: str, volume: str) -> Location:
    """Return where an LV is opened while it is active."""
    return Location(f"/dev/{group}/{volume}", "raw")


def _check(what: str, text: str, *, is_reserved: Callable[[str], object]) -> str:
    taken = len(device_name(text, "")) + _OWN_LONGEST
    if not _NAME.fullmatch(text) or is_reserved(text) or taken > _LONGEST:
        raise ValueRefusedError(
            f"'{text[:80]}' cannot be the name of a {what} for LVM; 'lvs' shows volume groups (VG) and thin pools (LV)"
        )
    return text


GROUP = PoolOption(
    "volume_group", lambda text: _check("volume group", text, is_reserved=lambda _text: False), default=""
)
THIN_POOL = PoolOption("thin_pool", lambda text: _check("thin pool", text, is_reserved=_RESERVED.fullmatch), default="")
