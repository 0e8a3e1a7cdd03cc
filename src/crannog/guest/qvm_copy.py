#!/usr/bin/python3 -IS
"""qvm-copy, qvm-move, qvm-copy-to-vm, qvm-move-to-vm: copy files to another VM, from a guest.

The name it is called by says what is done. A move removes what was sent only after the other VM has confirmed all of
it, and only what is still as it was then.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable

TOOLS = ("qvm-copy", "qvm-move", "qvm-copy-to-vm", "qvm-move-to-vm")
CLIENT = "qrexec-client-vm"
QFILE = os.path.join(os.path.dirname(os.path.realpath(__file__)), "qfile.py")


class Trouble(Exception):  # noqa: N818
    """Nothing can be copied: a sentence for the user."""


class Contents:
    """What is to be copied: every path with what lstat(2) says of it, folders before what is in them."""

    def __init__(self, paths: list[str]) -> None:
        self.entries: list[tuple[str, os.stat_result]] = []
        self.names = [os.path.basename(path.rstrip("/")) for path in paths]
        for path, name in zip(paths, self.names):  # noqa: B905  not in Python 3.9
            if name in ("", ".", ".."):
                raise Trouble(f"'{path}' has no name of its own to be copied as: name the folder by its path")
            if self.names.count(name) > 1:
                raise Trouble(f"two of the files are called '{name}': copy them one after the other")
            self._add(path.rstrip("/"))

    def _add(self, path: str) -> None:
        pending = [path]
        while pending:
            path = pending.pop()
            facts = os.lstat(path)
            if not any(test(facts.st_mode) for test in (stat.S_ISREG, stat.S_ISDIR, stat.S_ISLNK)):
                raise Trouble(f"'{path}' is neither a file, a folder nor a link: it cannot be copied")
            self.entries.append((path, facts))
            if stat.S_ISDIR(facts.st_mode):
                pending += [f"{path}/{name}" for name in os.listdir(path)]

    def size(self) -> int:
        """Return how many bytes the files have."""
        return sum(facts.st_size for _, facts in self.entries if stat.S_ISREG(facts.st_mode))

    def is_plain(self) -> bool:
        """Tell whether the other VM takes all names (and links) without being told that they are unusual."""
        texts = [os.path.basename(path) for path, _ in self.entries]
        texts += [os.readlink(path) for path, facts in self.entries if stat.S_ISLNK(facts.st_mode)]
        return all(text.isprintable() for text in (*texts, *self.names))

    def remove(self) -> list[str]:
        """Remove everything that is as it was; return the paths that stay."""
        kept = []
        for path, before in reversed(self.entries):
            try:
                now = os.lstat(path)
                if stat.S_ISDIR(before.st_mode):
                    os.rmdir(path)
                elif (now.st_ino, now.st_size, now.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns):
                    os.unlink(path)
                else:
                    kept.append(path)
            except OSError:
                kept.append(path)
        return kept


def say(sentence: str) -> None:
    """Write a line to stderr."""
    sys.stderr.write(sentence.encode("utf-8", "replace").decode() + "\n")


def parse(tool: str, arguments: Iterable[str]) -> tuple[str, list[str], bool]:
    """Return the VM, the files, and whether progress is shown. Raises Trouble with the usage."""
    words = list(arguments)
    is_shown = True
    while words and words[0].startswith("-"):
        word = words.pop(0)
        if word == "--":
            break
        if word != "--without-progress":
            words = []
            break
        is_shown = False
    has_vm = tool.endswith("-to-vm")
    if len(words) < 1 + has_vm:
        raise Trouble(f"usage: {tool} [--without-progress] {'VM ' if has_vm else ''}FILE...")
    return (words[0], words[1:], is_shown) if has_vm else ("@default", words, is_shown)


def copy(vm: str, paths: list[str], contents: Contents, is_shown: bool) -> int:
    """Send the files; return the exit code, 0 when the other VM has all of them."""
    service = "qubes.Filecopy" if contents.is_plain() else "qubes.Filecopy+allow-unsafe-characters"
    if is_shown:
        os.environ["FILECOPY_TOTAL_SIZE"] = str(contents.size())
    command = [CLIENT, "--filter-escape-chars-stderr", "--", vm, service, QFILE, "send", *paths]
    return os.spawnvp(os.P_WAIT, CLIENT, command)  # noqa: S606


def main(name: str, arguments: list[str]) -> int:
    """Copy or move; return the exit code."""
    tool = os.path.basename(name)
    try:
        if tool not in TOOLS:
            raise Trouble(f"'{tool}' is none of the names of this tool: {', '.join(TOOLS)}")
        vm, paths, is_shown = parse(tool, arguments)
        contents = Contents(paths)
        code = copy(vm, paths, contents, is_shown)
    except Trouble as trouble:
        say(str(trouble))
        return 1
    except OSError as error:
        say(f"cannot read '{error.filename}': {error.strerror}")
        return 1
    if code == 127:
        say(f"cannot run {CLIENT}: is the guest's agent installed?")
    if code == 0 and "move" in tool:
        kept = contents.remove()
        for path in kept:
            say(f"'{path}' was copied but not removed: it has changed meanwhile, or may not be removed")
        return 1 if kept else 0
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[0], sys.argv[1:]))
