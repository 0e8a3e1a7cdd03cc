"""crannog policy agent at a real terminal, asked by the real policy server and by peers that keep to nothing."""

import asyncio
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from crannog.cli import policy_peers, policy_terminal
from crannog.cli.policy_peers import Notices
from crannog.cli.policy_question import ASK, NOTIFY, Notice, Question, parse_message
from crannog.config import Paths
from crannog.core.registry import Registry
from crannog.daemon.decision_log import DecisionLog
from crannog.daemon.policy import PolicyKeeper
from crannog.daemon.policy_server import PolicyServer
from crannog.errors import InUseError, ProtocolError, UsageError
from tests.fakes import add_vm, new_registry, short_folder, template_and_app

RULES = "test.Ask * work @anyvm ask default_target=other\ntest.Told * work other allow notify=yes\n"
# The terminal is made the agent's own, so that Ctrl-C reaches it.
CODE = (
    "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    "from crannog.cli import policy, policy_terminal\n"
    "policy_terminal.CALM = float(os.environ.get('CALM', policy_terminal.CALM))\n"
    "sys.exit(policy.main(sys.argv[1:]))"
)
PROGRAM = [sys.executable, "-c", CODE]
PATIENCE = 60
ASKED = "work wants to call test.Ask"
PROMPT = "Number or name of the target, or n for no: "
READY = "questions about calls are asked here from now on; Ctrl-C ends that, and they are denied\r\n"


class Terminal:
    """A user at a terminal at which the agent runs. All that was shown is kept."""

    def __init__(self, home: Path, *words: str) -> None:
        self._master, slave = os.openpty()
        attributes = termios.tcgetattr(slave)
        attributes[3] &= ~termios.ECHO  # what the user types is not in what the agent shows
        termios.tcsetattr(slave, termios.TCSANOW, attributes)
        self.process = subprocess.Popen(
            [*PROGRAM, "agent", *words],
            stdin=slave, stdout=slave, stderr=slave, env={**os.environ, "CRANNOG_HOME": str(home)},
        )  # fmt: skip
        os.close(slave)
        self.shown = ""

    def wait_for(self, text: str) -> str:
        """Return what was shown up to a text, which is taken; fails when it does not come."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.shown:
            assert select.select([self._master], [], [], max(0, deadline - time.monotonic()))[0], (text, self.shown)
            self.shown += self._read()
        before, _, self.shown = self.shown.partition(text)
        return before

    def _read(self) -> str:
        try:
            return os.read(self._master, 65536).decode()
        except OSError as error:  # EIO: the agent has ended
            raise AssertionError(f"the agent has ended after {self.shown!r}") from error

    def rest(self) -> str:
        """Return all that is shown up to the end of the agent."""
        while select.select([self._master], [], [], PATIENCE)[0]:
            try:
                self.shown += os.read(self._master, 65536).decode()
            except OSError:
                break
        return self.shown

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    async def see(self, text: str) -> str:
        return await asyncio.to_thread(self.wait_for, text)


class Place:
    """A home with a policy server."""

    def __init__(self, home: Path, registry: Registry) -> None:
        self.home = home
        self.paths = Paths(str(home))
        for folder in (self.paths.run, self.paths.logs, f"{home}/policy.d"):
            os.makedirs(folder)
        Path(home, "policy.d/30-user.policy").write_text(RULES)
        self.server = PolicyServer(
            PolicyKeeper(registry, self.paths.policy_folders), self.paths.policy_socket,
            self.paths.policy_agent_socket, DecisionLog(self.paths.policy_log),
        )  # fmt: skip
        self.server.ask_seconds = PATIENCE
        self.terminals: list[Terminal] = []

    async def user(self, *words: str) -> Terminal:
        """Start an agent; return when it listens."""
        terminal = Terminal(self.home, *words)
        self.terminals.append(terminal)
        await terminal.see(READY)
        return terminal

    async def call(self, service: str = "test.Ask", target: str = "other") -> str:
        """Return where a call of `work` may go, or deny."""
        reader, writer = await asyncio.open_unix_connection(self.paths.policy_socket)
        writer.write(f"source=work\nintended_target={target}\nservice_and_arg={service}\n\n".encode())
        reply = (await reader.read()).decode()
        writer.close()
        await writer.wait_closed()
        found = re.search("^target=(.*)$", reply, re.MULTILINE)
        return found[1] if found else reply.removeprefix("result=")

    def begin(self, service: str = "test.Ask") -> "asyncio.Task[str]":
        return asyncio.create_task(self.call(service))

    def reasons(self) -> list[str]:
        lines = Path(self.paths.policy_log).read_text().splitlines()
        return [json.loads(line)["reason"] for line in lines if "reason" in json.loads(line)]


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    registry = new_registry()
    template, _ = template_and_app(registry)
    add_vm(registry, "AppVM", "other", template)
    with short_folder() as home:
        place = Place(home, registry)
        await place.server.start()
        yield place
        await place.server.stop()
        for terminal in place.terminals:
            terminal.close()


# -- answers


@pytest.mark.parametrize(
    ("typed", "outcome", "shown"),
    [
        ("2\n", "other", "allowed, to other"),
        ("debian\n", "debian", "allowed, to debian"),
        (" 1 \n", "debian", "allowed, to debian"),
        ("n\n", "deny", "denied"),
        ("\x04", "deny", "denied"),
    ],
)
async def test_an_answer_is_typed(place: Place, typed: str, outcome: str, shown: str) -> None:
    user = await place.user()
    call = place.begin("test.Ask+x")
    question = await user.see(PROMPT)
    assert question == f"\r\n{ASKED}+x\r\n  1  debian\r\n  2  other   (proposed)\r\n"
    user.type(typed)
    assert await call == outcome
    assert (await user.see("\r\n" + shown if typed == "\x04" else shown)).strip() == ""


@pytest.mark.parametrize(
    "typed", ["\n", "y\n", "yes\n", "0\n", "3\n", "-1\n", "1.0\n", "01\n", "99999999999999999999\n", "work\n", "N\n",
              "@dispvm\n", "allow:other\n", "\u00b2\n", "2\x04", "\x1b[A\n"],
)  # fmt: skip
async def test_what_is_no_answer_decides_nothing(place: Place, typed: str) -> None:
    user = await place.user()
    call = place.begin()
    await user.see(PROMPT)
    user.type(typed)
    await user.see("That is none of them. " + PROMPT)
    assert not call.done()
    user.type("2\n")
    assert await call == "other"


async def test_what_was_typed_before_the_prompt_does_not_count(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    assert policy_terminal.CALM >= 0.5
    monkeypatch.setenv("CALM", "2.5")  # so that a slow machine does not type too late
    user = await place.user()
    user.type("2\n2")
    call = place.begin()
    shown = await user.see("(proposed)\r\n")
    began = time.monotonic()
    assert ASKED in shown
    user.type("2\n2\n")
    await user.see(PROMPT)
    assert time.monotonic() - began > 2
    user.type("\n")  # if the 2 before the prompt were still there, this would make it an answer
    await user.see("That is none of them. ")
    assert not call.done()
    user.type("n\n")
    assert await call == "deny"
    assert place.reasons()[-1].endswith("the user said no")


async def test_questions_come_one_at_a_time(place: Place) -> None:
    user = await place.user()
    calls = [place.begin("test.Ask+1")]
    await user.see(PROMPT)
    for number in (2, 3):
        calls.append(place.begin(f"test.Ask+{number}"))
        await asyncio.sleep(0.05)
    user.type("1\n")
    assert await calls[0] == "debian"
    assert f"{ASKED}+2   (1 more to come)\r\n" in await user.see(PROMPT)
    user.type("n\n")
    assert await calls[1] == "deny"
    assert f"{ASKED}+3\r\n" in await user.see(PROMPT)
    user.type("other\n")
    assert await calls[2] == "other"


async def test_a_long_argument_does_not_hide_the_question(place: Place) -> None:
    user = await place.user()
    call = place.begin("test.Ask+" + "x" * 60_000)
    assert (await user.see("... (60009 characters)\r\n")).endswith("test.Ask+" + "x" * 51)
    await user.see(PROMPT)
    user.type("n\n")
    assert await call == "deny"


async def test_decisions_without_a_question_are_told_but_not_without_end(place: Place) -> None:
    user = await place.user()
    question = place.begin()
    await user.see(PROMPT)
    for number in range(12):
        assert await place.call(f"test.{'Told' if number < 2 else f'None{number}'}") == (
            "other" if number < 2 else "deny"
        )
    await asyncio.sleep(0.3)
    user.type("n\n")
    assert await question == "deny"
    shown = await user.see("denied: work -> other test.None")
    assert shown.count("allowed: work -> other test.Told") == 2
    user.process.send_signal(signal.SIGTERM)
    assert user.rest().count("denied: ") <= 4


# -- ends


async def test_a_question_that_nobody_waits_for_disappears(place: Place) -> None:
    place.server.ask_seconds = 1.5
    user = await place.user()
    assert await place.call() == "deny"
    await user.see("the question is gone: crannogd did not wait any longer")
    user.type("2\n")
    place.server.ask_seconds = PATIENCE
    call = place.begin()
    await user.see(PROMPT)
    assert not call.done()
    user.type("1\n")
    assert await call == "debian"


async def test_the_agent_denies_when_its_own_time_is_over(place: Place) -> None:
    user = await place.user("--timeout", "1")
    assert await place.call() == "deny"
    await user.see("denied: nobody answered in time")
    assert place.reasons()[-1].endswith("the program that asks gave no answer")


@pytest.mark.parametrize("end", ["\x03", signal.SIGTERM, signal.SIGHUP])
async def test_an_interrupt_denies_what_is_open_and_ends(place: Place, end: str | signal.Signals) -> None:
    user = await place.user()
    calls = [place.begin(), place.begin()]
    await user.see(PROMPT)
    if isinstance(end, str):
        user.type(end)
    else:
        user.process.send_signal(end)
    assert await asyncio.gather(*calls) == ["deny", "deny"]
    assert user.process.wait(PATIENCE) == 130
    assert "denied: the agent ends" in user.rest()
    assert not os.path.exists(place.paths.policy_agent_socket)
    assert await place.call() == "deny"
    assert "run 'crannog policy agent'" in place.reasons()[-1]


async def test_an_agent_that_is_killed_has_denied(place: Place) -> None:
    user = await place.user()
    call = place.begin()
    await user.see(PROMPT)
    user.process.kill()
    assert await call == "deny"
    assert place.reasons()[-1].endswith("the program that asks gave no answer")
    assert os.path.exists(place.paths.policy_agent_socket)
    assert await place.call() == "deny"
    second = await place.user()
    call = place.begin()
    await second.see(PROMPT)
    second.type("2\n")
    assert await call == "other"


async def test_only_one_agent_asks(place: Place) -> None:
    first = await place.user()
    second = Terminal(place.home)
    place.terminals.append(second)
    assert await asyncio.to_thread(second.process.wait, PATIENCE) == InUseError.exit_code
    assert second.rest() == (
        f"crannog policy: another program asks the user already, at {place.paths.policy_agent_socket}; "
        "end that one first\r\n"
    )
    call = place.begin()
    await first.see(PROMPT)
    first.type("2\n")
    assert await call == "other"


async def test_an_agent_of_another_make_is_not_pushed_aside(place: Place) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(place.paths.policy_agent_socket)
        other.listen()
        second = Terminal(place.home)
        place.terminals.append(second)
        assert await asyncio.to_thread(second.process.wait, PATIENCE) == InUseError.exit_code


async def test_it_comes_before_the_daemon_and_for_its_own_user_alone() -> None:
    with short_folder() as folder:
        home = folder / "new"
        user = Terminal(home)
        try:
            await user.see(READY)
            path = Paths(str(home)).policy_agent_socket
            assert os.stat(path).st_mode & 0o777 == 0o600
            assert os.stat(os.path.dirname(path)).st_mode & 0o777 == 0o700
        finally:
            user.close()


# -- peers that keep to nothing


def message(head: bytes = ASK, **changes: object) -> bytes:
    told = {
        "source": "work", "service": "test.Ask", "argument": "+", "targets": ["other"], "default_target": "",
        "icons": {}, "resolution": "deny", "target": "other",
    }  # fmt: skip
    return head + b"\0" + json.dumps({**told, **changes}).encode()


GARBAGE = [
    b"", b"x", ASK, ASK + b"\0", b"policy.Ask work name dom0\0{}", ASK + b"\0[]", ASK + b"\0\xff",
    ASK + b"\0" + b"[" * 90000,
    message(source=""), message(source=1), message(source="a b"), message(source="\x1b[2J"), message(source="a" * 200),
    message(service=None), message(service="\n"), message(argument="\x1b]0;x\x07"), message(argument=["+"]),
    message(targets=[]), message(targets="other"), message(targets=[1]), message(targets=["a\nb"]), message(targets={}),
    message(targets=["x"] * 6000), message(NOTIFY, resolution="maybe"), message(NOTIFY, resolution=[]),
    message(NOTIFY, target="\u00e4"), message(NOTIFY, target=7), message() + b"x",
]  # fmt: skip


@pytest.mark.parametrize("untrusted_data", GARBAGE, ids=range(len(GARBAGE)))
def test_what_is_no_message(untrusted_data: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_message(untrusted_data)


def test_messages() -> None:
    question = parse_message(message(argument="+a", targets=["other", "@dispvm:dvm"], default_target="@dispvm:dvm"))
    assert isinstance(question, Question)
    assert (question.call, question.default) == ("test.Ask+a", "@dispvm:dvm")
    assert question.read_answer("allow:@dispvm:dvm") == "allow:@dispvm:dvm"
    assert question.read_answer("deny") == "deny"
    for odd in ("allow:", "allow:work", "other", "allow", "deny ", "", "allow:other\n"):
        assert question.read_answer(odd) is None
    assert json.loads(question.to_json()) == {
        "source": "work", "service": "test.Ask", "argument": "+a", "targets": ["other", "@dispvm:dvm"],
        "default_target": "@dispvm:dvm",
    }  # fmt: skip
    plain = parse_message(message(argument="", default_target="work"))
    assert isinstance(plain, Question)
    assert (plain.call, plain.default, json.loads(plain.to_json())["argument"]) == ("test.Ask", "", "+")
    notice = parse_message(message(NOTIFY, target=""))
    assert isinstance(notice, Notice)
    assert notice.sentence == "denied: work -> @default test.Ask"


def send(path: str, data: bytes) -> bytes:
    """Send bytes and their end; return what comes back. A peer that is cut off has got nothing."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(PATIENCE)
        peer.connect(path)
        try:
            peer.sendall(data)
            peer.shutdown(socket.SHUT_WR)
            return peer.recv(100)
        except (BrokenPipeError, ConnectionResetError):
            return b""


async def test_garbage_gets_no_answer_and_harms_nobody(place: Place) -> None:
    user = await place.user()
    path = place.paths.policy_agent_socket
    with ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(path)
        for data in (*GARBAGE, b"x" * (2 << 20)):
            assert await asyncio.to_thread(send, path, data) == b""
        call = place.begin()
        shown = await user.see(PROMPT)
    assert "\x1b" not in shown
    assert "a message was refused: " in shown
    user.type("2\n")
    assert await call == "other"


async def test_who_says_nothing_is_sent_away(place: Place) -> None:
    await place.user()
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(place.paths.policy_agent_socket)
        peer.setblocking(False)
        assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(peer, 10), PATIENCE) == b""


async def test_who_goes_after_its_question_leaves_no_trace(place: Place) -> None:
    user = await place.user()
    for _ in range(30):
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(place.paths.policy_agent_socket)
            peer.sendall(message())
    await asyncio.sleep(0.2)
    call = place.begin("test.Ask+last")
    await user.see(f"{ASKED}+last\r\n")
    await user.see(PROMPT)
    user.type("2\n")
    assert await call == "other"


# -- how much is told


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(policy_peers.time, "monotonic", lambda: now[0])  # type: ignore[attr-defined]
    return now


def test_notices_are_few(clock: list[float]) -> None:
    notices = Notices()
    assert (notices.wake(), notices.take()) == (None, [])
    for number in range(3):
        notices.add(str(number))
    assert notices.take() == ["0", "1", "2"]
    for number in range(40):
        notices.add(str(number))
    assert notices.take() == ["0", "1"]
    assert notices.wake() == 110.0
    clock[0] = 110.0
    assert notices.take() == ["2", "3", "4", "35 more were decided without a question; 'crannog policy log' lists them"]
    assert notices.wake() is None


def test_a_pipe_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    from crannog.cli.policy_terminal import TerminalAsker

    monkeypatch.setattr(os, "isatty", lambda _fd: False)
    with pytest.raises(UsageError, match="on a desktop use --notify"):
        TerminalAsker()
