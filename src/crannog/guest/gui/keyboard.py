#!/usr/bin/python3 -I
"""Set the keyboard layout of the session's display: keyboard.py LAYOUT+VARIANT+OPTIONS.

The text is that of the VM's property `keyboard_layout`, as the guest DB has it; setxkbmap(1) does the rest, with the
key codes that the host's keyboard has as well. One file of Python 3.9 with its standard library; session.py runs it.
"""

from __future__ import annotations

import os
import re
import sys

LAYOUT = re.compile(r"([A-Za-z0-9][A-Za-z0-9_,()-]{0,39})\+([A-Za-z0-9_,()-]{0,60})\+([A-Za-z0-9_,:()-]{0,200})")
KEYS = ("-rules", "evdev", "-model", "pc105")
"""Each key of a PC has one code in these (xkeyboard-config(7)), whatever is printed on it."""


def list_words(text: str) -> list[str]:
    """Return setxkbmap's command line for a layout. Raises ValueError for a text that is none."""
    match = LAYOUT.fullmatch(text)
    if not match:
        raise ValueError(f"{text[:80]!r} is no keyboard layout: LAYOUT+VARIANT+OPTIONS, such as de+nodeadkeys+")
    layout, variant, options = match.groups()
    words = ["setxkbmap", *KEYS, "-layout", layout, "-variant", variant, "-option", ""]  # which forgets older ones
    for option in filter(None, options.split(",")):
        words += ["-option", option]
    return words


def main(text: str) -> int:
    """Set the layout; return only when that fails."""
    try:
        words = list_words(text)
        os.execvp(words[0], words)  # noqa: S606  which has no shell
    except (OSError, ValueError) as error:
        sys.stderr.write(f"crannog-gui: the keyboard stays as it is: {error}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) == 2 else ""))
