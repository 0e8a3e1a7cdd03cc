"""Text of policy files to rules and includes, without looking at any other file (qrexec specification, section 5)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from crannog.policy.problems import Origin, PolicyRefusedError, Problem, shown
from crannog.policy.rules import ANY, Rule, parse_rule, parse_service


class Directive(StrEnum):
    """A line that is no rule."""

    INCLUDE = "!include"
    INCLUDE_DIR = "!include-dir"
    INCLUDE_SERVICE = "!include-service"
    COMPAT = "!compat-4.0"
    """The files of Qubes 4.0, one a service, in a folder of their own."""


@dataclass(frozen=True, slots=True)
class Include:
    """A directive. `service` and `argument` are those of INCLUDE_SERVICE; COMPAT has no path."""

    directive: Directive
    path: str
    origin: Origin
    service: str = ANY
    argument: str = ANY


Statement = Rule | Include | Problem

_OPERANDS = {
    Directive.INCLUDE: "FILE",
    Directive.INCLUDE_DIR: "DIRECTORY",
    Directive.INCLUDE_SERVICE: "SERVICE +ARGUMENT FILE",
    Directive.COMPAT: "",
}
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
"""Control characters but tabs and line feeds: programs differ on whether they end a line, and so a comment."""


def parse_text(untrusted_text: str, file: str) -> Iterator[Statement]:
    """Yield what the lines of a policy file say, a Problem for each line that cannot be used. Raises nothing."""
    for origin, untrusted_line in _split_lines(untrusted_text, file):
        try:
            yield _parse_line(_split_words(untrusted_line), origin)
        except PolicyRefusedError as error:
            yield Problem(origin, str(error))


def parse_service_text(untrusted_text: str, file: str, service: str, argument: str) -> Iterator[Statement]:
    """Yield what a file says about one service; its rules begin with the source. Raises nothing.

    These files may be as old as Qubes 4.0: `$` is `@`, a comma separates options, `$include:FILE` includes.
    """
    for origin, untrusted_line in _split_lines(untrusted_text, file):
        try:
            untrusted_words = _split_words(_modernize(untrusted_line))
            yield _parse_service_line(untrusted_words, service, argument, origin)
        except PolicyRefusedError as error:
            yield Problem(origin, str(error))


def _split_lines(untrusted_text: str, file: str) -> Iterator[tuple[Origin, str]]:
    """Yield the lines that are neither empty nor comments, and every line that could hide something."""
    for number, untrusted_line in enumerate(untrusted_text.split("\n"), 1):
        stripped = untrusted_line.removesuffix("\r").strip(" \t")
        if stripped and (not stripped.startswith("#") or _UNSEEN.search(stripped)):
            yield Origin(file, number), stripped


def _split_words(untrusted_line: str) -> list[str]:
    if _UNSEEN.search(untrusted_line):
        raise PolicyRefusedError("the line holds a control character; only tabs and spaces separate words")
    if not untrusted_line.isascii():
        raise PolicyRefusedError("the line holds characters that are not ASCII; only comments may")
    return untrusted_line.split()


def _modernize(untrusted_line: str) -> str:
    return untrusted_line.replace("$include:", f"{Directive.INCLUDE} ").replace("$", "@").replace(",", " ")


def _parse_line(untrusted_words: list[str], origin: Origin) -> Rule | Include:
    if not untrusted_words[0].startswith("!"):
        return parse_rule(untrusted_words, origin)
    directive = _parse_directive(untrusted_words[0])
    operands = _OPERANDS[directive]
    if len(untrusted_words) != 1 + len(operands.split()):
        raise PolicyRefusedError(f"write '{f'{directive} {operands}'.strip()}'")
    if directive is Directive.COMPAT:
        return Include(directive, "", origin)
    path = _parse_path(untrusted_words[-1])
    if directive is not Directive.INCLUDE_SERVICE:
        return Include(directive, path, origin)
    service, argument = parse_service(*untrusted_words[1:3])
    return Include(directive, path, origin, service, argument)


def _parse_directive(untrusted_word: str) -> Directive:
    try:
        return Directive(untrusted_word)
    except ValueError:
        known = ", ".join(Directive)
        raise PolicyRefusedError(f"{shown(untrusted_word)} is no directive; known are {known}") from None


def _parse_path(untrusted_path: str) -> str:
    if ".." in untrusted_path.split("/"):
        raise PolicyRefusedError("the path of an include cannot hold '..'; write it from the root")
    return untrusted_path


def _parse_service_line(untrusted_words: list[str], service: str, argument: str, origin: Origin) -> Rule | Include:
    if not untrusted_words:
        raise PolicyRefusedError("the line has nothing but commas")
    if not untrusted_words[0].startswith("!"):
        if len(untrusted_words) < 3:
            raise PolicyRefusedError("a rule in a file for one service is 'SOURCE TARGET allow|ask|deny' and options")
        return parse_rule([service, argument, *untrusted_words], origin)
    if untrusted_words[0] != Directive.INCLUDE or len(untrusted_words) != 2:
        raise PolicyRefusedError(f"in a file for one service there is no directive but '{Directive.INCLUDE} FILE'")
    path = _parse_path(untrusted_words[1])
    return Include(Directive.INCLUDE_SERVICE, path, origin, service, argument)
