"""Asking on a terminal. An answer is typed and ended by Enter, and nothing that was typed before the prompt counts.

Who types into another window, or did so until a moment ago, must not decide about something that is not read yet.
"""

from __future__ import annotations

import os
import re
import select
import sys
import termios
import time

from crannog.cli.policy_question import DENY, Question
from crannog.errors import UsageError

CALM = 0.5
"""Seconds after a question was shown in which whatever is typed is thrown away; then the prompt comes."""
NO = "n"
_STDIN = 0
_NUMBER = re.compile(r"[1-9][0-9]{0,4}")


class TerminalAsker:
    """Asks on the terminal that this program was started at; raises UsageError when it was not started at one."""

    def __init__(self) -> None:
        if not os.isatty(_STDIN) or not sys.stdout.isatty():
            raise UsageError("the agent asks on a terminal, and this is none; on a desktop use --notify or --command")
        self._question: Question | None = None
        self._ready: float | None = None

    def open(self, question: Question, waiting: int) -> None:
        """Show a question and its numbered targets; `waiting` is how many others there are."""
        self._question = question
        width = len(str(len(question.targets)))
        print(f"\n{question.sentence}" + (f"   ({waiting} more to come)" if waiting else ""))
        for number, target in enumerate(question.targets, 1):
            print(f"  {number:{width}}  {target}" + ("   (proposed)" if target == question.default else ""))
        sys.stdout.flush()
        termios.tcflush(_STDIN, termios.TCIFLUSH)
        self._ready = time.monotonic() + CALM

    def files(self) -> list[int]:
        """Return the terminal, once an answer can be typed."""
        return [_STDIN] if self._question and self._ready is None else []

    def wake(self) -> float | None:
        """Return when the prompt is due."""
        return self._ready

    def take(self) -> str | None:
        """Return the answer if a line with one was typed; raises KeyboardInterrupt when the terminal has gone."""
        if self._ready is not None:
            if time.monotonic() >= self._ready:
                self._prompt()
            return None
        if not select.select([_STDIN], [], [], 0)[0]:
            return None
        return self._read()

    def _prompt(self) -> None:
        termios.tcflush(_STDIN, termios.TCIFLUSH)
        self._ready = None
        self._show("Number or name of the target, or n for no: ", end="")

    def _read(self) -> str | None:
        """Read what was typed: at a terminal that is one line. Ctrl-D, the end of input, is no."""
        try:
            data = os.read(_STDIN, 4096)
        except OSError:
            raise KeyboardInterrupt from None
        answer = self._understand(data.decode("utf-8", "replace")) if data else DENY
        if answer is None:
            self._show("That is none of them. Number or name of the target, or n for no: ", end="")
            return None
        self._question = None
        self._show(f"{'' if data else chr(10)}{'denied' if answer == DENY else f'allowed, to {answer[6:]}'}")
        return answer

    def _understand(self, untrusted_line: str) -> str | None:
        question, is_line = self._question, untrusted_line.endswith("\n")
        untrusted_line = untrusted_line.strip()
        if question is None or not is_line:
            return None
        if untrusted_line == NO:
            return DENY
        number = int(untrusted_line) if _NUMBER.fullmatch(untrusted_line) else 0
        if 0 < number <= len(question.targets):
            return question.allow(question.targets[number - 1])
        return question.allow(untrusted_line) if untrusted_line in question.targets else None

    def close(self, why: str) -> None:
        """Say that the open question is gone."""
        self._question = self._ready = None
        self._show(f"\n{why}")

    def tell(self, sentence: str) -> None:
        """Print a line."""
        self._show(sentence)

    @staticmethod
    def _show(text: str, end: str = "\n") -> None:
        print(text, end=end, flush=True)
