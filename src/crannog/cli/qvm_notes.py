"""qvm-notes: show and change the notes of a VM, which are free text."""

from __future__ import annotations

import os
import sys

from crannog.cli.connect import OFFLINE, open_client
from crannog.cli.options import COMMON, Command, Operand, Option
from crannog.cli.tool import end, run
from crannog.client.connection import Client
from crannog.errors import CrannogError, InUseError, NotFoundError, UsageError, ValueRefusedError

# Importing typing would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from crannog.cli.options import Values

MAX_NOTES = 65000
"""Longest notes in bytes that can be set: a request holds 64 KiB, its header included."""

READ_LIMIT = 2**20
"""Most bytes that are read of a file: more than any notes can have."""

COMMAND = Command(
    "qvm-notes",
    "Show the notes of a VM, or change them. They are UTF-8 text; characters that could deceive a reader become '_'.",
    Operand("vm", "VM", "the VM"),
    Option("--print", "-p", help="print the notes, as without an option"),
    Option("--edit", "-e", help="change the notes in $VISUAL, $EDITOR or vi"),
    Option("--set", "-s", metavar="TEXT", is_repeated=True, help="make TEXT the notes"),
    Option("--append", "-a", metavar="TEXT", is_repeated=True, help="add TEXT in a line of its own; may be repeated"),
    Option("--import", "-i", metavar="FILE", is_repeated=True, help="make the content of FILE the notes; - is stdin"),
    Option("--delete", "-D", "-d", help="delete the notes"),
    Option("--force", "-f", help="accepted for those who are used to it: no question is ever asked"),
    *COMMON,
    OFFLINE,
    examples=(
        "  qvm-notes work\n  qvm-notes --edit work\n  qvm-notes --append 'mail: since May' work\n"
        "  qvm-notes --set=-dash work\n  qvm-notes work > notes.txt && qvm-notes --import notes.txt other"
    ),
)
_ACTIONS = ("print", "edit", "set", "append", "import", "delete")


class Notes:
    """The notes of one VM. Each access opens the store anew: nothing is locked while somebody writes in an editor."""

    def __init__(self, options: Values) -> None:
        self._options = options
        self.vm: str = options.vm

    def _call(self, method: str, payload: bytes = b"") -> bytes:
        client = open_client(COMMAND.program, self._options)
        try:
            return client.call(f"admin.vm.notes.{method}", self.vm, "", payload)
        finally:
            if not isinstance(client, Client):
                client.close()

    def get(self) -> bytes:
        """Return the notes."""
        return self._call("Get")

    def set(self, data: bytes) -> None:
        """Keep the notes; raises ValueRefusedError when they are too long or no text."""
        try:
            data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueRefusedError(
                f"the notes of {self.vm} stay as they are: byte {error.start + 1} of the new ones is not UTF-8"
            ) from None
        if len(data) > MAX_NOTES:
            raise ValueRefusedError(
                f"the notes of {self.vm} stay as they are: the new ones are longer than {MAX_NOTES} bytes"
            )
        self._call("Set", data)


def _act(options: Values) -> None:
    action = _find_action(options)
    if options.vm == "dom0":
        raise UsageError("dom0 is this host itself and has no notes; only VMs have")
    notes = Notes(options)
    if action == "edit":
        _edit(notes)
    elif action == "print":
        _print(notes.get())
    elif action == "append":
        notes.set(_append(notes.get(), options.append))
    else:
        # The file is read first: what cannot be read changes nothing.
        notes.set(_read(getattr(options, "import")[0]) if action == "import" else os.fsencode("".join(options.set)))


def _find_action(options: Values) -> str:
    """Return what to do; raises UsageError when the options exclude each other."""
    chosen = [action for action in _ACTIONS if getattr(options, action)]
    if len(chosen) > 1:
        raise UsageError(" and ".join(f"--{action}" for action in chosen) + " exclude each other")
    for action in ("set", "import"):
        if len(getattr(options, action)) > 1:
            raise UsageError(f"--{action} can be given once only")
    return chosen[0] if chosen else "print"


def _print(data: bytes) -> None:
    """Print the bytes as they are, whatever the locale says, and end the last line."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data if not data or data.endswith(b"\n") else data + b"\n")


def _append(data: bytes, texts: list[str]) -> bytes:
    for text in texts:
        data += (b"" if not data or data.endswith(b"\n") else b"\n") + os.fsencode(text)
    return data


def _read(path: str) -> bytes:
    """Return the content of a file, or more of it than can be kept."""
    try:
        if path == "-":
            return sys.stdin.buffer.read(READ_LIMIT)
        with open(path, "rb") as file:
            return file.read(READ_LIMIT)
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {path} to take notes from") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error


def _edit(notes: Notes) -> None:
    """Let the user change the notes. A text that cannot be kept stays in its file, and the sentence names it."""
    import shutil
    import tempfile

    before = notes.get()
    folder = tempfile.mkdtemp(prefix="qvm-notes-")
    path = os.path.join(folder, f"{notes.vm}.txt")
    is_done = True
    try:
        with open(path, "wb") as file:
            file.write(before)
        _start_editor(path)
        after = _read(path)
        is_done = after == before
        if not is_done:
            _save_edited(notes, before, after, path)
            is_done = True
    finally:
        if is_done:
            shutil.rmtree(folder, ignore_errors=True)


def _save_edited(notes: Notes, before: bytes, after: bytes, path: str) -> None:
    try:
        if notes.get() != before:
            raise InUseError(f"somebody else has changed the notes of {notes.vm} meanwhile")
        notes.set(after)
    except CrannogError as error:
        raise type(error)(f"{error}; your text is in {path}") from error


def _start_editor(path: str) -> None:
    """Run the editor on a file until it ends; raises UsageError when it fails."""
    import shlex
    import signal
    import subprocess

    # Ctrl-C belongs to the editor, as long as there is one. A handler, unlike SIG_IGN, is not handed down to it.
    signal.signal(signal.SIGINT, lambda *_: None)
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    try:
        code = subprocess.run([*shlex.split(editor), path], check=False).returncode
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"the editor '{editor}' cannot be started: {reason}; set VISUAL or EDITOR") from error
    if code:
        raise UsageError(f"the editor '{editor}' ended with {code}; the notes stay as they are")
    signal.signal(signal.SIGINT, signal.default_int_handler)


def main() -> None:
    """Run qvm-notes."""
    end(run(COMMAND, _act))
