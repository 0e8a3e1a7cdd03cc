"""Titles of a guest's windows, as the host shows them.

A guest chooses its titles, and may try to pass for another VM, or for a program of the host: by control characters,
by characters that turn the reading direction or take no place, by length, or by imitating a frame's text. What a
window manager shows is `[NAME] `, or `[NAME: STATE] `, and then at most TITLE_MAX letters of what the guest wants; no
title of a guest begins in another way. This file uses the standard library alone, as it runs in the sandbox as well.
"""

import unicodedata

TITLE_MAX = 200
"""Characters of the guest's part."""
READ_MAX = 4096
"""Characters that are looked at: the rest of a longer title costs nothing."""
UNTITLED = "untitled"
PREFIX_MAX = 100

_FORBIDDEN = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})
"""General categories (Unicode Standard, section 4.5): control, format (all that changes direction, or has no width),
unassigned, private use, surrogates, separators of lines and paragraphs."""
_MARKS = frozenset({"Me", "Mn"})
_MARKS_MAX = 2
"""Marks on one letter: more of them reach over other lines of the screen."""
_BLANKS = frozenset("\u115f\u1160\u2800\u3164\uffa0")
"""Letters that look like nothing."""


def compose_prefix(name: str, state: str) -> str:
    """Return what stands in brackets: the VM's name, and its state unless it just runs."""
    return (f"{name}: {state}" if state else name)[:PREFIX_MAX]


def compose_title(prefix: str, untrusted_title: object) -> str:
    """Return the title to show: the prefix in brackets, then what is left of the guest's title."""
    return f"[{prefix[:PREFIX_MAX]}] {clean_title(untrusted_title)}"


def clean_title(untrusted_title: object) -> str:
    """Return a guest's title without what could deceive: one line, of bounded length, of letters that show."""
    text = _decode(untrusted_title)[:READ_MAX]
    kept: list[str] = []
    marks = 0
    for character in text:
        category = unicodedata.category(character)
        marks = marks + 1 if category in _MARKS else 0
        if character.isspace() or character in _BLANKS:
            kept.append(" ")
        elif category not in _FORBIDDEN and marks <= _MARKS_MAX:
            kept.append(character)
    cleaned = " ".join("".join(kept).split())
    if len(cleaned) > TITLE_MAX:
        cleaned = cleaned[: TITLE_MAX - 1] + "\u2026"
    return cleaned or UNTITLED


def _decode(untrusted_title: object) -> str:
    if isinstance(untrusted_title, bytes | bytearray):
        return bytes(untrusted_title[: READ_MAX * 4]).decode("utf-8", "replace")
    return untrusted_title if isinstance(untrusted_title, str) else ""
