"""Manual pages, made from the declarations that the tools read their command lines with (man(7))."""

from __future__ import annotations

import re

from crannog import __version__
from crannog.cli.options import Command, Operand, Option
from crannog.errors import EXIT_CODES


def page_name(program: str) -> str:
    """Return the name of the file of a program's page, such as `crannog-store.1`."""
    return f"{program.replace(' ', '-')}.1"


def render_page(command: Command) -> str:
    """Return a program's page as the source that man(1) reads."""
    title = command.program.replace(" ", "-")
    first, _, rest = command.summary.partition(". ")
    lines = [
        f'.TH {_escape(title).upper()} 1 "" "Crannog {__version__}" "Crannog"',
        ".SH NAME",
        f"{_escape(title)} \\- {_escape(first.rstrip('.'))}",
        ".SH SYNOPSIS",
        f".B {_escape(command.program)}",
        *_synopsis(command),
        ".SH DESCRIPTION",
        _escape(f"{first}. {rest}" if rest else command.summary),
    ]
    for operand in command.operands:
        lines += [".TP", f".I {_escape(operand.metavar)}", _escape(operand.help)]
    lines += [".SH OPTIONS", *_options(command)]
    if command.examples:
        lines += [".SH EXAMPLES", ".nf", *(_escape(line) for line in command.examples.splitlines()), ".fi"]
    lines += [".SH EXIT STATUS", *_exit_status(), ".SH SEE ALSO", ".BR crannog (1)"]
    return "\n".join(lines) + "\n"


def render_overview(commands: list[Command]) -> str:
    """Return the page crannog(1), which names all others."""
    lines = [
        f'.TH CRANNOG 1 "" "Crannog {__version__}" "Crannog"',
        ".SH NAME",
        "crannog \\- virtual machines for security by compartmentalisation",
        ".SH SYNOPSIS",
        ".B crannog",
        "\\fICOMMAND\\fR ...",
        ".SH COMMANDS",
    ]
    for command in commands:
        page = _escape(command.program.replace(" ", "-"))
        lines += [".TP", f".BR {page} (1)", _escape(command.summary.partition(". ")[0].rstrip(".") + ".")]
    return "\n".join([*lines, ".SH EXIT STATUS", *_exit_status()]) + "\n"


def render_exit_codes() -> str:
    """Return docs/exit-codes.md."""
    rows = "".join(f"| {code} | {meaning} |\n" for code, meaning in EXIT_CODES.items())
    return (
        "# Exit codes\n\nMade by `scripts/reference`; do not edit. Each code always means the same, in every tool and "
        "every version.\nA failure is one sentence on standard error: the thing, the cause, the next step.\n\n"
        f"| code | meaning |\n|---|---|\n{rows}\n`qvm-run` ends with the command's own code: 128 + N if signal N ended "
        "it. Of several VMs or failures, the first failure counts.\n"
    )


def _synopsis(command: Command) -> list[str]:
    lines = ["[\\fIoptions\\fR]"] if command.options else []
    return lines + [_operand(operand) for operand in command.operands]


def _operand(operand: Operand) -> str:
    name = f"\\fI{_escape(operand.metavar)}\\fR"
    return {"1": name, "?": f"[{name}]", "*": f"[{name} ...]", "...": f"{name} ..."}[operand.count]


def _options(command: Command) -> list[str]:
    lines = []
    for option in sorted(command.options, key=lambda option: option.key):
        lines += [".TP", ", ".join(_option_name(option, name) for name in option.names), _escape(option.help)]
    return [*lines, ".TP", "\\fB\\-\\-help\\fR, \\fB\\-h\\fR", "Show a summary of this page."]


def _option_name(option: Option, name: str) -> str:
    value = f" \\fI{_escape(option.metavar)}\\fR" if option.metavar else ""
    return f"\\fB{_escape(name)}\\fR{value}"


def _exit_status() -> list[str]:
    lines = ["Each code always means the same:"]
    for code, meaning in EXIT_CODES.items():
        lines += [".TP", f".B {code}", _escape(meaning)]
    return lines


def _escape(text: str) -> str:
    """Return text as man(7) wants it: nothing in it is read as a request."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    return re.sub(r"(?m)^\.", "\\\\&.", escaped)
