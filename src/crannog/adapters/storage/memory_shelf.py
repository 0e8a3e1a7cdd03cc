"""Where memory images are kept: one folder for each disposable template, whole or not there.

    ID/memory, ID/state, ID/VOLUME.layer ..., ID/manifest.json     ID.new/: one that is just being made

The manifest is written last, and then the folder gets its name. It holds what tells whether a file is still what was
saved: of the state and of the layers, which are small, a digest; of the memory, which is as large as the guest's, its
size and when it was changed last.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from crannog.adapters.storage.files import failure, sync
from crannog.core.domain import MemoryFiles
from crannog.errors import StorageError

_MANIFEST = "manifest.json"
_HALF_MADE = ".new"
_LAYER = ".layer"
_VERSION = 1
_ID = re.compile(r"[0-9a-f-]{36}")
_DIGEST_MOST = 16 * 2**20
"""Bytes of a larger layer are not read each time: its size and time are all that is compared, as for the memory."""


@dataclass(frozen=True)
class SavedImage:
    """A whole image: its files, and the key that it was saved under. `layers` are files by the names of volumes."""

    template: str
    key: str
    recipe: str
    files: MemoryFiles
    layers: Mapping[str, str]


class MemoryShelf:
    """The folder of all images of a home. Methods block; they raise StorageError with the cause."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def templates(self) -> list[str]:
        """Return the UUIDs of the templates that have an image."""
        with suppress(FileNotFoundError):
            return sorted(name for name in os.listdir(self._folder) if _ID.fullmatch(name))
        return []

    def recover(self, known: frozenset[str]) -> list[str]:
        """Delete what is half-made, and images of templates that are gone; return a sentence for each."""
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise failure(f"the memory images in {self._folder} cannot be looked at", error) from error
        gone = [name for name in sorted(names) if name not in known]
        for name in gone:
            shutil.rmtree(os.path.join(self._folder, name), ignore_errors=True)
        return [f"memory images: deleted {name}, which is half-made or nobody's" for name in gone]

    def free(self) -> int:
        """Return the bytes that can still be written where images are."""
        folder = self._folder
        while not os.path.isdir(folder):
            folder = os.path.dirname(folder)
        status = os.statvfs(folder)
        return status.f_bavail * status.f_frsize

    # -- making one

    def begin(self, template: str, size: int) -> MemoryFiles:
        """Make the folder of a new image, with a memory of `size` bytes that is all holes; return its files."""
        folder = self._path(template) + _HALF_MADE
        try:
            shutil.rmtree(folder, ignore_errors=True)
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            os.mkdir(folder, mode=0o700)
            files = _files_in(folder, is_saved=False)
            descriptor = os.open(files.memory, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.ftruncate(descriptor, size)
            finally:
                os.close(descriptor)
        except OSError as error:
            self.give_up(template)
            raise failure(f"no memory image can be made in {folder}", error) from error
        return files

    def layer(self, template: str, volume: str) -> str:
        """Return the path for what was written to a volume, in the image that is being made."""
        return os.path.join(self._path(template) + _HALF_MADE, volume + _LAYER)

    def finish(self, template: str, key: str, recipe: str) -> None:
        """Make the new image the template's. Nobody writes to its files any more."""
        folder, path = self._path(template) + _HALF_MADE, self._path(template)
        try:
            names = sorted(os.listdir(folder))
            for name in names:
                sync(os.path.join(folder, name))
            facts = {name: _describe(os.path.join(folder, name)) for name in names}
            said = {"version": _VERSION, "key": key, "recipe": recipe, "files": facts}
            with open(os.path.join(folder, _MANIFEST), "x", encoding="utf-8") as file:
                json.dump(said, file)
                file.flush()
                os.fsync(file.fileno())
            self.discard(template)
            os.rename(folder, path)
            sync(self._folder)
        except OSError as error:
            self.give_up(template)
            raise failure(f"the memory image in {folder} cannot be finished", error) from error

    def give_up(self, template: str) -> None:
        """Delete what there is of a new image; nothing is no error."""
        shutil.rmtree(self._path(template) + _HALF_MADE, ignore_errors=True)

    # -- using one

    def read_recipe(self, template: str) -> str:
        """Return what a template's image was made from; empty when there is none that can be read."""
        with suppress(OSError, ValueError, LookupError, TypeError):
            return str(self._read_manifest(template)["recipe"])
        return ""

    def find(self, template: str) -> SavedImage | None:
        """Return a template's image, None when there is none. Raises StorageError for one that is damaged."""
        folder = self._path(template)
        if not os.path.isdir(folder):
            return None
        try:
            said = self._read_manifest(template)
            facts = said["files"]
            for name, wanted in facts.items():
                if _describe(os.path.join(folder, os.path.basename(name))) != wanted:
                    raise StorageError(f"the memory image in {folder} is damaged: {name} is not what was saved")
            layers = {name.removesuffix(_LAYER): os.path.join(folder, name) for name in facts if name.endswith(_LAYER)}
            if not {"memory", "state"} <= facts.keys():
                raise LookupError
            return SavedImage(template, str(said["key"]), str(said["recipe"]), _files_in(folder, is_saved=True), layers)
        except OSError as error:
            raise failure(f"the memory image in {folder} cannot be used", error) from error
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise StorageError(f"the memory image in {folder} is damaged: its manifest makes no sense") from error

    def discard(self, template: str) -> None:
        """Delete a template's image; none is no error. It is renamed first: half of one is never found."""
        path = self._path(template)
        doomed = f"{path}.old"
        with suppress(FileNotFoundError):
            shutil.rmtree(doomed, ignore_errors=True)
            try:
                os.rename(path, doomed)
            except FileNotFoundError:
                return
            except OSError as error:
                raise failure(f"{path} cannot be deleted", error) from error
            shutil.rmtree(doomed, ignore_errors=True)

    def _read_manifest(self, template: str) -> dict[str, Any]:
        with open(os.path.join(self._path(template), _MANIFEST), encoding="utf-8") as file:
            said: dict[str, Any] = json.load(file)
        if said["version"] != _VERSION:
            raise ValueError(said["version"])
        return said

    def _path(self, template: str) -> str:
        if not _ID.fullmatch(template):
            raise StorageError(f"'{template[:80]}' is no UUID of a template")
        return os.path.join(self._folder, template)


def _files_in(folder: str, *, is_saved: bool) -> MemoryFiles:
    return MemoryFiles(os.path.join(folder, "memory"), os.path.join(folder, "state"), is_saved)


def _describe(path: str) -> dict[str, object]:
    """Return what tells a file from one that somebody has changed since; raises OSError."""
    facts = os.lstat(path)
    described: dict[str, object] = {"size": facts.st_size, "changed": facts.st_mtime_ns}
    if facts.st_size <= _DIGEST_MOST:
        with open(path, "rb") as file:
            described["digest"] = hashlib.file_digest(file, "sha256").hexdigest()
    return described
