"""Which VMs qvm-ls lists: what its options ask of one column each."""

from __future__ import annotations

from crannog.errors import UsageError

# Importing typing and collections.abc would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from crannog.cli.options import Values

    Filter = tuple[str, Callable[[str], bool]]
    """A column, as the server calls it, and what its value must be."""

ABSENT = "-"
"""What the server says of a property or feature that a VM does not have."""
EMPTY_TEXTS = ("''", '""')


def find_filters(options: Values) -> list[Filter]:
    """Return what the options ask; a VM is listed when all of it is true. Raises UsageError for nonsense."""
    filters = [*_find_states(options), *_find_words(options), *_find_tags(options)]
    filters += _find_switch(options, "internal", "features.internal")
    filters += _find_switch(options, "servicevm", "features.servicevm")
    if options.pending_update:
        filters.append(("features.updates-available", is_set))
    for text in options.features:
        name, value = _split("--features", text)
        filters.append((f"features.{name}", _equals(value, (ABSENT,))))
    for text in options.prefs:
        name, value = _split("--prefs", text)
        filters.append((name.lower().replace("-", "_"), _equals(value, (ABSENT, ""))))
    return filters


def is_set(value: str) -> bool:
    """Tell whether the value of a feature means yes."""
    return value not in ("", ABSENT)


def _find_states(options: Values) -> list[Filter]:
    chosen = [state for state in ("Running", "Paused", "Halted") if getattr(options, state.lower())]
    return [("state", _is_one_of(set(chosen)))] if chosen else []


def _find_words(options: Values) -> list[Filter]:
    columns = {"class": "klass", "label": "label", "template_source": "template", "netvm_is": "netvm"}
    filters = []
    for key, column in columns.items():
        words = _split_commas(getattr(options, key))
        if words:
            filters.append((column, _is_one_of(words | {""} if "none" in words else words)))
    return filters


def _is_one_of(words: set[str]) -> Callable[[str], bool]:
    known = {word.lower() for word in words}
    return lambda value: value.lower() in known


def _find_tags(options: Values) -> list[Filter]:
    wanted, unwanted = (_split_commas(texts) for texts in (options.tags, options.exclude_tags))
    filters: list[Filter] = []
    if wanted:
        filters.append(("tags", lambda value: not wanted.isdisjoint(value.split(" "))))
    if unwanted:
        filters.append(("tags", lambda value: unwanted.isdisjoint(value.split(" "))))
    return filters


def _split_commas(texts: list[str]) -> set[str]:
    return {word for text in texts for word in text.split(",")}


def _find_switch(options: Values, key: str, column: str) -> list[Filter]:
    text = getattr(options, key).lower()
    if text not in ("y", "yes", "n", "no", "both"):
        raise UsageError(f"--{key} takes y, n or both, not '{text[:80]}'")
    if text == "both":
        return []
    return [(column, is_set if text.startswith("y") else lambda value: not is_set(value))]


def _split(option: str, text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not name or not separator:
        raise UsageError(f"{option} takes NAME=VALUE, not '{text[:80]}'")
    return name, value


def _equals(wanted: str, nothing: tuple[str, ...]) -> Callable[[str], bool]:
    """Return what NAME=VALUE asks. No value means one of `nothing`; quotes with nothing in them, the empty text."""
    meant = ("",) if wanted in EMPTY_TEXTS else (wanted,) if wanted else nothing
    return lambda value: value in meant
