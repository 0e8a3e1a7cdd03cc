"""What is wrong or superfluous in the folders of a pool: files that are nobody's, half-made, or open to others."""

import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence

from crannog.adapters.storage.checks_open import Identity, find_open_files, identify
from crannog.adapters.storage.files import HALF_MADE, allocated
from crannog.adapters.storage.folders import HALF_MADE_FOLDER, MARK, PROVISIONAL, REMOVED
from crannog.adapters.storage.sessions import FileSessions
from crannog.core.findings import Finding, Kind, Stake
from crannog.core.volumes import Volume
from crannog.errors import StorageError
from crannog.ports.upkeep import Stakes

_OTHERS = 0o077
_ROLE = r"(\.([0-9]{1,18}|dirty|volatile))?\.(img|qcow2)|\.volatile\.source|\.seal"
OUR_FILE = re.compile(rf"[A-Za-z0-9_-]{{1,32}}(({_ROLE})(\.new)?|(\.import)?\.new)")
"""Names that we give to files in the folder of a VM; whatever else is there was put there by somebody."""
OUR_FOLDER = re.compile(r"\.new-.+|.+-[0-9a-f]{8}", re.DOTALL)
"""The same for folders of VMs."""


class CheckedFolders(FileSessions):
    """A folder of VMs' folders that is looked through (see ports.upkeep.TendedPool)."""

    def __init__(self, name: str, folder: str, *, is_elsewhere: bool = False) -> None:
        super().__init__(name, folder, is_elsewhere=is_elsewhere)
        self._coming: set[str] = set()
        """Names of the folders of VMs that are just being made: they are not in the store yet."""

    # -- VMs that are just being made

    async def create(self, volumes: tuple[Volume, ...]) -> None:
        """Make the folder of a VM, which nobody takes for an orphan until it is in the store."""
        coming = _folders_of(volumes)
        self._coming |= coming
        try:
            await super().create(volumes)
        except BaseException:
            self._coming -= coming
            raise

    async def claim(self, volumes: tuple[Volume, ...]) -> None:
        """Make it lasting."""
        await super().claim(volumes)
        self._coming -= _folders_of(volumes)

    async def remove(self, volumes: tuple[Volume, ...]) -> None:
        """Delete it."""
        self._coming -= _folders_of(volumes)
        await super().remove(volumes)

    # -- the check

    async def check(self, stakes: Stakes) -> list[Finding]:
        """Return what is wrong or superfluous in the pool. Changes nothing."""
        if not self._is_there():
            reason = f"is not there, and so is no volume of pool {self.name}: mount its disk, or bring the folder back"
            return [Finding(Kind.MISSING, self.folder, reason)] if stakes() or self._is_elsewhere else []
        try:
            found = [*self._walk(stakes()), *self._find_missing(stakes())]
            return sorted({*found, *await self._check_images(stakes)})
        except OSError as error:
            raise StorageError(f"pool {self.name} cannot be checked: {error.strerror} ({error.filename})") from error

    def _is_there(self) -> bool:
        """Tell whether the pool can be looked at. Whether its driver could use it, a start finds out."""
        return os.path.exists(os.path.join(self.folder, MARK) if self._is_elsewhere else self.folder)

    async def _check_images(self, stakes: Stakes) -> list[Finding]:
        """Return what is wrong with the images of the volumes of the store."""
        raise NotImplementedError

    def _find_missing(self, stakes: Sequence[Stake]) -> Iterator[Finding]:
        """Give the volumes that should have content and have none."""
        for volume in [stake.volume for stake in stakes if stake.volume.save_on_stop]:
            try:
                files = self._files(volume.vid)
                if files.newest() is None:
                    reason = "does not exist; restore it from a backup with 'qvm-volume import'"
                    yield Finding(Kind.MISSING, files.only, reason, volume.vid)
            except StorageError:
                continue  # a link, which is told as one

    # -- folders and files

    def _walk(self, stakes: Sequence[Stake]) -> Iterator[Finding]:
        """Give what is wrong with files and folders as such, and those that are nobody's."""
        opened = find_open_files()
        volumes: dict[str, list[Stake]] = {}
        for stake in stakes:
            volumes.setdefault(stake.volume.vid.partition("/")[0], []).append(stake)
        yield from _look_at_rights(self.folder)
        for entry in sorted(os.listdir(self.folder)):
            path = os.path.join(self.folder, entry)
            if os.path.lexists(path):
                yield from _look_at_rights(path)
                yield from self._walk_entry(path, volumes.get(entry), opened)

    def _walk_entry(self, path: str, stakes: list[Stake] | None, opened: set[Identity]) -> Iterator[Finding]:
        """Give what is to be said of one thing in the pool's folder."""
        name = os.path.basename(path)
        is_folder = os.path.isdir(path) and not os.path.islink(path)
        is_provisional = os.path.exists(os.path.join(path, PROVISIONAL))
        if name == MARK or os.path.islink(path) or (stakes is None and name in self._coming):
            return
        if is_folder and (stakes is not None or os.path.exists(os.path.join(path, REMOVED))):
            yield from self._walk_folder(path, stakes or [], opened)
        elif name.startswith(HALF_MADE_FOLDER) or (is_folder and is_provisional):
            yield Finding(Kind.HALF_MADE, path, "was never finished, or never wholly deleted", size=tree_size(path))
        else:
            yield Finding(Kind.ORPHAN, path, "belongs to no VM of the store", size=tree_size(path))

    def _walk_folder(self, folder: str, stakes: list[Stake], opened: set[Identity]) -> Iterator[Finding]:
        """Give what is to be said of the files in a VM's folder. What a removed VM left has its own clean-up."""
        names = [os.path.basename(stake.volume.vid) for stake in stakes]
        is_used = any(stake.is_used for stake in stakes)
        for entry in sorted(os.listdir(folder)):
            path = os.path.join(folder, entry)
            yield from _look_at_rights(path)
            if entry in (PROVISIONAL, REMOVED) or os.path.islink(path) or not stakes:
                continue
            if not any(entry.startswith(name + ".") for name in names):
                yield Finding(Kind.ORPHAN, path, "belongs to no volume of its VM", size=tree_size(path))
            elif entry.endswith(HALF_MADE) and not is_used and not is_open(path, opened):
                yield Finding(Kind.HALF_MADE, path, "was never finished", size=allocated(path))


def _folders_of(volumes: Iterable[Volume]) -> set[str]:
    return {volume.vid.partition("/")[0] for volume in volumes}


def _look_at_rights(path: str) -> Iterator[Finding]:
    """Give what is unsafe about a file or folder: who it belongs to, who may use it, and what it is."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return  # it has just gone
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISLNK(status.st_mode):
        yield Finding(Kind.UNSAFE, path, f"is a link to {os.readlink(path)!r}; put the file itself there")
    elif not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        yield Finding(Kind.UNSAFE, path, "is neither a file nor a folder; delete it")
    elif status.st_uid != os.geteuid():
        reason = f"belongs to user {status.st_uid}, not to {os.geteuid()}, who runs the VMs; change that with chown"
        yield Finding(Kind.UNSAFE, path, reason)
    elif mode & _OTHERS:
        yield Finding(Kind.UNSAFE, path, f"has mode {mode:o}, so that others can use it; 'chmod go= FILE' ends that")


def is_open(path: str, opened: set[Identity]) -> bool:
    """Tell whether somebody has a file, or one in a folder, open."""
    try:
        if identify(path) in opened:
            return True
    except OSError:
        return False
    return os.path.isdir(path) and any(is_open(os.path.join(path, entry), opened) for entry in os.listdir(path))


def tree_size(path: str) -> int:
    """Return the bytes that a file, or all files below a folder, take on the disk."""
    below = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]
    return allocated(path) + sum(map(allocated, below))
