"""Requests and responses as bytes (Admin API, sections 2 and 3)."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crannog.api.framing import (
    CONNECTED,
    MAX_REQUEST,
    Request,
    encode_error,
    encode_event,
    encode_ok,
    parse_request,
)
from crannog.client.connection import Client
from crannog.core.events import Event
from crannog.errors import CrannogError, ProtocolError, StartError, VMNotFoundError

WORD = st.text(st.sampled_from(string.ascii_letters + string.digits + "_.-"), min_size=1)


@pytest.mark.parametrize(
    ("data", "request_"),
    [
        (b"admin.vm.List+ dom0 name dom0\0", Request("admin.vm.List", "", "dom0", "dom0", b"")),
        (b"admin.vm.List dom0 name work\0", Request("admin.vm.List", "", "dom0", "work", b"")),
        (b"admin.vm.Start+ dom0 keyword adminvm\0", Request("admin.vm.Start", "", "dom0", "dom0", b"")),
        # Well framed, whatever it means: who looks the names up gives the answer.
        (b"admin.vm.List+../%x dom0 name $dispvm\0", Request("admin.vm.List", "../%x", "dom0", "$dispvm", b"")),
        (b"admin.vm.List+ dom0 name a b \0", Request("admin.vm.List", "", "dom0", "a b ", b"")),
        (b"+x  name \0", Request("", "x", "", "", b"")),
        (b"a+b+c dom0 name uuid:1-2\0p q\0\xff", Request("a", "b+c", "dom0", "uuid:1-2", b"p q\0\xff")),
    ],
)
def test_requests(data: bytes, request_: Request) -> None:
    assert parse_request(data) == request_


@given(WORD, st.text(st.sampled_from(string.ascii_letters + "_.+:@-")), WORD, WORD, st.binary(max_size=100))
def test_what_a_client_sends_is_what_is_read(name: str, argument: str, source: str, vm: str, payload: bytes) -> None:
    data = f"{name}+{argument} {source} name {vm}".encode() + b"\0" + payload
    assert parse_request(data) == Request(name, argument, source, vm, payload)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"admin.vm.List+ dom0 name dom0",
        b"admin.vm.List+ dom0 name\0",
        b"admin.vm.List+ dom0  name dom0\0",
        b"admin.vm.List+ dom0 name a\n\0",
        b"admin.vm.List+ dom0 keyword other\0",
        b"admin.vm.List+ dom0 keyword dom0\0",
        b"admin.vm.List+ dom0 other dom0\0",
        b"admin.vm.List+\xe9 dom0 name dom0\0",
        b"admin.vm.List+ dom0 name dom\x01\0",
        b"x" * (MAX_REQUEST + 1),
        b"admin.vm.List+ dom0 name dom0\0" + b"x" * MAX_REQUEST,
    ],
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_request(data)


def test_the_largest_request_is_taken() -> None:
    header = b"m+ dom0 name dom0\0"
    assert len(parse_request(header + b"x" * (MAX_REQUEST - len(header))).payload) == MAX_REQUEST - len(header)


HEADERISH = st.text(st.sampled_from("a+ \0.:@-\n\x7fé"), max_size=60).map(str.encode)


@given(
    st.binary(max_size=300)
    | HEADERISH
    | st.builds(lambda a, b: b"m+ dom0 name dom0" + a + b"\0" + b, HEADERISH, st.binary())
)
def test_any_bytes_are_a_request_or_a_protocol_error(data: bytes) -> None:
    try:
        request = parse_request(data)
    except ProtocolError:
        return
    parts = (request.method, request.argument, request.source, request.destination)
    assert all(part.isascii() and part.isprintable() for part in parts)
    assert not any(" " in part for part in parts[:3])
    assert request.payload == data.partition(b"\0")[2]


def read_as_a_stock_client(reply: bytes) -> tuple[str, str]:
    """Return class name and sentence as clients of the Admin API make them (section 3): they format with `%`."""
    kind, name, _traceback, message, fields = reply.split(b"\0", 4)
    assert kind == b"2"
    return name.decode(), message.decode() % tuple(field.decode() for field in fields.split(b"\0")[:-1])


def test_exact_bytes() -> None:
    assert encode_ok(b"") == b"0\0"
    assert encode_ok(b"x\0y\n") == b"0\0x\0y\n"
    reply = encode_error(VMNotFoundError("no VM 'a'"))
    assert reply.startswith(b"2\0QubesVMNotFoundError\0")
    assert reply.endswith(b"\0no VM 'a'\0")


@given(st.text())
def test_every_sentence_reaches_both_kinds_of_client(text: str) -> None:
    reply = encode_error(StartError(text))
    sentence = text.replace("\0", "").encode("utf-8", "replace").decode()
    assert read_as_a_stock_client(reply) == ("QubesVMError", sentence)
    error = Client.parse_error(reply)
    assert (type(error), str(error)) == (StartError, sentence)


@pytest.mark.parametrize("text", ["100%", "%s %d %(x)s", "%%", "%%%", "a\0b"])
def test_percent_is_doubled_on_the_wire_only(text: str) -> None:
    assert b"%" * (2 * text.count("%")) == bytes(c for c in encode_error(CrannogError(text)) if c == ord("%"))
    assert str(Client.parse_error(encode_error(CrannogError(text)))) == text.replace("\0", "")


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (CONNECTED, b"1\0\0connection-established\0\0"),
        (Event("", "domain-add", {"vm": "work"}), b"1\0\0domain-add\0vm\0work\0\0"),
        (
            Event("work", "property-set:memory", {"name": "memory", "newvalue": "800", "oldvalue": "None"}),
            b"1\0work\0property-set:memory\0name\0memory\0newvalue\x00800\0oldvalue\0None\0\0",
        ),
        (Event("work", "odd", {"k": "a\0b\u00e9"}), b"1\0work\0odd\0k\0ab\\xe9\0\0"),
    ],
)
def test_events(event: Event, data: bytes) -> None:
    assert encode_event(event) == data


TEXT = st.text(min_size=1)


@given(TEXT, TEXT, st.dictionaries(TEXT, TEXT))
def test_any_event_is_ascii_words_that_can_be_told_apart(subject: str, name: str, arguments: dict[str, str]) -> None:
    data = encode_event(Event(subject, name, arguments))
    assert data.isascii()
    assert data.count(b"\0") == 4 + 2 * len(arguments)
