"""Driver qcow2: one folder a VM, layers made by qemu-img. It needs no root and no special file system.

Files of a volume `V`, by what the volume's flags say (core.volumes):

- `V.img`: the VM's own data, raw, written in place;
- `V.1.img`, `V.2.qcow2`, ...: revisions of a volume that keeps revisions, each a layer over the one before and never
  changed again; a running VM writes to `V.dirty.qcow2`, which becomes the next revision when it stops, so that VMs
  that started from an older revision are not disturbed (design.md, B12);
- `V.volatile.qcow2`: a layer over the template's newest revision, dropped at each start (B1, one layer).

Layers refer to what is below them by relative paths, so that the pool can be moved as a whole.
"""

import glob
import os
import shutil
from dataclasses import replace

from crannog.adapters.storage.process import run_tool, space_hint
from crannog.core.volumes import Location, Volume
from crannog.errors import StorageError

_HALF_MADE = ".new-"
_HALF_MADE_FILE = ".new"
_PROVISIONAL = ".provisional"
_COPY = ("cp", "--sparse=always", "--reflink=auto", "--")


class Qcow2Pool:
    """A folder of images (see ports.storage.Pool)."""

    driver = "qcow2"

    def __init__(self, name: str, folder: str) -> None:
        self.name = name
        self.folder = folder

    def locate(self, volume: Volume) -> Location:
        """Return where the volume is while its VM runs."""
        base = self._base(volume.vid)
        if volume.snap_on_start:
            return Location(base + ".volatile.qcow2", "qcow2")
        if volume.revisions_to_keep:
            return Location(base + ".dirty.qcow2", "qcow2")
        return Location(base + ".img", "raw")

    def newest(self, vid: str) -> Location:
        """Return the newest finished content of a volume; raises StorageError when there is none."""
        base = self._base(vid)
        _, path = max(self._revisions(base), default=(0, base + ".img"))
        if not os.path.exists(path):
            raise StorageError(f"volume {vid} of pool {self.name} has no content: {path} does not exist")
        return Location(path, "qcow2" if path.endswith(".qcow2") else "raw")

    async def create(self, volumes: tuple[Volume, ...]) -> None:
        """Make the folder of a VM with its empty volumes, marked as provisional; a failure leaves nothing."""
        folder = os.path.dirname(self._base(volumes[0].vid))
        half_made = os.path.join(self.folder, _HALF_MADE + os.path.basename(folder))
        try:
            os.makedirs(half_made, mode=0o700)
            for volume in volumes:
                if volume.save_on_stop:
                    self._make_empty(os.path.join(half_made, os.path.basename(self._next_content(volume))), volume.size)
            self._make_empty(os.path.join(half_made, _PROVISIONAL), 0)
            os.rename(half_made, folder)
        except OSError as error:
            shutil.rmtree(half_made, ignore_errors=True)
            raise self._failure(f"the volumes of {os.path.basename(folder)} cannot be made", error) from error

    async def claim(self, volumes: tuple[Volume, ...]) -> None:
        """Take the mark away."""
        for folder in {os.path.dirname(self._base(volume.vid)) for volume in volumes}:
            self._discard(os.path.join(folder, _PROVISIONAL))

    async def import_file(self, volume: Volume, path: str) -> Volume:
        """Copy the raw image at `path`, holes kept, and put it in the place of the volume's content."""
        return await self._put(volume, f"image {path} cannot be imported into volume {volume.vid}", path, _COPY)

    async def clone(self, source: Volume, target: Volume) -> Volume:
        """Copy the newest finished content of `source`; layers become one image, so that the copy stands alone."""
        newest = self.newest(source.vid)
        command = _COPY if newest.format == "raw" else ("qemu-img", "convert", "-q", "-f", newest.format, "-O", "raw")
        return await self._put(target, f"volume {source.vid} cannot be copied to {target.vid}", newest.path, command)

    async def _put(self, volume: Volume, purpose: str, source: str, command: tuple[str, ...]) -> Volume:
        content, half_made = self._next_content(volume), self._base(volume.vid) + _HALF_MADE_FILE
        try:
            os.stat(source)
            os.makedirs(os.path.dirname(half_made), mode=0o700, exist_ok=True)  # a VM that was brought over has none
            await run_tool(purpose, *command, source, half_made)
            os.chmod(half_made, 0o600)
            self._sync(half_made)
            size = os.stat(half_made).st_size
            os.replace(half_made, content)
            self._forget_blank(volume)
        except OSError as error:
            raise self._failure(purpose, error) from error
        finally:
            self._discard(half_made)
        return replace(volume, size=size)

    def _forget_blank(self, volume: Volume) -> None:
        """Delete the empty first revision that a new volume has, so that nobody ever falls back to it."""
        first = self._base(volume.vid) + ".1.img"
        if volume.revisions_to_keep and os.path.exists(first) and os.stat(first).st_blocks == 0:
            os.unlink(first)

    async def start(self, volume: Volume) -> None:
        """Make the volume's file for this session."""
        location = self.locate(volume)
        if volume.snap_on_start:
            self._discard(location.path)
            await self._layer(location.path, self.newest(volume.source), volume)
        elif volume.revisions_to_keep:
            await self.stop(volume)
            await self._layer(location.path, self.newest(volume.vid), volume)
        elif not os.path.exists(location.path):
            raise StorageError(
                f"volume {volume.vid} has no content: {location.path} does not exist; restore it from a backup"
            )

    async def stop(self, volume: Volume) -> None:
        """Drop a layer that is not kept; make a dirty one the next revision."""
        location = self.locate(volume)
        if volume.snap_on_start:
            self._discard(location.path)
        elif volume.revisions_to_keep and os.path.exists(location.path):
            base = self._base(volume.vid)
            try:
                self._sync(location.path)
                os.rename(location.path, f"{base}.{self._next_revision(base)}.qcow2")
            except OSError as error:
                raise self._failure(f"the changes of volume {volume.vid} cannot be kept", error) from error

    async def abandon(self, volume: Volume) -> None:
        """Drop the session's layer, if the volume has one."""
        if volume.snap_on_start or volume.revisions_to_keep:
            self._discard(self.locate(volume).path)

    async def remove(self, volumes: tuple[Volume, ...]) -> None:
        """Delete the VM's folder. It is renamed first, so that a crash never leaves half of a VM."""
        for folder in {os.path.dirname(self._base(volume.vid)) for volume in volumes}:
            doomed = os.path.join(self.folder, _HALF_MADE + os.path.basename(folder))
            try:
                os.rename(folder, doomed)
                shutil.rmtree(doomed)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise self._failure(f"{folder} cannot be deleted", error) from error

    async def recover(self, known: frozenset[str]) -> list[str]:
        """Delete what a killed daemon was just making or deleting."""
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        folders = {vid.partition("/")[0] for vid in known}
        done = []
        for entry in list(os.scandir(self.folder)):
            mark = os.path.join(entry.path, _PROVISIONAL)
            if entry.name.startswith(_HALF_MADE) or (entry.name not in folders and os.path.exists(mark)):
                shutil.rmtree(entry.path, ignore_errors=True)
                done.append(f"pool {self.name}: deleted half-made {entry.name.removeprefix(_HALF_MADE)}")
            else:
                self._discard(mark)
        for path in glob.glob(f"{glob.escape(self.folder)}/*/*{_HALF_MADE_FILE}"):
            self._discard(path)
            done.append(f"pool {self.name}: deleted half-made {os.path.relpath(path, self.folder)}")
        return done

    async def _layer(self, path: str, below: Location, volume: Volume) -> None:
        size = max(volume.size, os.stat(below.path).st_size if below.format == "raw" else 0)
        backing = os.path.relpath(below.path, os.path.dirname(path))
        purpose = f"volume {volume.vid} cannot get its layer over {os.path.basename(below.path)}"
        half_made = path + _HALF_MADE_FILE
        try:
            await run_tool(
                *(purpose, "qemu-img", "create", "-q", "-f", "qcow2", "-F", below.format, "-b", backing),
                *(half_made, str(size)),
            )
            os.rename(half_made, path)
        except OSError as error:
            raise self._failure(purpose, error) from error
        finally:
            self._discard(half_made)

    def _base(self, vid: str) -> str:
        parts = vid.split("/")
        if len(parts) != 2 or any(part in ("", ".", "..") or part.startswith(".") for part in parts):
            raise StorageError(f"'{vid}' is not the id of a volume in pool {self.name}")
        return os.path.join(self.folder, *parts)

    def _next_content(self, volume: Volume) -> str:
        base = self._base(volume.vid)
        return f"{base}.{self._next_revision(base)}.img" if volume.revisions_to_keep else base + ".img"

    def _next_revision(self, base: str) -> int:
        return max((number for number, _ in self._revisions(base)), default=0) + 1

    @staticmethod
    def _revisions(base: str) -> list[tuple[int, str]]:
        folder, name = os.path.split(base)
        found = []
        for entry in os.listdir(folder) if os.path.isdir(folder) else ():
            stem, _, extension = entry.removeprefix(name + ".").partition(".")
            if entry.startswith(name + ".") and stem.isdigit() and extension in ("img", "qcow2"):
                found.append((int(stem), os.path.join(folder, entry)))
        return found

    @staticmethod
    def _make_empty(path: str, size: int) -> None:
        with open(
            os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "wb"
        ) as file:
            file.truncate(size)

    @staticmethod
    def _sync(path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @classmethod
    def _discard(cls, path: str) -> None:
        try:
            os.unlink(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise cls._failure(f"{path} cannot be deleted", error) from error

    @staticmethod
    def _failure(what: str, error: OSError) -> StorageError:
        reason = error.strerror or str(error)
        return StorageError(f"{what}: {reason}{space_hint(reason)}")
