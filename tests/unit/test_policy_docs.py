"""The example of docs/policy.md, run: its rules, its VMs, its decisions and its explanation are what it says."""

import re
from pathlib import Path

from crannog.policy.decisions import Request
from crannog.policy.expectations import run_tests
from crannog.policy.explain import explain
from crannog.policy.lint import lint
from crannog.policy.loader import load_text
from crannog.policy.rules import OPTIONS_OF, Action
from crannog.policy.system import SystemInfo, VMInfo
from crannog.policy.tokens import Kind, Place
from tests.unit.policy_world import DOM0, uuid

TEXT = (Path(__file__).parents[2] / "docs" / "policy.md").read_text(encoding="utf-8")


def block(name: str) -> str:
    (found,) = re.findall(rf"^```{name}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    return str(found)


def rows(heading: str) -> list[list[str]]:
    """Return the cells of a table below its first two lines."""
    table = TEXT[TEXT.index(f"| {heading} |") :].split("\n\n")[0]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()[2:]]


def read_vms() -> SystemInfo:
    vms = [DOM0]
    for number, (name, klass, tags, runs, is_template, template) in enumerate(rows("VM"), 1):
        vms.append(
            VMInfo(
                name,
                uuid(number),
                klass,
                frozenset(tags.split()),
                "Running" if runs == "yes" else "Halted",
                template_for_dispvms=is_template == "yes",
                default_dispvm=None if template == "-" else template,
            )
        )
    return SystemInfo(vms)


POLICY = load_text(block("policy"), "30-user.policy")


def test_the_example() -> None:
    assert POLICY.problems == ()
    report = run_tests(POLICY, read_vms(), block("expectations"))
    assert report.is_met, str(report)
    assert report.count == 12


def test_the_explanation() -> None:
    found = explain(POLICY, read_vms(), Request("qubes.Filecopy", "+", "mail", "vault"))
    assert str(found) == block("explanation")


def test_nothing_about_the_example_is_doubtful() -> None:
    assert lint(POLICY, read_vms()) == ()


def test_the_table_of_words() -> None:
    places = (Place.SOURCE, Place.TARGET, Place.REDIRECT, Place.INTENDED)
    told = {}
    for words, _, *cells in rows("word"):
        allowed = tuple(place for place, cell in zip(places, cells, strict=True) if cell)
        for word in re.findall(r"`([^`]+)`", words):
            told[re.sub(r"[A-Z]+$", "", word)] = allowed
    known = {kind.text: tuple(place for place in places if place in kind.places) for kind in Kind}
    assert told == known | {"dom0": known["@adminvm"]}


def test_the_table_of_options() -> None:
    told = {re.split("[`=]", option)[1]: actions for option, actions, _ in rows("option")}
    assert set(told) == {option for options in OPTIONS_OF.values() for option in options}
    for option, actions in told.items():
        known = {action for action in Action if option in OPTIONS_OF[action]}
        assert set(actions.split(", ")) == ({"all"} if known == set(Action) else known)


def test_the_table_of_functions() -> None:
    for _, words in rows("what"):
        for module, function in re.findall(r"`(\w+)\.(\w+)", words):
            assert hasattr(__import__(f"crannog.policy.{module}", fromlist=["x"]), function), words
