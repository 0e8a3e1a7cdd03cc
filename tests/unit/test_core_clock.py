"""What the feature `timezone` means."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crannog.core.clock import MAX_OFFSET, UTC, Basis, Clock, parse_clock


@pytest.mark.parametrize(
    ("text", "clock"),
    [
        (None, UTC),
        ("", UTC),
        ("UTC", UTC),
        ("0", UTC),
        ("localtime", Clock(Basis.LOCAL)),
        (" LocalTime ", Clock(Basis.LOCAL)),
        ("3600", Clock(offset=3600)),
        ("-18000", Clock(offset=-18000)),
        ("+05400", Clock(offset=5400)),
        (str(MAX_OFFSET - 1), Clock(offset=MAX_OFFSET - 1)),
    ],
)
def test_what_is_understood(text: str | None, clock: Clock) -> None:
    assert parse_clock(text) == (clock, "")


@pytest.mark.parametrize(
    "text",
    ["Europe/Berlin", "1h", "1.5", "--5", "3 600", "0x10", str(MAX_OFFSET), str(-MAX_OFFSET), "9" * 5000, "٣", "1_0"],
)
def test_what_is_not_understood_warns_and_is_utc(text: str) -> None:
    clock, warning = parse_clock(text)
    assert clock == UTC
    assert "neither 'localtime' nor an offset from UTC in seconds" in warning
    assert warning.endswith("the clock shows UTC")
    assert len(warning) < 250


@given(st.text())
def test_any_text_has_a_meaning(text: str) -> None:
    clock, warning = parse_clock(text)
    assert not warning or clock == UTC
    assert abs(clock.offset) < MAX_OFFSET
