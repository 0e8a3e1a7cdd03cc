"""Command lines: the quick parser and argparse read the same declaration, so they must agree."""

import contextlib
import io
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from crannog.cli import (
    events,
    prefs,
    qvm_check,
    qvm_console,
    qvm_create,
    qvm_ls,
    qvm_pause,
    qvm_prefs,
    qvm_remove,
    qvm_run,
    qvm_start,
    qvm_stop,
)
from crannog.cli.options import Command, Operand, Option

COMMANDS: dict[str, Command] = {
    command.program: command
    for command in (
        qvm_create.COMMAND, qvm_ls.COMMAND, qvm_prefs.COMMAND, qvm_remove.COMMAND, qvm_run.COMMAND,
        qvm_start.COMMAND, qvm_stop.SHUTDOWN, qvm_stop.KILL, qvm_check.COMMAND, qvm_pause.PAUSE, qvm_pause.UNPAUSE,
        qvm_console.COMMAND, events.COMMAND,
    )
}  # fmt: skip
WORDS = ["a", "b=c", "", "-", "--", "-1", "-x", "--odd", "a b", "-a b", "\u00e9"]


def words_of(command: Command) -> list[str]:
    names = [name for option in command.options for name in option.names]
    return (
        WORDS + names + [f"{name}=v" for name in names] + [f"{name}=" for name in names] + [name[:-1] for name in names]
    )


COMMAND_LINES = st.sampled_from(sorted(COMMANDS)).flatmap(
    lambda program: st.tuples(st.just(program), st.lists(st.sampled_from(words_of(COMMANDS[program])), max_size=7))
)


def read_with_argparse(command: Command, arguments: list[str]) -> dict[str, Any] | None:
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            return dict(vars(command.build_parser().parse_args(command._complete(arguments))))
        except SystemExit:
            return None


@settings(max_examples=400)
@given(COMMAND_LINES)
@example(("qvm-run", ["work", "--", "ls", "-l"]))
@example(("qvm-run", ["work", "ls", "--", "-l"]))
@example(("qvm-run", ["--user", "root", "work", "ls", "--user", "x"]))
@example(("qvm-run", ["--", "work", "ls"]))
@example(("qvm-run", ["--dispvm", "a", "a"]))
@example(("qvm-run", ["--user", "--dispvm", "--dispvm", "a"]))
@example(("qvm-prefs", ["work", "memory", "--", "-1"]))
@example(("qvm-prefs", ["a", "--", "--"]))
@example(("qvm-ls", ["--tags", "a", "b", "--", "c"]))
@example(("qvm-ls", ["--tags", "a", "-", "b"]))
@example(("qvm-ls", ["--tags=a", "b", "--label", "c", "d", "-v"]))
@example(("qvm-ls", ["--tags", "a", "--tags", "b", "-1"]))
def test_the_quick_parser_and_argparse_agree_where_both_accept(line: tuple[str, list[str]]) -> None:
    program, arguments = line
    command = COMMANDS[program]
    quick = command._parse_plain(list(arguments))
    full = read_with_argparse(command, arguments)
    if quick is not None and full is not None:
        assert quick == full


@settings(max_examples=200)
@given(COMMAND_LINES)
def test_whatever_argparse_accepts_is_accepted(line: tuple[str, list[str]]) -> None:
    program, arguments = line
    full = read_with_argparse(COMMANDS[program], arguments)
    if full is not None:
        assert vars(COMMANDS[program].parse(arguments)).keys() == full.keys()


COMMON = [
    ("qvm-create", ["--template", "debian", "--label=green", "work"], {"template": "debian", "label": "green"}),
    ("qvm-create", ["work", "--prop", "a=1", "--property=b=2"], {"property": ["a=1", "b=2"], "name": "work"}),
    ("qvm-create", ["-C", "StandaloneVM", "work"], {"class": "StandaloneVM", "label": ""}),
    ("qvm-prefs", ["work"], {"vm": "work", "name": None, "value": None, "default": False}),
    ("qvm-prefs", ["work", "memory", "600"], {"name": "memory", "value": "600"}),
    ("qvm-prefs", ["--default", "work", "memory"], {"default": True, "value": None}),
    ("qvm-prefs", ["work", "memory", "-D"], {"default": True, "value": None}),
    ("qvm-start", ["-v", "a", "b", "--no-wait"], {"vms": ["a", "b"], "verbose": True, "no_wait": True}),
    ("qvm-run", ["work", "ls", "-l", "--user", "x"], {"vm": "work", "command": ["ls", "-l", "--user", "x"]}),
    ("qvm-run", ["-u", "root", "work", "id"], {"user": "root", "command": ["id"]}),
    ("qvm-run", ["work", "--", "ls", "--"], {"command": ["ls", "--"], "user": "DEFAULT"}),
    ("qvm-ls", [], {"vms": [], "running": False}),
    ("qvm-ls", ["--tags", "a", "b", "-q"], {"tags": ["a", "b"], "vms": []}),
    ("qvm-ls", ["--tags=a", "b", "--tags", "c", "--", "d"], {"tags": ["a", "c"], "vms": ["b", "d"]}),
    ("qvm-shutdown", ["--all", "--exclude", "a", "--exclude=b"], {"exclude": ["a", "b"], "vms": []}),
    ("qvm-check", ["-q", "--running", "a"], {"quiet": True, "vms": ["a"]}),
    ("crannog events", ["--json", "--count", "3", "a"], {"json": True, "count": "3", "vm": "a"}),
]


@pytest.mark.parametrize(("program", "arguments", "expected"), COMMON)
def test_common_command_lines_never_need_argparse(
    program: str, arguments: list[str], expected: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Command, "build_parser", lambda _self: 1 // 0)
    values = vars(COMMANDS[program].parse(arguments))
    assert {name: values[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-nv", "work", "tool", "--dispvm", "a"], {"dispvm": "", "vm": "work", "command": ["tool", "--dispvm", "a"]}),
        (["-nu", "root", "work", "tool", "--dispvm"], {"user": "root", "command": ["tool", "--dispvm"]}),
        (["-vuroot", "--dispvm", "ls", "a"], {"user": "root", "dispvm": "dom0", "vm": "ls", "command": ["a"]}),
        (["-vu", "--dispvm", "--dispvm", "ls"], None),
        (["--us", "root", "--disp", "ls", "--dispvm"], {"dispvm": "dom0", "vm": "ls", "command": ["--dispvm"]}),
        (["--dispvm=a", "-nv", "--", "ls", "--dispvm"], {"dispvm": "a", "vm": "ls", "command": ["--dispvm"]}),
    ],
)
def test_an_option_without_its_value_takes_no_word_and_none_of_another_program_is_touched(
    arguments: list[str], expected: dict[str, object] | None
) -> None:
    command = COMMANDS["qvm-run"]
    assert command._parse_plain(list(arguments)) is None, "for argparse"
    full = read_with_argparse(command, arguments)
    assert full == expected or (full and expected and expected.items() <= full.items())


@pytest.mark.parametrize("program", sorted(COMMANDS))
def test_help_names_every_part(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        COMMANDS[program].parse(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert COMMANDS[program].summary in " ".join(text.split())
    helps = [option.help for option in COMMANDS[program].options] + [part.help for part in COMMANDS[program].operands]
    assert all(" ".join(help_.split())[:20] in " ".join(text.split()) for help_ in helps)


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("qvm-create", ["a", "b"]),
        ("qvm-ls", ["--tags"]),
        ("qvm-ls", ["--tags", "--", "a"]),
        ("qvm-create", ["a", "--template"]),
        ("qvm-create", ["a", "--odd"]),
        ("qvm-prefs", ["a", "b", "c", "d"]),
        ("qvm-prefs", ["a", "--default=yes"]),
        ("qvm-start", ["--dry-run=no", "a"]),
    ],
)
def test_wrong_command_lines_end_with_2(program: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        COMMANDS[program].parse(arguments)
    assert caught.value.code == 2
    assert f"usage: {program}" in capsys.readouterr().err


def test_defaults_are_not_shared_between_command_lines() -> None:
    command = Command(
        "tool", "Does.", Operand("words", "WORD", "words", "*"), Option("--x", metavar="X", help="x", is_repeated=True)
    )
    first = command.parse(["--x", "1", "a"])
    first.x.append("2")
    first.words.append("b")
    assert vars(command.parse([])) == {"x": [], "words": []}


def test_an_unknown_value_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = COMMANDS["qvm-ls"].parse([]).nonsense


@pytest.mark.parametrize("program", sorted(COMMANDS))
def test_each_tool_tells_its_version_and_takes_what_all_take(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        COMMANDS[program].parse(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"{program} of Crannog ")
    names = {name for option in COMMANDS[program].options for name in option.names}
    assert {"-v", "--verbose", "-q", "--quiet"} <= names


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--set", "work", "kernelopts", "-v"], ["--set", "--", "work", "kernelopts", "-v"]),
        (["-q", "-s", "work", "kernelopts", "-q"], ["-q", "-s", "--", "work", "kernelopts", "-q"]),
        (["-v", "work", "memory"], ["-v", "work", "memory"]),
        (["work", "memory", "9", "--offline", "-s"], ["--offline", "-s", "--", "work", "memory", "9"]),
    ],
)
def test_values_that_look_like_options_can_be_set(
    words: list[str], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["qvm-prefs", *words])
    assert prefs.arguments_of(qvm_prefs.COMMAND) == expected
