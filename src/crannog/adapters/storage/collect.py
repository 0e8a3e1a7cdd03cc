"""What nobody needs any more, and how it is deleted: found by following all that volumes of the store stand on."""

import os
import shutil
from collections.abc import Iterator

from crannog.adapters.storage.checks import OUR_FILE, OUR_FOLDER, is_open
from crannog.adapters.storage.checks_images import CheckedImages
from crannog.adapters.storage.checks_open import find_open_files
from crannog.adapters.storage.files import allocated, discard, failure, make_empty, sync
from crannog.adapters.storage.folders import HALF_MADE_FOLDER, PROVISIONAL, REMOVED
from crannog.adapters.storage.revisions import Revision
from crannog.adapters.storage.seals import seals_of
from crannog.core.findings import Finding, Kind
from crannog.core.volumes import Volume
from crannog.ports.upkeep import Stakes


class CollectedFiles(CheckedImages):
    """A folder of images whose waste can be collected (see ports.upkeep.TendedPool)."""

    async def reach(self, stakes: Stakes) -> set[str]:
        """Return the real paths of all images that the volumes of the store stand on, or are."""
        reached = set(self._in_use)
        for volume in [stake.volume for stake in stakes()] if self._is_there() else ():
            going = {revision.path for revision in await self._superfluous(volume)}
            for location in self._images_of(volume):
                if location.path not in going and os.path.exists(location.path):
                    reached.update((os.path.realpath(location.path), *(await self._chains.look(location)).below))
        return reached

    async def _superfluous(self, volume: Volume) -> list[Revision]:
        """Return the former contents that nobody can go back to and nothing stands on."""
        return await self._unneeded(volume, self._files(volume.vid).revisions()) if volume.save_on_stop else []

    # -- finding

    async def find_waste(self, stakes: Stakes, needed: set[str] | None) -> list[Finding]:
        """Return what can be deleted. Without `needed` only what is half-made, which nothing ever stands on."""
        if not self._is_there():
            return []
        waste = list(self._find_nobodys(stakes, needed))
        if needed is not None:
            waste += await self._find_former(stakes, needed)
        opened = find_open_files()
        return sorted(found for found in waste if not is_open(found.path, opened))

    def _find_nobodys(self, stakes: Stakes, needed: set[str] | None) -> Iterator[Finding]:
        """Give what is half-made, or an orphan, or was left of a removed VM for others that are gone by now."""
        for found in self._walk(stakes()):
            if found.kind is Kind.HALF_MADE or (found.kind is Kind.ORPHAN and needed is not None):
                yield from self._narrow(found, needed or set())
        for name in sorted(os.listdir(self.folder)) if needed is not None else ():
            path = os.path.join(self.folder, name)
            if os.path.exists(os.path.join(path, REMOVED)):
                yield from self._narrow(Finding(Kind.ORPHAN, path, "is of a VM that was removed"), needed or set())

    def _narrow(self, found: Finding, needed: set[str]) -> Iterator[Finding]:
        """Give a finding with the size of what can be deleted of it, if that is anything.

        A folder that anything is in whose name is none of ours is left alone: somebody put it there.
        """
        path, name = found.path, os.path.basename(found.path)
        if os.path.dirname(path) != self.folder:
            if OUR_FILE.fullmatch(name) and os.path.isfile(path) and os.path.realpath(path) not in needed:
                yield found
            return
        if OUR_FOLDER.fullmatch(name) and os.path.isdir(path):
            files = {os.path.join(path, entry) for entry in os.listdir(path)}
            kept = _kept_of(files, needed)
            doomed = files - kept - ({os.path.join(path, REMOVED)} if kept else set())
            if all(map(_is_ours, files)) and (doomed or not kept):
                yield Finding(found.kind, path, found.reason, size=sum(map(allocated, doomed)))

    async def _find_former(self, stakes: Stakes, needed: set[str]) -> list[Finding]:
        found = []
        for volume in [stake.volume for stake in stakes()]:
            for revision in await self._superfluous(volume):
                if os.path.realpath(revision.path) not in needed:
                    reason = "is a former content that nobody can go back to"
                    size = allocated(revision.path)
                    found.append(Finding(Kind.UNNEEDED, revision.path, reason, volume.vid, size))
        return found

    # -- deleting

    async def discard(self, stakes: Stakes, found: Finding, needed: set[str] | None) -> bool:
        """Delete one thing that was found, unless it is needed by now; tell whether it is gone."""
        if found.kind is Kind.UNNEEDED:
            still = {former.path for former in await self._find_former(stakes, needed or set())}
        else:
            still = {nobodys.path for nobodys in self._find_nobodys(stakes, needed)}
        # Nothing can come in between from here on.
        is_read = any(path == found.path or path.startswith(found.path + "/") for path in self._in_use)
        if found.path not in still or is_read or is_open(found.path, find_open_files()):
            return False
        try:
            self._delete(found.path, needed or set())
        except OSError as error:
            raise failure(f"{found.path} cannot be deleted", error) from error
        return True

    def _delete(self, path: str, needed: set[str]) -> None:
        """Delete a file, or a VM's folder: that is renamed first, so that a crash never leaves half of one."""
        if not os.path.isdir(path):
            discard(path)
            self._forget(path)
            return
        files = {os.path.join(path, entry) for entry in os.listdir(path)}
        kept = _kept_of(files, needed)
        if kept:
            self._strip(path, kept)
            return
        for file in files:
            self._forget(file)
        doomed = os.path.join(self.folder, HALF_MADE_FOLDER + os.path.basename(path).removeprefix(HALF_MADE_FOLDER))
        os.rename(path, doomed)
        shutil.rmtree(doomed)

    def _strip(self, folder: str, bases: set[str]) -> None:
        """Mark a VM's folder as removed, and delete all files in it but those that others stand on."""
        mark = os.path.join(folder, REMOVED)
        try:
            if not os.path.exists(mark):
                make_empty(mark, 0)
                sync(folder)
            seals = {seal for base in bases if (seal := seals_of(base))}
            for path in {os.path.join(folder, entry) for entry in os.listdir(folder)} - bases - seals - {mark}:
                discard(path)
                self._forget(path)
        except OSError as error:
            raise failure(f"{folder} cannot be deleted", error) from error


def _kept_of(files: set[str], needed: set[str]) -> set[str]:
    """Return the files that are needed, with their seals."""
    kept = {file for file in files if os.path.realpath(file) in needed}
    return kept | ({seals_of(file) for file in kept} & files)


def _is_ours(path: str) -> bool:
    """Tell whether a file in a VM's folder has a name that we give."""
    name = os.path.basename(path)
    return os.path.isfile(path) and (name in (PROVISIONAL, REMOVED) or OUR_FILE.fullmatch(name) is not None)
