"""What a VM's hardware clock shows: UTC, the host's local time, or UTC with an offset. Pure."""

import re
from dataclasses import dataclass
from enum import StrEnum

FEATURE = "timezone"
"""The feature that says it, of the VM or its template: `localtime`, or seconds that the clock is ahead of UTC."""

MAX_OFFSET = 86400
"""Seconds; no zone of the world is a day away from UTC, so that more is a mistake."""

_NUMBER = re.compile(r"[+-]?[0-9]{1,9}")


class Basis(StrEnum):
    """The time that a clock starts from."""

    UTC = "utc"
    LOCAL = "localtime"


@dataclass(frozen=True)
class Clock:
    """A hardware clock at its start: the time of `basis`, and so many seconds more."""

    basis: Basis = Basis.UTC
    offset: int = 0


UTC = Clock()


def parse_clock(text: str | None) -> tuple[Clock, str]:
    """Return what the feature's value means, and a warning; the warning is empty when the value was understood.

    No value, and one that is not understood, mean UTC: a VM with a wrong clock is of more use than one that is not
    started.
    """
    word = (text or "").strip().lower()
    if word in ("", "utc"):
        return UTC, ""
    if word == "localtime":
        return Clock(Basis.LOCAL), ""
    if _NUMBER.fullmatch(word) and abs(int(word)) < MAX_OFFSET:
        return Clock(offset=int(word)), ""
    return UTC, (
        f"feature '{FEATURE}' is '{word[:40]}', which is neither 'localtime' nor an offset from UTC in seconds "
        f"of less than a day: the clock shows UTC"
    )
