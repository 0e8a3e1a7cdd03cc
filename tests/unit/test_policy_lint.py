"""Doubtful rules: never reached, never matching, leading nowhere, or giving too much away."""

from dataclasses import replace

import pytest

from crannog.policy.lint import Doubt, lint
from crannog.policy.loader import load_text
from crannog.policy.problems import Origin
from crannog.policy.system import SystemInfo
from tests.unit.policy_world import SYSTEM, VMS, load_files


def doubts(text: str, system: SystemInfo | None = None) -> list[tuple[int, Doubt]]:
    policy = load_text(text)
    assert policy.problems == ()
    return [(finding.origin.line, finding.doubt) for finding in lint(policy, system)]


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("a.B * work vault deny", "a.B * work vault ask"),
        ("a.B * work vault deny", "a.B +x work vault ask"),
        ("* * work vault deny", "a.B +x work vault ask"),
        ("* * work vault deny", "* * work vault ask"),
        ("a.B * * vault deny", "a.B * work vault ask"),
        ("a.B * @anyvm vault deny", "a.B * @tag:x vault ask"),
        ("a.B * @anyvm @anyvm deny", "a.B * @type:AppVM @dispvm:@tag:x ask"),
        ("a.B * @anyvm @anyvm deny", "a.B * work @default ask"),
        ("a.B * work @anyvm deny", "a.B * work @dispvm ask"),
        ("a.B * * * deny", "a.B * @anyvm @adminvm ask"),
        ("a.B * work @anyvm deny", "a.B * work @anyvm ask"),
        ("a.B * work dom0 deny", "a.B * work @adminvm ask"),
    ],
)
def test_unreachable(earlier: str, later: str) -> None:
    assert doubts(f"{earlier}\n{later}\n") == [(2, Doubt.UNREACHABLE)]
    (finding,) = lint(load_text(f"{earlier}\n{later}\n"))
    assert str(finding).startswith("policy:2: unreachable: policy:1 matches all of it: ")


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("a.B +x work vault deny", "a.B * work vault ask"),
        ("a.B +x work vault deny", "a.B +y work vault ask"),
        ("a.B * work vault deny", "* * work vault ask"),
        ("a.B * work @anyvm deny", "a.B * work @adminvm ask"),
        ("a.B * work @anyvm deny", "a.B * work * ask"),
        ("a.B * @anyvm vault deny", "a.B * * vault ask"),
        ("a.B * work @tag:secret deny", "a.B * work vault ask"),  # as long as vault has the tag, only
        ("a.B * work @dispvm deny", "a.B * work @dispvm:dvm ask"),
        ("a.B * work @dispvm:dvm deny", "a.B * work @dispvm ask"),
        ("a.B * work vault deny", "a.C * work vault ask"),
    ],
)
def test_reachable(earlier: str, later: str) -> None:
    assert doubts(f"{earlier}\n{later}\n") == []


def test_the_first_of_several_is_named() -> None:
    found = lint(load_text("a.B * work vault deny\n" * 3))
    assert [finding.origin.line for finding in found] == [2, 3]
    assert all("policy:1 matches all of it" in finding.message for finding in found)


def test_what_follows_from_old_files_is_nobodys_rule() -> None:
    policy = load_files({"1.policy": "a.B * * * deny\n!compat-4.0", "/old/a.B+x": "work vault deny\n"})
    assert [finding.origin for finding in lint(policy)] == [Origin("/old/a.B+x", 1)]


@pytest.mark.parametrize(
    ("line", "doubt"),
    [
        ("a.B * @dispvm:dvm vault ask", Doubt.NEVER),
        ("a.B * @dispvm:@tag:x vault deny", Doubt.NEVER),
        ("a.B * @type:AdminVM vault ask", Doubt.NEVER),
        ("a.B * work @type:AdminVM ask", Doubt.NEVER),
        ("a.B * @adminvm vault allow", Doubt.NEVER),
        ("* * @adminvm vault allow", Doubt.NEVER),
        ("a.B * work work allow", Doubt.USELESS),
        ("a.B * work @anyvm allow target=work", Doubt.USELESS),
        ("a.B * work @dispvm allow autostart=no", Doubt.USELESS),
        ("a.B * work vault ask autostart=no target=@dispvm:dvm", Doubt.USELESS),
        ("a.B * work @default ask target=vault default_target=dvm", Doubt.USELESS),
        ("* * work vault allow", Doubt.DANGEROUS),
        ("a.B * work * allow", Doubt.DANGEROUS),
        ("admin.vm.Start * @anyvm @adminvm allow", Doubt.DANGEROUS),
        ("policy.Replace * @anyvm @default allow target=dom0", Doubt.DANGEROUS),
        ("qubes.VMShell * work @adminvm allow", Doubt.DANGEROUS),
        ("qubes.VMExec * @anyvm vault allow", Doubt.DANGEROUS),
        ("qubes.VMShell * work @anyvm allow", Doubt.DANGEROUS),
    ],
)
def test_single_rules(line: str, doubt: Doubt) -> None:
    assert doubts(f"# comment\n{line}\n") == [(2, doubt)]


@pytest.mark.parametrize(
    "line",
    [
        "* * * * deny",
        "* * work vault ask",
        "a.B * work * ask",
        "a.B * @anyvm @adminvm allow",
        "a.B * work * allow target=vault",
        "admin.vm.Start * mgmt @adminvm allow",
        "qubes.VMShell * work vault allow",
        "qubes.VMShell * @anyvm @dispvm allow",
        "a.B * work work allow target=vault",
        "a.B * work work deny",
        "a.B * work work ask",
        "a.B * work vault allow autostart=no",
        "a.B * work @default ask target=vault default_target=vault",
    ],
)
def test_what_is_fine(line: str) -> None:
    assert doubts(line) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.B * gone vault ask", "there is no VM gone"),
        ("a.B * work uuid:00000000-0000-0000-0000-00000000ffff ask", "there is no VM uuid:0000"),
        ("a.B * @tag:y vault ask", "no VM has the tag y"),
        ("a.B * work @dispvm:@tag:y ask", "no VM has the tag y"),
        ("a.B * @type:Appvm vault ask", "there is no class Appvm; classes are AdminVM, TemplateVM"),
        ("a.B * work @dispvm:vault ask", "there is no VM vault with template_for_dispvms"),
        ("a.B * work vault allow target=gone", "there is no VM gone"),
        ("a.B * work @anyvm ask default_target=@dispvm:gone", "there is no VM gone with"),
    ],
)
def test_names_that_lead_nowhere(line: str, message: str) -> None:
    assert doubts(line) == []  # nobody can tell without the VMs
    (finding,) = lint(load_text(line), SYSTEM)
    assert finding.doubt is Doubt.UNKNOWN
    assert finding.message.startswith(message)


def test_names_that_are_there() -> None:
    text = (
        "a.B * work vault ask default_target=@dispvm:dvm\na.B * @tag:x @type:DispVM ask\na.B * @tag:secret @dispvm ask"
    )
    assert doubts(text, SYSTEM) == []
    assert doubts(text, SystemInfo(replace(vm, tags=frozenset()) for vm in VMS)) == [
        (2, Doubt.UNKNOWN),
        (3, Doubt.UNKNOWN),
    ]


def test_a_policy_that_cannot_be_used_is_not_looked_at() -> None:
    assert lint(load_files({"1.policy": "* * * * allow target=vault\nnonsense\n"})) == ()
