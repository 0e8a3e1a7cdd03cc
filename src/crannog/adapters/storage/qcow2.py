"""Driver qcow2: one folder a VM, layers made by qemu-img. It needs no root and no special file system.

Files of a volume `V`, by what the volume's flags say (core.volumes):

- `V.img`: the VM's own data, raw, written in place;
- `V.1.img`, `V.2.qcow2`, ...: revisions of a volume that keeps revisions, each raw or a layer over a former one, and
  never changed again; a running VM writes to `V.dirty.qcow2`, which becomes the next revision when it stops, so that
  VMs that started from an older revision are not disturbed (design.md, B12). A volume that ceases to keep revisions is
  written in place from then on, in whatever file its newest content is;
- `V.volatile.qcow2`: a layer over the template's newest revision, dropped at each start (B1, one layer);
- `V.new`, `V.import.new`: what is no content yet.

Layers refer to what is below them by relative paths, so that the pool can be moved as a whole.
"""

import os
import shutil

from crannog.adapters.storage.files import HALF_MADE, discard, failure, make_empty, settle
from crannog.adapters.storage.qcow2_content import Qcow2Content
from crannog.core.volumes import Location, Volume
from crannog.errors import StorageError

_HALF_MADE_FOLDER = ".new-"
_PROVISIONAL = ".provisional"
MARK = ".crannog-pool"
"""In the folder of a pool that is outside of the home: without it, that disk is not there."""


class Qcow2Pool(Qcow2Content):
    """A folder of images (see ports.storage.Pool)."""

    driver = "qcow2"

    def __init__(self, name: str, folder: str, *, is_elsewhere: bool = False) -> None:
        """`is_elsewhere`: the folder was chosen by the user, and may be on a disk that comes and goes."""
        super().__init__(name, folder)
        self._is_elsewhere = is_elsewhere
        self._begun: set[str] = set()
        """Layers of sessions that began here and can still be abandoned: what a crash left is never forgotten."""

    def locate(self, volume: Volume) -> Location:
        """Return where the volume is while its VM runs."""
        files = self._files(volume.vid)
        if volume.snap_on_start:
            return Location(files.volatile, "qcow2")
        if volume.revisions_to_keep > 0:
            return Location(files.dirty, "qcow2")
        if os.path.exists(files.dirty):  # a start makes it a revision first
            return Location(files.next_revision("qcow2"), "qcow2")
        newest = files.newest()
        return newest.location if newest else Location(files.base + ".img", "raw")

    async def create(self, volumes: tuple[Volume, ...]) -> None:
        """Make the folder of a VM with its empty volumes, marked as provisional; a failure leaves nothing."""
        folder = self._files(volumes[0].vid).folder
        half_made = os.path.join(self.folder, _HALF_MADE_FOLDER + os.path.basename(folder))
        try:
            self._check_there()
            os.makedirs(half_made, mode=0o700)
            for volume in volumes:
                if volume.save_on_stop:
                    content = self._files(volume.vid).next_content(keeps_revisions=volume.revisions_to_keep > 0)
                    make_empty(os.path.join(half_made, os.path.basename(content)), volume.size)
            make_empty(os.path.join(half_made, _PROVISIONAL), 0)
            os.rename(half_made, folder)
        except OSError as error:
            shutil.rmtree(half_made, ignore_errors=True)
            raise failure(f"the volumes of {os.path.basename(folder)} cannot be made", error) from error

    def _check_there(self) -> None:
        if self._is_elsewhere and not os.path.exists(os.path.join(self.folder, MARK)):
            raise StorageError(f"pool {self.name} is not in {self.folder} now; mount its disk there and try again")

    async def claim(self, volumes: tuple[Volume, ...]) -> None:
        """Take the mark away."""
        for folder in {self._files(volume.vid).folder for volume in volumes}:
            discard(os.path.join(folder, _PROVISIONAL))

    async def start(self, volume: Volume) -> None:
        """Make the volume's file for this session. A session that was never stopped is kept first."""
        files = self._files(volume.vid)
        if volume.snap_on_start:
            discard(files.volatile)
            await self._start_layer(files.volatile, self.newest(volume.source), volume)
            return
        await self.stop(volume)
        if volume.revisions_to_keep > 0:
            self._begun.add(files.dirty)
            await self._start_layer(files.dirty, self.newest(volume.vid), volume)
        elif files.newest() is None:
            raise StorageError(
                f"volume {volume.vid} has no content: {files.base}.img does not exist; restore it from a backup"
            )

    async def _start_layer(self, path: str, below: Location, volume: Volume) -> None:
        is_raw = below.format == "raw"
        await self._layer(path, below, max(volume.size, os.stat(below.path).st_size if is_raw else 0), volume)

    async def stop(self, volume: Volume) -> None:
        """Drop a layer that is not kept; make a dirty one the next revision, whatever the volume keeps by now."""
        files = self._files(volume.vid)
        if volume.snap_on_start:
            discard(files.volatile)
        elif os.path.exists(files.dirty):
            try:
                settle(files.dirty, files.next_revision("qcow2"))
            except OSError as error:
                raise failure(f"the changes of volume {volume.vid} cannot be kept", error) from error
            self._begun.discard(files.dirty)
            await self.trim(volume)

    async def abandon(self, volume: Volume) -> None:
        """Drop the session's layer, if the volume has one."""
        files = self._files(volume.vid)
        if volume.snap_on_start:
            discard(files.volatile)
        elif files.dirty in self._begun:
            discard(files.dirty)
            self._begun.discard(files.dirty)

    async def remove(self, volumes: tuple[Volume, ...]) -> None:
        """Delete the VM's folder. It is renamed first, so that a crash never leaves half of a VM."""
        for folder in {self._files(volume.vid).folder for volume in volumes}:
            doomed = os.path.join(self.folder, _HALF_MADE_FOLDER + os.path.basename(folder))
            try:
                os.rename(folder, doomed)
                shutil.rmtree(doomed)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise failure(f"{folder} cannot be deleted", error) from error

    async def recover(self, known: frozenset[str]) -> list[str]:
        """Delete what a killed daemon was just making or deleting. A pool whose disk is not there waits for it."""
        try:
            if self._is_elsewhere:
                self._check_there()
            else:
                os.makedirs(self.folder, mode=0o700, exist_ok=True)
        except StorageError as error:
            return [str(error)]
        except OSError as error:
            raise failure(f"pool {self.name} cannot be used", error) from error
        try:
            return self._clean_up({vid.partition("/")[0] for vid in known})
        except OSError as error:
            raise failure(f"pool {self.name} cannot be used", error) from error

    def _clean_up(self, known: set[str]) -> list[str]:
        done = []
        for entry in [entry for entry in os.scandir(self.folder) if entry.is_dir(follow_symlinks=False)]:
            mark = os.path.join(entry.path, _PROVISIONAL)
            if entry.name.startswith(_HALF_MADE_FOLDER) or (entry.name not in known and os.path.exists(mark)):
                shutil.rmtree(entry.path, ignore_errors=True)
                done.append(f"pool {self.name}: deleted half-made {entry.name.removeprefix(_HALF_MADE_FOLDER)}")
            elif entry.name in known:
                done += self._clean_up_folder(entry, mark)
        return done

    def _clean_up_folder(self, folder: "os.DirEntry[str]", mark: str) -> list[str]:
        """Delete the half-made files of a VM that the store knows, and its mark."""
        discard(mark)
        half_made = [name for name in os.listdir(folder) if name.endswith(HALF_MADE)]
        for name in half_made:
            discard(os.path.join(folder.path, name))
        return [f"pool {self.name}: deleted half-made {folder.name}/{name}" for name in half_made]
