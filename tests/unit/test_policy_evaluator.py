"""Decisions: which tokens fit what, redirects, disposables, loops, RemoteVMs, questions and their answers."""

from dataclasses import replace

import pytest

from crannog.policy.decisions import Allow, Ask, Deny, Request
from crannog.policy.evaluator import confirm, evaluate
from crannog.policy.loader import load_text
from crannog.policy.policy import Policy
from crannog.policy.problems import Origin, Problem
from crannog.policy.system import SystemInfo
from tests.unit.policy_world import SYSTEM, VMS, decide, load_files, outcome, uuid


def allow(text: str, source: str, target: str, call: str = "a.B") -> Allow:
    decision = decide(text, call, source, target)
    assert isinstance(decision, Allow), decision
    return decision


def ask(text: str, source: str, target: str) -> Ask:
    decision = decide(text, "a.B", source, target)
    assert isinstance(decision, Ask), decision
    return decision


def reason(text: str, source: str, target: str, call: str = "a.B") -> str:
    decision = decide(text, call, source, target)
    assert isinstance(decision, Deny), decision
    return decision.reason


# Which tokens fit what

FITS = {
    "work": {"*", "@anyvm", "work", f"uuid:{uuid(1)}", "@tag:x", "@tag:office", "@type:AppVM"},
    "dom0": {"*", "@adminvm"},
    "@adminvm": {"*", "@adminvm"},
    f"uuid:{uuid(0)}": {"*", "@adminvm"},
    f"uuid:{uuid(1)}": {"*", "@anyvm", "work", f"uuid:{uuid(1)}", "@tag:x", "@tag:office", "@type:AppVM"},
    "debian": {"*", "@anyvm", "@type:TemplateVM"},
    "": {"*", "@anyvm", "@default"},
    "@default": {"*", "@anyvm", "@default"},
    "nosuch": {"*", "@anyvm", "@default"},
    f"uuid:{uuid(99)}": {"*", "@anyvm", "@default"},
    # the caller's default_dispvm is dvm
    "@dispvm": {"*", "@anyvm", "@dispvm", "@dispvm:dvm", f"@dispvm:uuid:{uuid(3)}", "@dispvm:@tag:x"},
    "@dispvm:dvm": {"*", "@anyvm", "@dispvm:dvm", f"@dispvm:uuid:{uuid(3)}", "@dispvm:@tag:x"},
    f"@dispvm:uuid:{uuid(3)}": {"*", "@anyvm", "@dispvm:dvm", f"@dispvm:uuid:{uuid(3)}", "@dispvm:@tag:x"},
    "@dispvm:dvm2": {"*", "@anyvm", "@dispvm:dvm2"},
}
TARGETS = sorted(set[str]().union(*FITS.values()))


@pytest.mark.parametrize("token", TARGETS)
@pytest.mark.parametrize("target", FITS)
def test_which_targets_a_token_fits(target: str, token: str) -> None:
    system = SystemInfo([*VMS, replace(VMS[1], name="caller", uuid=uuid(50))])
    decision = decide(f"a.B * caller {token} allow target=vault", "a.B", "caller", target, system)
    assert outcome(decision) == ("vault" if token in FITS[target] else "deny")


@pytest.mark.parametrize(
    ("token", "callers"),
    [
        ("*", {"work", "vault", "debian", "far"}),
        ("@anyvm", {"work", "vault", "debian", "far"}),
        ("work", {"work"}),
        (f"uuid:{uuid(1)}", {"work"}),
        ("@tag:x", {"work"}),
        ("@type:AppVM", {"work", "vault"}),
        ("@type:RemoteVM", {"far"}),
        ("@dispvm:dvm", set()),
        ("@dispvm:@tag:x", set()),
        ("@adminvm", set()),
    ],
)
def test_which_sources_a_token_fits(token: str, callers: set[str]) -> None:
    rule = f"a.B * {token} @anyvm allow target=dvm"
    found = {name for name in ("work", "vault", "debian", "far") if outcome(decide(rule, "a.B", name, "")) != "deny"}
    assert found == callers


def test_tags_and_class_of_dom0_open_nothing() -> None:
    assert outcome(decide("a.B * work @tag:x allow", "a.B", "work", "dom0")) == "deny"
    assert outcome(decide("a.B * work @type:AdminVM allow", "a.B", "work", "dom0")) == "deny"


@pytest.mark.parametrize(
    ("rule", "calls"),
    [
        ("a.B *", {"a.B", "a.B+x", "a.B+x+y"}),
        ("a.B +", {"a.B"}),
        ("a.B +x", {"a.B+x"}),
        ("* *", {"a.B", "a.B+x", "a.B+x+y", "a.C"}),
    ],
)
def test_services_and_arguments(rule: str, calls: set[str]) -> None:
    asked = ("a.B", "a.B+x", "a.B+x+y", "a.C")
    assert {
        call for call in asked if outcome(decide(f"{rule} work vault allow", call, "work", "vault")) != "deny"
    } == calls


def test_the_first_match_counts_across_rules_for_all_services() -> None:
    text = (
        "a.B + work vault ask\n* * work vault deny\na.B * work vault allow\n* * work dvm allow\na.C * work dvm deny\n"
    )
    calls = [("a.B", "vault"), ("a.B+x", "vault"), ("a.C", "dvm"), ("a.D", "dvm")]
    assert [outcome(decide(text, call, "work", target)) for call, target in calls] == [
        "ask dvm vault",
        "deny",
        "dvm",
        "dvm",
    ]


@pytest.mark.parametrize(
    ("token", "found"), [("*", "vault"), ("dom0", "vault"), ("@anyvm", "deny"), ("@tag:x", "deny")]
)
def test_what_fits_dom0_as_a_caller(token: str, found: str) -> None:
    assert outcome(decide(f"a.B * {token} vault allow", "a.B", "dom0", "vault")) == found


def test_tags_of_a_default_that_makes_no_disposables_do_not_count() -> None:
    text = "a.B * debian @dispvm:@tag:secret allow target=work"
    assert outcome(decide(text, "a.B", "debian", "@dispvm")) == "deny"


# What an allowed call comes to


def test_fields_of_an_allowed_call() -> None:
    found = allow("# c\na.B +x @tag:x vault allow user=root notify=yes", "work", "vault", "a.B+x")
    assert (found.target, found.target_uuid, found.requested_target) == ("vault", f"uuid:{uuid(2)}", "vault")
    assert (found.user, found.notify, found.autostart, found.service, found.policy_source) == (
        "root",
        True,
        True,
        "",
        "",
    )
    assert found.origin == Origin("policy", 2)


@pytest.mark.parametrize(
    ("redirect", "target", "target_uuid"),
    [
        ("vault", "vault", f"uuid:{uuid(2)}"),
        (f"uuid:{uuid(2)}", "vault", f"uuid:{uuid(2)}"),
        ("dom0", "dom0", ""),
        ("@adminvm", "dom0", ""),
        ("@dispvm", "@dispvm:dvm", f"@dispvm:uuid:{uuid(3)}"),
        ("@dispvm:dvm2", "@dispvm:dvm2", f"@dispvm:uuid:{uuid(4)}"),
        (f"@dispvm:uuid:{uuid(4)}", "@dispvm:dvm2", f"@dispvm:uuid:{uuid(4)}"),
    ],
)
def test_redirects(redirect: str, target: str, target_uuid: str) -> None:
    found = allow(f"a.B * work @anyvm allow target={redirect}", "work", "debian")
    assert (found.target, found.target_uuid, found.requested_target) == (target, target_uuid, "debian")


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("", "@default"),
        ("@default", "@default"),
        ("nosuch", "@default"),
        ("dom0", "@adminvm"),
        ("vault", "vault"),
        (f"uuid:{uuid(2)}", f"uuid:{uuid(2)}"),
        ("@dispvm", "@dispvm"),
        ("@dispvm:dvm2", "@dispvm:dvm2"),
    ],
)
def test_the_service_is_told_what_was_asked_for(asked: str, told: str) -> None:
    assert allow("a.B * * * allow target=dvm", "work", asked).requested_target == told


def test_allow_without_any_target() -> None:
    assert "neither the caller nor the rule names a target" in reason("a.B * work @anyvm allow", "work", "")
    assert "policy:1" in reason("a.B * work @anyvm allow", "work", "nosuch")


def test_a_redirect_into_nothing() -> None:
    assert "leads to gone, which does not exist" in reason("a.B * work @anyvm allow target=gone", "work", "vault")


@pytest.mark.parametrize("target", ["work", f"uuid:{uuid(1)}"])
def test_a_vm_cannot_call_itself(target: str) -> None:
    assert "cannot call itself" in reason("a.B * * * allow", "work", target)
    assert "cannot call itself" in reason("a.B * * * allow target=work", "work", "vault")
    assert allow("a.B * * * allow target=vault", "work", target).target == "vault"


def test_a_new_disposable_of_oneself_is_another_vm() -> None:
    assert allow("a.B * * * allow", "dvm", "@dispvm").target == "@dispvm:dvm"


@pytest.mark.parametrize("target", ["@dispvm:vault", "@dispvm:nosuch", f"@dispvm:uuid:{uuid(2)}"])
def test_disposables_need_template_for_dispvms(target: str) -> None:
    assert "that disposables can be made from" in reason("a.B * * * allow", "work", target)
    assert "that disposables can be made from" in reason(f"a.B * * * allow target={target}", "work", "vault")


def test_disposables_of_a_caller_without_a_default() -> None:
    assert "vault has no default_dispvm" in reason("a.B * * * allow", "vault", "@dispvm")
    assert "that disposables can be made from" in reason("a.B * * * allow", "debian", "@dispvm")  # its default is none


@pytest.mark.parametrize(
    "target", ["@anyvm", "*", "@tag:x", "@type:AppVM", "@dispvm:@tag:x", "$default", "a b", "\n", "@"]
)
def test_targets_that_nobody_can_ask_for(target: str) -> None:
    assert "the target cannot be asked for" in reason("a.B * * * allow target=vault", "work", target)


def test_an_unknown_caller() -> None:
    assert "there is no VM 'nosuch'" in reason("a.B * * * allow", "nosuch", "vault")
    assert "there is no VM ''" in reason("a.B * * * allow", "", "vault")


def test_no_rule() -> None:
    decision = decide("a.B * work vault allow", "a.B", "vault", "work")
    assert isinstance(decision, Deny)
    assert (decision.rule, decision.notify, decision.reason) == (None, True, "no rule of the policy matches")


def test_deny_says_where_and_whether_to_tell_the_user() -> None:
    decision = decide("a.B * work vault deny notify=no", "a.B", "work", "vault")
    assert isinstance(decision, Deny)
    assert (decision.reason, decision.notify) == ("policy:1: denied by the policy", False)
    assert decision.rule is not None


def test_a_policy_with_a_problem_denies_everything_and_says_why() -> None:
    policy = load_files({"10.policy": "* * * * allow target=vault\n", "20.policy": "nonsense\n"})
    decision = evaluate(policy, SYSTEM, Request("a.B", "+", "work", "vault"))
    assert isinstance(decision, Deny)
    assert "the policy has 1 problems and denies everything; first: /etc/policy.d/20.policy:1: " in decision.reason


def test_rules_beside_problems_are_not_kept() -> None:
    rules = load_text("* * * * allow target=vault").rules
    assert Policy(rules).rules == rules
    assert Policy(rules, [Problem(Origin("f", 1), "x")]).rules == ()


# autostart=no


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("work", "work"),
        ("vault", "deny"),
        ("dom0", "dom0"),
        ("@dispvm", "deny"),
        ("@dispvm:dvm2", "deny"),
        ("far", "relay"),
    ],
)
def test_targets_that_would_have_to_start(target: str, found: str) -> None:
    system = SystemInfo([*VMS, replace(VMS[1], name="caller", uuid=uuid(50))])
    decision = decide("a.B * caller * allow autostart=no", "a.B", "caller", target, system)
    assert outcome(decision) == found
    assert isinstance(decision, Deny) or not decision.autostart


def test_a_new_disposable_starts_even_when_what_it_is_made_from_runs() -> None:
    system = SystemInfo([replace(vm, power_state="Running") for vm in VMS])
    assert outcome(decide("a.B * work @dispvm allow autostart=no", "a.B", "work", "@dispvm", system)) == "deny"


def test_a_paused_vm_does_not_run() -> None:
    system = SystemInfo([replace(vm, power_state="Paused") for vm in VMS])
    assert outcome(decide("a.B * debian work allow autostart=no", "a.B", "debian", "work", system)) == "deny"


# RemoteVMs


def test_a_call_to_a_remote_vm_goes_to_its_relay() -> None:
    found = allow("a.B * work far allow", "work", "far", "a.B+x")
    assert (found.target, found.target_uuid, found.requested_target) == ("relay", f"uuid:{uuid(6)}", "far")
    assert found.service == "ssh.Relay+far+a.B+x"
    assert allow("a.B * work far allow", "work", "far").service == "ssh.Relay+far+a.B+"


def test_remote_vms_that_cannot_be_reached() -> None:
    assert "no relayvm or no transport_rpc" in reason("a.B * work lost allow", "work", "lost")
    half = SystemInfo([replace(vm, transport_rpc=None) for vm in VMS])
    assert outcome(decide("a.B * work far allow", "a.B", "work", "far", half)) == "deny"
    gone = SystemInfo([vm for vm in VMS if vm.name != "relay"])
    assert outcome(decide("a.B * work far allow", "a.B", "work", "far", gone)) == "deny"
    assert "is itself the relay" in reason("a.B * relay far allow", "relay", "far")


def speak(text: str, caller: str, speaker: str, target: str = "work") -> Allow | Ask | Deny:
    return evaluate(load_text(text), SYSTEM, Request("a.B", "+", caller, target, requested_source=speaker))


def test_a_relay_speaks_for_its_remote_vm() -> None:
    found = speak("a.B * far work allow", "relay", "far")
    assert isinstance(found, Allow)
    assert (found.target, found.policy_source) == ("work", "far")
    assert isinstance(speak("a.B * relay work allow", "relay", "far"), Deny)  # rules are asked for whom it speaks


def test_a_relay_speaks_for_remote_vms_alone() -> None:
    system = SystemInfo([replace(vm, relayvm="relay") for vm in VMS])
    request = Request("a.B", "+", "relay", "vault", requested_source="work")
    assert outcome(evaluate(load_text("a.B * * * allow"), system, request)) == "deny"


def test_a_relay_that_names_itself_speaks_for_itself() -> None:
    found = speak("a.B * relay work allow", "relay", "relay")
    assert isinstance(found, Allow)
    assert found.policy_source == ""


@pytest.mark.parametrize(
    ("caller", "speaker"),
    [("work", "far"), ("relay", "lost"), ("relay", "work"), ("relay", "dom0"), ("relay", "nosuch")],
)
def test_nobody_else_speaks_for_others(caller: str, speaker: str) -> None:
    found = speak("a.B * * * allow", caller, speaker, "vault")
    assert isinstance(found, Deny)
    assert f"{caller} is not the relay" in found.reason


def test_a_remote_vm_cannot_call_itself_or_its_relay_through_the_relay() -> None:
    assert isinstance(speak("a.B * * * allow", "relay", "far", "far"), Deny)
    assert isinstance(speak("a.B * * * allow", "relay", "far", "relay"), Deny)


# Questions


def test_what_can_be_chosen() -> None:
    found = ask("a.B * work vault deny\na.B * @tag:x @anyvm ask user=u notify=yes", "work", "")
    assert found.targets == ("debian", "dvm", "dvm2", "far", "relay", "@dispvm:dvm", "@dispvm:dvm2")
    assert (found.default_target, found.user, found.notify, found.autostart) == (None, "u", True, True)
    assert (found.requested_target, str(found.origin)) == ("@default", "policy:2")


@pytest.mark.parametrize(
    ("text", "targets"),
    [
        ("a.B * work @default ask\na.B * work vault allow\na.B * vault dvm2 allow\na.C * work dvm2 allow", "vault"),
        ("a.B * work @default ask\na.B + work vault ask\na.B +x work dvm2 ask", "vault"),
        ("a.B * work @default ask\na.B * work @dispvm ask", "@dispvm:dvm"),
        ("a.B * work @dispvm:dvm deny\na.B * work @default ask\na.B * work @dispvm ask\na.B * work dvm ask", "dvm"),
        ("a.B * work @default ask\na.B * work @dispvm deny\na.B * work @dispvm:dvm ask", "@dispvm:dvm"),
        ("a.B * work @default ask\na.B * work @dispvm:@tag:x ask", "@dispvm:dvm"),
        ("a.B * work @default ask\na.B * work * deny\na.B * work vault ask\na.B * work @adminvm ask", "deny"),
        ("a.B * work @default ask\na.B * work @adminvm ask", "dom0"),
        ("a.B * work @default ask\na.B * work @tag:x ask", "dvm"),  # not work itself
        ("a.B * work @default ask\na.B * work @type:RemoteVM ask", "far"),  # lost has no relay
        ("a.B * work @default ask\na.B * work debian allow target=vault", "vault"),
        ("a.B * work vault deny\na.B * work @default ask\na.B * work debian allow target=vault", "deny"),
        ("a.B * work @default ask\na.B * work debian allow target=vault\na.B * work @anyvm deny", "vault"),
        ("a.B * work dvm ask\na.B * work debian deny\na.B * work debian allow target=vault", "dvm"),
        ("a.B * work dvm ask\na.B * work @default allow target=vault", "dvm vault"),
        ("a.B * work @default ask target=vault\na.B * work @anyvm ask", "vault"),
        ("a.B * work @default ask target=work\na.B * work @anyvm ask", "deny"),
        ("a.B * work @default ask\na.B * work @type:AppVM ask autostart=no", "dvm dvm2 relay vault"),
        ("a.B * work @default ask autostart=no\na.B * work @anyvm ask", "far relay"),
    ],
)  # fmt: skip
def test_choices(text: str, targets: str) -> None:
    target = "" if "@default ask" in text else "dvm"
    assert outcome(decide(text, "a.B", "work", target)).removeprefix("ask ") == targets


@pytest.mark.parametrize(
    ("option", "default"),
    [
        ("vault", "vault"),
        (f"uuid:{uuid(2)}", "vault"),
        ("@dispvm", "@dispvm:dvm"),
        ("dom0", None),  # not among the targets
        ("work", None),
        ("gone", None),
        ("@dispvm:vault", None),
    ],
)
def test_what_is_chosen_beforehand(option: str, default: str | None) -> None:
    assert ask(f"a.B * work @anyvm ask default_target={option}", "work", "debian").default_target == default


def test_answers() -> None:
    found = ask("a.B * work @anyvm ask user=u autostart=yes notify=yes", "work", "debian")
    yes = confirm(SYSTEM, found, "vault")
    assert isinstance(yes, Allow)
    assert (yes.target, yes.requested_target, yes.user, yes.notify) == ("vault", "debian", "u", True)
    disposable = confirm(SYSTEM, found, "@dispvm:dvm2")
    assert isinstance(disposable, Allow)
    assert disposable.target_uuid == f"@dispvm:uuid:{uuid(4)}"
    remote = confirm(SYSTEM, found, "far")
    assert isinstance(remote, Allow)
    assert (remote.target, remote.service) == ("relay", "ssh.Relay+far+a.B+")
    no = confirm(SYSTEM, found, None)
    assert isinstance(no, Deny)
    assert (no.reason, no.notify) == ("policy:1: the user said no", True)


@pytest.mark.parametrize(
    "answer", ["work", "dom0", "@adminvm", "gone", "@dispvm", "@anyvm", "", "vault\n", f"uuid:{uuid(2)}"]
)
def test_answers_that_were_not_offered(answer: str) -> None:
    found = confirm(SYSTEM, ask("a.B * work @anyvm ask", "work", "debian"), answer)
    assert isinstance(found, Deny)
    assert "is not among the targets" in found.reason


def test_the_service_is_told_what_was_asked_for_though_it_has_gone() -> None:
    found = ask("a.B * work @anyvm ask", "work", "debian")
    yes = confirm(SystemInfo([vm for vm in VMS if vm.name != "debian"]), found, "vault")
    assert isinstance(yes, Allow)
    assert yes.requested_target == "debian"


def test_a_vm_with_a_name_that_rules_cannot_hold_can_be_chosen() -> None:
    system = SystemInfo([*VMS, replace(VMS[2], name="w\u00f6rk x", uuid=uuid(50))])
    found = decide("a.B * work @anyvm ask", "a.B", "work", "", system)
    assert isinstance(found, Ask)
    assert outcome(confirm(system, found, "w\u00f6rk x")) == "w\u00f6rk x"


def test_dom0_can_be_chosen() -> None:
    found = confirm(SYSTEM, ask("a.B * work * ask", "work", "debian"), "dom0")
    assert isinstance(found, Allow)
    assert (found.target, found.target_uuid) == ("dom0", "")


def test_what_went_away_while_the_user_thought() -> None:
    found = ask("a.B * work @anyvm ask", "work", "debian")
    without = {name: SystemInfo([vm for vm in VMS if vm.name != name]) for name in ("vault", "work", "dvm")}
    assert isinstance(confirm(without["vault"], found, "vault"), Deny)
    assert isinstance(confirm(without["work"], found, "vault"), Deny)
    assert isinstance(confirm(without["dvm"], found, "@dispvm:dvm"), Deny)
    assert isinstance(confirm(without["dvm"], found, "vault"), Allow)


def assume(text: str, target: str) -> str:
    return outcome(evaluate(load_text(text), SYSTEM, Request("a.B", "+", "work", target, assume_yes=True)))


@pytest.mark.parametrize(
    ("options", "target", "found"),
    [
        ("", "vault", "vault"),
        ("", "@dispvm", "@dispvm:dvm"),
        ("", "@dispvm:dvm2", "@dispvm:dvm2"),
        ("", f"uuid:{uuid(2)}", "vault"),
        ("", "", "deny"),  # there is nobody to choose
        ("", "work", "deny"),
        ("", "dom0", "deny"),
        ("default_target=vault", "", "vault"),
        ("default_target=vault", "dvm2", "dvm2"),
        ("target=dvm2", "vault", "dvm2"),
        ("target=dvm2", "", "dvm2"),
        ("autostart=no", "vault", "deny"),
    ],
)
def test_a_yes_that_is_assumed(options: str, target: str, found: str) -> None:
    assert assume(f"a.B * work @anyvm ask {options}", target) == found


def test_a_yes_changes_no_other_decision() -> None:
    assert assume("a.B * work vault deny\na.B * work @anyvm ask", "vault") == "deny"
    assert assume("a.B * work @anyvm allow", "vault") == "vault"


def test_rules_of_many_services_are_found_after_the_memory_was_emptied() -> None:
    services = [f"a.S{number}" for number in range(1200)]
    policy = load_text("".join(f"{service} * work vault allow\n" for service in services) + "* * work dvm deny\n")
    assert policy.services == tuple(services)
    for service in [*services, *services]:
        assert [rule.service for rule in policy.rules_for(service)] == [service, "*"]
        assert len(policy._merged) <= 1000
    assert [rule.service for rule in policy.rules_for("a.Other")] == ["*"]
