"""What holds for every policy: against a slow evaluator that is written from the words of the specification."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from crannog.policy.decisions import Allow, Ask, Decision, Deny, Request
from crannog.policy.evaluator import confirm, evaluate
from crannog.policy.explain import explain
from crannog.policy.graph import graph
from crannog.policy.lint import Doubt, lint
from crannog.policy.loader import load_text
from crannog.policy.policy import Policy
from crannog.policy.rules import Rule
from crannog.policy.system import SystemInfo, VMInfo
from tests.unit.policy_world import SYSTEM, VMS, outcome, uuid

NAMES = [vm.name for vm in VMS]
SERVICES = ("a.B", "a.C")
ARGUMENTS = ("+", "+x", "+y")
VM_TOKENS = ["work", "vault", "dvm", "debian", "far", f"uuid:{uuid(1)}", f"uuid:{uuid(2)}", "gone"]
SETS = ["*", "@anyvm", "@tag:x", "@tag:secret", "@type:AppVM", "@type:TemplateVM", "@type:AdminVM"]
DISPOSABLES = ["@dispvm:dvm", "@dispvm:dvm2", f"@dispvm:uuid:{uuid(3)}", "@dispvm:vault"]
SOURCES = st.sampled_from([*VM_TOKENS, *SETS, *DISPOSABLES, "@dispvm:@tag:x"])
TARGETS = st.sampled_from(
    [*VM_TOKENS, *SETS, *DISPOSABLES, "@dispvm:@tag:x", "@default", "@dispvm", "@adminvm", "dom0"]
)
REDIRECTS = st.sampled_from([*VM_TOKENS, *DISPOSABLES, "@dispvm", "@adminvm"])
CALLS = st.one_of(st.just(("*", "*")), st.tuples(st.sampled_from(SERVICES), st.sampled_from([*ARGUMENTS, "*"])))


@st.composite
def rule_lines(draw: st.DrawFn) -> str:
    service, argument = draw(CALLS)
    action, target = draw(st.sampled_from(["allow", "ask", "deny"])), draw(TARGETS)
    options = []
    if action != "deny":
        if draw(st.booleans()) or (action == "allow" and target == "@default"):
            options.append(f"target={draw(REDIRECTS)}")
        if draw(st.integers(0, 5)) == 0:
            options.append("autostart=no")
    if action == "ask" and draw(st.booleans()):
        options.append(f"default_target={draw(REDIRECTS)}")
    return " ".join([service, argument, draw(SOURCES), target, action, *options])


POLICIES = st.lists(rule_lines(), max_size=12).map("\n".join)
REQUESTS = st.builds(
    Request,
    st.sampled_from([*SERVICES, "a.D"]),
    st.sampled_from([*ARGUMENTS, "+z"]),
    st.sampled_from([*NAMES, "gone"]),
    st.sampled_from([*NAMES, *VM_TOKENS, *DISPOSABLES, "@default", "", "@dispvm", "@adminvm", "@anyvm", "no such"]),
    assume_yes=st.booleans(),
)


def load(text: str) -> Policy:
    policy = load_text(text)
    assert policy.problems == ()
    return policy


# The slow evaluator: tokens are texts, and everything is looked up anew for each rule.


def find(name: str) -> VMInfo | None:
    return next((vm for vm in VMS if name in (vm.name, f"uuid:{vm.uuid}")), None)


def has_fitting(word: str, vm: VMInfo) -> bool:
    """Tell whether a token that names VMs that are there fits one."""
    if word == "*":
        return True
    if vm.name == "dom0":
        return word in ("dom0", "@adminvm")
    if word == "@anyvm":
        return True
    if word.startswith("@tag:"):
        return word[5:] in vm.tags
    if word.startswith("@type:"):
        return word[6:] == vm.klass
    return word in (vm.name, f"uuid:{vm.uuid}")


def target_fits(word: str, asked: str, caller: VMInfo) -> bool:
    if word in ("*", "@anyvm") and (asked.startswith("@d") or asked == ""):
        return True
    if asked in ("", "@default"):
        return word == "@default"
    if asked == "@dispvm":
        own = caller.default_dispvm
        return word == "@dispvm" or (own is not None and disposable_fits(word, own))
    if asked.startswith("@dispvm:"):
        return disposable_fits(word, asked[8:])
    vm = find("dom0" if asked == "@adminvm" else asked)
    return has_fitting(word, vm) if vm else target_fits(word, "@default", caller)


def disposable_fits(word: str, template_name: str) -> bool:
    template = find(template_name)
    if template is None or not word.startswith("@dispvm:"):
        return False
    value = word[8:]
    if value.startswith("@tag:"):
        return template.template_for_dispvms and value[5:] in template.tags
    return value in (template.name, f"uuid:{template.uuid}")


def find_slowly(text: str, request: Request) -> str | None:
    """Return the words of the first line that matches."""
    caller = find(request.source)
    assert caller is not None
    for line in text.split("\n"):
        words = line.split()
        if not words or words[0] not in ("*", request.service) or words[1] not in ("*", request.argument):
            continue
        if has_fitting(words[2], caller) and target_fits(words[3], request.target, caller):
            return line
    return None


def is_askable(request: Request) -> bool:
    """Tell whether anything at all can come of a request: its caller is there, and its target can be asked for."""
    if find(request.source) is None or request.target in ("@anyvm", "no such"):
        return False
    template = find(request.target[8:]) if request.target.startswith("@dispvm:") else None
    return not request.target.startswith("@dispvm:") or (template is not None and template.template_for_dispvms)


def list_ends(decision: Decision) -> tuple[str, ...]:
    """Return where the call can end."""
    if isinstance(decision, Ask):
        return decision.targets
    return (decision.target,) if isinstance(decision, Allow) else ()


@given(POLICIES, REQUESTS)
def test_the_first_match_wins(text: str, request: Request) -> None:
    decision = evaluate(load(text), SYSTEM, request)
    rule: Rule | None = decision.rule
    if not is_askable(request):
        assert isinstance(decision, Deny)
        assert rule is None
        return
    expected = find_slowly(text, request)
    assert (None if rule is None else text.split("\n")[rule.origin.line - 1]) == expected
    if expected is None or expected.split()[4] == "deny":
        assert isinstance(decision, Deny)
    else:
        assert not isinstance(decision, Ask) or expected.split()[4] == "ask"
        assert not isinstance(decision, Allow) or request.assume_yes or expected.split()[4] == "allow"


@given(POLICIES, REQUESTS)
def test_decisions_repeat(text: str, request: Request) -> None:
    policy = load(text)
    first = evaluate(policy, SYSTEM, request)
    assert evaluate(policy, SYSTEM, request) == first
    assert evaluate(load(text), SystemInfo(VMS[::-1]), request) == first  # whatever order the VMs are told in


@given(POLICIES, REQUESTS)
def test_a_deny_all_at_the_end_never_allows_anything(text: str, request: Request) -> None:
    before = evaluate(load(text), SYSTEM, request)
    after = evaluate(load(f"{text}\n* * * * deny"), SYSTEM, request)
    assert outcome(before) == outcome(after)


@given(POLICIES, REQUESTS)
def test_a_deny_all_at_the_beginning_denies(text: str, request: Request) -> None:
    assert isinstance(evaluate(load(f"* * * * deny\n{text}"), SYSTEM, request), Deny)


@given(POLICIES, rule_lines(), REQUESTS)
def test_a_deny_rule_anywhere_opens_nothing(text: str, line: str, request: Request) -> None:
    words = line.split()[:4]
    before = evaluate(load(text), SYSTEM, request)
    after = evaluate(load(f"{' '.join(words)} deny\n{text}"), SYSTEM, request)
    if isinstance(before, Deny):
        assert isinstance(after, Deny)
    elif isinstance(before, Ask) and isinstance(after, Ask):
        assert set(after.targets) <= set(before.targets)
    else:
        assert isinstance(after, Deny) or outcome(after) == outcome(before)


@given(POLICIES, st.text(min_size=1, max_size=40), REQUESTS)
def test_an_error_anywhere_denies_everything(text: str, junk: str, request: Request) -> None:
    policy = load_text(f"{text}\n({junk}\n")  # no service begins with a parenthesis
    assert policy.problems
    assert isinstance(evaluate(policy, SYSTEM, request), Deny)


@given(POLICIES, REQUESTS)
def test_calls_end_at_vms_that_are_there_and_never_at_the_caller(text: str, request: Request) -> None:
    decision = evaluate(load(text), SYSTEM, request)
    for target in list_ends(decision):
        assert target != request.source
        template = find(target.removeprefix("@dispvm:"))
        assert template is not None
        assert template.template_for_dispvms or not target.startswith("@dispvm:")


@given(POLICIES, REQUESTS)
def test_whatever_is_offered_can_be_had(text: str, request: Request) -> None:
    decision = evaluate(load(text), SYSTEM, replace(request, assume_yes=False))
    if isinstance(decision, Ask):
        assert decision.targets
        assert decision.default_target in (None, *decision.targets)
        assert all(isinstance(confirm(SYSTEM, decision, target), Allow) for target in decision.targets)


@given(POLICIES, REQUESTS)
def test_explanations_agree_with_decisions(text: str, request: Request) -> None:
    found = explain(load(text), SYSTEM, request)
    assert found.decision == evaluate(load(text), SYSTEM, request)
    matched = [step.rule for step in found.steps if step.is_match]
    assert matched == ([found.decision.rule] if found.decision.rule else [])


@given(POLICIES)
def test_what_lint_calls_unreachable_decides_nothing(text: str) -> None:
    policy = load(text)
    doubted = {found.origin.line for found in lint(policy) if found.doubt in (Doubt.UNREACHABLE, Doubt.NEVER)}
    kept = load("\n".join("" if number in doubted else line for number, line in enumerate(text.split("\n"), 1)))
    for service in SERVICES:
        for source in NAMES[1:]:
            for target in ("", "@dispvm", *NAMES):
                request = Request(service, "+x", source, target)
                assert outcome(evaluate(policy, SYSTEM, request)) == outcome(evaluate(kept, SYSTEM, request))


@given(POLICIES, st.sampled_from(SERVICES))
def test_the_graph_agrees_with_decisions(text: str, service: str) -> None:
    policy = load(text)
    drawn = {(edge.source, edge.asked) for edge in graph(policy, SYSTEM, service)}
    for source in NAMES[1:]:
        for target in NAMES:
            decision = evaluate(policy, SYSTEM, Request(service, "+", source, target))
            is_redirected = isinstance(decision, Ask) and decision.rule.redirect is not None
            is_drawn = is_redirected or isinstance(decision, Allow) or target in list_ends(decision)
            assert ((source, target) in drawn) is is_drawn
