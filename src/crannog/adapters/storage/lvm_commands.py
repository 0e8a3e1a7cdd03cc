"""The programs of lvm2: what they are told, what is asked of them, and what their failures mean."""

import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from crannog.adapters.storage.lvm_names import Mark, Owner, ThinVolume, tag
from crannog.adapters.storage.lvm_report import FIELDS, Picture, parse_report
from crannog.adapters.storage.process import complaint, run_tool
from crannog.errors import StorageError

UDEV = "/run/udev/control"
"""It is there where udevd makes the files in /dev (udev(7))."""
# By what the kernel says, so that it holds whether those of device-mapper have numbers from 10 on or from 55 on.
UDEV_RULES = (
    'SUBSYSTEM=="block", KERNEL=="dm-*", ATTR{dm/name}=="*-crannog--*", ENV{DM_UDEV_DISABLE_DISK_RULES_FLAG}="1", '
    'ENV{DM_UDEV_DISABLE_OTHER_RULES_FLAG}="1", OPTIONS:="nowatch"\n'
)
"""Keep udev from looking for file systems in what guests write, and from making links of what it finds."""
# Else LVM would keep every state of the group for a month, and each start of a VM makes several.
_NO_ARCHIVE = "backup{archive=0}"
_NO_UDEV = "activation{udev_sync=0 udev_rules=0}"
_TIMEOUT = 20
"""Seconds for a question: it takes some 50 ms, and longer while another program has locked the group."""
_FULL = "reached threshold"
"""What lvcreate says when it makes nothing in a thin pool because there is no room in it."""


@dataclass(frozen=True)
class Place:
    """A volume group and a thin pool in it, by their names."""

    group: str
    thin_pool: str

    def __str__(self) -> str:
        return f"{self.group}/{self.thin_pool}"


def settings() -> list[str]:
    """Return how the programs of lvm2 are told what shall be different from this host's lvm.conf(5)."""
    return ["--config", _NO_ARCHIVE if os.path.exists(UDEV) else f"{_NO_ARCHIVE} {_NO_UDEV}"]


async def run_lvm(purpose: str, place: Place, words: Sequence[str]) -> None:
    """Run a program of lvm2; raises StorageError that begins with the purpose."""
    try:
        await run_tool(purpose, words[0], *settings(), *words[1:])
    except StorageError as error:
        if _FULL not in str(error):
            raise
        reason = f"No space left on device; free some space in thin pool {place}, or make it larger with lvextend(8)"
        raise StorageError(f"{purpose}: {reason}") from error


def ask(purpose: str, *command: str) -> str:
    """Return what a program prints, and block meanwhile; raises StorageError that begins with the purpose."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT, check=False, text=True
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise StorageError(f"{purpose}: {command[0]} gives no answer: {error}") from error
    if done.returncode:
        raise complaint(purpose, command, done.returncode, done.stderr)
    return done.stdout


def read_picture(place: Place, owner: Owner) -> Picture:
    """Ask LVM what there is, and block meanwhile; raises StorageError that says what is missing."""
    purpose = f"pool {owner.pool} of driver lvm-thin cannot be used"
    check_host(purpose)
    report = ("--reportformat", "json", "--units", "b", "--nosuffix", "--options", FIELDS)
    try:
        picture = parse_report(ask(purpose, "lvs", *settings(), *report, place.group), place.thin_pool, owner)
    except StorageError as error:
        if f'"{place.group}" not found' not in str(error):
            raise
        advice = f"connect its disk, or make it with 'vgcreate {place.group} DEVICE'"
        raise StorageError(f"{purpose}: there is no volume group {place.group}; {advice}") from error
    if picture is None:
        advice = f"make it with 'lvcreate --type thin-pool --size 100G --name {place.thin_pool} {place.group}'"
        raise StorageError(f"{purpose}: volume group {place.group} has no thin pool {place.thin_pool}; {advice}")
    if not picture.is_zeroing:
        reason = f"VMs could read in thin pool {place} what deleted volumes held"
        raise StorageError(f"{purpose}: {reason}; have it filled with zeros with 'lvchange --zero y {place}'")
    return picture


def check_host(purpose: str) -> None:
    """Raise StorageError, with what to do, where nobody can use LVM."""
    other = "or use driver qcow2, which needs neither root nor LVM"
    if os.geteuid() != 0:
        raise StorageError(f"{purpose}: crannogd does not run as root; start it as root, {other}")
    if not all(shutil.which(program) for program in ("lvs", "lvcreate", "dmsetup")):
        raise StorageError(f"{purpose}: the programs of lvm2 are not there; install lvm2, {other}")


def creation(place: Place, owner: Owner, volume: ThinVolume, *, is_active: bool) -> list[str]:
    """Return the command that makes an LV (lvcreate(8)).

    None is activated with the host: each says that it shall be skipped then.
    """
    words = ["lvcreate", "--name", volume.name, "--setactivationskip", "y"]
    words += ["--activate", "y", "-K"] if is_active else ["--activate", "n"]
    words += ["--permission", _permission(volume), *_each("--addtag", volume.tags(owner))]
    if volume.origin:
        return [*words, "--snapshot", f"{place.group}/{volume.origin}"]
    return [*words, "--thin", "--virtualsize", f"{volume.size}b", str(place)]


def alteration(place: Place, owner: Owner, old: ThinVolume, new: ThinVolume) -> list[str]:
    """Return the command that makes an LV what it shall be; nothing where it is that already (lvchange(8))."""
    before, after = set(old.tags(owner)), set(new.tags(owner))
    words = [*_each("--deltag", sorted(before - after)), *_each("--addtag", sorted(after - before))]
    words += ["--permission", _permission(new)] if old.is_readonly is not new.is_readonly else []
    return ["lvchange", *words, f"{place.group}/{new.name}"] if words else []


def dooming(place: Place, names: Iterable[str]) -> list[str]:
    """Return the command that marks LVs as ones that are to be deleted."""
    words = ["lvchange", "--deltag", tag("mark", Mark.PROVISIONAL), "--addtag", tag("mark", Mark.DOOMED)]
    return [*words, *(f"{place.group}/{name}" for name in names)]


def _each(option: str, values: Iterable[str]) -> list[str]:
    return [word for value in values for word in (option, value)]


def _permission(volume: ThinVolume) -> str:
    return "r" if volume.is_readonly else "rw"
