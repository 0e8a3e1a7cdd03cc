"""Devices and assignments as text and in a file: names, arguments, pairs, modes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crannog.core.device_names import (
    ANY,
    DEVCLASSES,
    UNIDENTIFIED,
    DeviceName,
    Mode,
    parse_codes,
    parse_port_argument,
    parse_qarg,
    split_codes,
)
from crannog.core.device_text import (
    Device,
    format_assignment,
    format_device,
    pack,
    parse_assignment,
    parse_filter,
    unpack,
)
from crannog.core.devices import Assignment
from crannog.errors import ProtocolError, ValueRefusedError

SDA = DeviceName("sys-net", "sda", "0000:0000::b******")
WHOLE = "device_id='0000:0000::b******' port_id='sda' devclass='block' backend_domain='sys-net'"


@pytest.mark.parametrize(
    ("name", "qarg"),
    [
        (SDA, "sys-net+sda+0000+0000++b______"),
        (DeviceName("sys-net", "sda"), "sys-net+sda+_"),
        (DeviceName("sys.usb-1", ANY, "1234:5678:ser_1:u030101u08****"), "sys.usb-1+_+1234+5678+ser_1+u030101u08____"),
        (DeviceName("dom0", "00_1f.2", "0x8086:0x1e20::p040300"), "dom0+00_1f.2+0x8086+0x1e20++p040300"),
        (DeviceName("a", "1", UNIDENTIFIED), "a+1+0000+0000++_______"),
        (DeviceName("a", "mic", "dom0:mic::m******"), "a+mic+dom0+mic++m______"),
        (DeviceName("a", "1", "some_id"), "a+1+some_id"),
    ],
)
def test_a_name_goes_through_an_argument(name: DeviceName, qarg: str) -> None:
    assert name.qarg == qarg
    assert parse_qarg(qarg) == name


def test_an_argument_without_an_id_is_about_the_port() -> None:
    assert parse_qarg("sys-usb+1-2.3") == DeviceName("sys-usb", "1-2.3", ANY)


@pytest.mark.parametrize(
    "argument",
    ["", "+", "a", "a+", "+sda", "a+sda+", "a+_", "a+_+_", "a++b", "a+b:c+_", "a b+c", "a+b c", "a+b+\u00e9", "a+b+c'",
     "a+" + "x" * 200, "a+b+" + "x" * 600]
)  # fmt: skip
def test_what_names_no_device(argument: str) -> None:
    with pytest.raises(ProtocolError):
        parse_qarg(argument)


def test_ports_and_filters() -> None:
    assert parse_port_argument("00_1f.2") == "00_1f.2"
    assert parse_filter("") is None
    assert parse_filter("a-b.c+sda") == ("a-b.c", "sda")
    assert parse_filter("a+_") == ("a", ANY)
    for wrong in ("a", "a+", "+b", "a+b+c"):
        with pytest.raises(ProtocolError):
            parse_filter(wrong)
    with pytest.raises(ProtocolError):
        parse_port_argument("a+b")


def test_codes() -> None:
    assert parse_codes("") == []
    assert parse_codes("u03****b******") == ["u03****", "b******"] == split_codes("u03****b******")
    for wrong in ("u", "u03***", "u03****b", "x******", "u03**** ", "all"):
        with pytest.raises(ProtocolError):
            parse_codes(wrong)
    with pytest.raises(ValueRefusedError, match="twice"):
        parse_codes("u03****u03****")


PART = st.text("abcXYZ0189_.-", min_size=1, max_size=8)
CODES = st.lists(
    st.tuples(st.sampled_from("pubm?"), st.text("0123456789abcdef*", min_size=6, max_size=6)).map("".join),
    min_size=1,
    max_size=3,
).map("".join)
IDENTS = st.one_of(st.just(ANY), st.tuples(PART, PART, st.one_of(st.just(""), PART), CODES).map(":".join))
PORTS = PART.filter(lambda port: port != "_")


@given(PART, PORTS, IDENTS)
def test_every_name_goes_through_an_argument(backend: str, port: str, ident: str) -> None:
    name = DeviceName(backend, port, ident)
    assert parse_qarg(name.qarg) == name


@given(st.one_of(st.text(max_size=40), st.text("ab0_+:.*?-", max_size=30)))
def test_any_argument_is_a_device_or_refused(argument: str) -> None:
    try:
        name = parse_qarg(argument)
    except ProtocolError:
        return
    assert parse_qarg(name.qarg).qarg == name.qarg


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("a='1'", {"a": "1"}),
        ("a='1' b=''", {"a": "1", "b": ""}),
        ("a='x y' _b='c=d'", {"a": "x y", "_b": "c=d"}),
        ("a='it\\'s' b='\\'' c='\\x'", {"a": "it's", "b": "'", "c": "\\x"}),
        ("", {}),
    ],
)
def test_pairs(text: str, pairs: dict[str, str]) -> None:
    assert unpack(text) == pairs
    assert pack(pairs.items()) == text


@pytest.mark.parametrize(
    "text",
    ["a", "a=", "a=1", "a='1", "a='1\\'", "='1'", "a ='1'", " a='1'", "a='1' ", "a='1'b='2'", "a='1'  b='2'",
     "a='1' a='2'", "a='\n'", "a='\u00e9'", "\u00e9='1'", "a='1', b='2'", "a'b='1'", "a\n='1'"]
)  # fmt: skip
def test_what_is_not_made_of_pairs(text: str) -> None:
    with pytest.raises(ProtocolError):
        unpack(text)


def test_what_a_value_cannot_hold_is_replaced() -> None:
    assert pack([("a b", "x\ny\u00e9\\")]) == "a_b='x_y__'"


@given(st.dictionaries(st.text("abc._-", min_size=1, max_size=5), st.text(max_size=20), max_size=5))
def test_pairs_come_back(pairs: dict[str, str]) -> None:
    text = pack(pairs.items())
    unpacked = unpack(text)
    assert list(unpacked) == list(pairs)
    assert pack(unpacked.items()) == text
    for key, value in pairs.items():
        assert unpacked[key] == value or not value.isascii() or not value.isprintable() or value.endswith("\\")


@given(st.one_of(st.text(max_size=60), st.text("ab_='\\ ", max_size=40)))
def test_any_text_is_pairs_or_refused(text: str) -> None:
    try:
        pairs = unpack(text)
    except ProtocolError:
        return
    assert unpack(pack(pairs.items())) == pairs


def test_a_device_as_a_line() -> None:
    device = Device(
        "block", "sda1", "0000:0000::b******", "b******", (("vendor", "it's"), ("name", "x")), ("1-2", "usb"),
        (("size", "1000"), ("ro", "yes")),
    )  # fmt: skip
    assert format_device(device, "sys-usb") == (
        "sda1:0000:0000::b****** device_id='0000:0000::b******' port_id='sda1' devclass='block' "
        "backend_domain='sys-usb' vendor='it\\'s' name='x' interfaces='b******' parent_port_id='1-2' "
        "parent_devclass='usb' _size='1000' _ro='yes'"
    )


def test_an_assignment_as_a_line() -> None:
    assignment = Assignment.of("block", SDA, Mode.REQUIRED, (("read-only", "yes"),))
    assert format_assignment(assignment, "work") == (
        "sys-net+sda:0000:0000::b****** device_id='0000:0000::b******' port_id='sda' devclass='block' "
        "backend_domain='sys-net' mode='required' frontend_domain='work' _read-only='yes'"
    )


def test_a_file_cannot_break_a_line() -> None:
    attributes = (("backend-domain", "a b"), ("id", "x\ny"), ("identity", "\u00e9\n"))
    line = format_assignment(Assignment("pci", attributes, (("a b\n='", "c\n"),)), "work")
    assert line == (
        "a_b+x_y:__ device_id='__' port_id='x_y' devclass='pci' backend_domain='a b' mode='required' "
        "frontend_domain='work' _a_b___='c_'"
    )


@pytest.mark.parametrize(
    ("payload", "mode", "options"),
    [
        ("mode='auto-attach'", Mode.AUTO, ()),
        (f"{WHOLE} mode='required' frontend_domain='work' _ro='yes' _x=''", Mode.REQUIRED, (("ro", "yes"), ("x", ""))),
        ("_ro='it\\'s'", Mode.MANUAL, (("ro", "it's"),)),
    ],
)  # fmt: skip
def test_payloads(payload: str, mode: Mode, options: tuple[tuple[str, str], ...]) -> None:
    assert parse_assignment(payload, "block", SDA, "work") == Assignment.of("block", SDA, mode, options)


def test_the_payload_says_what_an_argument_cannot() -> None:
    odd = DeviceName("sys-net", "sda", "1:2:a*b:c")
    named = parse_qarg(odd.qarg)
    assert named != odd
    assert parse_assignment("device_id='1:2:a*b:c' mode='required'", "block", named, "work").device == odd


@pytest.mark.parametrize(
    "payload",
    ["mode='other'", "mode=required", "required='yes'", "_='x'", "_identity='x'", "device_id='*'", "port_id='sdb'",
     "devclass='usb'", "backend_domain='other'", "frontend_domain='other'", "mode='manual' mode='manual'"]
)  # fmt: skip
def test_payloads_that_are_refused(payload: str) -> None:
    with pytest.raises(ProtocolError):
        parse_assignment(payload, "block", SDA, "work")


@given(st.one_of(st.text(max_size=60), st.text("mode='_x yesid", max_size=60)))
def test_any_payload_is_an_assignment_or_refused(payload: str) -> None:
    try:
        assignment = parse_assignment(payload, "block", SDA, "work")
    except ProtocolError:
        return
    line = format_assignment(assignment, "work").partition(" ")[2]
    assert parse_assignment(line, "block", SDA, "work") == assignment


@pytest.mark.parametrize(
    ("devclass", "attributes", "options", "mode", "ident"),
    [
        ("pci", {}, (), Mode.REQUIRED, ANY),
        ("block", {}, (), Mode.REQUIRED, ANY),
        ("usb", {}, (), Mode.AUTO, ANY),
        ("other", {}, (), Mode.REQUIRED, ANY),
        ("block", {"required": "True"}, (), Mode.REQUIRED, ANY),
        ("block", {"required": "no"}, (("identity", "1:2"),), Mode.AUTO, "1:2"),
        ("usb", {"mode": "ask-to-attach", "identity": "1:2"}, (("identity", "3"),), Mode.ASK, "1:2"),
        ("usb", {"mode": "manual", "required": "True"}, (), Mode.MANUAL, ANY),
        ("usb", {"mode": "sometimes"}, (), Mode.MANUAL, ANY),
    ],
)
def test_what_files_say(
    devclass: str, attributes: dict[str, str], options: tuple[tuple[str, str], ...], mode: Mode, ident: str
) -> None:
    pairs = (("backend-domain", "dom0"), ("id", "00_14.0"), *attributes.items())
    assignment = Assignment(devclass, pairs, options)
    assert (assignment.mode, assignment.device) == (mode, DeviceName("dom0", "00_14.0", ident))
    assert "identity" not in dict(assignment.user_options)


def test_another_mode_leaves_the_rest() -> None:
    pairs = (("backend-domain", "dom0"), ("required", "True"), ("id", "1"), ("new", "x"))
    changed = Assignment("block", pairs, (("o", "1"),)).with_mode(Mode.ASK)
    assert changed.attributes == (("backend-domain", "dom0"), ("id", "1"), ("new", "x"), ("mode", "ask-to-attach"))
    assert (changed.mode, changed.options) == (Mode.ASK, (("o", "1"),))


def test_modes_of_classes() -> None:
    assert list(DEVCLASSES) == ["pci", "block", "usb", "mic"]
    assert DEVCLASSES["pci"] == (Mode.REQUIRED,)
    assert [name for name, modes in DEVCLASSES.items() if Mode.REQUIRED in modes] == ["pci", "block"]
    assert not any(Mode.MANUAL in modes for modes in DEVCLASSES.values())
