"""Asking through other programs: one that the user names, or notify-send of the desktop."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress

from crannog.cli.interrupts import hold_interrupts
from crannog.cli.policy import COMMAND
from crannog.cli.policy_question import DENY, NO_ANSWER, Question
from crannog.cli.tool import complain
from crannog.errors import NotFoundError, NotYetError

# Importing typing would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO

NOTIFIER, PACKAGE = "notify-send", "libnotify-bin"
CALM = 0.5
"""Seconds in which an answer to a notification that has just come up is taken for a slip of the mouse."""
OFFERED_MAX = 5
"""Targets that a notification has buttons for: desktops show only a few."""
GRACE = 1.0
"""Seconds that a program gets to end by itself when its question is gone."""
_ANSWER_MAX = 4096
_TITLE = "Calls between VMs"


class _Run:
    """A program that runs for one question. Its output is its answer."""

    def __init__(self, words: list[str], text: str) -> None:
        with tempfile.TemporaryFile() as file:  # a pipe would need somebody to write while the program reads
            file.write(text.encode("ascii"))
            file.seek(0)
            self.process = subprocess.Popen(words, stdin=file, stdout=subprocess.PIPE, start_new_session=True)
        self.began = time.monotonic()
        self._untrusted_output = b""

    @property
    def output(self) -> IO[bytes]:
        """Where the answer comes."""
        assert self.process.stdout  # noqa: S101 - it was asked for
        return self.process.stdout

    def read(self) -> bytes | None:
        """Return the whole output once the program has ended it; None before that."""
        while select.select([self.output], [], [], 0)[0]:
            block = os.read(self.output.fileno(), _ANSWER_MAX)
            self._untrusted_output = (self._untrusted_output + block)[:_ANSWER_MAX]
            if not block:
                return self._untrusted_output
        return None

    def end(self, number: int = signal.SIGTERM) -> int:
        """End the program and what it has started, if they have not ended; return its exit code."""
        self._signal(number)
        self._wait_for_end()
        self._signal(signal.SIGKILL)  # before it is reaped: until then nobody else can have its number
        code = self.process.wait()
        self.output.close()
        return code

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def _wait_for_end(self) -> None:
        end = os.pidfd_open(self.process.pid)
        select.select([end], [], [], GRACE)
        os.close(end)


class ProgramAsker:
    """Has a program ask: it is started for each question, with the question as JSON on its standard input.

    It prints `allow:TARGET` or `deny`. Whatever else it does is a denial.
    """

    stop = signal.SIGTERM

    def __init__(self, program: str) -> None:
        """Find the program; raises NotFoundError."""
        self._program = _find(program, "--command needs a program that can be run")
        self._question: Question | None = None
        self._run: _Run | None = None

    def open(self, question: Question, waiting: int) -> None:
        """Start the program."""
        self._question = question
        try:
            with hold_interrupts():  # else a program might be left that nobody knows
                self._run = _Run(self.command(question, waiting), question.to_json())
        except OSError as error:
            complain(COMMAND.program, f"{self._program} cannot be run: {error.strerror}; the question is denied")

    def command(self, question: Question, waiting: int) -> list[str]:
        """Return the words of the command that asks."""
        del question, waiting
        return [self._program]

    def files(self) -> list[int]:
        """Return where the answer comes."""
        return [self._run.output.fileno()] if self._run else []

    def wake(self) -> float | None:
        """Return a time that is over when the program could not be started."""
        return 0.0 if self._question and not self._run else None

    def take(self) -> str | None:
        """Return the answer when the program has given one, or failed."""
        if self._question is None:
            return None
        if self._run is None:
            self._question = None
            return NO_ANSWER
        untrusted_output = self._run.read()
        if untrusted_output is None:
            return None
        return self._conclude(self._question, self._run, untrusted_output)

    def _conclude(self, question: Question, run: _Run, untrusted_output: bytes) -> str | None:
        """Return the answer of a program that has closed its output."""
        code = self._finish(run)
        text = untrusted_output.decode("ascii", "replace").removesuffix("\n")
        answer = self.understand(question, text) if not code else None
        if answer is None:
            what = f"ended with code {code}" if code else f"answered {text[:80]!r}, which is no answer to its question"
            complain(COMMAND.program, f"{self._program} {what}; the question is denied")
        self._question = None
        return answer or NO_ANSWER

    def _finish(self, run: _Run) -> int:
        """Wait a moment for the end of the program, which has closed its output; return its exit code."""
        self._run = None
        try:
            code = run.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            return run.end()
        run.output.close()
        return code

    def understand(self, question: Question, untrusted_text: str) -> str | None:
        """Return the answer that a program's output is; None when it is none."""
        return question.read_answer(untrusted_text)

    def close(self, why: str) -> None:
        """End the program, and say why."""
        with hold_interrupts():
            if self._run:
                self._run.end(self.stop)
            self._question = self._run = None
        self.tell(why)

    def tell(self, sentence: str) -> None:
        """Print a line: the desktop's log has it."""
        print(sentence, flush=True)


class NotificationAsker(ProgramAsker):
    """Asks by a notification with a button for each target; closing it is no."""

    stop = signal.SIGINT  # by which notify-send takes its notification away (notify-send.c)

    def __init__(self, timeout: int) -> None:
        """Find notify-send; raises NotFoundError, or NotYetError when it is too old to ask anything."""
        super().__init__(_find(NOTIFIER, f"asking by notifications needs the package {PACKAGE}"))
        self._timeout = timeout
        help_ = subprocess.run([self._program, "--help"], capture_output=True, check=False, timeout=10).stdout
        if b"--action" not in help_:
            raise NotYetError(f"{self._program} knows no --action, with which it asks; {PACKAGE} 0.7.10 and newer do")

    def command(self, question: Question, waiting: int) -> list[str]:
        """Return the call of notify-send; its answer is the number of a target, from 1, or `deny`."""
        offered = offer(question)
        rest = len(question.targets) - len(offered)
        body = f"{question.sentence}. Where to?"
        body += f" There are {rest} other targets: an agent on a terminal offers them all." if rest else ""
        body += f" More questions to come: {waiting}." if waiting else ""
        actions = [f"--action={number}={target}" for number, target in enumerate(offered, 1)]
        fixed = ["--app-name=Crannog", "--urgency=critical", f"--expire-time={self._timeout * 1000}"]
        return [self._program, *fixed, *actions, f"--action={DENY}=No", "--", _TITLE, _plain(body)]

    def understand(self, question: Question, untrusted_text: str) -> str | None:
        """Return the answer for a button; a notification that was closed is no."""
        if untrusted_text in ("", DENY):
            return DENY
        offered = offer(question)
        is_number = untrusted_text.isascii() and untrusted_text.isdigit() and len(untrusted_text) <= 3
        number = int(untrusted_text) if is_number else 0
        return question.allow(offered[number - 1]) if 0 < number <= len(offered) else None

    def _conclude(self, question: Question, run: _Run, untrusted_output: bytes) -> str | None:
        """Ask again when a button was pressed before anybody could have read the question."""
        is_slip = time.monotonic() - run.began < CALM and untrusted_output.strip() not in (b"", DENY.encode())
        if not is_slip:
            return super()._conclude(question, run, untrusted_output)
        self._finish(run)
        self.open(question, 0)
        return None

    def tell(self, sentence: str) -> None:
        """Show a notification that asks nothing, and print the line as well."""
        super().tell(sentence)
        words = [self._program, "--app-name=Crannog", "--", _TITLE, _plain(sentence)]
        with suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(words, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False, timeout=GRACE)


def offer(question: Question) -> list[str]:
    """Return the targets that get buttons: the proposed one first."""
    first = [question.default] if question.default else []
    return [*first, *(target for target in question.targets if target not in first)][:OFFERED_MAX]


def _plain(text: str) -> str:
    """Return text as the desktop shows it unchanged: notifications may have marks in them, as HTML has."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _find(program: str, need: str) -> str:
    found = shutil.which(program)
    if found is None:
        raise NotFoundError(f"there is no program '{program[:200]}'; {need}")
    return os.path.abspath(found)
