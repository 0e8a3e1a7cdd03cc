"""What a tool's requests are made of: who answers them, and words, checked where a sentence can say what is wrong."""

from __future__ import annotations

from crannog.errors import ValueRefusedError

# Importing typing would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Caller(Protocol):
        """What `connect.open_client` returns, as far as a tool is concerned."""

        def call(self, method: str, destination: str = "", argument: str = "", payload: bytes = b"") -> bytes:
            """Return the data of a method's reply."""

        def text(self, method: str, destination: str = "", argument: str = "", payload: str = "") -> str:
            """Call a method whose payload and reply are text."""


NAME_MARKS = "_.-"


def refuse_odd_name(what: str, name: str, marks: str = NAME_MARKS) -> None:
    """Raise ValueRefusedError for a name that holds anything but ASCII letters, digits and `marks`.

    The server would break off without an answer, as it must when a request is malformed.
    """
    if not name or not all((char.isascii() and char.isalnum()) or char in marks for char in name):
        raise ValueRefusedError(
            f"'{name[:80]}' cannot be the name of a {what}: use letters, digits and {' '.join(marks)}"
        )


def refuse_odd_value(what: str, value: str) -> None:
    """Raise ValueRefusedError for a value that is not printable ASCII, which is all that the API takes."""
    if not (value.isascii() and value.isprintable()):
        raise ValueRefusedError(f"{what} was not set: its value must be printable ASCII, without line ends and accents")
