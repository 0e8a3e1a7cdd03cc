"""Labels: the colour that tells the user how far a VM is trusted (Admin API, section 6)."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from crannog.errors import ColorRefusedError, LabelExistsError, LabelRefusedError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_COLOR = re.compile(r"0x[0-9a-f]{6}")


@dataclass(frozen=True)
class Label:
    """A named colour. `index` numbers it from 1; `color` is `0xRRGGBB`."""

    index: int
    name: str
    color: str

    def __str__(self) -> str:
        return self.name


BUILT_IN = (
    Label(1, "red", "0xcc0000"),
    Label(2, "orange", "0xf57900"),
    Label(3, "yellow", "0xedd400"),
    Label(4, "green", "0x73d216"),
    Label(5, "gray", "0x555555"),
    Label(6, "blue", "0x3465a4"),
    Label(7, "purple", "0x75507b"),
    Label(8, "black", "0x000000"),
)
BUILT_IN_NAMES = frozenset(label.name for label in BUILT_IN)


def parse_color(text: str) -> str:
    """Return a colour as `0xRRGGBB` in lower case; `#RRGGBB`, as older files have it, is taken too."""
    color = ("0x" + text[1:] if text.startswith("#") else text).lower()
    if not _COLOR.fullmatch(color):
        raise ColorRefusedError(f"'{text[:40]}' is not a colour; write it as 0xRRGGBB")
    return color


def check_label_name(name: str) -> str:
    """Return `name` if a label may be called so; raises LabelRefusedError."""
    if not _NAME.fullmatch(name):
        raise LabelRefusedError(
            f"'{name[:80]}' cannot be the name of a label: use letters, digits and . _ -, at most 64 of them"
        )
    return name


def new_label(existing: Iterable[Label], name: str, color: str) -> Label:
    """Return a custom label with the first free index above the built-in ones.

    Raises LabelRefusedError or ColorRefusedError for a malformed one, LabelExistsError for a name that is taken.
    """
    labels = list(existing)
    check_label_name(name)
    if any(label.name == name for label in labels):
        raise LabelExistsError(f"a label called '{name}' exists already; choose another name")
    taken = {label.index for label in labels}
    index = next(number for number in range(len(BUILT_IN) + 1, len(taken) + len(BUILT_IN) + 2) if number not in taken)
    return Label(index, name, parse_color(color))
