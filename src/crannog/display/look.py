"""What a VM looks like: its name and state, with which every title begins, and the colour of its label.

crannogd says it when a display's process starts, and again in a line `look #rrggbb STATE` when it changes. None of it
is a guest's, and what is none is refused all the same.
"""

import dataclasses
import re

from crannog.errors import ValueRefusedError

_COLOUR = re.compile(r"(?:#|0x)([0-9a-fA-F]{6})")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,30}")
_STATE = re.compile(r"[a-z][a-z, ]{0,59}")
WORD = "look"


@dataclasses.dataclass(frozen=True)
class Look:
    """A VM's name, its label's colour as six hex digits, and its state, empty for one that just runs."""

    name: str
    colour: str
    state: str = ""

    def change(self, line: str) -> "Look":
        """Return the look after a line `look #rrggbb STATE`, in which the state may be missing.

        Raises ValueRefusedError.
        """
        word, _, rest = line.partition(" ")
        colour, _, state = rest.partition(" ")
        if word != WORD:
            raise ValueRefusedError(f"'{line[:80]}' says nothing of a look")
        return parse_look(self.name, colour, state)


def parse_look(name: str, colour: str, state: str = "") -> Look:
    """Return what a VM looks like. Raises ValueRefusedError for a name, colour or state that is none."""
    if not _NAME.fullmatch(name):
        raise ValueRefusedError(f"'{name[:80]}' is no name of a VM: give it as qvm-ls shows it")
    match = _COLOUR.fullmatch(colour)
    if not match:
        raise ValueRefusedError(f"'{colour[:80]}' is no colour: give it as #rrggbb")
    if state and not _STATE.fullmatch(state):
        raise ValueRefusedError(f"'{state[:80]}' is no state of a VM: give it in small letters")
    return Look(name, match[1].lower(), state)
