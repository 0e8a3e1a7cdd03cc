"""One line of policy: what it becomes, and what is said when it cannot."""

import pytest

from crannog.policy.problems import Origin, PolicyRefusedError
from crannog.policy.rules import Action, Rule, parse_rule

HERE = Origin("30-user.policy", 7)


def parse(line: str) -> Rule:
    return parse_rule(line.split(), HERE)


def test_what_goes_without_saying() -> None:
    allow, ask, deny = (parse(f"a.B * work vault {action}") for action in ("allow", "ask", "deny"))
    assert [rule.notify for rule in (allow, ask, deny)] == [False, False, True]
    assert all(rule.autostart for rule in (allow, ask))
    assert (allow.redirect, allow.user, ask.default_target) == (None, None, None)
    assert str(allow.origin) == "30-user.policy:7"


@pytest.mark.parametrize(
    "line",
    [
        "a.B +x work vault allow target=@dispvm:dvm user=root notify=yes autostart=no",
        "a.B + @anyvm @default ask target=dvm default_target=dvm user=u notify=yes autostart=no",
        "* * * * deny notify=no",
        "a.B * @tag:x @adminvm allow target=@adminvm",
        "a.B +a+b_c.d- @type:AppVM @dispvm:@tag:x ask default_target=@dispvm",
        "a.B * uuid:1f0c5cf0-1a0b-4c5e-9d5b-0000000000ab work deny",
    ],
)
def test_a_rule_as_text_is_the_same_rule(line: str) -> None:
    assert str(parse(line)) == line
    assert parse(str(parse(line))) == parse(line)


def test_options_that_say_what_goes_without_saying_change_nothing() -> None:
    assert parse("a.B * work vault allow notify=no autostart=yes") == parse("a.B * work vault allow")
    assert parse("a.B * work vault deny notify=yes") == parse("a.B * work vault deny")


def test_where_calls_end() -> None:
    assert parse("a.B * @anyvm @default allow target=vault").reach.text == "vault"
    assert parse("a.B * @anyvm vault deny").reach.text == "vault"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("a.B * work vault", "five words and then options, here are 4"),
        ("a/B * work vault allow", "'a/B' is no service"),
        ("a.B x work vault allow", "'x' is no argument"),
        ("a.B +x:y work vault allow", "is no argument"),
        ("a+b * work vault allow", "is no service"),
        ("* +x work vault allow", "write '\\* \\*'"),
        ("* + work vault deny", "write '\\* \\*'"),
        (f"a.B +{'x' * 255} work vault deny", "at most 255"),
        ("a.B * @default vault allow", "'@default' cannot stand as the source"),
        ("a.B * work @any allow", "'@any' is not known"),
        ("a.B * work vault permit", "'permit' is no action; write allow, ask or deny"),
        ("a.B * work vault ALLOW", "is no action"),
        ("a.B * work vault allow root", "'root' is no option of allow; allowed: target=, user=, notify=, autostart="),
        ("a.B * work vault allow default_target=x", "is no option of allow"),
        ("a.B * work vault deny target=x", "is no option of deny; allowed: notify=$"),
        ("a.B * work vault deny autostart=no", "is no option of deny"),
        ("a.B * work vault ask color=red", "is no option of ask"),
        ("a.B * work vault allow user=a user=a", "user= is there twice"),
        ("a.B * work vault allow target=", "target= cannot be taken"),
        ("a.B * work vault allow target=@anyvm", "target= cannot be taken: '@anyvm' cannot stand in target="),
        ("a.B * work vault ask default_target=@default", "default_target= cannot be taken"),
        ("a.B * work vault allow user=", "is not a user name"),
        ("a.B * work vault allow user=a:b", "is not a user name"),
        ("a.B * work vault allow user=\u00e9", "is not a user name"),
        ("a.B * work vault allow notify=1", "notify= cannot be taken: it is yes or no, not '1'"),
        ("a.B * work vault allow autostart=False", "autostart= cannot be taken"),
        ("a.B * work @default allow", "leads nowhere; add target=VM"),
        ("a.B * work @default allow user=root", "leads nowhere"),
    ],
)
def test_refused(line: str, reason: str) -> None:
    with pytest.raises(PolicyRefusedError, match=reason):
        parse(line)


def test_ask_and_deny_may_be_about_no_target() -> None:
    assert parse("a.B * work @default ask").action is Action.ASK
    assert parse("a.B * work @default deny").action is Action.DENY
