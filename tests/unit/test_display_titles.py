"""Titles of hostile guests."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crannog.display.titles import TITLE_MAX, UNTITLED, clean_title, compose_title


@pytest.mark.parametrize(
    ("untrusted", "shown"),
    [
        ("Inbox - mail", "Inbox - mail"),
        ("  two   words\n", "two words"),
        ("a\x00b\x1b[31mc\x7f\x9bd", "ab[31mcd"),
        ("a\r\nb\u2028c\u2029d", "a b c d"),
        ("\u202egnp.exe\u202c", "gnp.exe"),
        ("\u2066\u2067a\u2069\u200e\u200f\u061c", "a"),
        ("a\u200bb\u200dc\ufeffd\u00ade", "abcde"),
        ("\U000e0041\U000e0042x", "x"),
        ("\ue000\ud800x\U0010ffff", "x"),
        ("\u3164\u115f\u2800", UNTITLED),
        ("", UNTITLED),
        ("Z" + "\u0335" * 50 + "y", "Z\u0335\u0335y"),
        ("привет 日本 é", "привет 日本 é"),
        (b"caf\xc3\xa9 \xff", "café \ufffd"),
        (None, UNTITLED),
        (7, UNTITLED),
    ],
)
def test_what_is_left_of_a_title(untrusted: object, shown: str) -> None:
    assert clean_title(untrusted) == shown


def test_a_title_begins_with_the_name_whatever_the_guest_wants() -> None:
    assert compose_title("work", "[vault] keys") == "[work] [vault] keys"
    assert compose_title("work", "\u202e]tluav[") == "[work] ]tluav["


def test_ten_megabytes_of_title() -> None:
    shown = clean_title("A" * 10_000_000)
    assert len(shown) == TITLE_MAX
    assert shown.endswith("A\u2026")
    assert len(clean_title(b"\xc3\xa9" * 5_000_000)) == TITLE_MAX
    assert clean_title("\x00" * 10_000_000) == UNTITLED


@given(st.one_of(st.text(), st.binary(), st.text(alphabet=st.characters(categories=["Cf", "Cc", "Mn", "Zl", "Lo"]))))
def test_no_title_holds_what_deceives(untrusted: str | bytes) -> None:
    shown = clean_title(untrusted)
    assert 0 < len(shown) <= TITLE_MAX
    assert not {unicodedata.category(character) for character in shown} & {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
    assert shown == " ".join(shown.split())
