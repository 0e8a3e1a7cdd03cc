"""qvm-tags: show and change the tags of a VM."""

from __future__ import annotations

from crannog.cli.connect import OFFLINE, open_client
from crannog.cli.options import COMMON, Command, Operand
from crannog.cli.request import refuse_odd_name
from crannog.cli.tool import end, run, say
from crannog.errors import TagNotFoundError, UsageError

# Importing typing would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from crannog.cli.options import Values
    from crannog.cli.request import Caller

COMMAND = Command(
    "qvm-tags",
    "Show the tags of a VM, or add or remove some.",
    Operand("vm", "VM", "the VM"),
    Operand(
        "action",
        "ACTION",
        "list (also ls, l; the default): with a TAG, exit 0 if the VM has it, else 1; "
        "add (a, set); del (d, unset, u): tags that are not there are no error",
        "?",
    ),
    Operand("tags", "TAG", "the tags", "*"),
    *COMMON,
    OFFLINE,
    examples="  qvm-tags work\n  qvm-tags work add mail bank\n  qvm-tags work list mail\n  qvm-tags work del bank",
)
_LIST, _ADD, _REMOVE = ("list", "ls", "l"), ("add", "a", "set"), ("del", "d", "unset", "u")
_MARKS = "_-"
NOT_THERE = 1


def _act(options: Values) -> int:
    action, tags = options.action or "list", options.tags
    _check(action, tags)
    client = open_client(COMMAND.program, options)
    if action in _LIST:
        return _list(client, options.vm, tags)
    for tag in tags:
        if action in _ADD:
            client.text("admin.vm.tag.Set", options.vm, tag)
        else:
            _remove(client, options.vm, tag)
    return 0


def _check(action: str, tags: list[str]) -> None:
    if action not in _LIST + _ADD + _REMOVE:
        raise UsageError(f"'{action}' is none of list, add and del")
    if action in _LIST and len(tags) > 1:
        raise UsageError(f"'{action}' takes one tag at most")
    if action not in _LIST and not tags:
        raise UsageError(f"name the tags after '{action}'")
    for tag in tags:
        refuse_odd_name("tag", tag, _MARKS)


def _list(client: Caller, vm: str, tags: list[str]) -> int:
    if not tags:
        for tag in client.text("admin.vm.tag.List", vm).splitlines():
            say(tag)
        return 0
    if client.text("admin.vm.tag.Get", vm, tags[0]) != "1":
        return NOT_THERE
    say(tags[0])
    return 0


def _remove(client: Caller, vm: str, tag: str) -> None:
    try:
        client.text("admin.vm.tag.Remove", vm, tag)
    except TagNotFoundError:
        return


def main() -> None:
    """Run qvm-tags."""
    end(run(COMMAND, _act))
