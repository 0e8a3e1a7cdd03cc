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
        ("None", "reserved"),
        ("default", "reserved"),
        ("work-dm", "device models"),
    ],
)
def test_bad_names_are_refused_with_the_rule(name: str, reason: str) -> None:
    with pytest.raises(ValueRefusedError, match=reason):
        check_name(name)


def is_accepted(name: str) -> bool:
    try:
        check_name(name)
    except ValueRefusedError:
        return False
    return True


@given(st.text(max_size=200) | st.text(st.sampled_from(OTHER), max_size=40))
def test_what_is_accepted_keeps_every_rule(name: str) -> None:
    keeps_rules = (
        0 < len(name) <= MAX_LENGTH
        and name[0] in FIRST
        and set(name) <= set(OTHER)
        and not name.endswith("-dm")
        and name not in ("Domain-0", "dom0", "none", "None", "default")
    )
    assert is_accepted(name) is keeps_rules


@given(st.text(min_size=1000, max_size=2000))
def test_a_long_name_makes_no_long_sentence(name: str) -> None:
    with pytest.raises(ValueRefusedError) as caught:
        check_name(name)
    assert len(str(caught.value)) < 300
