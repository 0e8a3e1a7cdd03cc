"""Showing and changing properties: what qvm-prefs, for a VM, and qubes-prefs, for all of them, share."""

from __future__ import annotations

import sys

from crannog.cli.connect import OFFLINE, open_client
from crannog.cli.options import COMMON, Option
from crannog.cli.request import refuse_odd_name, refuse_odd_value
from crannog.cli.tool import say
from crannog.errors import UsageError

# Importing typing would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from crannog.cli.options import Command, Values
    from crannog.cli.request import Caller

OPTIONS = (
    Option("--default", "--unset", "--delete", "-D", help="give the property its default again"),
    Option("--get", "-g", help="show the property, as without this option"),
    Option("--set", "-s", help="set the property; a VALUE may then also start with '-'"),
    Option("--hide-default", help="leave out properties that have their default"),
    Option("--help-properties", help="say what each property means"),
    *COMMON,
    OFFLINE,
)
_SET = ("--set", "-s")


class Properties:
    """The properties of a VM, or the global ones: `prefix` is what the names of their methods begin with."""

    def __init__(self, client: Caller, prefix: str, vm: str = "dom0") -> None:
        self._client = client
        self._prefix = prefix
        self._vm = vm

    def _text(self, method: str, name: str = "", value: str = "") -> str:
        return self._client.text(f"{self._prefix}.{method}", self._vm, name, value)

    def act(self, options: Values, name: str) -> None:
        """Do what the command line says."""
        if options.help_properties:
            self._explain()
        elif options.default:
            self._text("Reset", name)
        elif not name:
            self._list(is_default_hidden=options.hide_default)
        elif options.value is None:
            self._show(name, is_default_hidden=options.hide_default)
        else:
            self._set(name, options.value)

    def _list(self, *, is_default_hidden: bool) -> None:
        rows = [line.split(" ", 3) for line in self._text("GetAll").splitlines()]
        width = max(len(row[0]) for row in rows)
        for name, default, _type, value in rows:
            mark = "D" if default == "default=True" else "-"
            if mark == "-" or not is_default_hidden:
                # The reply keeps to one line a property by escapes; here only a line end has to stay escaped.
                shown = value.replace("\\\\", "\\")
                say(f"{name:{width}}  {mark}  {shown}".rstrip())

    def _show(self, name: str, *, is_default_hidden: bool) -> None:
        default, _type, value = self._text("Get", name).split(" ", 2)
        if default == "default=False" or not is_default_hidden:
            say(value)

    def _set(self, name: str, value: str) -> None:
        refuse_odd_value(f"property '{name}'", value)
        # 'none' is the name of no VM, but may be any other property's value.
        if value.lower() == "none" and self._text("Get", name).split(" ", 2)[1] == "type=vm":
            value = ""
        self._text("Set", name, value)

    def _explain(self) -> None:
        names = self._text("List").splitlines()
        width = max(map(len, names))
        for name in names:
            say(f"{name:{width}}  {self._text('Help', name)}")


def act(program: str, options: Values, prefix: str, vm: str = "dom0") -> None:
    """Do what the command line says, once it is known to make sense."""
    _refuse_contradictions(options)
    name = _find_name(options)
    Properties(open_client(program, options), prefix, vm).act(options, name)


def _find_name(options: Values) -> str:
    """Return the property's name, empty when there is none. Dashes are taken for the underscores that names have."""
    name: str = (options.name or "").replace("-", "_")
    if options.name is not None:
        refuse_odd_name("property", name)
    return name


def _refuse_contradictions(options: Values) -> None:
    chosen = [key for key in ("default", "get", "set", "help_properties") if getattr(options, key)]
    if len(chosen) > 1:
        raise UsageError(" and ".join(f"--{key.replace('_', '-')}" for key in chosen) + " exclude each other")
    if options.default and (options.name is None or options.value is not None):
        raise UsageError("--default takes the name of a property, and no value")
    if options.get and (options.name is None or options.value is not None):
        raise UsageError("--get takes the name of a property, and no value")
    if options.set and options.value is None:
        raise UsageError("--set takes the name of a property and its new value; '' is the empty one")
    if options.help_properties and options.name is not None:
        raise UsageError("--help-properties explains all properties and takes the name of none")


def arguments_of(command: Command) -> list[str]:
    """Return the process's arguments. With --set, whatever is not an option of the command is a word, dash or not.

    Options that say nothing are options before the first word only: `-v` is a value like any other for a kernel.
    """
    arguments = sys.argv[1:]
    if "--" in arguments or not any(word in _SET for word in arguments):
        return arguments
    common = {name for option in COMMON for name in option.names}
    known = {"-h", "--help", *(name for option in command.options for name in option.names)}
    options: list[str] = []
    words: list[str] = []
    for word in arguments:
        (options if word in known and not (words and word in common) else words).append(word)
    return [*options, "--", *words]
