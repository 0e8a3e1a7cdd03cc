"""On which images an image stands: asked of qemu-img, one image at a time, and remembered.

What an image says of itself is looked at before anything follows it: an image that names a file outside of the pool, a
link, or a file of another kind than its name says is broken, and no program gets to open what it names. A guest that
broke out into its QEMU could write such a name.
"""

import json
import os
import re
from dataclasses import dataclass

from crannog.adapters.storage.process import read_tool
from crannog.core.volumes import Location
from crannog.errors import StorageError

_FORMATS = {".img": "raw", ".qcow2": "qcow2"}
_DEEPEST = 1000
_ELSEWHERE = re.compile(r"[A-Za-z0-9+.-]*:")
"""How a name begins that QEMU takes for something else than a path (qemu(1), `-drive file=`)."""


class ImageError(StorageError):
    """An image cannot be used. The sentence begins with its path; `reason` is the rest."""

    path = ""
    reason = ""

    @classmethod
    def about(cls, path: str, reason: str) -> "ImageError":
        """Return the error about the image at a path."""
        error = cls(f"{path} {reason}")
        error.path, error.reason = path, reason
        return error


@dataclass(frozen=True)
class Image:
    """What is known of an image: its size in bytes as a guest sees it, and what is below it, nearest first."""

    size: int
    below: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Link:
    """One image: which file it was, as stat(2) tells files and their states apart, its size, and what is below it."""

    inode: int
    changed: int
    size: int
    below: Location | None = None


class Chains:
    """What is known of the images of one pool, by path. Paths are real ones, without links."""

    def __init__(self) -> None:
        self._known: dict[str, _Link] = {}

    async def look(self, location: Location) -> Image:
        """Return what is known of an image, also of one that a running VM writes to; raises ImageError.

        What it stood on when it was looked at first is taken for true: QEMU does not change that.
        """
        return await self._walk(location, is_strict=False)

    async def verify(self, location: Location, over: str = "") -> Image:
        """Return the same of an image that nobody writes to, looked at again if any file of the chain was touched.

        Raises ImageError as well when it stands on another VM's file that is neither a base (see storage.bases), nor
        `over`, what it was made over.
        """
        return await self._walk(location, is_strict=True, over=over)

    def forget(self, path: str) -> None:
        """Have the image at a path looked at anew: another one will be there."""
        self._known.pop(path, None)

    async def _walk(self, location: Location, *, is_strict: bool, over: str = "") -> Image:
        first = link = await self._find(location, is_strict=is_strict)
        below: list[str] = []
        while link.below:
            path = link.below.path
            if path in below or len(below) > _DEEPEST:
                raise ImageError.about(location.path, "is damaged: the images below it stand on one another in a ring")
            if is_strict and path != os.path.realpath(over):
                _check_is_base(below[-1] if below else location.path, path)
            below.append(path)
            link = await self._find(link.below, is_strict=is_strict)
        return Image(first.size, tuple(below))

    async def _find(self, location: Location, *, is_strict: bool) -> _Link:
        try:
            status = os.stat(location.path)
        except OSError as error:
            raise ImageError.about(location.path, f"cannot be read: {error.strerror}") from error
        if location.format == "raw":
            return _Link(status.st_ino, status.st_ctime_ns, status.st_size)
        link = self._known.get(location.path)
        if not link or link.inode != status.st_ino or (is_strict and link.changed != status.st_ctime_ns):
            link = await _ask(location, status)
            self._known[location.path] = link
        return link


def _check_is_base(path: str, below: str) -> None:
    """Raise ImageError when an image stands on data of another VM that nobody made a copy of."""
    is_own = os.path.dirname(os.path.realpath(path)) == os.path.dirname(below)
    try:
        if not is_own and os.stat(below).st_mode & 0o200:
            raise ImageError.about(path, f"is damaged: it stands on {below} of another VM, which no copy was made of")
    except OSError as error:
        raise ImageError.about(path, f"stands on {below}, which cannot be read: {error.strerror}") from error


async def _ask(location: Location, status: os.stat_result) -> _Link:
    # --force-share: a running VM has locked its images (qemu-img(1)). Without --backing-chain nothing else is opened.
    command = ("qemu-img", "info", "--force-share", "--output=json", "-f", location.format, location.path)
    try:
        data = await read_tool("cannot be read", *command)
    except StorageError as error:
        reason = str(error).replace(f"qemu-img: Could not open '{location.path}': ", "")
        raise ImageError.about(location.path, reason) from error
    try:
        said = json.loads(data)
        size = int(said["virtual-size"])
        _check_alone(location.path, said.get("format-specific", {}).get("data", {}))
        below = _find_below(location.path, said.get("backing-filename"), said.get("backing-filename-format"))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ImageError.about(location.path, "is damaged: qemu-img says nothing of it that makes sense") from error
    return _Link(status.st_ino, status.st_ctime_ns, size, below)


def _check_alone(path: str, specific: dict[str, object]) -> None:
    """Raise ImageError for an image that QEMU has marked as damaged, or that has its data in another file."""
    if specific.get("corrupt"):
        raise ImageError.about(path, "is damaged: QEMU found that out while it was in use")
    if "data-file" in specific:
        raise ImageError.about(path, "is damaged: it names another file that its data were in")


def _find_below(path: str, name: object, format_: object) -> Location:
    """Return what an image stands on, by a relative path to a file of a VM of the same pool; raises ImageError."""
    if not isinstance(name, str) or not name:
        raise ImageError.about(path, "is damaged: it does not name the image that it stands on")
    folder = os.path.dirname(os.path.realpath(path))
    plain = os.path.normpath(os.path.join(folder, name))
    if name.startswith("/") or _ELSEWHERE.match(name) or not _is_in_pool(plain, os.path.dirname(folder)):
        raise ImageError.about(path, f"is damaged: it stands on {name[:200]!r}, which is not in its pool")
    if os.path.realpath(plain) != plain:
        raise ImageError.about(path, f"stands on {plain}, which is a link, and no image may be one")
    if not os.path.isfile(plain):
        raise ImageError.about(path, f"stands on {plain}, which does not exist")
    expected = _FORMATS.get(os.path.splitext(plain)[1])
    if not expected or format_ != expected:
        raise ImageError.about(path, f"is damaged: it takes {plain} for an image of format '{str(format_)[:20]}'")
    return Location(plain, expected)


def _is_in_pool(path: str, pool: str) -> bool:
    """Tell whether a path is that of a file in a folder of the pool."""
    return os.path.dirname(os.path.dirname(path)) == pool
