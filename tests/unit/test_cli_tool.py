"""How tools end: the exit code of each error, and no traceback ever."""

import subprocess
import sys

import pytest

from crannog import errors
from crannog.cli.options import Command, Operand
from crannog.cli.tool import complain, for_each, run
from crannog.errors import CrannogError, StorageError, VMNotFoundError

COMMAND = Command("tool", "Does something.", Operand("word", "WORD", "a word", "?"))
KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, CrannogError)]
PRINTING = """
import sys
from crannog.cli.options import Command
from crannog.cli.tool import run, say
def act(_values):
    for number in range(20000):
        say(f"line {number}")
sys.exit(run(Command("tool", "Prints."), act, []))
"""


def raising(error: BaseException) -> int:
    def act(_values: object) -> int:
        raise error

    return run(COMMAND, act, [])


@pytest.mark.parametrize("kind", KINDS)
def test_each_error_ends_with_its_code_and_its_sentence(
    kind: type[CrannogError], capsys: pytest.CaptureFixture[str]
) -> None:
    assert raising(kind("work is 100% gone; try again")) == kind.exit_code
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", "tool: work is 100% gone; try again\n")


@pytest.mark.parametrize(("code", "ended"), [(None, 0), (0, 0), (4, 4)])
def test_the_code_of_the_action_counts(code: int | None, ended: int) -> None:
    assert run(COMMAND, lambda _values: code, ["a"]) == ended


def test_an_interrupted_tool_ends_like_a_signal(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(KeyboardInterrupt()) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_wrong_command_line_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(COMMAND, lambda _values: 0, ["a", "b"])
    assert caught.value.code == 2
    assert "usage: tool" in capsys.readouterr().err


def test_arguments_come_from_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["tool", "hello"])
    seen: list[str] = []
    assert run(COMMAND, lambda values: seen.append(values.word)) == 0
    assert seen == ["hello"]


def test_a_reader_that_goes_away_is_no_error() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PRINTING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.read(6) == b"line 0"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 141


def test_a_full_disk_under_the_output_is_told_in_a_sentence() -> None:
    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            [sys.executable, "-c", PRINTING], stdout=full, stderr=subprocess.PIPE, check=False, timeout=20
        )
    assert result.returncode not in (0, 120)
    assert b"No space left on device" in result.stderr
    assert b"Traceback" not in result.stderr


def test_for_each_goes_on_and_tells_the_first_failure(capsys: pytest.CaptureFixture[str]) -> None:
    done: list[str] = []

    def act(name: str) -> None:
        done.append(name)
        if name == "b":
            raise VMNotFoundError("no b")
        if name == "c":
            raise StorageError("no c")

    assert for_each("tool", ["a", "b", "c", "d"], act) == VMNotFoundError.exit_code
    assert done == ["a", "b", "c", "d"]
    assert capsys.readouterr().err == "tool: no b\ntool: no c\n"
    assert for_each("tool", ["a"], act) == 0
    assert for_each("tool", [], act) == 0


def test_what_a_server_says_does_not_reach_the_terminal_as_control_characters(
    capsys: pytest.CaptureFixture[str],
) -> None:
    complain("qvm-x", "a\x1b[2Jb\x07\r\nline \u00e9 \u202e\tend")
    assert capsys.readouterr().err == "qvm-x: a\\x1b[2Jb\\x07\\r\nline \u00e9 \\u202e\tend\n"
