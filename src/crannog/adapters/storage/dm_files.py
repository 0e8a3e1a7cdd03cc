"""The files of one volume in a pool of device-mapper.

- `V.img`: the content, raw; the VM whose own it is writes to it;
- `V-cow.img`: while that VM runs, what it overwrites, if the volume keeps revisions; beside a layer that nobody writes
  to, a store with nothing in it;
- `V-cow.3.img`: what the session after content 3 has overwritten: laid over the next content, it shows that one;
- `V.3.img`: a former content that is whole, because another one came from elsewhere;
- `volatile.img`: what a VM writes to its layer over the root of its template.
"""

import os
import re
from contextlib import suppress
from dataclasses import dataclass

from crannog.adapters.storage.files import allocated, discard, is_link, make_text, read_text
from crannog.adapters.storage.revisions import Revision, VolumeFiles, refuse_link
from crannog.core.volumes import LayerState

_LASTS = "lasts"
_OLDER = re.compile(r"(?P<store>-cow)?\.(?P<number>[0-9]{1,9})\.img")


@dataclass(frozen=True)
class MappedFiles(VolumeFiles):
    """The files whose paths begin with `base` (see storage.revisions)."""

    @property
    def cow(self) -> str:
        """What a session overwrites; the store of a layer that is only read."""
        return self.base + "-cow.img"

    @property
    def session(self) -> str:
        """The file that says when what a session overwrites was changed before it."""
        return self.base + "-cow.session"

    @property
    def layer(self) -> str:
        """The store of a layer that is written to. A root's has the name that it always had."""
        is_root = os.path.basename(self.base) == "root"
        return f"{self.folder}/volatile.img" if is_root else self.base + "-volatile.img"

    def older_store(self, number: int) -> str:
        """Return what is kept of a content that a session has changed."""
        return f"{self.base}-cow.{number}.img"

    def revisions(self) -> list[Revision]:
        """Return the finished contents, oldest first; the last one is what counts."""
        older = self._older()
        refuse_link(self.only)
        if not os.path.exists(self.only):
            return older
        return [*older, Revision(older[-1].number + 1 if older else 1, self.only)]

    def _older(self) -> list[Revision]:
        """Return the former contents. One that is the present one as well was to become a former one, and did not."""
        found = []
        name = os.path.basename(self.base)
        for entry in os.listdir(self.folder) if os.path.isdir(self.folder) else ():
            match = _OLDER.fullmatch(entry.removeprefix(name)) if entry.startswith(name) else None
            path = os.path.join(self.folder, entry)
            if match:
                refuse_link(path)
                found += [Revision(int(match["number"]), path)] if not self._is_content(path) else []
        return sorted(found)

    def _is_content(self, path: str) -> bool:
        return os.path.exists(self.only) and os.path.samefile(path, self.only)

    def newest(self) -> Revision | None:
        """Return the content, if there is one."""
        newest = super().newest()
        return newest if newest and newest.path == self.only else None

    def next_content(self, *, keeps_revisions: bool) -> str:
        """Return the path of new content: it is always the same."""
        del keeps_revisions
        return self.only

    def keep_content(self) -> None:
        """Make the content a former one as well, which stays when another takes its place; raises OSError."""
        newest = self.newest()
        if newest and not newest.is_blank():
            self.forget_kept_content()
            os.link(self.only, f"{self.base}.{newest.number}.img")

    def forget_kept_content(self) -> None:
        """Have the content not be a former one: no other took its place."""
        newest = self.newest()
        kept = f"{self.base}.{newest.number}.img" if newest else ""
        if os.path.lexists(kept):
            discard(kept)

    def needed_for(self, revision: Revision) -> list[Revision]:
        """Return a content with the newer ones that are needed to show it, the one that is whole first."""
        needed = []
        for newer in self.revisions():
            if newer.number >= revision.number:
                needed.append(newer)
                if not self.is_store(newer):
                    break
        return needed[::-1]

    def has_stores(self) -> bool:
        """Tell whether anything is kept that holds true only as long as nobody writes to the file itself."""
        return any(self.is_store(revision) for revision in self._older())

    def drop_stores(self) -> None:
        """Delete the former contents that stand on the one before the present one, which is lost."""
        for revision in reversed(self._older()):
            if not self.is_store(revision):
                return
            discard(revision.path)

    def is_store(self, revision: Revision) -> bool:
        """Tell whether only what was overwritten is kept of a content."""
        return revision.path == self.older_store(revision.number)

    def usage(self) -> int:
        """Return the bytes that all files of the volume take on the disk."""
        name = os.path.basename(self.base)
        entries = os.listdir(self.folder) if os.path.isdir(self.folder) else []
        own = {os.path.join(self.folder, entry) for entry in entries if entry.startswith((name + ".", name + "-"))}
        return sum(allocated(path) for path in own | set(self._noted_stores()))

    # -- notes

    def note_session(self) -> None:
        """Note when the content was changed last, before a session changes it; raises OSError."""
        discard(self.session)
        make_text(self.session, str(os.stat(self.only).st_mtime_ns))

    def date_store(self) -> None:
        """Give what the session has overwritten the time of that content; raises OSError."""
        with suppress(ValueError):
            when = int(read_text(self.session))
            os.utime(self.cow, ns=(when, when))

    def describe_content(self) -> str:
        """Return what tells the content from all others, former and later ones; raises OSError."""
        status = os.stat(self.only)
        return f"{status.st_ino} {status.st_mtime_ns}"

    def note_layer(self, store: str, source: str, *, lasts: bool) -> None:
        """Note over what the layer is that is in a store, and whether it can be used again; raises OSError."""
        make_text(self.volatile_source, "\n".join((os.path.basename(store), source, _LASTS if lasts else "")))

    def layer_state(self, source: str) -> LayerState:
        """Return what there is of a layer over what describes itself so."""
        note = self._layer_note()
        if not note:
            return LayerState.ABSENT
        return LayerState.CURRENT if note[1] == source else LayerState.OUTDATED

    def is_lasting(self) -> bool:
        """Tell whether there is a layer that can be used again."""
        note = self._layer_note()
        return bool(note) and note[2] == _LASTS and not is_link(self.layer) and os.path.exists(self.layer)

    def drop_layer(self) -> None:
        """Delete the layer's store. What lies there without a note belongs to another volume."""
        for path in self._noted_stores():
            discard(path)
        discard(self.volatile_source)

    def forget_lasting_layer(self) -> None:
        """Have a layer not be used again: another file is to have its store's name. Raises StorageError."""
        if self._layer_note()[2:] == [_LASTS]:
            self.drop_layer()

    def _noted_stores(self) -> list[str]:
        return [path for path in (self.cow, self.layer) if os.path.basename(path) in self._layer_note()[:1]]

    def _layer_note(self) -> list[str]:
        lines = read_text(self.volatile_source).split("\n")
        return lines if len(lines) == 3 else []
