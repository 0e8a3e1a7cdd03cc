"""qvm-firewall: rules as people write them, as the API has them, and whole lists that are read, changed and written."""

import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crannog.cli import qvm_firewall
from crannog.cli.qvm_firewall_rules import is_same, parse_rules, print_rule, print_rules, read_rule, show_time
from crannog.errors import CrannogError, DaemonError
from tests.unit.cli_wire import Tool, assert_examples_are_plain, open_wire

NOW = 1_000_000.7
GET, SET, RELOAD = (f"admin.vm.firewall.{name}+ work" for name in ("Get", "Set", "Reload"))
RULES = (
    "action=accept dst4=1.2.3.4/32 proto=tcp dstports=80-90 comment=hi  there action=x\n"
    "action=accept proto=udp dsthost=example.org dstports=53-53 expire=1700000000\n"
    "action=drop specialtarget=dns\n"
)


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Tool]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    with open_wire(monkeypatch) as wire:
        wire.answer(GET, RULES)
        wire.answer(SET)
        wire.answer(RELOAD)
        yield Tool(wire, qvm_firewall.COMMAND, qvm_firewall._act, capsys)
    monkeypatch.undo()
    time.tzset()


def written(tool: Tool) -> list[str]:
    """Return the rules of the last list that was written."""
    return tool.wire.sent("Set")[-1][1].decode().splitlines()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("accept", "action=accept"),
        ("drop 10.0.0.0/8", "action=drop dst4=10.0.0.0/8"),
        ("accept tcp 1.2.3.4 80", "action=accept dst4=1.2.3.4/32 proto=tcp dstports=80-80"),
        ("accept 1.2.3.4 tcp 80-90", "action=accept dst4=1.2.3.4/32 proto=tcp dstports=80-90"),
        ("accept ::1 udp 0-65535", "action=accept dst6=::1/128 proto=udp dstports=0-65535"),
        ("accept fd09::/16", "action=accept dst6=fd09::/16"),
        ("accept example.org tcp 443", "action=accept dsthost=example.org proto=tcp dstports=443-443"),
        ("accept icmp 8", "action=accept proto=icmp icmptype=8"),
        ("accept 8 icmp", "action=accept proto=icmp icmptype=8"),
        ("accept dns", "action=accept specialtarget=dns"),
        ("proto=tcp action=accept dstports=080", "action=accept proto=tcp dstports=80-80"),
        ("dsthost=1.2.3.4 action=drop", "action=drop dst4=1.2.3.4/32"),
        ("dst4=1.2.3.4/24 drop", "action=drop dst4=1.2.3.4/24"),
        ("dst4=example.org drop", "action=drop dsthost=example.org"),
        ("drop expire=+60", "action=drop expire=1000060"),
        ("drop expire=0012", "action=drop expire=12"),
        ("comment=x=y drop", "action=drop comment=x=y"),
    ],
)
def test_rules_of_command_lines(words: str, line: str) -> None:
    assert print_rule(read_rule(words.split(), NOW)) == line


def test_comments_may_hold_blanks() -> None:
    rule = read_rule(["comment=for  now, action=x", "drop"], NOW)
    assert print_rules([rule]) == "action=drop comment=for  now, action=x\n"
    assert parse_rules(print_rules([rule])) == [rule]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("tcp 80", "neither accept nor drop"),
        ("allow", "neither accept nor drop"),
        ("action=allow", "'allow' is no action of a rule; use accept or drop"),
        ("accept drop", "'drop' says once more"),
        ("accept 1.2.3.4 example.org", "'example.org' says once more"),
        ("accept dst4=1.2.3.4 dst6=::1", "'dst6=::1' says once more"),
        ("accept 80", "makes sense with tcp or udp only"),
        ("accept proto=icmp dstports=80 icmptype=1", "makes sense with tcp or udp only"),
        ("accept tcp icmptype=8", "makes sense with icmp only"),
        ("accept icmp 256", "'256' is no icmptype"),
        ("accept tcp 65536", "'65536' is no dstports"),
        ("accept tcp 90-80", "its end is before its start"),
        ("accept tcp 80-", "'' is no dstports"),
        ("accept tcp 1-2-3", "'2-3' is no dstports"),
        ("accept tcp dstports=http", "'http' is no dstports"),
        ("accept tcp 99999999999999999999999", "is no dstports"),
        ("accept proto=gre", "'gre' is no proto"),
        ("accept specialtarget=ntp", "'ntp' is no specialtarget"),
        ("accept host=x", "a rule has no 'host'; it can have action, dsthost"),
        ("accept dsthost=", "'dsthost=' has no value"),
        ("accept 1.2.3.4/33", "is neither an address"),
        ("accept 1.2.3.4/", "is neither an address"),
        ("accept ::1/129", "is neither an address"),
        ("accept a/b", "is neither an address"),
        ("accept  tcp", "'' is neither an address"),
        ("accept b\u00e4r", "is neither an address"),
        ("accept \udcff", "is neither an address"),
        ("accept \u00b2", "makes sense with"),
        ("accept tcp \u00b2", "is no dstports"),
        ("accept expire=soon", "'soon' is no time"),
        ("accept expire=+", "'+' is no time"),
        ("accept comment=\u00e9", "must be printable ASCII"),
        ("accept comment=\x1b", "must be printable ASCII"),
    ],
)
def test_wrong_rules(words: str, part: str) -> None:
    with pytest.raises(CrannogError) as caught:
        read_rule(words.split(" "), NOW)
    assert part in str(caught.value)
    assert caught.value.exit_code == 2


@given(
    st.lists(st.text(alphabet="acdeprot=.:/-+ 12345678x\u00e9", max_size=14) | st.sampled_from(["tcp", "icmp", "drop"]))
)
def test_command_lines_are_read_or_refused(words: list[str]) -> None:
    try:
        rule = read_rule(words, NOW)
    except CrannogError:
        return
    assert is_same(rule, parse_rules(print_rules([rule]))[0])


@given(st.text() | st.text(alphabet="action=drop \ncme12"))
def test_texts_of_servers_are_read_or_refused(text: str) -> None:
    try:
        rules = parse_rules(text)
    except DaemonError:
        return
    assert parse_rules(print_rules(rules)) == rules


def test_the_table(tool: Tool) -> None:
    assert [line.split(maxsplit=3) for line in tool.ok("work").splitlines()] == [
        ["NO", "ACTION", "HOST", "PROTOCOL  PORT(S)  SPECIAL TARGET  ICMP TYPE  EXPIRE               COMMENT"],
        ["0", "accept", "1.2.3.4/32", f"tcp       80-90    -{14 * ' '} -          -{19 * ' '} hi  there action=x"],
        ["1", "accept", "example.org", f"udp       53       -{14 * ' '} -          2023-11-14 22:13:20  -"],
        ["2", "drop", "-", f"-         -        dns{12 * ' '} -          -{19 * ' '} -"],
    ]  # fmt: skip
    assert tool.ok("work", "list") == tool.ok("work", "ls") == tool.ok("work")


def test_raw_rules_can_be_given_back(tool: Tool) -> None:
    raw = tool.ok("--raw", "work", "list")
    assert raw == tool.ok("work", "list", "--raw")
    assert raw.splitlines()[1] == "action=accept dsthost=example.org proto=udp dstports=53-53 expire=1700000000"
    for line in raw.splitlines()[1:]:
        tool.ok("work", "add", *line.split())
        assert written(tool)[-1] == line


def test_add(tool: Tool) -> None:
    tool.ok("work", "add", "accept", "tcp", "example.org", "443")
    new = "action=accept dsthost=example.org proto=tcp dstports=443-443"
    first, second, third = parse_rules(RULES)
    assert written(tool) == [*map(print_rule, (first, second, third)), new]
    for number in (0, 2):
        tool.ok("work", "add", "--before", str(number), "drop")
        assert written(tool).index("action=drop") == number
    count = len(tool.wire.sent("Set"))
    tool.fails(3, "work has no rule 3; it has rules 0 to 2", "work", "add", "--before=3", "drop")
    tool.wire.answer(GET)
    tool.fails(3, "work has no rule 0; it has no rules", "work", "add", "--before=0", "drop")
    assert len(tool.wire.sent("Set")) == count


def test_delete_by_number(tool: Tool) -> None:
    tool.ok("work", "del", "--rule-no", "1")
    assert [line.split()[0] for line in written(tool)] == ["action=accept", "action=drop"]
    tool.fails(3, "work has no rule 3", "work", "del", "--rule-no", "3")


@pytest.mark.parametrize(
    ("words", "number"),
    [
        ("accept tcp 1.2.3.4 80-90", 0),
        ("accept dst4=1.2.3.4/32 tcp 80-90", 0),
        ("accept EXAMPLE.org udp 53", 1),
        ("accept example.org udp 53 expire=1700000000", 1),
        ("drop dns", 2),
    ],
)
def test_delete_by_rule(tool: Tool, words: str, number: int) -> None:
    tool.ok("work", "del", *words.split())
    lines = [print_rule(rule) for rule in parse_rules(RULES)]
    assert written(tool) == lines[:number] + lines[number + 1 :]


@pytest.mark.parametrize(
    "words",
    [
        "accept",
        "accept tcp 1.2.3.4",
        "accept tcp 1.2.3.4 80-91",
        "drop dns comment=x",
        "accept example.org udp 53 expire=1",
    ],
)
def test_a_rule_that_is_not_there_is_not_deleted(tool: Tool, words: str) -> None:
    tool.fails(3, "work has no rule 'action=", "work", "del", *words.split())
    assert tool.wire.sent("Set") == []


def test_the_last_rule_may_go(tool: Tool) -> None:
    tool.wire.answer(GET, "action=accept\n")
    tool.ok("work", "del", "accept")
    assert tool.wire.sent("Set") == [(SET, b"")]
    tool.wire.answer(GET, "")
    assert len(tool.ok("work").splitlines()) == 1


def test_reset_and_reload(tool: Tool) -> None:
    tool.ok("work", "reset")
    assert tool.wire.requests == [(SET, b"action=accept\n")]
    assert tool.ok("--reload", "work") == ""
    assert tool.wire.requests[1:] == [(RELOAD, b"")]
    assert tool.ok("--reload", "work", "list") == tool.ok("work", "list")
    tool.ok("-r", "work", "add", "drop")
    assert [call for call, _ in tool.wire.requests[-3:]] == [GET, SET, RELOAD]


def test_what_a_newer_server_knows_is_kept(tool: Tool) -> None:
    tool.wire.answer(GET, "newkey=1 action=accept dstports=odd comment=\n")
    tool.ok("work", "add", "drop")
    assert written(tool) == ["action=accept dstports=odd newkey=1 comment=", "action=drop"]


@pytest.mark.parametrize(
    "text", [b"accept\n", b"action=allow\n", b"proto=tcp\n", b"action=drop =x\n", b"action=drop a=\n", b"\xff\n",
             b"action=drop action=drop\n", b"\n", b"\x1b[2J\n", b"action=accept\naction=\n"]
)  # fmt: skip
def test_answers_that_make_no_sense_are_not_written_back(tool: Tool, text: bytes) -> None:
    tool.wire.answer(GET, text)
    for words in (("list",), ("add", "drop"), ("del", "--rule-no", "0")):
        assert "\x1b" not in tool.fails(11, "cannot be understood", "work", *words)
    assert tool.wire.sent("Set") == []


def test_control_characters_are_escaped(tool: Tool) -> None:
    tool.wire.answer(GET, "action=accept dsthost=\x1b[2J expire=\x07 comment=\x1b]0;x\x07\n")
    for words in (("work",), ("work", "--raw")):
        assert tool.ok(*words).replace("\n", "").isprintable()


@pytest.mark.parametrize("text", ["", "x", "-1x", "9" * 30, "9" * 5000])
def test_odd_times_are_shown_as_they_are(text: str) -> None:
    assert show_time(text) == text


def test_a_list_that_no_request_can_carry(tool: Tool) -> None:
    tool.wire.answer(GET, "".join(f"action=drop dst4=10.0.{n >> 8}.{n & 255}/32\n" for n in range(2300)))
    tool.fails(2, "the rules of work stay as they are: the new ones are longer than", "work", "add", "drop")
    assert tool.wire.sent("Set") == []


def test_refusals_of_the_server(tool: Tool) -> None:
    tool.wire.refuse(SET, "QubesValueError", "100% wrong")
    tool.fails(2, "100% wrong", "work", "add", "drop", "--reload")
    assert tool.wire.sent("Reload") == []
    tool.fails(12, "nobody expected", "other")


def test_wrong_command_lines(tool: Tool) -> None:
    for part, *words in (
        ("dom0 is this host itself and has no firewall", "dom0"),
        ("'lst' is none of list, add, del, reset; the VM comes before it", "work", "lst"),
        ("'work' is none of", "list", "work"),
        ("'list' takes no rule", "work", "list", "drop"),
        ("'reset' takes no rule", "work", "reset", "drop"),
        ("say which rule to add", "work", "add"),
        ("say which rule to delete", "work", "del"),
        ("say which rule to delete", "work", "del", "--rule-no", "1", "drop"),
        ("--before is for add, not for del", "work", "del", "--before", "1", "drop"),
        ("--rule-no is for del, not for list", "work", "--rule-no", "1"),
        ("--raw is for list, not for reset", "work", "--raw", "reset"),
        ("'first' is not the number of a rule", "work", "add", "--before", "first", "drop"),
        ("'\u00b2' is not the number of a rule", "work", "del", "--rule-no", "\u00b2"),
        ("neither accept nor drop", "work", "add", "tcp"),
    ):
        tool.fails(2, part, *words)
    tool.fails(3, "there is no VM 'a b'", "a b")
    assert tool.wire.requests == []


def test_the_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_examples_are_plain(qvm_firewall.COMMAND, monkeypatch)
