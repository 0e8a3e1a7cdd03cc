"""Explanations: each rule that was tried, and why it did not match."""

import pytest

from crannog.policy.decisions import Request
from crannog.policy.evaluator import evaluate
from crannog.policy.explain import describe, explain
from crannog.policy.loader import load_text
from tests.unit.policy_world import SYSTEM

TEXT = """\
a.B +x work   vault    deny
a.C *  work   vault    allow
a.B *  vault  dvm      deny
a.B *  @tag:x @adminvm deny
* *    work   dvm      deny
a.B *  work   @anyvm   allow user=root
a.B *  *      *        deny
"""


def test_every_rule_that_was_tried_has_its_reason() -> None:
    found = explain(load_text(TEXT), SYSTEM, Request("a.B", "+y", "work", "vault"))
    assert [(step.rule.origin.line, step.reason) for step in found.steps] == [
        (1, "the argument is '+y', not +x"),
        (3, "the source work is not vault"),
        (4, "the target vault is not @adminvm"),
        (5, "the target vault is not dvm"),
        (6, ""),
    ]
    assert [step.is_match for step in found.steps] == [False] * 4 + [True]
    assert found.others == 1
    assert str(found) == (
        "'a.B+y' from 'work' to 'vault'\n"
        "policy:1: a.B +x work vault deny\n    the argument is '+y', not +x\n"
        "policy:3: a.B * vault dvm deny\n    the source work is not vault\n"
        "policy:4: a.B * @tag:x @adminvm deny\n    the target vault is not @adminvm\n"
        "policy:5: * * work dvm deny\n    the target vault is not dvm\n"
        "policy:6: a.B * work @anyvm allow user=root\n    matches\n"
        "1 rules are about other services\n"
        "allow: policy:6: to vault by user root\n"
    )


@pytest.mark.parametrize(("target", "named"), [("", "that was not named"), ("nosuch", "'nosuch'")])
def test_what_a_target_counts_as(target: str, named: str) -> None:
    found = explain(load_text("a.B * work vault allow"), SYSTEM, Request("a.B", "+", "work", target))
    assert found.steps[0].reason == f"the target {named} counts as @default, which is not vault"
    assert str(found).endswith("deny: no rule of the policy matches\n")


def test_requests_that_no_rule_is_tried_for() -> None:
    found = explain(load_text(TEXT), SYSTEM, Request("a.B", "+", "nosuch", "vault"))
    assert found.steps == ()
    assert "there is no VM 'nosuch'" in str(found)


def test_nothing_in_a_request_can_forge_a_line() -> None:
    found = explain(load_text(TEXT), SYSTEM, Request("a.B\nx", "+\x1b", "work", "v\nallow: all"))
    assert len(str(found).splitlines()) == 3


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("a.B * work * deny", "deny: policy:1: denied by the policy"),
        ("a.B * work * allow autostart=no target=relay", "allow: policy:1: to relay without starting it"),
        ("a.B * work * allow target=far", "allow: policy:1: to relay as ssh.Relay+far+a.B+"),
        ("a.B * work * ask target=dvm", "ask: policy:1: dvm"),
        (
            "a.B * work @dispvm ask\na.B * work vault ask default_target=vault",
            "ask: policy:2: vault, @dispvm:dvm, vault chosen beforehand",
        ),
    ],
)
def test_decisions_in_a_line(rule: str, text: str) -> None:
    assert describe(evaluate(load_text(rule), SYSTEM, Request("a.B", "+", "work", "vault"))) == text


def test_a_policy_with_problems_says_so() -> None:
    found = explain(load_text("nonsense"), SYSTEM, Request("a.B", "+", "work", "vault"))
    assert "the policy has 1 problems" in str(found)
