"""Text of policy files: lines, comments, directives, and files for one service in their old form."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crannog.policy.parser import Directive, Include, parse_service_text, parse_text
from crannog.policy.problems import Origin, Problem
from crannog.policy.rules import Rule

RULE = "a.B * work vault allow"


def lines(text: str) -> list[str]:
    """Return what each statement is: a rule as text, an include's words, or a problem with its place."""
    return list(map(say, parse_text(text, "f")))


def service_lines(text: str) -> list[str]:
    return list(map(say, parse_service_text(text, "f", "a.B", "+x")))


def say(statement: Rule | Include | Problem) -> str:
    if isinstance(statement, Include):
        return f"{statement.directive} {statement.service} {statement.argument} {statement.path}"
    return str(statement)


def test_lines_are_numbered_and_comments_are_no_rules() -> None:
    text = f"# a comment w\u00f6rk\n\n   # indented\n\t \n  {RULE}\t\n{RULE}"
    assert [statement.origin for statement in parse_text(text, "f")] == [Origin("f", 5), Origin("f", 6)]


def test_a_comment_is_a_whole_line() -> None:
    assert lines(f"{RULE} # why") == ["f:1: '#' is no option of allow; allowed: target=, user=, notify=, autostart="]


def test_all_errors_are_told() -> None:
    found = lines(f"nonsense\n{RULE}\n!wrong\na.B * work vault permit\n")
    assert [line.split(": ")[0] for line in found] == ["f:1", RULE, "f:3", "f:4"]


def test_windows_lines() -> None:
    assert lines(f"# c\r\n{RULE}\r\n\r\n") == [RULE]


@pytest.mark.parametrize("sign", ["\r", "\x0b", "\x0c", "\x1c", "\x00", "\x1b", "\x7f"])
@pytest.mark.parametrize("form", ["# a comment{}a.B * * * deny", "a.B * work{}vault allow", "{}"])
def test_what_some_programs_take_for_the_end_of_a_line_is_refused(sign: str, form: str) -> None:
    text = form.format(sign)
    if text in ("\r", "\r\n"):
        return  # a line that is empty for all
    assert "control character" in lines(text)[0]
    assert "control character" in service_lines(text)[0]


@pytest.mark.parametrize("sign", ["\u2028", "\x85", "\xa0", "\u00e9", "\ufeff"])
def test_rules_are_ascii(sign: str) -> None:
    assert lines(f"{sign}{RULE}") == ["f:1: the line holds characters that are not ASCII; only comments may"]
    assert lines(f"# {sign}") == []


def test_directives() -> None:
    text = "!include a/b\n!include-dir /c\n!include-service a.B +x d\n!include-service * * e\n!compat-4.0\n"
    assert lines(text) == [
        "!include * * a/b",
        "!include-dir * * /c",
        "!include-service a.B +x d",
        "!include-service * * e",
        "!compat-4.0 * * ",
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("!include", "write '!include FILE'"),
        ("!include a b", "write '!include FILE'"),
        ("!include-dir", "write '!include-dir DIRECTORY'"),
        ("!include-service a.B x", "write '!include-service SERVICE \\+ARGUMENT FILE'"),
        ("!include-service a.B x y", "'x' is no argument"),
        ("!include-service * +x y", "write '\\* \\*'"),
        ("!compat-4.0 x", "write '!compat-4.0'"),
        ("!compat-4.1", "is no directive; known are !include, !include-dir, !include-service, !compat-4.0"),
        ("!", "is no directive"),
        ("!include ../x", "cannot hold '..'"),
        ("!include /a/../x", "cannot hold '..'"),
        ("!include-dir ..", "cannot hold '..'"),
    ],
)
def test_directives_that_are_refused(line: str, reason: str) -> None:
    (problem,) = parse_text(line, "f")
    assert isinstance(problem, Problem)
    assert re.search(reason, problem.message)


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        ("work vault allow", "a.B +x work vault allow"),
        ("$anyvm $default allow,target=vault,user=root", "a.B +x @anyvm @default allow target=vault user=root"),
        ("$tag:x\t$dispvm:dvm ask , default_target=$dispvm", "a.B +x @tag:x @dispvm:dvm ask default_target=@dispvm"),
        ("$include:/etc/x", "!include-service a.B +x /etc/x"),
        ("@include:x", "f:1: a rule in a file for one service is 'SOURCE TARGET allow|ask|deny' and options"),
        ("!include x", "!include-service a.B +x x"),
        ("work vault", "f:1: a rule in a file for one service is 'SOURCE TARGET allow|ask|deny' and options"),
        ("!include-dir x", "f:1: in a file for one service there is no directive but '!include FILE'"),
        ("!compat-4.0", "f:1: in a file for one service there is no directive but '!include FILE'"),
        ("!include", "f:1: in a file for one service there is no directive but '!include FILE'"),
        (",,", "f:1: the line has nothing but commas"),
    ],
)
def test_files_for_one_service(line: str, meaning: str) -> None:
    assert service_lines(line) == [meaning]


def test_commas_and_dollars_are_old() -> None:
    assert "'allow,user=root' is no action" in lines("a.B * work vault allow,user=root")[0]
    assert "write '@' for the old '$'" in lines("a.B * $anyvm vault allow")[0]


WORDS = st.sampled_from(
    ["a.B", "*", "+", "+x", "work", "@anyvm", "@default", "@dispvm:", "@tag:x", "uuid:", "allow", "ask", "deny", " ",
     "\n", "\t", "\r", "#", "!include", "!include-service", "!compat-4.0", "target=", "user=", "notify=no", "$", ",",
     "/", "..", " ", "$include:", "\x00", "\u00b2", "="]
)  # fmt: skip
TEXTS = st.one_of(st.text(max_size=200), st.lists(WORDS, max_size=40).map("".join))


@given(TEXTS)
def test_any_text_is_statements_or_problems(text: str) -> None:
    for statement in [*parse_text(text, "f"), *parse_service_text(text, "f", "a.B", "*")]:
        assert 1 <= statement.origin.line <= text.count("\n") + 1
        if isinstance(statement, Rule):
            (again,) = parse_text(str(statement), "f")
            assert str(again) == str(statement)
        if isinstance(statement, Problem):
            assert statement.message.isascii()
            assert "\n" not in statement.message
        if isinstance(statement, Include):
            assert (statement.path == "") is (statement.directive is Directive.COMPAT)
