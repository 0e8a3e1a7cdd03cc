"""What all tools share: running one, and how it ends."""

from __future__ import annotations

import os
import sys

from crannog.errors import CrannogError, UsageError, ValueRefusedError

# Importing typing and collections.abc would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from crannog.cli.options import Command, Values

INTERRUPTED = 130
BROKEN_PIPE = 141
_IN_SENTENCES = "\n\t"
"""The end of a guest's console, which some sentences quote, has several lines."""


def run(command: Command, action: Callable[[Values], int | None], arguments: list[str] | None = None) -> int:
    """Parse the command line, do the action, and return the exit code. No traceback reaches the user."""
    try:
        values = command.parse(sys.argv[1:] if arguments is None else arguments)
        code = action(values) or 0
        sys.stdout.flush()
    except CrannogError as error:
        complain(command.program, str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Python would complain once more when it flushes at exit; the reader is gone, so nobody misses anything.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        complain(command.program, f"the output cannot be written: {error.strerror}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CrannogError.exit_code
    return code


def end(code: int) -> NoReturn:
    """End the process with `code`. Everything is flushed, and nothing else needs tidying up.

    An interpreter that takes itself apart needs 2 ms for that, a sixth of a tool's life.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def escape(text: str, kept: str = "") -> str:
    """Return the text with escapes for all but printable characters and those in `kept`: a terminal only shows it."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in kept else ascii(char)[1:-1] for char in text)


def complain(program: str, sentence: str) -> None:
    """Say on standard error what went wrong. What could move a terminal's cursor, or worse, is shown as an escape."""
    print(f"{program}: {escape(sentence, kept=_IN_SENTENCES)}", file=sys.stderr)


def say(text: str) -> None:
    """Print a line of output."""
    print(text)


def refuse_odd_word(what: str, word: str) -> None:
    """Raise ValueRefusedError for what no request can carry as a word: empty, with blanks, or not printable ASCII."""
    if not word or " " in word or not (word.isascii() and word.isprintable()):
        raise ValueRefusedError(f"'{word}' cannot be {what}: use letters, digits, '_', '.' and '-'")


def refuse_host(vm: str) -> None:
    """Raise UsageError for dom0 where only a VM makes sense."""
    if vm == "dom0":
        raise UsageError("dom0 is this host itself, not a VM that can be started, stopped, entered or removed")


def for_each(program: str, names: list[str], action: Callable[[str], None]) -> int:
    """Do the action for each VM; go on after a failure. Return the exit code of the first failure, or 0."""
    code = 0
    for name in names:
        try:
            refuse_host(name)
            action(name)
        except CrannogError as error:
            complain(program, str(error))
            code = code or error.exit_code
    return code
