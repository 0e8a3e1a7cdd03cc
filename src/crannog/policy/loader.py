"""Policy files to one policy. Files are read by the caller's Reader, so that this knows no file system."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from crannog.policy.parser import Directive, Include, Statement, parse_service_text, parse_text
from crannog.policy.policy import Policy
from crannog.policy.problems import MAX_PROBLEMS, Origin, PolicyRefusedError, Problem, shown
from crannog.policy.rules import ANY, Rule, parse_rule, parse_service

DIRECTORIES = ("/run/qubes/policy.d", "/etc/qubes/policy.d")
"""Where policy is: a file of the first hides one of the same name in the second."""

DEFAULTS = f"{__file__.rpartition('/')[0]}/defaults"
"""The policy that Crannog brings; to be put last."""

OLD_DIRECTORY = "/etc/qubes-rpc/policy"
"""Where `!compat-4.0` finds its files."""

SUFFIX = ".policy"
MAX_DEPTH = 16
MAX_FILES = 5000
"""Most files, each counted as often as it is included."""
MAX_CHARACTERS = 8 * 1024 * 1024
MAX_RULES = 50_000

_NAME = re.compile(r"[0-9a-z_.-]+\.policy")
_OLD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,254}")
_OLD_LEFTOVERS = (".rpmsave", ".rpmnew", ".rpmorig", ".swp", ".dpkg-old", ".dpkg-dist", ".dpkg-new")


class Reader(Protocol):
    """What loading needs of a file system. Both methods may raise OSError, and UnicodeError for what is no UTF-8."""

    def list_files(self, directory: str) -> Sequence[str] | None:
        """Return the names of the files in a directory, links followed; None when there is no such directory."""

    def read_text(self, path: str) -> str | None:
        """Return a file's text; None when there is no such file."""


class _LimitError(PolicyRefusedError):
    """The policy is larger than any that somebody means."""


def load(reader: Reader, directories: Sequence[str] = DIRECTORIES, old_directory: str = OLD_DIRECTORY) -> Policy:
    """Return the policy of the directories. Raises nothing for what files hold: see `Policy.problems`.

    A policy with any problem denies everything. Directories that are not there are empty, but not all of them.
    """
    loader = _Loader(reader, old_directory)
    try:
        loader.load_directories(directories)
    except _LimitError as error:
        loader.problems.append(Problem(loader.current, str(error)))
    return Policy(loader.rules, sorted(set(loader.problems)))


def load_text(text: str, file: str = "policy") -> Policy:
    """Return the policy of a single text, which can include nothing; `file` is what its lines are said to be of."""
    statements = list(parse_text(text, file))
    problems = [statement for statement in statements if isinstance(statement, Problem)]
    problems += [
        Problem(statement.origin, f"{statement.directive} needs files, and this text stands alone; remove this line")
        for statement in statements
        if isinstance(statement, Include)
    ]
    return Policy((statement for statement in statements if isinstance(statement, Rule)), sorted(problems))


class _Loader:
    def __init__(self, reader: Reader, old_directory: str) -> None:
        self.reader = reader
        self.old_directory = old_directory
        self.rules: list[Rule] = []
        self.problems: list[Problem] = []
        self.current = Origin("policy", 0)
        self.texts: dict[str, str] = {}
        self.stack: list[str] = []
        self.files = self.characters = 0

    def load_directories(self, directories: Sequence[str]) -> None:
        """Take in the files of all directories, by their names."""
        found: dict[str, str] = {}
        names_of = {directory: self._list(directory, Origin(directory, 0)) for directory in directories}
        if all(names is None for names in names_of.values()):
            self._refuse(Origin("policy", 0), f"there is no folder with policy; make {directories[-1]}")
        for directory, names in names_of.items():
            for name in self._choose(directory, names or ()):
                found.setdefault(name, directory)
        for name, directory in sorted(found.items()):  # code points, as in the C locale
            self._load_file(f"{directory}/{name}", directory, Origin(directory, 0))

    def _list(self, directory: str, origin: Origin) -> Sequence[str] | None:
        try:
            return self.reader.list_files(directory)
        except (OSError, UnicodeError) as error:
            self._refuse(origin, f"{shown(directory)} cannot be listed: {error}; see to its permissions")
            return ()

    def _choose(self, directory: str, names: Iterable[str]) -> Iterator[str]:
        """Yield the names of policy files; others are somebody's notes, unless they nearly are policy."""
        for name in names:
            if name.startswith(".") or not name.endswith(SUFFIX):
                continue
            if _NAME.fullmatch(name):
                yield name
                continue
            allowed = "0-9, a-z, '_', '.' and '-', so that all programs sort them alike"
            self._refuse(Origin(f"{directory}/{name}", 0), f"the name of a policy file holds only {allowed}; rename it")

    def _refuse(self, origin: Origin, message: str) -> None:
        if len(self.problems) >= MAX_PROBLEMS:
            self.current = origin
            raise _LimitError(f"there are more than {MAX_PROBLEMS} problems; the rest is not told")
        self.problems.append(Problem(origin, message))

    def _load_file(self, path: str, base: str, origin: Origin) -> None:
        """Take in a policy file; relative paths in it are below `base`."""
        text = self._open(path, origin)
        if text is not None:
            self._take_in(path, base, parse_text(text, path))

    def _load_service(self, path: str, base: str, include: Include) -> None:
        text = self._open(path, include.origin)
        if text is not None:
            self._take_in(path, base, parse_service_text(text, path, include.service, include.argument))

    def _open(self, path: str, origin: Origin) -> str | None:
        """Return the text of a file, or None when it was refused."""
        if path in self.stack:
            loop = " -> ".join([*self.stack[self.stack.index(path) :], path])
            self._refuse(origin, f"the file includes itself: {loop}; remove this line")
            return None
        if len(self.stack) >= MAX_DEPTH:
            self._refuse(origin, f"files include each other more than {MAX_DEPTH} deep; include them from fewer files")
            return None
        text = self._read(path, origin)
        self._count(origin, text or "")
        return text

    def _read(self, path: str, origin: Origin) -> str | None:
        if path in self.texts:
            return self.texts[path]
        try:
            text = self.reader.read_text(path)
        except (OSError, UnicodeError) as error:
            self._refuse(origin, f"{path} cannot be read: {error}; see to it, or remove it")
            return None
        if text is None:
            self._refuse(origin, f"there is no file {path}; make it, or remove this line")
        else:
            self.texts[path] = text
        return text

    def _count(self, origin: Origin, text: str) -> None:
        self.current = origin
        self.files += 1
        self.characters += len(text)
        if self.files > MAX_FILES:
            raise _LimitError(f"the policy has more than {MAX_FILES} files, counted as often as they are included")
        if self.characters > MAX_CHARACTERS:
            raise _LimitError(f"the policy has more than {MAX_CHARACTERS} characters, with what is included")

    def _take_in(self, path: str, base: str, statements: Iterable[Statement]) -> None:
        self.stack.append(path)
        for statement in statements:
            if isinstance(statement, Problem):
                self._refuse(statement.origin, statement.message)
            elif isinstance(statement, Include):
                self._include(statement, base)
            else:
                self._add(statement)
        self.stack.pop()

    def _add(self, rule: Rule) -> None:
        self.current = rule.origin
        if len(self.rules) >= MAX_RULES:
            raise _LimitError(f"the policy has more than {MAX_RULES} rules")
        self.rules.append(rule)

    def _include(self, include: Include, base: str) -> None:
        path = include.path if include.path.startswith("/") else f"{base}/{include.path}"
        if include.directive is Directive.INCLUDE:
            self._load_file(path, base, include.origin)
        elif include.directive is Directive.INCLUDE_SERVICE:
            self._load_service(path, base, include)
        elif include.directive is Directive.INCLUDE_DIR:
            self._include_directory(path, base, include.origin)
        else:
            self._include_old(include.origin)

    def _include_directory(self, path: str, base: str, origin: Origin) -> None:
        for name in sorted(self._choose(path, self._list_included(path, origin))):
            self._load_file(f"{path}/{name}", base, origin)

    def _list_included(self, path: str, origin: Origin) -> Sequence[str]:
        names = self._list(path, origin)
        if names is None:
            self._refuse(origin, f"there is no folder {path}; make it, or remove this line")
        return names or ()

    def _include_old(self, origin: Origin) -> None:
        """Take in the files of Qubes 4.0: first those for one argument, after each of which no other file counts."""
        for service, argument, name in self._list_old(origin):
            path = f"{self.old_directory}/{name}"
            self._load_service(
                path, self.old_directory, Include(Directive.INCLUDE_SERVICE, path, origin, service, argument)
            )
            if argument != ANY:
                self._add(parse_rule([service, argument, ANY, ANY, "deny"], Origin(path, 0)))

    def _list_old(self, origin: Origin) -> list[tuple[str, str, str]]:
        found = []
        for name in self._list_included(self.old_directory, origin):
            service, plus, argument = name.partition("+")
            if _OLD_NAME.fullmatch(name) and not name.endswith(_OLD_LEFTOVERS):
                found.append((*parse_service(service, plus + argument or ANY), name))
        return sorted(found, key=lambda entry: (entry[0], entry[1] == ANY, entry[1]))
