"""Command lines, declared once and read twice.

A correct command line is read here, by 70 lines that import nothing. Help, errors and everything unusual
(abbreviated options, `-abc`, `--version`) go to argparse, built from the same declaration: importing it costs as much
as everything else that a tool does.
"""

from __future__ import annotations

# Importing typing and collections.abc would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


class Option:
    """An option: `names` as typed, `metavar` when it takes a value.

    With `otherwise` the value may be left out, which then means that; it is only given as `--name=VALUE`.
    With `is_repeated` it may be given several times, with `takes_words` each time with several values; its own value
    is then the list of them all.
    """

    def __init__(
        self,
        *names: str,
        help: str,  # noqa: A002
        metavar: str = "",
        default: str = "",
        is_repeated: bool = False,
        takes_words: bool = False,
        otherwise: str = "",
    ) -> None:
        self.names = names
        self.otherwise = otherwise
        self.help = help
        self.metavar = metavar
        self.default = default
        self.is_repeated = is_repeated or takes_words
        self.takes_words = takes_words
        self.key = next(name for name in names if name.startswith("--"))[2:].replace("-", "_")

    def initial(self) -> Any:  # noqa: ANN401 - a flag, a text or a list of texts
        """Return the value when the option is not given."""
        if self.is_repeated:
            return []
        return self.default if self.metavar else False


VERBOSE = Option("--verbose", "-v", help="accepted for those who are used to it: there is nothing more to say")
QUIET = Option("--quiet", "-q", help="accepted for those who are used to it: only failures are told anyway")
COMMON = (VERBOSE, QUIET)
"""Options that every tool takes and that most need not look at."""


class Operand:
    """A positional argument. `count` is `1`, `?` (at most one), `*` (any) or `...` (the rest, as it is)."""

    def __init__(self, key: str, metavar: str, help: str, count: str = "1") -> None:  # noqa: A002
        self.key = key
        self.metavar = metavar
        self.help = help
        self.count = count


class Values:
    """What a command line said: one attribute for each option and operand."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - only for type checkers: real attributes are found first
        raise AttributeError(name)


class Command:
    """One tool's command line."""

    def __init__(self, program: str, summary: str, *parts: Option | Operand, examples: str = "") -> None:
        self.program = program
        self.summary = summary
        self.options = [part for part in parts if isinstance(part, Option)]
        self.operands = [part for part in parts if isinstance(part, Operand)]
        self.examples = examples
        self.has_rest = any(operand.count == "..." for operand in self.operands)
        """What comes after the other operands belongs to another program."""

    def parse(self, arguments: Sequence[str]) -> Values:
        """Return what the arguments say. Help and wrong command lines end the process, as argparse does."""
        values = self._parse_plain(list(arguments))
        return Values(values if values is not None else self._parse_fully(list(arguments)))

    def _parse_plain(self, arguments: list[str]) -> dict[str, Any] | None:
        """Return the values of a correct command line, or None when argparse must look at it."""
        named = {name: option for option in self.options for name in option.names}
        values: dict[str, Any] = {option.key: option.initial() for option in self.options}
        words: list[str] = []
        first_of_rest = len(self.operands) - 1
        while arguments:
            word = arguments.pop(0)
            if word == "--" and not self.has_rest and "--" in arguments:
                return None
            if word == "--" or (self.has_rest and len(words) >= first_of_rest and words):
                rest = arguments if word == "--" else [word, *arguments]
                words += rest[1:] if rest[:1] == ["--"] and word != "--" else rest
                break
            if _is_word(word):
                words.append(word)
            elif not self._take_option(word, named, arguments, values):
                return None
        return values if self._assign_words(words, values) else None

    @staticmethod
    def _take_option(word: str, named: dict[str, Option], arguments: list[str], values: dict[str, Any]) -> bool:
        name, separator, value = word.partition("=")
        option = named.get(name)
        if option is None or bool(separator) > bool(option.metavar) or (separator and not name.startswith("--")):
            return False
        if not option.metavar:
            values[option.key] = True
            return True
        if not separator and option.otherwise:
            value = option.otherwise
        elif not separator:
            if not arguments or arguments[0].startswith("-"):
                return False
            value = arguments.pop(0)
        values[option.key] = [*values[option.key], value] if option.is_repeated else value
        while option.takes_words and not separator and arguments and _is_word(arguments[0]):
            values[option.key].append(arguments.pop(0))
        return True

    def _assign_words(self, words: list[str], values: dict[str, Any]) -> bool:
        for operand in self.operands:
            if operand.count in ("*", "..."):
                values[operand.key], words = words, []
            elif words:
                values[operand.key] = words.pop(0)
            elif operand.count == "?":
                values[operand.key] = None
            else:
                return False
        return not words

    def _parse_fully(self, arguments: list[str]) -> dict[str, Any]:
        return dict(vars(self.build_parser().parse_args(self._complete(arguments))))

    def _complete(self, arguments: list[str]) -> list[str]:
        """Give the options that may go without a value one: argparse would take the next word for it."""
        done: list[str] = []
        left, words = list(arguments), len(self.operands) - 1 if self.has_rest else len(arguments)
        while left and left[0] != "--" and words > 0:
            word = left.pop(0)
            option = self._find_option(word)
            if option and option.otherwise:
                word = f"{word}={option.otherwise}"
            done.append(word)
            words -= _is_word(word)
            if option and option.metavar and not option.otherwise:
                done += left[:1]
                del left[:1]
        return done + left

    def _find_option(self, word: str) -> Option | None:
        """Return the option whose value comes after `word`, which may be shortened, or a cluster of letters."""
        if _is_word(word) or "=" in word:
            return None
        if not word.startswith("--"):
            letters = [self._find_exactly(f"-{letter}") for letter in word[1:]]
            return letters[-1] if not any(option and option.metavar for option in letters[:-1]) else None
        likely = [option for option in self.options if any(name.startswith(word) for name in option.names)]
        return self._find_exactly(word) or (likely[0] if len(likely) == 1 else None)

    def _find_exactly(self, name: str) -> Option | None:
        return next((option for option in self.options if name in option.names), None)

    def build_parser(self) -> Any:  # noqa: ANN401 - argparse is not imported at the top
        """Return the same command line as an argparse parser."""
        import argparse

        from crannog import __version__

        parser = argparse.ArgumentParser(
            prog=self.program,
            description=self.summary,
            epilog=f"examples:\n{self.examples}" if self.examples else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("--version", action="version", version=f"{self.program} of Crannog {__version__}")
        for option in self.options:
            parser.add_argument(*option.names, dest=option.key, help=option.help, **_explain(option))
        counts = {"1": {}, "?": {"nargs": "?"}, "*": {"nargs": "*"}, "...": {"nargs": argparse.REMAINDER}}
        for operand in self.operands:
            parser.add_argument(operand.key, metavar=operand.metavar, help=operand.help, **counts[operand.count])  # type: ignore[arg-type]
        return parser


def _is_word(text: str) -> bool:
    return not text.startswith("-") or text == "-"


def _explain(option: Option) -> dict[str, Any]:
    """Return what argparse is told of an option beside its names."""
    if not option.metavar:
        return {"action": "store_true"}
    action = "extend" if option.takes_words else "append" if option.is_repeated else "store"
    words = {"nargs": "+"} if option.takes_words else {"nargs": "?"} if option.otherwise else {}
    return {"action": action, "metavar": option.metavar, "default": option.initial(), **words}
