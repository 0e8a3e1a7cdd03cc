"""crannog policy on real files: what check, explain, graph, test and log print, and the codes that they end with."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from crannog.cli import policy, policy_log
from crannog.cli.policy_log import Follower, read_last
from crannog.daemon import decision_log
from crannog.daemon.decision_log import DecisionLog
from crannog.policy.decisions import Allow, Ask, Deny, Request
from crannog.policy.loader import load_text
from tests.unit.cli_wire import TIMEOUT, Tool, Wire, assert_examples_are_plain, open_wire

BIN = os.path.dirname(sys.executable)
RULES = (
    "test.Ask    *  work  @anyvm    ask default_target=vault\n"
    "test.Allow  *  work  vault     allow notify=yes\n"
    "test.Allow  *  wrok  @anyvm    allow target=@dispvm\n"
    "test.Allow  +x work  vault     deny\n"
)
RULE = "a rule has five words and then options, here are 4; write SERVICE +ARGUMENT SOURCE TARGET allow|ask|deny"


def vm(name: str, klass: str, number: int) -> dict[str, object]:
    return {
        "internal": None, "tags": ["created-by-dom0"], "type": klass, "template_for_dispvms": False,
        "default_dispvm": None, "icon": f"{klass}-red", "label": "0xcc0000", "guivm": None, "relayvm": None,
        "transport_rpc": None, "power_state": "Running", "uuid": f"00000000-0000-0000-0000-{number:012x}",
    }  # fmt: skip


SYSTEM = {
    "domains": {"dom0": vm("dom0", "AdminVM", 0), "work": vm("work", "AppVM", 1), "vault": vm("vault", "AppVM", 2)}
}


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    with open_wire(monkeypatch) as wire:
        wire.answer("internal.GetSystemInfo+ dom0", json.dumps(SYSTEM))
        folder = Path(wire.paths.home, "policy.d")
        folder.mkdir()
        (folder / "30-user.policy").write_text(RULES)
        yield wire


@pytest.fixture
def tool(wire: Wire, capsys: pytest.CaptureFixture[str]) -> Tool:
    return Tool(wire, policy.COMMAND, policy._act, capsys)


def place(wire: Wire, line: int) -> str:
    return f"{wire.paths.home}/policy.d/30-user.policy:{line}"


# -- check


def test_a_check_says_what_is_doubtful_and_asks_nobody(tool: Tool) -> None:
    rule = "test.Allow * work vault allow notify=yes"
    assert tool.ok("check") == (
        f"warning: {place(tool.wire, 4)}: unreachable: {place(tool.wire, 2)} matches all of it: {rule}\n"
    )
    assert tool.wire.requests == []


def test_a_check_with_vms_knows_their_names(tool: Tool) -> None:
    assert f"warning: {place(tool.wire, 3)}: unknown: there is no VM wrok\n" in tool.ok("check", "--vms")
    assert "wrok" not in tool.ok("check")


def test_a_check_of_a_draft_leaves_the_policy_that_counts_alone(tool: Tool, tmp_path: Path) -> None:
    (tmp_path / "30-user.policy").write_text("# nothing\n\ntest.Allow work vault allow\n")
    assert tool.run("check", str(tmp_path)) == (
        2,
        f"error: {tmp_path}/30-user.policy:3: {RULE}\n",
        "crannog policy: the policy denies everything, as long as it has 1 error; put right what is listed above\n",
    )
    assert tool.run("check")[0] == 0
    tool.fails(3, "there is no folder /none", "check", "/none")


def test_all_errors_are_listed_and_none_moves_the_cursor(tool: Tool) -> None:
    file = Path(tool.wire.paths.home, "policy.d/40-\x1b[2J.policy")
    file.write_text("x\n")
    Path(tool.wire.paths.home, "policy.d/50-more.policy").write_text("test.\x1b[2J * * * deny\nx\n")
    code, out, err = tool.run("check")
    assert (code, len(out.splitlines()), "3 errors" in err) == (2, 3, True), out
    assert "\x1b" not in out
    assert "50-more.policy:1: " in out
    assert "50-more.policy:2: " in out


# -- explain, graph, test


def test_explanations(tool: Tool) -> None:
    out = tool.ok("explain", "test.Allow+x", "work", "vault").splitlines()
    assert out[0] == "'test.Allow+x' from 'work' to 'vault'"
    assert out[-1] == f"allow: {place(tool.wire, 2)}: to vault"
    out = tool.ok("explain", "test.None", "work", "").splitlines()
    assert out[-1] == "deny: no rule of the policy matches"
    out = tool.ok("explain", "test.Ask", "work", "@default").splitlines()
    assert out[-1] == f"ask: {place(tool.wire, 1)}: vault, vault chosen beforehand"
    tool.fails(3, "there is no VM 'nobody' that could call", "explain", "test.Ask", "nobody", "vault")
    tool.fails(2, "'a/b' cannot be called", "explain", "a/b", "work", "vault")


def test_a_target_that_nobody_has_cannot_move_the_cursor(tool: Tool) -> None:
    assert "\x1b" not in tool.ok("explain", "test.Ask", "work", "\x1b[2J")


def test_graphs(tool: Tool) -> None:
    assert tool.ok("graph", "test.Allow") == "test.Allow work -> vault allow\n"
    assert tool.ok("graph", "test.Allow+x") == "test.Allow+x work -> vault allow\n"
    assert tool.ok("graph", "test.None") == ""
    out = tool.ok("graph").splitlines()
    assert out[:3] == [
        "test.Ask work -> vault ask", "test.Allow work -> vault allow", "qubes.Filecopy vault -> work ask",
    ]  # fmt: skip
    assert tool.ok("graph", "--dot", "test.Ask") == ('digraph "test.Ask" {\n  "work" -> "vault" [style=dashed];\n}\n')


def test_a_rule_for_any_service_is_in_the_graph_of_all(tool: Tool) -> None:
    Path(tool.wire.paths.home, "policy.d/99-last.policy").write_text("* * vault work allow\n")
    assert "* vault -> work allow\n" in tool.ok("graph")


def test_expectations(tool: Tool, tmp_path: Path) -> None:
    file = tmp_path / "desktop"
    file.write_text("# what must be so\ntest.Allow work vault => allow\ntest.Ask work vault => ask target=vault\n")
    assert tool.ok("test", str(file)) == "2 expectations, 0 not met, 0 not understood\n"
    file.write_text("test.Allow work vault => deny\n")
    code, out, err = tool.run("test", str(file))
    assert (code, out.splitlines()[-1], err.count("\n")) == (1, "1 expectations, 1 not met, 0 not understood", 1)
    assert out.startswith(f"{file}:1: deny was expected; allow: {place(tool.wire, 2)}: to vault\n")
    file.write_text("test.Allow work vault = deny\n")
    code, out, err = tool.run("test", str(file))
    assert (code, "not all lines of the tests" in err) == (2, True)
    file.write_bytes(b"\xff")
    tool.fails(9, "cannot be read", "test", str(file))
    tool.fails(3, "there is no file /none", "test", "/none")
    tool.fails(2, "'test' takes the files", "test")


def test_a_policy_with_errors_has_no_graph_and_meets_nothing(tool: Tool, tmp_path: Path) -> None:
    Path(tool.wire.paths.home, "policy.d/40-bad.policy").write_text("x\n")
    (tmp_path / "tests").write_text("test.None work vault => deny\n")
    assert tool.run("graph")[0] == 2
    assert tool.run("test", str(tmp_path / "tests"))[0] == 2
    assert "deny: the policy has 1 problems" in tool.ok("explain", "test.Allow", "work", "vault")


def test_an_answer_of_the_daemon_that_makes_no_sense(tool: Tool) -> None:
    for text in ("", "[]", '{"domains": {"a": {}}}', "{"):
        tool.wire.answer("internal.GetSystemInfo+ dom0", text)
        tool.fails(11, "the answer to internal.GetSystemInfo cannot be understood", "graph")
    tool.wire.refuse("internal.GetSystemInfo+ dom0", "QubesException", "no")
    tool.fails(1, "no", "graph")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("edit",), "'edit' is none of check, explain, graph, test, log, agent"),
        (("explain", "x", "work"), "'explain' takes SERVICE[+ARGUMENT], SOURCE and TARGET"),
        (("graph", "a", "b"), "'graph' takes at most one SERVICE"),
        (("check", "--dot"), "--dot is for graph, not for check"),
        (("graph", "-f"), "--follow is for log, not for graph"),
        (("log", "--notify"), "--notify is for agent, not for log"),
        (("log", "-n", "many"), "--lines takes a number, not 'many'"),
        (("agent", "--timeout", "0"), "--timeout takes 1 to 86400 seconds"),
        (("agent", "--command", "x", "--notify"), "cannot be used together"),
        (("agent",), "the agent asks on a terminal, and this is none"),
    ],
)
def test_wrong_uses(tool: Tool, words: tuple[str, ...], part: str) -> None:
    tool.fails(2, part, *words)
    assert tool.wire.requests == []


def test_the_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_examples_are_plain(policy.COMMAND, monkeypatch)


def test_without_a_daemon_the_store_tells_of_the_vms(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "policy.d").mkdir(parents=True, mode=0o700)
    (home / "policy.d/30-user.policy").write_text(RULES)

    def program(*words: str) -> tuple[int, str, str]:
        env = {**os.environ, "CRANNOG_HOME": str(home), "CRANNOG_CACHE": str(tmp_path / "cache")}
        command = [os.path.join(BIN, words[0]), *words[1:]]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT, env=env)
        return done.returncode, done.stdout, done.stderr

    for name in ("work", "vault"):
        assert program("qvm-create", "--offline", "-C", "StandaloneVM", "-l", "red", name) == (0, "", "")
    assert program("crannog", "policy", "graph", "test.Allow") == (0, "test.Allow work -> vault allow\n", "")
    assert "unknown: there is no VM wrok" in program("crannog", "policy", "check", "--vms")[1]
    assert not os.path.exists(home / "run/crannogd.lock")


# -- the log


LONG = (
    f"2023-11-14T22:13:20.250Z deny  work -> vault {'s' * 100}... (300 characters) "
    "(30-user.policy:4: denied by the policy)"
)
POLICY = load_text(RULES, "30-user.policy")


def request(target: str = "vault", service: str = "test.Allow", argument: str = "+") -> Request:
    return Request(service, argument, "work", target)


def write(log: DecisionLog, count: int = 1, first: int = 0) -> None:
    for number in range(first, first + count):
        log.note(Deny(request(f"vm{number}"), "no rule of the policy matches"), 0.1)


@pytest.fixture
def log(wire: Wire) -> DecisionLog:
    Path(wire.paths.logs).mkdir()
    return DecisionLog(wire.paths.policy_log, clock=lambda: 1_700_000_000.25)


def test_each_decision_is_a_line(tool: Tool, log: DecisionLog) -> None:
    allow, ask = POLICY.rules[1], POLICY.rules[0]
    log.note(Deny(request(""), "no rule of the policy matches"), 0.1)
    asked = request("vault", "test.Ask", "+a")
    log.note(Ask(asked, ask, ("vault",), None, "vault", None, notify=False, autostart=True), 0.1)
    log.note(Allow(request("@dispvm"), allow, "@dispvm:vault", "", "@dispvm", None, notify=False, autostart=True), 0.1)
    log.note(Deny(request("vault", "s" * 300), "30-user.policy:4: denied by the policy"), 0.1)
    assert tool.ok("log").splitlines() == [
        "2023-11-14T22:13:20.250Z deny  work -> @default test.Allow (no rule of the policy matches)",
        "2023-11-14T22:13:20.250Z ask   work -> vault test.Ask+a (30-user.policy:1)",
        "2023-11-14T22:13:20.250Z allow work -> @dispvm = @dispvm:vault test.Allow (30-user.policy:2)",
        LONG,
    ]
    assert [json.loads(line)["decision"] for line in tool.ok("log", "--json").splitlines()] == [
        "deny", "ask", "allow", "deny",
    ]  # fmt: skip


def test_only_the_last_ones_are_shown(tool: Tool, log: DecisionLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_log, "_BLOCK", 100)
    monkeypatch.setattr(decision_log, "MAX_BYTES", 15_000)
    write(log, 100)
    assert os.path.exists(f"{tool.wire.paths.policy_log}.1")
    for count in (0, 1, 20, 50, 60):
        shown = [line.split()[4] for line in tool.ok("log", "-n", str(count)).splitlines()]
        assert shown == [f"vm{number}" for number in range(100 - count, 100)]
    assert len(tool.ok("log").splitlines()) == 20


def test_lines_that_are_none_are_left_out(tool: Tool, log: DecisionLog) -> None:
    write(log)
    with open(tool.wire.paths.policy_log, "ab") as file:
        file.write(b'{"time": "x\n\xff\n[]\n{"target": "\\u001b[2J"}\n{"tim')
    code, out, err = tool.run("log")
    assert (code, len(out.splitlines()), err) == (
        0, 2, "crannog policy: 3 of the lines are no decisions and were left out\n",
    )  # fmt: skip
    assert "\x1b" not in out


def test_there_may_be_no_log_yet(tool: Tool, log: DecisionLog) -> None:
    tool.fails(3, "it begins with the first call of a VM", "log")
    os.mkdir(tool.wire.paths.policy_log)
    tool.fails(9, "cannot be read: Is a directory", "log")
    del log


def test_a_log_is_followed_through_its_renewal(wire: Wire, log: DecisionLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision_log, "MAX_BYTES", 1000)
    follower = Follower(wire.paths.policy_log)
    assert follower.read_new() == []
    found: list[str] = []
    for first in range(0, 300, 3):
        write(log, 3, first)
        found += [json.loads(line)["target"] for line in follower.read_new()]
    assert found == [f"vm{number}" for number in range(300)]
    assert read_last(wire.paths.policy_log, 1, follower.end)[0].endswith(b"}")


def test_half_a_line_is_waited_for(wire: Wire, log: DecisionLog) -> None:
    write(log)
    follower = Follower(wire.paths.policy_log)
    with open(wire.paths.policy_log, "ab", buffering=0) as file:
        file.write(b'{"target"')
        assert follower.read_new() == []
        file.write(b': "x"}\n')
        assert follower.read_new() == [b'{"target": "x"}']


def test_following_shows_what_comes_until_it_is_interrupted(wire: Wire, log: DecisionLog) -> None:
    write(log, 2)
    command = [os.path.join(BIN, "crannog"), "policy", "log", "-f", "-n", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        timer = threading.Timer(TIMEOUT, process.kill)
        timer.start()
        assert " vm1 " in process.stdout.readline()
        write(log, 1, 7)
        assert " vm7 " in process.stdout.readline()
        process.send_signal(2)
        assert process.wait(TIMEOUT) == 130
        timer.cancel()
