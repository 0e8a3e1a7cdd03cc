"""The policy that Crannog brings: it can be used, it is shipped, and it opens no more than it says."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import crannog
from crannog.api.methods import METHODS
from crannog.policy.decisions import Allow, Ask, Deny, Request
from crannog.policy.evaluator import evaluate
from crannog.policy.expectations import run_tests
from crannog.policy.lint import SHELLS, lint
from crannog.policy.loader import DEFAULTS, load
from crannog.policy.rules import Action
from tests.unit.policy_world import SYSTEM, Disk

ROOT = Path(__file__).parents[2]
ADMIN = str(Path(crannog.__file__).parent / "data" / "policy.d")
POLICY = load(Disk(), (DEFAULTS, ADMIN))
TARGETS = ("vault", "dvm", "dom0", "", "@dispvm", "@dispvm:dvm", "nosuch")
CALLERS = ("work", "debian", "dvm", "relay")
TOLD = {"qubes.NotifyTools", "qubes.FeaturesRequest", "qubes.WaitForSession", "qubes.NotifyUpdates"}
"""What VMs tell dom0 of themselves."""

EXPECTED = """\
qubes.Filecopy          work   vault     =>  ask    target=vault
qubes.Filecopy          work   @default  =>  ask    target=@dispvm:dvm
qubes.Filecopy          work   dom0      =>  deny
qubes.OpenInVM          work   vault     =>  ask    target=@dispvm:dvm
qubes.OpenURL           work   @dispvm   =>  ask    target=@dispvm:dvm
qubes.OpenURL           work   dom0      =>  deny
qubes.ClipboardPaste    work   vault     =>  ask    target=vault
qubes.ClipboardPaste    work   dom0      =>  deny
qubes.ClipboardCopy     work   vault     =>  deny
qubes.GetDate           work   dom0      =>  allow  target=dom0
qubes.GetDate           work   @default  =>  allow  target=dom0
qubes.GetDate           work   vault     =>  deny
qubes.NotifyTools       work   dom0      =>  allow  target=dom0
qubes.NotifyTools       work   vault     =>  deny
qubes.FeaturesRequest   work   dom0      =>  allow
qubes.WaitForSession    work   dom0      =>  allow
qubes.NotifyUpdates     work   dom0      =>  allow
qubes.StartApp+xterm    work   vault     =>  deny
my.Own                  work   vault     =>  deny
my.Own                  work   dom0      =>  deny
"""


def test_they_can_be_used_and_nothing_in_them_is_doubtful() -> None:
    assert POLICY.problems == ()
    assert lint(POLICY) == ()


def test_what_they_decide() -> None:
    report = run_tests(POLICY, SYSTEM, EXPECTED)
    assert report.is_met, str(report)


@pytest.mark.parametrize("service", [*SHELLS, *sorted(set(METHODS) - TOLD), "policy.List", "policy.EvalSimple"])
def test_nobody_administers_or_runs_commands(service: str) -> None:
    for caller in CALLERS:
        for target in TARGETS:
            for argument in ("+", "+x"):
                assert isinstance(evaluate(POLICY, SYSTEM, Request(service, argument, caller, target)), Deny)


def test_only_what_dom0_is_told_is_allowed_unasked() -> None:
    allowed = {rule.service for rule in POLICY.rules if rule.action is Action.ALLOW}
    assert allowed == TOLD | {"qubes.GetDate"}
    assert {rule.reach.text for rule in POLICY.rules if rule.action is Action.ALLOW} == {"@adminvm"}


def test_a_user_can_open_and_close_what_they_say(tmp_path: Path) -> None:
    (tmp_path / "30-user.policy").write_text("qubes.VMShell * work vault allow\nqubes.Filecopy * work vault deny\n")
    policy = load(Disk(), (str(tmp_path), DEFAULTS, ADMIN))
    assert isinstance(evaluate(policy, SYSTEM, Request("qubes.VMShell", "+", "work", "vault")), Allow)
    assert isinstance(evaluate(policy, SYSTEM, Request("qubes.Filecopy", "+", "work", "vault")), Deny)
    (tmp_path / "90-default.policy").write_text("# hides ours\n")
    hidden = load(Disk(), (str(tmp_path), DEFAULTS, ADMIN))
    assert isinstance(evaluate(POLICY, SYSTEM, Request("qubes.OpenURL", "+", "work", "")), Ask)
    assert isinstance(evaluate(hidden, SYSTEM, Request("qubes.OpenURL", "+", "work", "")), Deny)


def test_each_file_begins_by_saying_what_for() -> None:
    files = sorted(Path(DEFAULTS).glob("*.policy"))
    assert len(files) == 3
    assert all(file.read_text().startswith("# ") for file in files)


def test_they_are_in_the_wheel(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60)
    (wheel,) = tmp_path.glob("*.whl")
    shipped = {Path(name).name for name in zipfile.ZipFile(wheel).namelist() if "policy/defaults/" in name}
    assert shipped == {path.name for path in Path(DEFAULTS).iterdir()}
