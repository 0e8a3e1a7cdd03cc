"""What guests' tools ask for: the one parser of it, and what changes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crannog.core.features_request import PREFIX, SUPPORTED, SWITCHES, TEXTS, changes, parse_request
from crannog.errors import ProtocolError


def ask(**wanted: bytes) -> dict[str, str]:
    return parse_request({PREFIX + name.replace("__", ".").replace("_", "-"): value for name, value in wanted.items()})


def test_what_is_understood() -> None:
    assert ask(
        gui=b"1", qrexec=b"0", os=b"Linux", supported_service__cups=b"1", supported_rpc__x=b"0", odd=b"\xff"
    ) == {
        "gui": "1",
        "qrexec": "",
        "os": "Linux",
        "supported-service.cups": "1",
    }
    assert parse_request({}) == {}


@pytest.mark.parametrize(
    "entry",
    [
        ("gui", b"2"), ("gui", b""), ("gui", b"1\n"), ("os", b"a" * 65), ("os", b"\xff"), ("os", b"a\nb"),
        ("supported-service.", b"1"), ("supported-service.a b", b"1"), ("supported-rpc.x", b"yes"),
    ],
)  # fmt: skip
def test_nonsense_is_refused_whole(entry: tuple[str, bytes]) -> None:
    with pytest.raises(ProtocolError):
        parse_request({PREFIX + "gui-emulated": b"1", PREFIX + entry[0]: entry[1]})


@given(st.dictionaries(st.text(max_size=30).map(lambda name: PREFIX + name), st.binary(max_size=80)))
def test_only_known_names_and_harmless_values_come_out(entries: dict[str, bytes]) -> None:
    try:
        wanted = parse_request(entries)
    except ProtocolError:
        return
    assert all(name in SWITCHES | TEXTS or name.startswith(SUPPORTED) for name in wanted)
    assert all(value.isascii() and value.isprintable() and len(value) <= 64 for value in wanted.values())


def test_what_is_no_longer_supported_goes() -> None:
    present = {"gui": "1", "mine": "x", "supported-rpc.a": "1", "supported-rpc.b": "1"}
    assert changes(present, {"gui": "1", "os": "Linux", "supported-rpc.b": "1"}) == {
        "os": "Linux",
        "supported-rpc.a": None,
    }
