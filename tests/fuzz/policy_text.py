"""Target: policy files and requests. Only problems with file and line come out, and with any of them all is denied."""

from contextlib import suppress

from crannog.errors import ProtocolError
from crannog.policy import answers
from crannog.policy.decisions import Allow, Ask, Decision, Deny, Request
from crannog.policy.evaluator import confirm, evaluate
from crannog.policy.explain import explain
from crannog.policy.lint import lint
from crannog.policy.loader import load, load_text
from crannog.policy.parser import Include, parse_service_text, parse_text
from crannog.policy.policy import Policy
from crannog.policy.problems import Origin, PolicyRefusedError, Problem
from crannog.policy.rules import Rule, parse_rule
from crannog.policy.tokens import Kind, Place, parse_token
from tests.fuzz.taken import Taken
from tests.unit.policy_world import ETC, RUN, SYSTEM, Files, uuid

WORDS = f"""
* + +x a.B a.C work vault dom0 far dvm uuid:{uuid(1)} uuid: @anyvm @adminvm @default @dispvm @dispvm:dvm
@dispvm:@tag:x @tag:x @type:AppVM @ $anyvm allow ask deny target=work target=@dispvm default_target=vault user=root
notify=yes autostart=no !include !include-dir !include-service b.policy d s !compat-4.0 ! # $include:s , =
""".split()
REQUEST_LINES = (b"source=work", b"intended_target=vault", b"service_and_arg=a.B+x", b"assume_yes_for_ask=yes", b"")
LINES = (
    "* * * * deny",
    "a.B * * @anyvm allow",
    "a.B + work @default allow target=vault",
    "a.B * @anyvm @anyvm ask default_target=work",
    "a.B * * @dispvm allow",
    "a.B * relay far allow",
    "* * @tag:x @tag:secret ask",
)
PATHS = (f"{ETC}/a.policy", f"{ETC}/b.policy", f"{RUN}/a.policy", f"{ETC}/d/c.policy", f"{ETC}/s", "/old/a.B")
VMS = tuple(f"work vault dom0 relay far dvm gone @default @dispvm @dispvm:dvm uuid:{uuid(1)} ".split(" "))


def fuzz_policy(data: bytes) -> None:
    """Check that any text is a policy, or problems of its lines; then every request is denied."""
    take = Taken(data)
    texts = [_text(take) for _ in range(1 + take.number(3))]
    policies = [load_text(texts[0], "policy"), load(_files(take, texts), (RUN, ETC), "/old")]
    for statement in (*parse_text(texts[0], "f"), *parse_service_text(texts[0], "f", "a.B", "+")):
        assert statement.origin.file == "f"
        assert 0 < statement.origin.line <= texts[0].count("\n") + 1
        _check_statement(statement)
    request = _request(take)
    for policy in policies:
        _check_policy(policy)
        _check_decision(policy, request)
    if policies[0].problems:
        return
    spoilt = load_text(f"{texts[0]}\n(\n")
    assert spoilt.problems
    assert isinstance(evaluate(spoilt, SYSTEM, request), Deny), "one wrong line denies everything"
    closed = load_text(f"* * * * deny\n{texts[0]}")
    assert isinstance(evaluate(closed, SYSTEM, request), Deny)


def _text(take: Taken) -> str:
    lines = []
    for _ in range(take.number(7)):
        kind = take.number(4)
        if kind == 0:
            lines.append(take.block().decode("utf-8", "replace"))
        elif kind == 1:
            lines.append(take.one_of(LINES))
        else:
            lines.append(" ".join(take.one_of(WORDS) for _ in range(take.number(9))) + take.block(6).decode("latin-1"))
    return take.one_of(("\n", "\n", "\r\n")).join(lines)


def _files(take: Taken, texts: list[str]) -> Files:
    files: dict[str, str | Exception] = {}
    for text in texts:
        path = take.one_of((*PATHS, f"{ETC}/{take.block(8).decode('latin-1')}"))
        troubles = (OSError(13, "no"), UnicodeDecodeError("u", b"", 0, 1, "no"))
        files[path] = text if take.number(12) else take.one_of(troubles)
    return Files(files)


def _request(take: Taken) -> Request:
    def name() -> str:
        return take.one_of(VMS) if take.number(4) else take.block(70).decode("latin-1")

    service, argument = take.one_of(("a.B", "a.C", take.block(20).decode("latin-1"))), take.one_of(("+", "+x"))
    flags = take.number(4)
    return Request(service, argument, name(), name(), name(), bool(flags & 1), bool(flags & 2))


def _check_statement(statement: Rule | Include | Problem) -> None:
    if isinstance(statement, Problem):
        assert statement.message.isprintable()
        assert len(statement.message) < 1000
    elif isinstance(statement, Rule):
        assert parse_rule(str(statement).split(), statement.origin) == statement, "it is the same when printed"
        for token in (statement.source, statement.target, statement.redirect):
            _check_token(str(token) if token else "*")
    else:
        assert ".." not in statement.path.split("/")


def _check_token(text: str) -> None:
    for place in Place:
        with suppress(PolicyRefusedError):
            token = parse_token(text, place)
            assert parse_token(token.text, place) == token
            assert place in token.kind.places
            assert token.kind is Kind.ADMIN or text.lower() == token.text.lower()


def _check_policy(policy: Policy) -> None:
    assert not (policy.problems and policy.rules)
    for problem in policy.problems:
        assert isinstance(problem.origin, Origin)
        assert problem.origin.file
    for found in lint(policy):
        assert found.origin.line <= 100


def _check_decision(policy: Policy, request: Request) -> None:
    decision = evaluate(policy, SYSTEM, request)
    assert evaluate(policy, SYSTEM, request) == decision
    assert explain(policy, SYSTEM, request).decision == decision
    if policy.problems:
        assert isinstance(decision, Deny)
    if isinstance(decision, Deny):
        assert decision.reason
        return
    assert decision.rule in policy.rules
    for target in decision.targets if isinstance(decision, Ask) else (decision.target,):
        assert target != request.source
        vm = SYSTEM.find(target.removeprefix("@dispvm:"))
        assert vm is not None
        assert vm.template_for_dispvms or not target.startswith("@dispvm:")
    _check_answers(request, decision)


def _check_answers(request: Request, decision: Decision) -> None:
    if isinstance(decision, Ask):
        assert not request.assume_yes
        for target in decision.targets:
            assert isinstance(confirm(SYSTEM, decision, target), Allow)
        assert isinstance(confirm(SYSTEM, decision, None), Deny)
        assert isinstance(confirm(SYSTEM, decision, "nobody"), Deny)


def fuzz_policy_request(data: bytes) -> None:
    """Check that bytes that ask for a decision are a request of harmless names, or ProtocolError."""
    take = Taken(data)
    lines = b""
    for _ in range(5):
        lines += take.one_of(REQUEST_LINES) + take.block() + take.one_of((b"\n", b"\n", b"\n\n", b"=", b""))
    for untrusted_data in (lines, take.rest()):
        with suppress(ProtocolError):
            request = answers.parse_request(untrusted_data)
            assert (request.service + request.argument + request.source + request.target).isprintable()
            assert request.argument.startswith("+")
            decision = evaluate(load_text(LINES[1]), SYSTEM, request)
            assert isinstance(decision, Deny) or request.service == "a.B"
