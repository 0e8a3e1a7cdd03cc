"""Actions, the words after a tool's name that say what to do, for the tools about volumes, pools and devices."""

from __future__ import annotations

from crannog.errors import UsageError

# Importing typing and collections.abc would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from crannog.cli.options import Values

MANY = 10**6


class Actions:
    """The actions of a tool: for each, how many arguments it takes at least and at most, and which they are."""

    def __init__(self, takes: Mapping[str, tuple[int, int, str]], aliases: Mapping[str, str]) -> None:
        self.names = tuple(takes)
        self._takes = takes
        self._aliases = aliases

    def find(self, word: str, arguments: Sequence[str]) -> str:
        """Return the action that is meant; raises UsageError when it, or the number of its arguments, is wrong."""
        action = self._aliases.get(word, word)
        if action not in self._takes:
            raise UsageError(f"'{word}' is none of {', '.join(self.names)}")
        least, most, which = self._takes[action]
        if not least <= len(arguments) <= most:
            raise UsageError(f"'{word}' takes {which}")
        return action


def refuse_odd_options(action: str, options: Values, users: Mapping[str, Sequence[str]]) -> None:
    """Raise UsageError for an option that only other actions take; `users` says which they are, by the option's key."""
    for key, actions in users.items():
        if getattr(options, key) and action not in actions:
            raise UsageError(f"--{key.replace('_', '-')} is for {' and '.join(actions)}, not for {action}")
