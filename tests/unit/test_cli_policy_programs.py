"""The agent that asks through other programs: those that answer, those that do not, and notify-send's stand-in."""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from crannog.cli import policy_programs
from crannog.cli.policy_programs import NotificationAsker, ProgramAsker, offer
from crannog.cli.policy_question import ASK, Question
from crannog.config import Paths
from crannog.daemon.decision_log import DecisionLog
from crannog.daemon.policy import PolicyKeeper
from crannog.daemon.policy_server import PolicyServer
from crannog.errors import NotFoundError, NotYetError
from tests.fakes import add_vm, new_registry, short_folder, template_and_app

RULES = "test.Ask * work @anyvm ask default_target=other\n"
CODE = (
    "import os, signal, subprocess, sys; from crannog.cli import policy, policy_programs\n"
    "policy_programs.CALM = float(os.environ.get('CALM', policy_programs.CALM))\n"
    "if number := int(os.environ.get('SIGNAL_AT_START', 0)):\n"
    "    start = subprocess._fork_exec\n"
    "    subprocess._fork_exec = lambda *details: (start(*details), signal.raise_signal(number))[0]\n"
    "sys.exit(policy.main(sys.argv[1:]))"
)
PROGRAM = [sys.executable, "-c", CODE]
PATIENCE = 60
# What notify-send does of what matters here: says what it can, shows, waits, prints the name of an action, ends at
# SIGINT. `$PLACE/buttons` holds a line for each notification with actions; a line is "SECONDS NAME".
NOTIFY_SEND = """#!/bin/sh
if [ "$1" = --help ]; then echo "  -A, --action=[NAME=]Text..."; exit 0; fi
printf '%s\\n' "$@" END >> "$PLACE/shown"
case "$*" in *--action=*) ;; *) exit 0 ;; esac
read seconds name < "$PLACE/buttons"
sed -i 1d "$PLACE/buttons"
trap 'echo closed >> "$PLACE/shown"; exit 0' INT
sleep "$seconds" & wait $!
echo "$name"
"""


class Place:
    """A home with a policy server, a program that asks, and an agent that runs it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.paths = Paths(str(home))
        for folder in (self.paths.run, self.paths.logs, f"{home}/policy.d", f"{home}/bin"):
            os.makedirs(folder)
        Path(home, "policy.d/30-user.policy").write_text(RULES)
        registry = new_registry()
        template, _ = template_and_app(registry)
        add_vm(registry, "AppVM", "other", template)
        self.server = PolicyServer(
            PolicyKeeper(registry, self.paths.policy_folders), self.paths.policy_socket,
            self.paths.policy_agent_socket, DecisionLog(self.paths.policy_log),
        )  # fmt: skip
        self.server.ask_seconds = PATIENCE
        self.agent: subprocess.Popen[str] | None = None

    def program(self, text: str, name: str = "asker") -> str:
        path = self.home / "bin" / name
        path.write_text(text)
        path.chmod(0o755)
        return str(path)

    async def start(self, *words: str, signal_at_start: int = 0) -> None:
        """Start the agent; return when it listens. It gets a signal as soon as it starts a program."""
        env = {**os.environ, "CRANNOG_HOME": str(self.home), "PLACE": str(self.home)}
        env["SIGNAL_AT_START"] = str(signal_at_start)
        env["PATH"] = f"{self.home}/bin:{env['PATH']}"
        log = (self.home / "agent.log").open("w")
        self.agent = subprocess.Popen(  # noqa: ASYNC220 - it is only started
            [*PROGRAM, "agent", *words], stdout=log, stderr=log, text=True, env=env
        )
        log.close()
        await self.until(lambda: "are asked here" in self.log)

    @property
    def log(self) -> str:
        return (self.home / "agent.log").read_text()

    @property
    def shown(self) -> str:
        path = self.home / "shown"
        return path.read_text() if path.exists() else ""

    async def until(self, is_so: "object") -> None:
        assert callable(is_so)
        deadline = time.monotonic() + PATIENCE
        while not is_so():
            assert time.monotonic() < deadline, (self.log, self.shown)
            await asyncio.sleep(0.02)

    async def call(self, service: str = "test.Ask") -> str:
        """Return where a call of `work` may go, or deny."""
        reader, writer = await asyncio.open_unix_connection(self.paths.policy_socket)
        writer.write(f"source=work\nintended_target=other\nservice_and_arg={service}\n\n".encode())
        reply = (await reader.read()).decode()
        writer.close()
        await writer.wait_closed()
        found = re.search("^target=(.*)$", reply, re.MULTILINE)
        return found[1] if found else reply.removeprefix("result=")

    def processes(self) -> list[str]:
        """Return the command lines of the processes that belong to this place, without the agent's own."""
        return list(self._find_processes().values())

    def _find_processes(self) -> dict[int, str]:
        """Return them by number."""
        found = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                line = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
            except OSError:
                continue
            if f"PLACE={self.home}".encode() in words and self.agent and int(pid) != self.agent.pid:
                found[int(pid)] = line
        return found

    def close(self) -> None:
        """End the agent and what it has started, which may still write into the home."""
        if self.agent:
            self.agent.kill()
            self.agent.wait()
        deadline, quiet_looks = time.monotonic() + PATIENCE, 0
        while quiet_looks < 3:  # a process that is just replaced by a program has no environment for a moment
            left = self._find_processes()
            quiet_looks = 0 if left else quiet_looks + 1
            assert time.monotonic() < deadline, left
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    with short_folder() as home:
        place = Place(home)
        await place.server.start()
        yield place
        await place.server.stop()
        place.close()


# -- a program of the user


async def test_a_program_gets_the_question_and_answers_it(place: Place) -> None:
    await place.start("--command", place.program('#!/bin/sh\ncat > "$PLACE/question"\necho allow:debian\n'))
    assert await place.call("test.Ask+x") == "debian"
    assert json.loads((place.home / "question").read_text()) == {
        "source": "work", "service": "test.Ask", "argument": "+x", "targets": ["debian", "other"],
        "default_target": "other",
    }  # fmt: skip
    assert await place.call("test.Ask+" + "x" * 60_000) == "debian"
    assert place.processes() == []


async def test_a_program_that_does_not_read(place: Place) -> None:
    await place.start("--command", place.program("#!/bin/sh\nprintf allow:other\n"))
    assert await place.call("test.Ask+" + "x" * 60_000) == "other"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("echo deny", ""),
        ("echo allow:work", "answered 'allow:work', which is no answer"),
        ("echo allow:", "which is no answer"),
        ("echo other", "which is no answer"),
        ("true", "answered '', which is no answer"),
        ("echo allow:other; exit 3", "ended with code 3"),
        ("echo allow:other; echo allow:debian", "which is no answer"),
        ("kill -9 $$", "ended with code -9"),
        ("head -c 100000 /dev/zero", "which is no answer"),
        ("printf 'allow:other\\033[2J'", "which is no answer"),
    ],
)
async def test_whatever_else_a_program_does_is_a_denial(place: Place, text: str, told: str) -> None:
    await place.start("--command", place.program(f"#!/bin/sh\n{text}\n"))
    assert await place.call() == "deny"
    await place.until(lambda: told in place.log)
    assert bool(told) is ("the question is denied" in place.log)
    reason = json.loads(Path(place.paths.policy_log).read_text().splitlines()[-1])["reason"]
    assert reason.endswith("the program that asks gave no answer" if told else "the user said no")
    assert "\x1b" not in place.log
    assert place.processes() == []


async def test_a_program_that_vanishes_denies(place: Place) -> None:
    await place.start("--command", place.program("#!/nowhere/interpreter\n"))
    assert await place.call() == "deny"
    assert await place.call() == "deny"
    assert "cannot be run: No such file or directory; the question is denied" in place.log


async def test_a_program_that_never_ends_is_ended_with_all_that_it_started(place: Place) -> None:
    await place.start("--timeout", "1", "--command", place.program("#!/bin/sh\ntrap '' TERM\nsleep 300 & wait\n"))
    assert await place.call() == "deny"
    await place.until(lambda: "denied: nobody answered in time" in place.log and not place.processes())


async def test_what_a_program_leaves_behind_when_it_is_ended_ends_as_well(place: Place) -> None:
    await place.start("--timeout", "1", "--command", place.program("#!/bin/sh\n(trap '' TERM; sleep 300) & wait\n"))
    assert await place.call() == "deny"
    await place.until(lambda: "denied: nobody answered in time" in place.log and not place.processes())


async def test_a_program_whose_question_is_gone_is_ended(place: Place) -> None:
    await place.start("--command", place.program("#!/bin/sh\nexec sleep 300\n"))
    question = {"source": "work", "service": "test.Ask", "argument": "+", "targets": ["other"], "default_target": ""}
    _, writer = await asyncio.open_unix_connection(place.paths.policy_agent_socket)
    writer.write(ASK + b"\0" + json.dumps(question).encode())
    writer.write_eof()
    await place.until(place.processes)
    writer.close()
    await place.until(lambda: "the question is gone" in place.log and not place.processes())


async def test_programs_run_one_at_a_time(place: Place) -> None:
    text = '#!/bin/sh\nmkdir "$PLACE/busy" || exit 1\nsleep 0.1\nrmdir "$PLACE/busy"\necho allow:other\n'
    await place.start("--command", place.program(text))
    assert await asyncio.gather(*[place.call(f"test.Ask+{number}") for number in range(5)]) == ["other"] * 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_an_interrupt_while_a_program_starts_ends_it_too(place: Place, number: int) -> None:
    """The signal comes when the program's process is there, and nothing has been returned for it yet."""
    await place.start("--command", place.program("#!/bin/sh\nexec sleep 300\n"), signal_at_start=number)
    assert await place.call() == "deny"
    assert place.agent
    assert await asyncio.to_thread(place.agent.wait, PATIENCE) == 130
    await place.until(lambda: not place.processes())


async def test_an_interrupt_ends_the_program_too(place: Place) -> None:
    await place.start("--command", place.program("#!/bin/sh\nexec sleep 300\n"))
    call = asyncio.create_task(place.call())
    await place.until(place.processes)
    assert place.agent
    place.agent.terminate()
    assert await call == "deny"
    assert await asyncio.to_thread(place.agent.wait, PATIENCE) == 130
    await place.until(lambda: not place.processes())


# -- notifications


async def test_a_button_is_an_answer(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALM", "0")
    place.program(NOTIFY_SEND, "notify-send")
    (place.home / "buttons").write_text("0 2\n0 deny\n0 \n")
    await place.start("--notify", "--timeout", "15")
    assert await place.call("test.Ask+x") == "debian"  # the proposed one, other, comes first
    words = next(line for line in place.shown.split("END\n") if "--action" in line).splitlines()
    assert words[3:] == [
        "--action=1=other", "--action=2=debian", "--action=deny=No", "--", "Calls between VMs",
        "work wants to call test.Ask+x. Where to?",
    ]  # fmt: skip
    assert "--expire-time=15000" in words
    assert await place.call() == "deny"
    assert await place.call() == "deny"  # it was closed


async def test_a_slip_of_the_mouse_is_no_answer(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    assert policy_programs.CALM >= 0.5
    monkeypatch.setenv("CALM", "2.5")  # so that a slow machine is not too slow for a slip
    place.program(NOTIFY_SEND, "notify-send")
    (place.home / "buttons").write_text("0 1\n2.6 2\n0 deny\n")
    await place.start("--notify")
    assert await place.call() == "debian"
    assert place.shown.count("--action=deny=No") == 2
    assert await place.call() == "deny"


@pytest.mark.parametrize("name", ["3", "0", "other", "-1", "99999999", "allow:other"])
async def test_what_is_no_button_is_a_denial(place: Place, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("CALM", "0")
    place.program(NOTIFY_SEND, "notify-send")
    (place.home / "buttons").write_text(f"0 {name}\n")
    await place.start("--notify")
    assert await place.call() == "deny"
    assert "which is no answer" in place.log


async def test_time_out_takes_the_notification_away(place: Place) -> None:
    place.program(NOTIFY_SEND, "notify-send")
    (place.home / "buttons").write_text("300 1\n")
    await place.start("--notify", "--timeout", "1")
    assert await place.call() == "deny"
    await place.until(lambda: "closed\n" in place.shown)
    await place.until(lambda: "denied: nobody answered in time" in place.shown)


def test_only_a_few_targets_get_buttons_and_the_rest_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    notifier = tmp_path / "notify-send"
    notifier.write_text("#!/bin/sh\necho --action\n")
    notifier.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    targets = [f"vm{number}" for number in range(30)]
    question = Question({"source": "work", "service": "a<b>&", "targets": targets, "default_target": "vm29"})
    assert offer(question) == ["vm29", "vm0", "vm1", "vm2", "vm3"]
    *_, body = NotificationAsker(60).command(question, 2)
    assert body == (
        "work wants to call a&lt;b&gt;&amp;. Where to? There are 25 other targets: an agent on a terminal offers them "
        "all. More questions to come: 2."
    )


def test_programs_that_cannot_ask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotFoundError, match="'notify-send'; asking by notifications needs the package libnotify-bin"):
        NotificationAsker(60)
    with pytest.raises(NotFoundError, match="'/none'; --command needs a program"):
        ProgramAsker("/none")
    notifier = tmp_path / "notify-send"
    notifier.write_text("#!/bin/sh\necho --urgency\n")
    notifier.chmod(0o755)
    with pytest.raises(NotYetError, match="knows no --action"):
        NotificationAsker(60)
