"""Pools that are a folder with a folder for each VM: made whole or not at all, and cleaned up after a crash."""

import os
import re
import shutil
from contextlib import suppress
from typing import ClassVar, cast

from crannog.adapters.storage.files import HALF_MADE, discard, failure, is_link, make_empty, sync
from crannog.adapters.storage.pool_driver import PoolDriver
from crannog.adapters.storage.revisions import VolumeFiles
from crannog.config import Paths
from crannog.core.pools import DIR_PATH, EPHEMERAL, FOLDER, REVISIONS, PoolConfig, PoolOption, is_pool_name
from crannog.core.volumes import Volume
from crannog.errors import StorageError
from crannog.ports.storage import Pool

HALF_MADE_FOLDER = ".new-"
PROVISIONAL = ".provisional"
REMOVED = ".removed"
"""In the folder of a VM that is gone, but for images that others stand on."""
MARK = ".crannog-pool"
"""In the folder of a pool that is outside of the home: without it, that disk is not there."""
_VID = re.compile(r"(?P<folder>[^/.\x00-\x1f\x7f][^/\x00-\x1f\x7f]{0,199})/[A-Za-z0-9_-]{1,32}")


class FolderPool(PoolDriver):
    """A folder of VMs' folders (see ports.storage.Pool)."""

    options: ClassVar[tuple[PoolOption, ...]] = (FOLDER, REVISIONS, EPHEMERAL)
    layer_format = "qcow2"
    """How a layer is written, as QEMU calls it."""

    def __init__(self, name: str, folder: str, *, is_elsewhere: bool = False) -> None:
        """`is_elsewhere`: the folder was chosen by the user, and may be on a disk that comes and goes."""
        self.name = name
        self.folder = folder
        self._is_elsewhere = is_elsewhere
        self._is_checked = False

    # -- the pool's own folder

    @classmethod
    def folder_of(cls, config: PoolConfig, paths: Paths) -> str:
        """Return the folder that the user chose, or the one in the home; empty where a file says nonsense."""
        chosen = config.option(DIR_PATH)
        if chosen:
            return chosen if chosen.startswith("/") else ""
        return f"{paths.pools}/{config.name}" if is_pool_name(config.name) else ""

    @classmethod
    def open(cls, config: PoolConfig, paths: Paths) -> Pool | None:
        """Return the pool in its folder, if it has one."""
        folder = cls.folder_of(config, paths)
        pool = cls(config.name, folder, is_elsewhere=bool(config.option(DIR_PATH)))
        return cast("Pool", pool) if folder else None

    @classmethod
    def make_place(cls, config: PoolConfig, paths: Paths) -> None:
        """Make the pool's folder. One that the user chose must be empty, or have been a pool before."""
        folder = cls.folder_of(config, paths)
        cls.check_file_system(config.name, folder)
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            if config.option(DIR_PATH):
                _mark(folder)
            sync(folder)
            sync(os.path.dirname(folder))
        except OSError as error:
            cls.unmake_place(config, paths)
            raise failure(f"pool {config.name} cannot be made in {folder}", error) from error

    @classmethod
    def check_file_system(cls, name: str, folder: str) -> None:
        """Raise StorageError when the driver needs what the file system of a folder, there or not, does not have."""

    @classmethod
    def unmake_place(cls, config: PoolConfig, paths: Paths) -> None:
        """Delete the pool's folder with its mark, unless there is anything else in it."""
        folder = cls.folder_of(config, paths)
        with suppress(OSError):
            if os.listdir(folder) == [MARK]:
                os.unlink(os.path.join(folder, MARK))
            os.rmdir(folder)

    def _check_there(self) -> None:
        if self._is_elsewhere and not os.path.exists(os.path.join(self.folder, MARK)):
            raise StorageError(f"pool {self.name} is not in {self.folder} now; mount its disk there and try again")
        if not self._is_checked:
            self.check_file_system(self.name, self.folder)
            self._is_checked = True

    # -- the folders of VMs

    def _files(self, vid: str) -> VolumeFiles:
        """Return the files of a volume; raises StorageError for an id, or a link, that could lead out of the pool."""
        match = _VID.fullmatch(vid)
        if not match:
            raise StorageError(f"'{vid[:80]}' is not the id of a volume in pool {self.name}")
        folder = os.path.join(self.folder, match["folder"])
        if is_link(folder):
            raise StorageError(f"{folder} is a link, which no folder of a VM may be; put the folder itself there")
        return VolumeFiles(os.path.join(self.folder, vid), self.layer_format)

    async def create(self, volumes: tuple[Volume, ...]) -> None:
        """Make the folder of a VM with its empty volumes, marked as provisional; a failure leaves nothing."""
        folder = self._files(volumes[0].vid).folder
        half_made = os.path.join(self.folder, HALF_MADE_FOLDER + os.path.basename(folder))
        try:
            self._check_there()
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
            os.makedirs(half_made, mode=0o700)
            for volume in volumes:
                if volume.save_on_stop:
                    content = self._files(volume.vid).next_content(keeps_revisions=volume.revisions_to_keep > 0)
                    make_empty(os.path.join(half_made, os.path.basename(content)), volume.size)
            make_empty(os.path.join(half_made, PROVISIONAL), 0)
            os.rename(half_made, folder)
        except OSError as error:
            shutil.rmtree(half_made, ignore_errors=True)
            raise failure(f"the volumes of {os.path.basename(folder)} cannot be made", error) from error

    async def claim(self, volumes: tuple[Volume, ...]) -> None:
        """Take the mark away."""
        for folder in {self._files(volume.vid).folder for volume in volumes}:
            discard(os.path.join(folder, PROVISIONAL))

    async def remove(self, volumes: tuple[Volume, ...]) -> None:
        """Delete the VM's folder. It is renamed first, so that a crash never leaves half of a VM."""
        for folder in {self._files(volume.vid).folder for volume in volumes}:
            doomed = os.path.join(self.folder, HALF_MADE_FOLDER + os.path.basename(folder))
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
            if not self._is_elsewhere:
                os.makedirs(self.folder, mode=0o700, exist_ok=True)
            self._check_there()
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
            mark = os.path.join(entry.path, PROVISIONAL)
            if entry.name.startswith(HALF_MADE_FOLDER) or (entry.name not in known and os.path.exists(mark)):
                shutil.rmtree(entry.path, ignore_errors=True)
                done.append(f"pool {self.name}: deleted half-made {entry.name.removeprefix(HALF_MADE_FOLDER)}")
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


def _mark(folder: str) -> None:
    entries = os.listdir(folder)
    if MARK in entries:
        return
    if entries:
        raise StorageError(f"{folder} is not empty and no pool's folder; choose a folder that is new or empty")
    make_empty(os.path.join(folder, MARK), 0)
