"""The cache of built images: `<cache>/images/<name>-<key>/`, where the key follows from everything that went in.

A folder with that name is always complete: it is made under another name and renamed. One lock file a name
serialises builds, so whoever holds it may remove whatever unfinished folder of that name it finds.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

from crannog.errors import CrannogError, StorageError
from crannog.images.tools import Report, owner_prefix

_KEY_DIGITS = 16
_UNFINISHED = ".tmp"
_REPLACED = ".old"


def compute_key(parts: object) -> str:
    """Return the key of `parts`: 16 hex digits that change when any text, number or bytes in it does."""
    text = json.dumps(parts, sort_keys=True, default=_describe)
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY_DIGITS]


def _describe(part: object) -> str:
    if isinstance(part, bytes):
        return "sha256:" + hashlib.sha256(part).hexdigest()
    raise TypeError(f"{type(part).__name__} cannot be part of a cache key")


class ImageCache:
    """The images below one cache folder."""

    def __init__(self, cache_dir: str, report: Report) -> None:
        self.path = os.path.join(os.path.abspath(cache_dir), "images")
        self.report = report

    def entry(self, name: str, key: str) -> str:
        """Return the folder of an image, which may not exist yet."""
        return f"{self.path}/{name}-{key}"

    def provide(self, name: str, key: str, build: Callable[[str], None], *, refresh: bool = False) -> str:
        """Return the folder of the image `name` with `key`; `build(folder)` fills a new one if there is none.

        With `refresh` it is built anew, and replaces the old one only when it is complete. Raises StorageError when
        the cache cannot be written; what `build` raises passes through, and leaves nothing behind.
        """
        final = self.entry(name, key)
        try:
            with self._locked(name):
                self._remove_unfinished(name)
                if refresh or not os.path.isdir(final):
                    self._build(final, build)
        except CrannogError:
            raise
        except OSError as error:
            raise StorageError(f"the image cache {self.path} cannot be used: {error.strerror or error}") from error
        return final

    def _build(self, final: str, build: Callable[[str], None]) -> None:
        unfinished = final + _UNFINISHED
        os.mkdir(unfinished)
        try:
            build(unfinished)
            _sync_files(unfinished)
        except BaseException:
            remove_tree(unfinished)
            raise
        replaced = final + _REPLACED
        if os.path.isdir(final):
            os.rename(final, replaced)
        os.rename(unfinished, final)
        _sync_folder(self.path)
        remove_tree(replaced)

    def _remove_unfinished(self, name: str) -> None:
        pattern = re.compile(
            rf"{re.escape(name)}-[0-9a-f]{{{_KEY_DIGITS}}}({re.escape(_UNFINISHED)}|{re.escape(_REPLACED)})"
        )
        for found in os.listdir(self.path):
            if pattern.fullmatch(found):
                remove_tree(f"{self.path}/{found}")

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        os.makedirs(self.path, exist_ok=True)
        with open(f"{self.path}/{name}.lock", "w", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.report(f"waiting for another build of {name} to end")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def remove_tree(path: str) -> None:
    """Remove a folder and all below it, also where an image's own users own it; an absent one is fine."""
    shutil.rmtree(path, ignore_errors=True)
    if os.path.lexists(path):
        subprocess.run([*owner_prefix(), "rm", "-rf", path], check=False, capture_output=True)
    if os.path.lexists(path):
        raise StorageError(f"the unfinished image {path} cannot be removed: remove it as root")


def _sync_files(folder: str) -> None:
    for entry in os.scandir(folder):
        if stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
            with open(entry.path, "rb") as file:
                os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: str, value: object) -> None:
    """Write `value` as indented JSON."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, sort_keys=True)
        file.write("\n")


def read_json(path: str) -> dict[str, Any]:
    """Return the object that write_json wrote; StorageError if the file is damaged or gone."""
    try:
        with open(path, encoding="utf-8") as file:
            value: dict[str, Any] = json.load(file)
    except (OSError, ValueError) as error:
        folder = os.path.dirname(path)
        raise StorageError(f"the cached image {folder} is damaged ({error}): remove that folder") from error
    return value
