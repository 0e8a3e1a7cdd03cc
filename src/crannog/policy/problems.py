"""Where a rule stands, and what is wrong with a policy."""

from dataclasses import dataclass

from crannog.errors import ValueRefusedError

MAX_PROBLEMS = 100
"""Most problems that are told of one policy: more help nobody."""

_SHOWN = 60


@dataclass(frozen=True, slots=True, order=True)
class Origin:
    """A line of a file. Line 0 is the file as a whole, or something that follows from its being there."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One reason why a policy cannot be used. `message` says what is wrong and what is allowed."""

    origin: Origin
    message: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.message}"


class PolicyRefusedError(ValueRefusedError):
    """A word, a line or a file of a policy cannot be used. Never leaves the package: it becomes a Problem."""


def shown(untrusted_text: str) -> str:
    """Return text from a file or a request as it can stand in a message: short, and without deceiving characters."""
    short = untrusted_text if len(untrusted_text) <= _SHOWN else f"{untrusted_text[:_SHOWN]}..."
    return "'" + "".join(sign if sign.isascii() and sign.isprintable() else "?" for sign in short) + "'"
