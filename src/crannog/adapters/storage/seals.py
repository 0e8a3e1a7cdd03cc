"""Seals: how a finished image is known to be as it was when it was finished.

A file `V.seal` beside the images of volume `V` has a line for each of them: name, size, time of its last change in
nanoseconds, inode of the file, inode of its folder, and `sound` once qemu-img has found no damage in it.

Where the folder has another inode the home was moved or brought back, and all its files have others: size and time
decide then. A file without a line is one that nobody has sealed yet, and a seal that cannot be read counts as none.
"""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from crannog.adapters.storage.files import HALF_MADE, discard, make_text, read_text, sync
from crannog.errors import StorageError

log = logging.getLogger(__name__)

SEAL = ".seal"
_SECOND = 10**9
_SOUND = "sound"
_IMAGE = re.compile(r"(?P<volume>[A-Za-z0-9_-]{1,32})(\.[0-9]{1,18})?\.(img|qcow2)")
_LINE = re.compile(r"(?P<name>\S+) (?P<numbers>[0-9]{1,20} -?[0-9]{1,20} [0-9]{1,20} [0-9]{1,20})( sound)?")


@dataclass(frozen=True)
class Seal:
    """What tells an image from all others, former and later ones; `when` is in nanoseconds."""

    size: int
    when: int
    inode: int
    folder: int
    is_sound: bool = False

    def difference(self, now: "Seal") -> str:
        """Return how an image differs from when it was sealed, to go on a sentence; empty when it does not."""
        if now.size != self.size:
            return f"had {self.size} bytes and has {now.size}"
        if not _is_same_time(self.when, now.when):
            return "was written to after it was finished"
        if now.folder == self.folder and now.inode != self.inode:
            return "is another file than the one that was finished"
        return ""


def _is_same_time(sealed: int, now: int) -> bool:
    """Tell whether two times are the same. Some archives, and some file systems, keep whole seconds only."""
    return sealed == now or (now % _SECOND == 0 and sealed // _SECOND == now // _SECOND)


def take(path: str) -> Seal:
    """Return what an image is now; raises OSError."""
    status = os.lstat(path)
    return Seal(status.st_size, status.st_mtime_ns, status.st_ino, os.stat(os.path.dirname(path)).st_ino)


def find(path: str) -> Seal | None:
    """Return the seal of an image, None when it has none."""
    place = seals_of(path)
    return _read(place).get(os.path.basename(path)) if place else None


def put(path: str, *, is_sound: bool = False) -> None:
    """Seal an image as it is now. One that cannot be sealed stays without: the next time tries again."""
    place = seals_of(path)
    if not place:
        return
    folder = os.path.dirname(path)
    try:
        kept = {name: seal for name, seal in _read(place).items() if os.path.lexists(os.path.join(folder, name))}
        _write(place, {**kept, os.path.basename(path): replace(take(path), is_sound=is_sound)})
    except (OSError, StorageError) as error:
        log.warning("%s was not sealed: %s", path, error)


def drop(path: str) -> None:
    """Have an image be without a seal, for good, because it will be written to; raises OSError or StorageError.

    Other images of the volume lose theirs as well, until the next time: so this works on a full disk.
    """
    if find(path):
        discard(seals_of(path))
        sync(os.path.dirname(path))


@contextmanager
def equal_replacement(path: str) -> Iterator[None]:
    """Have the seal of an image hold for the file of the same content that is in its place after the block."""
    seal = find(path)
    is_same = seal is not None and not seal.difference(take(path))
    drop(path)
    yield
    if seal and is_same:
        put(path, is_sound=seal.is_sound)


def is_seal(name: str) -> bool:
    """Tell whether a file's name is that of seals."""
    return name.endswith(SEAL)


def seals_of(path: str) -> str:
    """Return the path of the file that an image's seal is in; empty for what is no finished image."""
    match = _IMAGE.fullmatch(os.path.basename(path))
    return os.path.join(os.path.dirname(path), match["volume"] + SEAL) if match else ""


def _read(place: str) -> dict[str, Seal]:
    try:
        return _parse(read_text(place))
    except (OSError, ValueError):
        return {}


def _parse(text: str) -> dict[str, Seal]:
    found = {}
    for match in filter(None, map(_LINE.fullmatch, text.splitlines())):
        size, when, inode, folder = map(int, match["numbers"].split())
        found[match["name"]] = Seal(size, when, inode, folder, is_sound=bool(match[3]))
    return found


def _render(seals: dict[str, Seal]) -> str:
    return "".join(
        f"{name} {seal.size} {seal.when} {seal.inode} {seal.folder}{' ' + _SOUND if seal.is_sound else ''}\n"
        for name, seal in sorted(seals.items())
    )


def _write(place: str, seals: dict[str, Seal]) -> None:
    """Write a volume's seals, whole or not at all. They need not be on the disk: without them there are just none."""
    half_made = place + HALF_MADE
    discard(half_made)
    try:
        make_text(half_made, _render(seals))
        os.replace(half_made, place)
    finally:
        discard(half_made)
