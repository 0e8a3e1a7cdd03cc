"""Requests and answers as bytes on the policy socket, and the two services that evaluate."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crannog.errors import ProtocolError
from crannog.policy.answers import (
    MAX_REQUEST,
    format_evaluation,
    format_reply,
    may_evaluate_gui,
    parse_evaluation,
    parse_request,
)
from crannog.policy.decisions import Request
from crannog.policy.evaluator import evaluate
from crannog.policy.loader import load_text
from crannog.policy.system import SystemInfo, VMInfo
from tests.unit.policy_world import SYSTEM, uuid

HEAD = b"source=work\nintended_target=vault\nservice_and_arg=a.B+x\n"


@pytest.mark.parametrize(
    ("data", "request_"),
    [
        (HEAD + b"\n", Request("a.B", "+x", "work", "vault")),
        (HEAD + b"\nwhat follows is not looked at\n\n", Request("a.B", "+x", "work", "vault")),
        (b"service_and_arg=a.B\nintended_target=\nsource=w\n\n", Request("a.B", "+", "w", "")),
        (b"service_and_arg=a.B+\nintended_target=@default\nsource=w\n\n", Request("a.B", "+", "w", "@default")),
        (b"service_and_arg=a.B+x+y\nintended_target=u:1@_-\nsource=w\n\n", Request("a.B", "+x+y", "w", "u:1@_-")),
        (
            HEAD + b"requested_source=far\nassume_yes_for_ask=yes\njust_evaluate=yes\n\n",
            Request("a.B", "+x", "work", "vault", "far", assume_yes=True, just_evaluate=True),
        ),
        (
            HEAD + b"requested_source=\nassume_yes_for_ask=no\njust_evaluate=no\n\n",
            Request("a.B", "+x", "work", "vault"),
        ),
    ],
)
def test_requests(data: bytes, request_: Request) -> None:
    assert parse_request(data) == request_


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "has no empty line"),
        (HEAD, "has no empty line"),
        (HEAD.rstrip(), "has no empty line"),
        (b"\n", "is none of source"),
        (HEAD + b"domain_id=1\n\n", "is none of source"),
        (HEAD + b"process_ident=1\n\n", "is none of source"),
        (HEAD + b"Source=x\n\n", "is none of source"),
        (HEAD + b"nonsense\n\n", "is none of source"),
        (HEAD + b"source=work\n\n", "has source twice"),
        (HEAD + b"just_evaluate=no\njust_evaluate=no\n\n", "has just_evaluate twice"),
        (HEAD + b"just_evaluate=1\n\n", "just_evaluate of a request for a decision is neither yes nor no"),
        (HEAD + b"assume_yes_for_ask=True\n\n", "is neither yes nor no"),
        (b"source=work\nservice_and_arg=a\n\n", "has no intended_target"),
        (b"source=\nintended_target=x\nservice_and_arg=a\n\n", "source of a request for a decision is empty"),
        (b"source=w\nintended_target=x y\nservice_and_arg=a\n\n", "intended_target of a"),
        (b"source=w\nintended_target=x\r\nservice_and_arg=a\n\n", "intended_target of a"),
        (b"source=w\nintended_target=x+y\nservice_and_arg=a\n\n", "intended_target of a"),
        (b"source=w\nintended_target=x\nservice_and_arg=\n\n", "service_and_arg of a"),
        (b"source=w\nintended_target=x\nservice_and_arg=+a\n\n", "service_and_arg of a"),
        (b"source=w\nintended_target=x\nservice_and_arg=a/b\n\n", "service_and_arg of a"),
        (b"source=w\nintended_target=x=y\nservice_and_arg=a\n\n", "intended_target of a"),
        (b"source=w\xff\nintended_target=x\nservice_and_arg=a\n\n", "not ASCII"),
        (b"x" * (MAX_REQUEST + 1), "is longer than"),
    ],
)
def test_requests_that_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        parse_request(data)


PARTS = st.sampled_from([*HEAD.splitlines(keepends=True), b"\n", b"just_evaluate=", b"yes", b"source=", b"\0", b"="])


@given(st.one_of(st.binary(max_size=100), st.lists(PARTS, max_size=12).map(b"".join)))
def test_any_bytes_are_a_request_or_refused(data: bytes) -> None:
    try:
        request = parse_request(data)
    except ProtocolError:
        return
    assert request.argument.startswith("+")
    assert all(sign not in request.call + request.target + request.source for sign in "\n\r\0 ")


def reply(text: str, request: Request) -> str:
    return format_reply(evaluate(load_text(text), SYSTEM, request))


def test_replies_byte_for_byte() -> None:
    assert reply("a.B * work * allow", Request("a.B", "+", "work", "vault")) == (
        f"user=DEFAULT\nresult=allow\ntarget=vault\ntarget_uuid=uuid:{uuid(2)}\nautostart=True\nrequested_target=vault"
    )
    assert reply("a.B * work * allow user=root", Request("a.B", "+", "work", "dom0")) == (
        "user=root\nresult=allow\ntarget=dom0\nautostart=True\nrequested_target=@adminvm"
    )
    assert reply("a.B * work * allow", Request("a.B", "+", "work", "@dispvm")) == (
        f"user=DEFAULT\nresult=allow\ntarget=@dispvm:dvm\ntarget_uuid=@dispvm:uuid:{uuid(3)}\nautostart=True\n"
        "requested_target=@dispvm"
    )
    assert reply("a.B * debian * allow target=work autostart=no", Request("a.B", "+", "debian", "")) == (
        f"user=DEFAULT\nresult=allow\ntarget=work\ntarget_uuid=uuid:{uuid(1)}\nautostart=False\nrequested_target=@default"
    )
    assert reply("a.B * work * allow", Request("a.B", "+x", "work", "far")) == (
        f"user=DEFAULT\nresult=allow\ntarget=relay\ntarget_uuid=uuid:{uuid(6)}\nautostart=True\nrequested_target=far\n"
        "service=ssh.Relay+far+a.B+x"
    )
    assert reply("a.B * far * allow", Request("a.B", "+", "relay", "work", requested_source="far")) == (
        f"user=DEFAULT\nresult=allow\ntarget=work\ntarget_uuid=uuid:{uuid(1)}\nautostart=True\nrequested_target=work\n"
        "policy_source=far"
    )
    assert reply("a.B * work * deny", Request("a.B", "+", "work", "vault")) == "result=deny"


def test_what_nobody_confirmed_is_a_refusal() -> None:
    assert reply("a.B * work * ask", Request("a.B", "+", "work", "vault")) == "result=deny"


@pytest.mark.parametrize(
    ("action", "assume_yes", "answer"),
    [("allow", False, "allow"), ("ask", False, "deny"), ("ask", True, "allow"), ("deny", True, "deny")],
)
def test_just_evaluate(action: str, assume_yes: bool, answer: str) -> None:
    request = Request("a.B", "+", "work", "vault", assume_yes=assume_yes, just_evaluate=True)
    assert reply(f"a.B * work * {action}", request) == f"result={answer}"


def test_evaluation() -> None:
    request = parse_evaluation("a.B+x", b"work\0vault")
    assert request == Request("a.B", "+x", "work", "vault", assume_yes=True, just_evaluate=True)
    assert format_evaluation(evaluate(load_text("a.B * work * ask"), SYSTEM, request)) == "result=allow\n"
    assert format_evaluation(evaluate(load_text(""), SYSTEM, request)) == "result=deny\n"


@pytest.mark.parametrize(
    ("argument", "data"),
    [
        ("", b"work\0vault"),
        ("+x", b"work\0vault"),
        ("a b", b"work\0vault"),
        ("a", b"work"),
        ("a", b""),
        ("a", b"\0vault"),
        ("a", b"work\0"),
        ("a", b"w" * 32 + b"\0vault"),
        ("a", b"work\0" + b"v" * 64),
        ("a", b"work\0vault\n"),
        ("a", b"work\0va\0ult"),
        ("a", b"w\xe9rk\0vault"),
        ("a", b"work\0" + b"v" * 100),
    ],
)
def test_evaluations_that_are_refused(argument: str, data: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_evaluation(argument, data)


def test_longest_evaluation() -> None:
    request = parse_evaluation("a", b"w" * 31 + b"\0" + b"v" * 63)
    assert (len(request.source), len(request.target)) == (31, 63)


@pytest.mark.parametrize(
    ("source", "target", "may"),
    [("a", "b", True), ("a", "c", False), ("c", "b", False), ("a", "@default", False), ("a", "nosuch", False)],
)
def test_who_shows_both_vms_may_ask_about_them(source: str, target: str, may: bool) -> None:
    tags = {"a": {"guivm-gui"}, "b": {"guivm-gui", "x"}, "c": {"guivm-other"}}
    system = SystemInfo(
        VMInfo(name, uuid(number), "AppVM", frozenset(found)) for number, (name, found) in enumerate(tags.items(), 1)
    )
    assert may_evaluate_gui(system, "gui", Request("s", "+", source, target)) is may
