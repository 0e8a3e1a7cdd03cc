#!/usr/bin/python3 -I
"""Start what a user's session starts by itself: the Desktop Application Autostart Specification, version 0.5.

Files NAME.desktop of ~/.config/autostart, and of autostart in the folders of XDG_CONFIG_DIRS (/etc/xdg), are read
once; of several with one name the first counts. They are started as this process's user, side by side, and this
process ends. A file that makes no sense is skipped with a line on stderr. Standard library of Python 3.9 alone.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys

DESKTOP = "X-Crannog"
"""The session's name in OnlyShowIn and NotShowIn, unless XDG_CURRENT_DESKTOP has others."""
SIZE_MAX = 64 << 10
FILES_MAX = 256
TERMINALS = ("x-terminal-emulator", "xterm")
_ESCAPES = {"s": " ", "n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


class SkippedError(Exception):
    """A file is not what the specifications say; the text says why."""


def log(sentence: str) -> None:
    """Write a line to stderr, which is the journal or the console: without letters that a terminal would obey."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in sentence[:400])
    sys.stderr.write(f"crannog-autostart: {shown}\n")


def list_folders(environment: dict[str, str]) -> list[str]:
    """Return the folders of autostart files, the most important one first (XDG Base Directory Specification)."""
    home = environment.get("XDG_CONFIG_HOME", "")
    if not os.path.isabs(home):
        home = os.path.join(environment.get("HOME", "/"), ".config")
    others = environment.get("XDG_CONFIG_DIRS", "") or "/etc/xdg"
    return [f"{folder}/autostart" for folder in (home, *others.split(":")) if os.path.isabs(folder)]


def list_files(folders: list[str]) -> list[str]:
    """Return the files that count, in the order of their names."""
    found: dict[str, str] = {}
    for folder in folders:
        try:
            names = sorted(name for name in os.listdir(folder) if name.endswith(".desktop"))
        except OSError:
            continue
        for name in names:
            found.setdefault(name, f"{folder}/{name}")
    return [found[name] for name in sorted(found)][:FILES_MAX]


def read_entry(path: str) -> dict[str, str]:
    """Return the keys of the group [Desktop Entry] as they are written. Raises SkippedError."""
    try:
        with open(path, "rb") as file:
            data = file.read(SIZE_MAX + 1)
        if len(data) > SIZE_MAX:
            raise SkippedError(f"it is larger than {SIZE_MAX} bytes")
        text = data.decode()
    except OSError as error:
        raise SkippedError(error.strerror or "it cannot be read") from None
    except UnicodeDecodeError:
        raise SkippedError("it is not UTF-8") from None
    return parse_entry(text)


def parse_entry(text: str) -> dict[str, str]:
    """Return the keys of a desktop entry (Desktop Entry Specification, "Basic format"). Raises SkippedError."""
    keys: dict[str, str] = {}
    group = None
    for line in text.split("\n"):
        stripped = line.strip()
        if stripped.startswith("[") and stripped.endswith("]"):
            group = stripped[1:-1]
        elif group == "Desktop Entry" and stripped and not stripped.startswith("#"):
            key, equals, value = stripped.partition("=")
            if not equals:
                raise SkippedError(f"the line {stripped[:40]!a} has no =")
            keys.setdefault(key.strip(), value.strip())
    if not keys:
        raise SkippedError("it has no group [Desktop Entry]")
    return keys


def unescape(value: str) -> str:
    """Return a string value with its escapes resolved (Desktop Entry Specification, "Possible value types")."""
    return re.sub(r"\\(.)", lambda match: _ESCAPES.get(match[1], match[0]), value)


def split_list(value: str) -> list[str]:
    """Return the strings of a list value, which end with semicolons."""
    return [part for part in value.split(";") if part]


def is_wanted(keys: dict[str, str], desktops: list[str]) -> bool:
    """Tell whether an entry is to be started in one of these desktops."""
    if keys.get("Hidden", "false") == "true" or keys.get("X-GNOME-Autostart-enabled", "true") == "false":
        return False
    only, never = (split_list(keys[key]) if key in keys else None for key in ("OnlyShowIn", "NotShowIn"))
    for desktop in desktops:  # the first that is named decides
        if only and desktop in only:
            return True
        if never and desktop in never:
            return False
    return only is None


def is_installed(program: str, search: str) -> bool:
    """Tell whether a program of TryExec is there: a path, or a name to be looked for in PATH."""
    return bool(shutil.which(program, path=search))


def split_command(value: str) -> list[str]:
    """Return the words of a key Exec (Desktop Entry Specification, "The Exec key"). Raises SkippedError."""
    words: list[str] = []
    word: list[str] | None = None
    is_quoted = False
    letters = iter(unescape(value))
    for letter in letters:
        if is_quoted and letter == "\\":
            word = [*(word or []), _read_quoted(next(letters, ""))]
        elif letter == '"':
            is_quoted, word = not is_quoted, word or []
        elif letter in " \t\n" and not is_quoted:
            if word is not None:
                words.append("".join(word))
            word = None
        else:
            word = [*(word or []), letter]
    if is_quoted:
        raise SkippedError("Exec has a quote that does not end")
    return words if word is None else [*words, "".join(word)]


def _read_quoted(letter: str) -> str:
    if letter not in tuple('"`$\\'):
        raise SkippedError("Exec has a backslash before a letter that needs none")
    return letter


def expand(words: list[str], keys: dict[str, str], path: str) -> list[str]:
    """Return words without field codes: there is no file or address to open. Raises SkippedError."""
    expanded: list[str] = []
    for word in words:
        if word == "%i":
            expanded += ["--icon", unescape(keys["Icon"])] if keys.get("Icon") else []
        elif word not in ("%f", "%F", "%u", "%U", "%d", "%D", "%n", "%N", "%v", "%m"):
            expanded.append(re.sub("%(.?)", lambda match: _expand_code(match[1], keys, path), word))
    if not expanded or not expanded[0]:
        raise SkippedError("Exec names no program")
    return expanded


def _expand_code(code: str, keys: dict[str, str], path: str) -> str:
    values = {"%": "%", "c": unescape(keys.get("Name", "")), "k": path}
    if code not in values and code not in tuple("fFuUdDnNvmi"):
        raise SkippedError(f"Exec has the unknown field code %{code}")
    return values.get(code, "")


def plan(path: str, environment: dict[str, str]) -> list[str]:
    """Return the command line of a file, an empty one when it is not for here and now. Raises SkippedError."""
    keys = read_entry(path)
    desktops = [name for name in environment.get("XDG_CURRENT_DESKTOP", "").split(":") if name] or [DESKTOP]
    if not is_wanted(keys, desktops):
        return []
    search = environment.get("PATH", os.defpath)
    if keys.get("TryExec") and not is_installed(unescape(keys["TryExec"]), search):
        return []
    if keys.get("Type") != "Application" or not keys.get("Exec"):
        raise SkippedError("it is of no Type=Application with a key Exec")
    words = expand(split_command(keys["Exec"]), keys, path)
    if not is_installed(words[0], search):
        raise SkippedError(f"there is no program {words[0][:80]!a}")
    if keys.get("Terminal") == "true":
        terminal = next((name for name in TERMINALS if is_installed(name, search)), "")
        if not terminal:
            raise SkippedError("it wants a terminal, and there is none")
        words = [terminal, "-e", *words]
    return words


def start(path: str, words: list[str]) -> None:
    """Start the program of a file in the folder that its key Path names. Raises SkippedError."""
    folder = unescape(read_entry(path).get("Path", "")) or os.environ.get("HOME", "/")
    try:
        subprocess.Popen(
            words, cwd=folder if os.path.isdir(folder) else "/", stdin=subprocess.DEVNULL, start_new_session=True
        )
    except (OSError, ValueError) as error:
        raise SkippedError(f"{words[0][:80]!a} cannot be started: {error}") from None


def main() -> int:
    """Start everything; return 0."""
    environment = dict(os.environ)
    for path in list_files(list_folders(environment)):
        try:
            words = plan(path, environment)
            if words:
                start(path, words)
                log(f"{path}: {' '.join(map(shlex.quote, words))}")
        except SkippedError as reason:
            log(f"{path} is skipped: {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
