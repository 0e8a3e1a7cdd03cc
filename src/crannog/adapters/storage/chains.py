"""On which images an image stands: asked of qemu-img, and remembered, because an image never changes what is below."""

import json
import os
from dataclasses import dataclass

from crannog.adapters.storage.process import read_tool
from crannog.core.volumes import Location
from crannog.errors import StorageError


@dataclass(frozen=True)
class Image:
    """What is known of an image: its size in bytes as a guest sees it, and what is below it, nearest first."""

    size: int
    below: tuple[str, ...] = ()


class Chains:
    """What is known of the images of one pool, by path. Paths are real ones, without links."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, Image]] = {}

    async def look(self, location: Location) -> Image:
        """Return what is known of an image, also of one that a running VM writes to; raises StorageError."""
        try:
            status = os.stat(location.path)
        except OSError as error:
            raise StorageError(f"{location.path} cannot be read: {error.strerror}") from error
        if location.format == "raw":
            return Image(status.st_size)
        inode, image = self._known.get(location.path, (0, Image(0)))
        if inode != status.st_ino:
            image = await _ask(location)
            self._known[location.path] = status.st_ino, image
        return image

    def forget(self, path: str) -> None:
        """Have the image at a path looked at anew: another one will be there."""
        self._known.pop(path, None)


async def _ask(location: Location) -> Image:
    # --force-share: a running VM has locked its images (qemu-img(1)).
    command = ("qemu-img", "info", "--force-share", "--backing-chain", "--output=json", "-f", location.format)
    data = await read_tool(f"{location.path} cannot be read", *command, location.path)
    try:
        images = json.loads(data)
        below = tuple(os.path.realpath(image["filename"]) for image in images[1:])
        return Image(int(images[0]["virtual-size"]), below)
    except (ValueError, LookupError, TypeError) as error:
        raise StorageError(f"{location.path} cannot be read: qemu-img says nothing of it that makes sense") from error
