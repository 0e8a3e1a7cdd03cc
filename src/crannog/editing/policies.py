"""The policy files, for programs that edit them: read, checked before they change, written as a whole.

Each change says which content it is about, so that nobody undoes what somebody else has done meanwhile.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from enum import Enum

from crannog.errors import NotFoundError, ProtocolError, ValueRefusedError
from crannog.policy.loader import DEFAULTS, SUFFIX, Reader, load
from crannog.policy.policy import Policy
from crannog.policy.problems import Problem, shown
from crannog.ports.policies import PolicyShelf

NEW, ANY = "new", "any"
"""Tokens for: there must be no such file yet; whatever it holds (qrexec specification, section 6)."""

_TOKEN = re.compile(r"sha256:[0-9a-f]{64}")
_NAME_MAX = 200


class Sort(Enum):
    """Policy files, and those that are only read when a policy file includes them."""

    POLICY = ("policy file", "", SUFFIX, re.compile(r"[0-9a-z_-][0-9a-z_.-]*"))
    INCLUDE = ("include", "/include", "", re.compile(r"[0-9A-Za-z_-][0-9A-Za-z_.+-]*"))

    def __init__(self, title: str, folder: str, suffix: str, name: re.Pattern[str]) -> None:
        self.title = title
        self.folder = folder
        self.suffix = suffix
        self.pattern = name


class Policies:
    """The files in the administrator's folders, which hide those of the same name that Crannog brings."""

    def __init__(self, shelf: PolicyShelf, folders: Sequence[str], defaults: str = DEFAULTS) -> None:
        """`folders` are in the order in which a file of one hides those in the next; new files go into the last."""
        self._shelf = shelf
        self._folders = tuple(folders)
        self._all = (*folders, defaults)

    def names(self, sort: Sort) -> list[str]:
        """Return the names of all files that count, without the ending `.policy`."""
        reader = self._shelf.reader()
        found = {name for folder in self._all for name in reader.list_files(folder + sort.folder) or ()}
        named = {name.removesuffix(sort.suffix) for name in found if name.endswith(sort.suffix)}
        return sorted(name for name in named if sort.pattern.fullmatch(name))

    def read(self, sort: Sort, untrusted_name: str) -> tuple[str, bytes]:
        """Return the token of a file's content, and the content; raises NotFoundError, ValueRefusedError."""
        name = _check_name(sort, untrusted_name)
        for path in self._places(sort, name):
            data = self._shelf.read(path)
            if data is not None:
                return make_token(data), data
        raise NotFoundError(f"there is no {sort.title} {name}; policy{sort.folder.replace('/', '.')}.List lists them")

    def replace(self, sort: Sort, untrusted_name: str, untrusted_token: str, untrusted_data: bytes) -> None:
        """Give a file another content, or make it.

        Raises ValueRefusedError when the token is not that of the present content, or the policy would get a problem:
        then nothing has changed. What Crannog brings is not changed but hidden, by a file of the same name.
        """
        name = _check_name(sort, untrusted_name)
        self._check_token(sort, name, untrusted_token)
        path = self._own_place(sort, name) or self._place(self._folders[-1], sort, name)
        self._rehearse(f"{sort.title} {name} was not changed", {path: _decode(name, untrusted_data)})
        self._shelf.write(path, untrusted_data)

    def remove(self, sort: Sort, untrusted_name: str, untrusted_token: str) -> None:
        """Delete a file. Raises NotFoundError, or ValueRefusedError as `replace` does."""
        name = _check_name(sort, untrusted_name)
        self._check_token(sort, name, untrusted_token)
        path = self._own_place(sort, name)
        if path is None:
            self.read(sort, name)
            raise ValueRefusedError(
                f"{sort.title} {name} is one that Crannog brings and cannot be removed; replace it by an empty one"
            )
        self._rehearse(f"{sort.title} {name} was not removed", {path: None})
        self._shelf.delete(path)

    def files_of(self, service: str) -> list[str]:
        """Return the files with rules about a service, in the order of the rules.

        They are named as `names` does, those of the other sort with their folder before. Raises ValueRefusedError
        while the policy has problems, as no rule of it counts.
        """
        policy = self._load({})
        if policy.problems:
            raise ValueRefusedError(f"the policy denies everything, because of {policy.problems[0]}")
        files = dict.fromkeys(rule.origin.file for rule in policy.rules_for(service))
        return list(dict.fromkeys(map(self._shorten, files)))

    def _shorten(self, path: str) -> str:
        for folder in self._all:
            if path.startswith(f"{folder}/"):
                return path.removeprefix(f"{folder}/").removesuffix(SUFFIX)
        return path

    def _places(self, sort: Sort, name: str) -> Iterator[str]:
        return (self._place(folder, sort, name) for folder in self._all)

    @staticmethod
    def _place(folder: str, sort: Sort, name: str) -> str:
        return f"{folder}{sort.folder}/{name}{sort.suffix}"

    def _own_place(self, sort: Sort, name: str) -> str | None:
        """Return where the administrator's file of that name is, if there is one."""
        places = (self._place(folder, sort, name) for folder in self._folders)
        return next((path for path in places if self._shelf.read(path) is not None), None)

    def _check_token(self, sort: Sort, name: str, untrusted_token: str) -> None:
        if untrusted_token not in (NEW, ANY) and not _TOKEN.fullmatch(untrusted_token):
            raise ProtocolError("the payload does not begin with a token: 'new', 'any', or 'sha256:' and 64 digits")
        if untrusted_token == ANY:
            return
        present = None
        with suppress(NotFoundError):
            present, _ = self.read(sort, name)
        if untrusted_token == NEW and present is not None:
            raise ValueRefusedError(f"{sort.title} {name} is there already; read it, and hand in its token")
        if untrusted_token not in (NEW, present):
            raise ValueRefusedError(f"{sort.title} {name} is not as it was when its token was made; read it again")

    def _rehearse(self, failure: str, changes: dict[str, str | None]) -> None:
        """Raise ValueRefusedError when changes would give the policy a problem that it does not have now.

        One that it has already is no reason: it may be the next that is put right.
        """
        before = set(self._load({}).problems)
        problems = [problem for problem in self._load(changes).problems if problem not in before]
        if problems:
            raise ValueRefusedError(f"{failure}: {_tell(problems)}")

    def _load(self, changes: dict[str, str | None]) -> Policy:
        return load(_Rehearsal(self._shelf.reader(), changes), self._all)


def _tell(problems: list[Problem]) -> str:
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{problems[0]}{more}"


def make_token(data: bytes) -> str:
    """Return what stands for a content (qrexec specification, section 6)."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _check_name(sort: Sort, untrusted_name: str) -> str:
    if not sort.pattern.fullmatch(untrusted_name) or len(untrusted_name) > _NAME_MAX:
        letters = "0-9 a-z _ . -" if sort is Sort.POLICY else "0-9 A-Z a-z _ . + -"
        raise ValueRefusedError(f"{shown(untrusted_name)} is no name of {sort.title}s; they are made of {letters}")
    return untrusted_name


def _decode(name: str, untrusted_data: bytes) -> str:
    """Return the text of a file; raises ValueRefusedError for what is none, or is read differently by others."""
    try:
        text = untrusted_data.decode()
    except UnicodeDecodeError as error:
        line = untrusted_data.count(b"\n", 0, error.start) + 1
        raise ValueRefusedError(f"{name} was not changed: line {line} is not UTF-8") from None
    if "\r" in text:
        line = text[: text.index("\r")].count("\n") + 1
        raise ValueRefusedError(f"{name} was not changed: line {line} has a carriage return; end lines with \\n alone")
    return text


class _Rehearsal:
    """The files as they are, but for some changes; a path whose text is None is a file that is gone."""

    def __init__(self, reader: Reader, changes: dict[str, str | None]) -> None:
        self._reader = reader
        self._changes = changes

    def list_files(self, directory: str) -> Sequence[str] | None:
        changes = {
            name: text
            for folder, _, name, text in ((*path.rpartition("/"), text) for path, text in self._changes.items())
            if folder == directory
        }
        found = self._reader.list_files(directory)
        new = [name for name, text in changes.items() if text is not None]
        if found is None:
            return new or None
        return [*(name for name in found if name not in changes), *new]

    def read_text(self, path: str) -> str | None:
        return self._changes[path] if path in self._changes else self._reader.read_text(path)
