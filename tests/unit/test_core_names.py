"""Names of VMs: each rule of the Admin API, section 6."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crannog.core.names import MAX_LENGTH, check_name
from crannog.errors import ValueRefusedError

FIRST = string.ascii_letters
OTHER = FIRST + string.digits + "_.-"


@pytest.mark.parametrize("name", ["a", "Z", "work", "sys-net", "a.b_c-9", "a" * MAX_LENGTH, "dm", "a-dm2", "Default"])
def test_good_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a" * (MAX_LENGTH + 1), "longer than 31"),
        ("", "start with a letter"),
        ("1a", "start with a letter"),
        ("-a", "start with a letter"),
        (".a", "start with a letter"),
        ("_a", "start with a letter"),
        ("a b", "hold only"),
        ("a/b", "hold only"),
        ("a\n", "hold only"),
        ("a\0", "hold only"),
        ("a%", "hold only"),
        ("a:b", "hold only"),
        ("caf\u00e9", "hold only"),
        ("\u0430bc", "start with a letter"),
        ("Domain-0", "reserved"),
        ("dom0", "reserved"),
        ("none", "reserved"),
        ("default", "reserved"),
        ("work-dm", "device models"),
    ],
)
def test_bad_names_are_refused_with_the_rule(name: str, reason: str) -> None:
    with pytest.raises(ValueRefusedError, match=reason):
        check_name(name)


@given(st.text(max_size=200))
def test_what_is_accepted_keeps_every_rule(name: str) -> None:
    try:
        check_name(name)
    except ValueRefusedError as error:
        assert len(str(error)) < 300
        return
    assert 0 < len(name) <= MAX_LENGTH
    assert name[0] in FIRST
    assert set(name) <= set(OTHER)
    assert not name.endswith("-dm")
    assert "/" not in name
    assert name not in ("Domain-0", "dom0", "none", "default", ".", "..")
