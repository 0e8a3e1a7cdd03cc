"""Driver qcow2: a layer is a qcow2 image over another one. It needs no root and no special file system.

qemu-img makes the layers. They refer to what is below them by relative paths, so that the pool can be moved as a whole.
"""

import os

from crannog.adapters.storage.bases import SharedBases
from crannog.adapters.storage.files import grow
from crannog.adapters.storage.process import run_tool
from crannog.adapters.storage.session_copies import CopiedSessions
from crannog.core.volumes import Location, Volume

_CLUSTERS = "extended_l2=on,cluster_size=128k"
"""How a layer is divided (QEMU, docs/interop/qcow2.rst): where a guest writes 4 KiB, 4 KiB are written. In clusters
without parts the first write to each reads 64 KiB of what is below and writes them all, so that random writes take 1.7
times as long. A part is a 32nd of a cluster: in larger clusters it would be larger than what guests write."""


class Qcow2Pool(SharedBases, CopiedSessions):
    """A folder of images (see ports.storage.Pool)."""

    driver = "qcow2"
    layer_format = "qcow2"

    async def is_outdated(self, volume: Volume) -> bool:
        """Tell whether a layer that is there stands on anything but the newest content of its source."""
        layer = self._files(volume.vid).volatile
        if not volume.snap_on_start or not os.path.exists(layer.path):
            return False
        below = (await self._chains.look(layer)).below
        return below[:1] != (os.path.realpath(self.newest(volume.source).path),)

    async def _fill_layer(self, purpose: str, path: str, below: Location, size: int) -> None:
        await self._chains.verify(below)  # qemu-img opens all that it names
        backing = os.path.relpath(below.path, os.path.dirname(path))
        command = ("qemu-img", "create", "-q", "-f", "qcow2", "-o", _CLUSTERS, "-F", below.format, "-b", backing)
        await run_tool(purpose, *command, path, str(size))

    async def _enlarge(self, content: Location, size: int, purpose: str) -> None:
        if content.format == "raw":
            grow(content.path, size)
        elif await self._size_of(content) < size:
            await run_tool(purpose, "qemu-img", "resize", "-q", "-f", "qcow2", content.path, str(size))
            self._forget(content.path)

    async def _size_of(self, content: Location) -> int:
        return (await self._chains.look(content)).size
