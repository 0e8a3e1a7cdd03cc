"""crannog complete: what could be typed next, for shells. Their scripts ask here at each press of the Tab key.

The answer comes from the same declarations that the tools read their command lines with. No daemon is started for it.
"""

from __future__ import annotations

from crannog.cli.commands import COMMANDS, find_command
from crannog.cli.options import Command, Operand, Option
from crannog.cli.tool import run, say
from crannog.client.connection import Client
from crannog.errors import CrannogError

# Importing typing would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from crannog.cli.options import Values

COMMAND = Command(
    "crannog complete",
    "Print what could stand for the last word of a command line, a line each. Shells call this; to switch it on: "
    "'crannog complete --script bash > ~/.local/share/bash-completion/completions/crannog'.",
    Option("--script", metavar="bash|zsh|fish", help="print the script for that shell instead"),
    Operand("words", "WORD", "the command line so far; the last word may be empty", "..."),
    examples="  crannog complete -- qvm-prefs wo\n  crannog complete --script zsh",
)

_LISTS = {
    "VM": ("admin.vm.List", ""),
    "LABEL": ("admin.label.List", ""),
    "POOL": ("admin.pool.List", ""),
    "CLASS": ("admin.vmclass.List", ""),
    "KERNEL": ("admin.pool.volume.List", "linux-kernel"),
}
"""What a placeholder stands for: the method that lists it, and its argument."""

_OF_VM = {"PROPERTY": "admin.vm.property.List", "FEATURE": "admin.vm.feature.List", "TAG": "admin.vm.tag.List"}
"""What belongs to the VM that is named before it."""


def complete(words: list[str], client: Client) -> list[str]:
    """Return what could stand for the last of `words`, sorted."""
    *before, current = words or [""]
    command, arguments = _find(before)
    if command is None:
        return _fitting(_programs(before), current)
    option = _find_option(command, arguments[-1]) if arguments else None
    if option and option.metavar:
        return _fitting(_stand_ins(option.metavar, [], client), current)
    if current.startswith("-"):
        return _fitting([name for option in command.options for name in option.names] + ["--help"], current)
    named = _operands(command, arguments)
    operand = _find_operand(command, len(named))
    return _fitting(_stand_ins(operand.metavar, named, client), current) if operand else []


def _find(before: list[str]) -> tuple[Command | None, list[str]]:
    """Return the command that the words begin with, and the words after it."""
    for count in (1, 2):
        command = find_command(" ".join(before[:count]))
        if command and len(before) >= count:
            return command, before[count:]
    return None, []


def _programs(before: list[str]) -> list[str]:
    prefix = "".join(word + " " for word in before)
    return [name.removeprefix(prefix).split(" ")[0] for name in COMMANDS if name.startswith(prefix)]


def _find_option(command: Command, word: str) -> Option | None:
    return next((option for option in command.options if word in option.names), None)


def _operands(command: Command, arguments: list[str]) -> list[str]:
    """Return the words that are no options and no values of options."""
    found, takes_value = [], False
    for word in arguments:
        option = None if takes_value else _find_option(command, word)
        if not takes_value and option is None and not word.startswith("-"):
            found.append(word)
        takes_value = option is not None and bool(option.metavar)
    return found


def _find_operand(command: Command, count: int) -> Operand | None:
    """Return what the next word stands for, after `count` others."""
    operands = command.operands
    if count < len(operands):
        return operands[count]
    return operands[-1] if operands and operands[-1].count == "*" else None


def _stand_ins(metavar: str, named: list[str], client: Client) -> list[str]:
    """Return what a placeholder can stand for, nothing when that cannot be known now."""
    if "|" in metavar:
        return metavar.split("|")
    try:
        if metavar in _OF_VM and named:
            reply = client.text(_OF_VM[metavar], named[0])
        elif metavar == "PROPERTY":
            reply = client.text("admin.property.List")
        elif metavar in _LISTS:
            method, argument = _LISTS[metavar]
            reply = client.text(method, "dom0", argument)
        else:
            return []
    except CrannogError:
        return []
    return [line.split(" ")[0] for line in reply.splitlines()]


def _fitting(candidates: list[str], current: str) -> list[str]:
    return sorted({candidate for candidate in candidates if candidate.startswith(current)})


def _complete(options: Values) -> None:
    if options.script:
        from crannog.cli.completion_scripts import render_script

        say(render_script(options.script).rstrip())
        return
    for candidate in complete(options.words, Client(may_start_daemon=False)):
        say(candidate)


def main(arguments: list[str]) -> int:
    """Run crannog complete."""
    return run(COMMAND, _complete, arguments)
