"""Firewall rules as text: every form that is taken, the one form that is given, and what is refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crannog.core.firewall import (
    DEFAULT_RULES,
    MAX_COMMENT,
    MAX_LINE,
    MAX_RULES,
    Rule,
    format_rule,
    format_rules,
    parse_rule,
    parse_rules,
)
from crannog.errors import ValueRefusedError


@pytest.mark.parametrize(
    ("line", "canonical"),
    [
        ("action=accept", "action=accept"),
        ("proto=tcp action=drop", "action=drop proto=tcp"),
        (
            "action=accept proto=tcp dst4=1.2.3.4 dstports=80-80 comment=hi there",
            "action=accept dst4=1.2.3.4/32 proto=tcp dstports=80-80 comment=hi there",
        ),
        ("action=accept dsthost=1.2.3.4", "action=accept dst4=1.2.3.4/32"),
        ("action=accept dsthost=10.0.0.0/8", "action=accept dst4=10.0.0.0/8"),
        ("action=accept dsthost=10.0.0.1/8", "action=accept dst4=10.0.0.1/8"),
        ("action=accept dsthost=2001:DB8::1", "action=accept dst6=2001:db8::1/128"),
        ("action=accept dst6=2001:db8::/32", "action=accept dst6=2001:db8::/32"),
        ("action=accept dst4=0.0.0.0/0", "action=accept dst4=0.0.0.0/0"),
        ("action=accept dsthost=www.Example.com", "action=accept dsthost=www.example.com"),
        ("action=accept dsthost=_dmarc.1.example-x.org", "action=accept dsthost=_dmarc.1.example-x.org"),
        ("dstports=80 proto=udp action=accept", "action=accept proto=udp dstports=80-80"),
        ("action=accept dstports=0-65535 proto=tcp", "action=accept proto=tcp dstports=0-65535"),
        ("icmptype=0 action=drop proto=icmp", "action=drop proto=icmp icmptype=0"),
        ("icmptype=255 action=drop proto=icmp", "action=drop proto=icmp icmptype=255"),
        ("action=accept specialtarget=dns", "action=accept specialtarget=dns"),
        ("expire=0 action=accept", "action=accept expire=0"),
        ("expire=1893456000 action=accept", "action=accept expire=1893456000"),
        ("action=accept comment=", "action=accept"),
        ("action=accept comment= two  spaces, = and comment=", "action=accept comment= two  spaces, = and comment="),
        ("action=accept comment=proto=tcp", "action=accept comment=proto=tcp"),
    ],
)
def test_one_form_for_all(line: str, canonical: str) -> None:
    assert format_rule(parse_rule(line)) == canonical
    assert format_rule(parse_rule(canonical)) == canonical


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "not KEY=VALUE"),
        (" action=accept", "not KEY=VALUE"),
        ("action=accept ", "not KEY=VALUE"),
        ("action=accept  proto=tcp", "not KEY=VALUE"),
        ("action=accept\r", "printable"),
        ("action=accept\tproto=tcp", "printable"),
        ("action=accept comment=caf\u00e9", "printable"),
        ("action=accept comment=\x7f", "printable"),
        ("action", "not KEY=VALUE"),
        ("action=", "not KEY=VALUE"),
        ("=accept", "not a key"),
        ("Action=accept", "not a key"),
        ("action=accept host=x", "not a key"),
        ("action=accept action=accept", "action is there twice"),
        ("action=accept proto=tcp proto=udp", "proto is there twice"),
        ("proto=tcp", "no action"),
        ("comment=action=accept", "no action"),
        ("action=forward", "action cannot be 'forward'"),
        ("action=accept proto=6", "proto cannot be '6'"),
        ("action=accept specialtarget=ntp", "specialtarget"),
        ("action=accept dstports=80", "dstports needs proto=tcp or proto=udp"),
        ("action=accept proto=icmp dstports=80", "dstports needs"),
        ("action=accept icmptype=8", "icmptype needs proto=icmp"),
        ("action=accept proto=tcp icmptype=8", "icmptype needs proto=icmp"),
        ("action=accept proto=icmp icmptype=256", "icmptype cannot be '256'"),
        ("action=accept proto=icmp icmptype=-1", "icmptype"),
        ("action=accept proto=tcp dstports=81-80", "first port is above the last"),
        ("action=accept proto=tcp dstports=65536", "at most 65535"),
        ("action=accept proto=tcp dstports=80-", "a port of dstports"),
        ("action=accept proto=tcp dstports=1-2-3", "a port of dstports"),
        ("action=accept proto=tcp dstports=080", "a port of dstports"),
        ("action=accept expire=1e3", "expire"),
        ("action=accept expire=+300", "expire"),
        ("action=accept expire=9999999999999", "expire"),
        ("action=accept dst4=1.2.3.4 dsthost=1.2.3.4", "dsthost and dst4 exclude each other"),
        ("action=accept dst4=1.2.3.4 dst6=::1", "dst4 and dst6 exclude each other"),
        ("action=accept dst4=::1", "dst4 cannot be '::1'"),
        ("action=accept dst6=1.2.3.4", "dst6 cannot be '1.2.3.4'"),
        ("action=accept dst4=example.com", "dst4"),
        ("action=accept dst4=1.2.3.4/33", "dst4"),
        ("action=accept dst4=1.2.3.4/255.255.255.0", "dst4"),
        ("action=accept dst4=1.2.3.4/", "dst4"),
        ("action=accept dst4=1.2.3.04", "dst4"),
        ("action=accept dst6=fe80::1%eth0", "dst6"),
        ("action=accept dsthost=1.2.3", "dsthost"),
        ("action=accept dsthost=300.1.1.1", "dsthost"),
        ("action=accept dsthost=a..b", "dsthost"),
        ("action=accept dsthost=a.", "dsthost"),
        ("action=accept dsthost=-a", "dsthost"),
        ("action=accept dsthost=a/24", "dsthost"),
        ("action=accept dsthost=" + "a" * 64, "dsthost"),
        ("action=accept dsthost=" + ".".join(["abcdefg"] * 32), "dsthost"),
        ("action=accept comment=" + "x" * (MAX_COMMENT + 1), "comment is longer"),
        ("action=accept comment=" + "x" * MAX_LINE, "longer than"),
    ],
)
def test_refused(line: str, reason: str) -> None:
    with pytest.raises(ValueRefusedError, match=reason):
        parse_rule(line)


def test_the_line_is_named() -> None:
    with pytest.raises(ValueRefusedError, match="firewall rule 3 was refused: proto cannot be 'x'"):
        parse_rules("action=accept\naction=drop\naction=drop proto=x\n")
    with pytest.raises(ValueRefusedError, match="firewall rule 2 was refused"):
        parse_rules("action=accept\n\naction=drop\n")


def test_texts() -> None:
    assert parse_rules("") == ()
    assert format_rules(()) == ""
    assert parse_rules("action=drop") == parse_rules("action=drop\n") == (Rule("drop"),)
    assert format_rules(DEFAULT_RULES) == "action=accept\n"
    with pytest.raises(ValueRefusedError, match="rule 1"):
        parse_rules("\n")


def test_the_number_of_rules_has_a_bound() -> None:
    assert len(parse_rules("action=drop\n" * MAX_RULES)) == MAX_RULES
    with pytest.raises(ValueRefusedError, match="at most 1000"):
        parse_rules("action=drop\n" * (MAX_RULES + 1))


def test_a_rule_expires_at_its_second() -> None:
    rule = parse_rule("action=accept expire=100")
    assert [rule.is_expired(now) for now in (99.9, 100, 101)] == [False, True, True]
    assert not Rule("accept").is_expired(2**40)


WORDS = st.sampled_from(
    ["action=", "accept", "drop", "dsthost=", "dst4=", "dst6=", "1.2.3.4", "::1", "/8", "proto=", "tcp", "icmp", " ",
     "dstports=", "80", "-", "icmptype=", "expire=", "comment=", "specialtarget=dns", "\n", "=", "a.b", "%", "\u00b2"]
)  # fmt: skip


TEXTS = st.one_of(
    st.text(max_size=200),
    st.lists(WORDS, max_size=20).map("".join),
    st.binary(max_size=200).map(lambda data: data.decode("latin-1")),  # as the method does
)


@given(TEXTS)
def test_any_text_is_rules_or_refused(text: str) -> None:
    try:
        rules = parse_rules(text)
    except ValueRefusedError:
        return
    canonical = format_rules(rules)
    assert parse_rules(canonical) == rules
    assert format_rules(parse_rules(canonical)) == canonical


HOSTS = st.one_of(
    st.just(""),
    st.sampled_from(["example.com", "a-b.c_d.org", "localhost"]),
    st.tuples(st.ip_addresses(v=4), st.integers(0, 32)).map(lambda pair: f"{pair[0]}/{pair[1]}"),
    st.tuples(st.ip_addresses(v=6), st.integers(0, 128)).map(lambda pair: f"{pair[0]}/{pair[1]}"),
)
PORT = st.integers(0, 65535)
PROTOCOLS: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.builds(dict),
    st.builds(dict, proto=st.sampled_from(["tcp", "udp"]), dstports=st.tuples(PORT, PORT).map(sorted).map(tuple)),
    st.builds(dict, proto=st.just("icmp"), icmptype=st.integers(0, 255)),
)
RULES = st.builds(
    lambda values, protocol: Rule(**values, **protocol),
    st.fixed_dictionaries(
        {
            "action": st.sampled_from(["accept", "drop"]),
            "host": HOSTS,
            "specialtarget": st.sampled_from(["", "dns"]),
            "expire": st.one_of(st.none(), st.integers(0, 10**12 - 1)),
            "comment": st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=60),
        }
    ),
    PROTOCOLS,
)


@given(st.lists(RULES, max_size=5).map(tuple))
def test_every_rule_comes_back(rules: tuple[Rule, ...]) -> None:
    assert parse_rules(format_rules(rules)) == rules
