#!/usr/bin/python3 -IS
"""qubesdb-read, -multiread, -list, -write, -rm, -watch: the guest DB, from a guest.

The name it is called by says what is done. The agent keeps what the host says as files, which are read here; changes
and watches go through its trigger socket (agent.py). A guest may write below /qubes-tools/ and /features-request/ only.
"""

from __future__ import annotations

import _socket
import os
import struct
import sys

FOLDER = os.environ.get("CRANNOG_GUESTDB_FOLDER", "/run/qubes/guestdb")
AGENT_SOCKET = os.environ.get("CRANNOG_AGENT_SOCKET", "/run/qubes/qrexec-agent")
GUESTDB_WRITE, GUESTDB_REMOVE, GUESTDB_WATCH = 0x702, 0x705, 0x707
LOCAL_HEADER = struct.Struct("<II")
EXIT_MISSING, EXIT_TROUBLE, EXIT_USAGE = 2, 1, 2
USAGES = {
    "qubesdb-read": "[-r] [-d FALLBACK] PATH...",
    "qubesdb-multiread": "[-r] PREFIX",
    "qubesdb-list": "[-f] [-r] PREFIX",
    "qubesdb-write": "PATH VALUE [PATH VALUE...]",
    "qubesdb-rm": "PATH...   (with a slash at the end: all below)",
    "qubesdb-watch": "PATH   (with a slash at the end: all below)",
}


class Trouble(Exception):  # noqa: N818
    """A sentence for the user, with the exit code."""

    def __init__(self, sentence: str, code: int = EXIT_TROUBLE) -> None:
        super().__init__(sentence)
        self.code = code


def read(path: str) -> bytes | None:
    """Return the value of an entry, None where there is none."""
    try:
        with open(f"{FOLDER}/{path.replace('/', '%')}", "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Trouble(f"{path} cannot be read: {error.strerror}") from None


def list_paths(prefix: str) -> list[str]:
    """Return the paths that begin with `prefix`, in order."""
    try:
        names = os.listdir(FOLDER)
    except OSError as error:
        raise Trouble(f"there is no guest DB: {error.strerror}; is the agent running?") from None
    paths = [name.replace("%", "/") for name in names if name.startswith("%")]
    return sorted(path for path in paths if path.startswith(prefix))


def escape(value: bytes, is_raw: bool) -> bytes:
    """Return a value as it can be shown: odd bytes by their hexadecimal numbers, unless it is wanted as it is."""
    if is_raw:
        return value
    return b"".join(b"%c" % byte if 32 <= byte < 127 else b"\\x%02x" % byte for byte in value)


def put(data: bytes) -> None:
    """Write to stdout."""
    while data:
        data = data[os.write(1, data) :]


def connect() -> _socket.socket:
    """Return a connection to the agent."""
    agent = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        agent.connect(AGENT_SOCKET)
    except OSError as error:
        raise Trouble(f"the agent does not answer at {AGENT_SOCKET}: {error.strerror}") from None
    return agent


def receive(agent: _socket.socket, count: int) -> bytes:
    """Return so many bytes; fewer when the agent has closed the connection."""
    data = b""
    while len(data) < count:
        part = agent.recv(count - len(data))
        if not part:
            break
        data += part
    return data


def change(kind: int, body: bytes, path: str) -> None:
    """Have the host change something."""
    agent = connect()
    agent.sendall(LOCAL_HEADER.pack(kind, len(body)) + body)
    if len(receive(agent, LOCAL_HEADER.size + 4)) < LOCAL_HEADER.size + 4:
        raise Trouble(f"{path} was not changed: only root may, and only below /qubes-tools/ and /features-request/")


def watch(path: str) -> None:
    """Print the paths of what changes, until the agent goes."""
    agent = connect()
    body = os.fsencode(path)
    agent.sendall(LOCAL_HEADER.pack(GUESTDB_WATCH, len(body)) + body)
    while True:
        header = receive(agent, LOCAL_HEADER.size)
        if len(header) < LOCAL_HEADER.size:
            raise Trouble("the agent has gone; watch again")
        kind, length = LOCAL_HEADER.unpack(header)
        changed = receive(agent, length)
        if kind == GUESTDB_WRITE:
            put(changed + b"\n")


def take_options(words: list[str], flags: str) -> tuple[set[str], str | None, list[str]]:
    """Return the flags that are given, the fallback, and the other words. Raises IndexError or KeyError."""
    given: set[str] = set()
    fallback = None
    while words and words[0].startswith("-"):
        word = words.pop(0)
        if word == "--":
            break
        if word == "-d" and "d" in flags:
            fallback = words.pop(0)
        elif len(word) == 2 and word[1] in flags:
            given.add(word[1])
        else:
            raise KeyError(word)
    return given, fallback, words


class Given:
    """What a tool was told: flags, a fallback, and words."""

    def __init__(self, words: list[str], known: str) -> None:
        self.flags, self.fallback, self.words = take_options(words, known)
        self.is_raw = "r" in self.flags


def do_read(given: Given) -> None:
    """Print the values of entries, a line each."""
    for path in given.words:
        value = read(path)
        if value is None and given.fallback is None:
            raise Trouble(f"there is no {path} in the guest DB", EXIT_MISSING)
        shown = os.fsencode(given.fallback or "") if value is None else escape(value, given.is_raw)
        put(shown + b"\n")


def do_multiread(given: Given) -> None:
    """Print paths with their values."""
    (prefix,) = given.words
    for path in list_paths(prefix):
        put(path.encode() + b" = " + escape(read(path) or b"", given.is_raw) + b"\n")


def do_list(given: Given) -> None:
    """Print the paths that begin with a prefix, or what is behind it."""
    (prefix,) = given.words
    for path in list_paths(prefix):
        put((path if "f" in given.flags else path[len(prefix) :]).encode() + b"\n")


def do_write(given: Given) -> None:
    """Set values."""
    words = given.words
    if len(words) % 2:
        raise ValueError
    for path, value in zip(words[::2], words[1::2]):  # noqa: B905  not in Python 3.9
        change(GUESTDB_WRITE, os.fsencode(path) + b"\0" + os.fsencode(value), path)


def do_remove(given: Given) -> None:
    """Remove entries."""
    for path in given.words:
        change(GUESTDB_REMOVE, os.fsencode(path), path)


def do_watch(given: Given) -> None:
    """Print what changes."""
    (path,) = given.words
    watch(path)


TOOLS = {
    "qubesdb-read": (do_read, "rd"),
    "qubesdb-multiread": (do_multiread, "r"),
    "qubesdb-list": (do_list, "fr"),
    "qubesdb-write": (do_write, ""),
    "qubesdb-rm": (do_remove, ""),
    "qubesdb-watch": (do_watch, ""),
}


def main(name: str, words: list[str]) -> int:
    """Run the tool of that name; return its exit code."""
    tool = os.path.basename(name)
    act, flags = TOOLS.get(tool, (do_read, ""))
    try:
        given = Given(words, flags)
        if tool not in TOOLS or not given.words:
            raise ValueError
        act(given)
    except Trouble as trouble:
        sys.stderr.write(f"{tool}: {trouble}\n")
        return trouble.code
    except (IndexError, KeyError, ValueError):
        sys.stderr.write(f"usage: {tool} {USAGES.get(tool, '')}\n")
        return EXIT_USAGE
    except BrokenPipeError:
        return 141
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[0], sys.argv[1:]))
