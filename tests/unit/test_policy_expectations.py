"""Tests of a policy as a file: what each line means, and what is said of those that are not met."""

import pytest

from crannog.policy.expectations import run_tests
from crannog.policy.loader import load_text
from tests.unit.policy_world import SYSTEM

POLICY = load_text(
    "a.B +x work vault allow\na.B * work dom0 allow\na.B * @anyvm @anyvm ask\na.C * work @dispvm allow\n"
)
MET = """\
# a comment
a.B+x  work   vault    =>  allow  target=vault
a.B+x  work   vault    =>  allow

a.B    work   dom0     =>  allow  target=dom0
a.B    work   @adminvm =>  allow  target=@adminvm
a.B    work   @default =>  ask    target=@dispvm:dvm
a.B+y  vault  work     =>  ask
a.C    work   @dispvm  =>  allow  target=@dispvm:dvm
a.C    work   vault    =>  deny
a.C    nosuch vault    =>  deny
a.D+   dom0   vault    =>  deny
"""


def test_what_is_met() -> None:
    report = run_tests(POLICY, SYSTEM, MET)
    assert str(report) == "10 expectations, 0 not met, 0 not understood\n"
    assert report.is_met


@pytest.mark.parametrize(
    ("line", "failure"),
    [
        ("a.B+x work vault => deny", "deny was expected; allow: policy:1: to vault"),
        ("a.B+x work vault => ask", "ask was expected; allow: "),
        ("a.B+x work vault => allow target=dvm", "allow target=dvm was expected; allow: "),
        ("a.B vault work => allow", "allow was expected; ask: policy:3: "),
        ("a.B vault work => deny", "deny was expected; ask: "),
        ("a.B vault work => ask target=vault", "ask target=vault was expected; ask: "),
        ("a.D work vault => allow", "allow was expected; deny: no rule of the policy matches"),
        ("a.D work vault => ask", "ask was expected; deny: "),
    ],
)
def test_what_is_not_met(line: str, failure: str) -> None:
    report = run_tests(POLICY, SYSTEM, f"# c\n{line}\n{MET}", "t")
    assert not report.is_met
    assert str(report).startswith(f"t:2: {failure}")
    assert str(report).endswith("11 expectations, 1 not met, 0 not understood\n")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("a.B work vault allow", "the line is no expectation; write 'SERVICE"),
        ("a.B work vault -> allow", "the line is no expectation"),
        ("a.B work vault => allow target=x y", "the line is no expectation"),
        ("a.B work => allow", "the line is no expectation"),
        ("a.B work vault => permit", "'permit' is no decision"),
        ("a.B work vault => deny target=vault", "cannot stand here"),
        ("a.B work vault => allow user=root", "cannot stand here"),
        ("a.B work vault => allow target=@anyvm", "cannot stand in target="),
        ("a.B work @anyvm => allow", "'@anyvm' cannot stand in a request"),
        ("a.B @default vault => allow", "'@default' cannot stand as the source"),
        ("+x work vault => allow", "a service is empty"),
        ("a.B \u00e9 vault => deny", "a VM's name is"),
    ],
)
def test_what_is_not_understood_fails(line: str, reason: str) -> None:
    report = run_tests(POLICY, SYSTEM, f"{line}\n{MET}", "t")
    assert not report.is_met
    assert str(report).startswith("t:1: ")
    assert reason in str(report)


def test_nothing_can_be_expected_of_a_policy_with_problems_but_refusals() -> None:
    report = run_tests(load_text("nonsense"), SYSTEM, "a.B+x work vault => allow\na.B work vault => deny\n")
    assert len(report.failures) == 1
    assert "the policy has 1 problems" in str(report)
