"""Words that name VMs: what they mean, where they may stand, and what is said about the others."""

import pytest

from crannog.core.vms import ADMIN_NAME, ADMIN_UUID
from crannog.policy import tokens
from crannog.policy.problems import PolicyRefusedError, shown
from crannog.policy.tokens import Kind, Place, parse_token

UUID = "1f0c5cf0-1a0b-4c5e-9d5b-0000000000ab"
S, T, R, I = Place.SOURCE, Place.TARGET, Place.REDIRECT, Place.INTENDED  # noqa: E741 - as in the specification
ALLOWED = {
    "work": S | T | R | I,
    f"uuid:{UUID}": S | T | R | I,
    "*": S | T,
    "@adminvm": S | T | R | I,
    "dom0": S | T | R | I,
    "@anyvm": S | T,
    "@default": T | I,
    "@dispvm": T | R | I,
    "@dispvm:dvm": S | T | R | I,
    f"@dispvm:uuid:{UUID}": S | T | R | I,
    "@dispvm:@tag:x": S | T,
    "@tag:x": S | T,
    "@type:AppVM": S | T,
}


@pytest.mark.parametrize("place", Place)
@pytest.mark.parametrize("text", ALLOWED)
def test_where_each_may_stand(text: str, place: Place) -> None:
    if place in ALLOWED[text]:
        parse_token(text, place)
    else:
        with pytest.raises(PolicyRefusedError, match="cannot stand"):
            parse_token(text, place)


@pytest.mark.parametrize(
    ("text", "kind", "value", "form"),
    [
        ("work-1.2_x", Kind.NAME, "work-1.2_x", "work-1.2_x"),
        ("dom0", Kind.ADMIN, "", "@adminvm"),
        (f"uuid:{ADMIN_UUID}", Kind.ADMIN, "", "@adminvm"),
        (f"uuid:{UUID.upper()}", Kind.UUID, UUID, f"uuid:{UUID}"),
        (f"@dispvm:uuid:{UUID.upper()}", Kind.DISPVM_OF, f"uuid:{UUID}", f"@dispvm:uuid:{UUID}"),
        ("@dispvm:@tag:a_B-9", Kind.DISPVM_TAG, "a_B-9", "@dispvm:@tag:a_B-9"),
        ("@type:AppVM", Kind.TYPE, "AppVM", "@type:AppVM"),
    ],
)
def test_meaning(text: str, kind: Kind, value: str, form: str) -> None:
    found = parse_token(text, S)
    assert (found.kind, found.value, str(found)) == (kind, value, form)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "a VM's name is"),
        ("-work", "a VM's name is"),
        ("work/../x", "a VM's name is"),
        ("w" * 64, "a VM's name is"),
        ("work\n", "a VM's name is"),
        ("w\u00f6rk", "a VM's name is"),
        ("$anyvm", "write '@' for the old"),
        ("@any", "known are \\*, @adminvm, @anyvm"),
        ("@anyvm:x", "is not known"),
        ("@tag:", "a tag is"),
        ("@tag:a.b", "a tag is"),
        ("@tag:@tag:x", "a tag is"),
        ("@dispvm:", "a VM's name is"),
        ("@dispvm:@dispvm", "a VM's name is"),
        ("@dispvm:@tag:", "a tag is"),
        ("@dispvm:@type:AppVM", "a VM's name is"),
        ("@dispvm:dom0", "dom0 is no template"),
        (f"@dispvm:uuid:{ADMIN_UUID}", "dom0 is no template"),
        ("@type:", "a type is"),
        ("uuid:", "a UUID is"),
        ("uuid:1234", "a UUID is"),
        (f"uuid:{UUID}\n", "a UUID is"),
        ("**", "a VM's name is"),
    ],
)
def test_refused(text: str, reason: str) -> None:
    with pytest.raises(PolicyRefusedError, match=reason):
        parse_token(text, T)


def test_the_places_are_named() -> None:
    with pytest.raises(
        PolicyRefusedError, match="'@default' cannot stand as the source, only as the target or in a re"
    ):
        parse_token("@default", S)


def test_dom0_is_called_as_in_the_model() -> None:
    assert (tokens.ADMIN_NAME, tokens.ADMIN_UUID) == (ADMIN_NAME, ADMIN_UUID)


def test_messages_show_nothing_that_deceives() -> None:
    assert shown("a\x1b[2J\u202e\n\u00e9") == "'a?[2J???'"
    assert len(shown("x" * 1000)) < 80
