"""Keeps udev away from what guests write.

udev looks into each block device for file systems, partitions and volume groups, as root, and makes links such as
/dev/disk/by-uuid of what it finds: a guest could take the place of a disk of the host by a forged UUID. Rules of our
own switch that off for the devices of a pool, until the next boot of the host (udev(7); the flags are those that
55-dm.rules and 60-persistent-storage.rules know).
"""

import os
import re

from crannog.adapters.storage.dm_tables import digest
from crannog.adapters.storage.files import HALF_MADE, discard, failure, make_text, read_text
from crannog.adapters.storage.process import run_tool

RUN = "/run/udev"
_MAPPED = ("DM_UDEV_DISABLE_DISK_RULES_FLAG", "DM_UDEV_DISABLE_OTHER_RULES_FLAG")
_LOOP = "UDEV_DISABLE_PERSISTENT_STORAGE_RULES_FLAG"
_ODD = re.compile(r"[^A-Za-z0-9/._-]")


async def keep_away(folder: str) -> None:
    """Have udev leave the devices of the pool in a folder alone, where there is an udev; raises StorageError."""
    real = os.path.realpath(folder)
    await place_rules(f"57-crannog-{digest(real)}", make_rules(real), f"the pool in {folder}")


async def place_rules(name: str, rules: str, what: str) -> None:
    """Have udev keep to some rules until the next boot of the host, where there is an udev; raises StorageError.

    `name` says in which order rules are read; `what` is what udev is kept away from.
    """
    if not os.path.isdir(RUN):
        return
    path = f"{RUN}/rules.d/{name}.rules"
    half_made = path + HALF_MADE
    try:
        if read_text(path) == rules:
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        discard(half_made)
        make_text(half_made, rules)
        os.replace(half_made, path)
    except OSError as error:
        raise failure(f"udev cannot be kept away from {what}", error) from error
    await run_tool(f"udev does not take the rules in {path}", "udevadm", "control", "--reload")


def make_rules(folder: str) -> str:
    """Return the rules for the pool in a folder, which is a real path. Odd characters of it match any others."""
    pattern = _ODD.sub("?", folder)
    rules = (
        ('KERNEL=="dm-*"', f'ENV{{DM_UUID}}=="CRANNOG-{digest(folder)}-*"', *map(_switch, _MAPPED)),
        ('KERNEL=="loop*"', f'ATTR{{loop/backing_file}}=="{pattern}/*"', _switch(_LOOP)),
    )
    return "".join(", ".join(('SUBSYSTEM=="block"', *rule, 'OPTIONS:="nowatch"')) + "\n" for rule in rules)


def _switch(flag: str) -> str:
    return f'ENV{{{flag}}}="1"'
