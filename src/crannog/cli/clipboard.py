"""crannog clipboard: text from one VM to another, in two steps that the user takes."""

from __future__ import annotations

import os

from crannog.cli.actions import Actions, refuse_odd_options
from crannog.cli.options import COMMON, Command, Operand, Option
from crannog.cli.qvm_run import reach
from crannog.cli.tool import escape, refuse_host, run, say
from crannog.client.connection import Client
from crannog.errors import InUseError, NotFoundError, UsageError

# Importing typing would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from crannog.cli.clipboard_store import Clip, Clipboard
    from crannog.cli.options import Values

COMMAND = Command(
    "crannog clipboard",
    "Bring text from the clipboard of one VM into that of another: copy it from the first, paste it into the second.\n"
    "Between them it is in this host's global clipboard, for 10 minutes at most. Policy decides on the second step:\n"
    "service qubes.ClipboardPaste, from the VM that had the text to the one that shall get it.\n\n"
    "  copy VM     take the text in the VM's clipboard: UTF-8, at most 65,536 bytes\n"
    "  paste VM    put it into the VM's clipboard; the global clipboard is empty afterwards\n"
    "  show        say whose text is there, how long it is, and how old\n"
    "  clear       forget it",
    Operand("action", "copy|paste|show|clear", "what to do"),
    Operand("vms", "VM", "copy and paste: the running VM, unless --focused says which", "*"),
    Option("--focused", help="copy, paste: the VM whose window is the active one on this desktop (needs xprop)"),
    Option("--content", help="show: print the text as well, with escapes for control characters"),
    *COMMON,
    examples="  crannog clipboard copy work\n  crannog clipboard show\n  crannog clipboard paste vault",
)
ACTIONS = Actions(
    {
        "copy": (0, 1, "one VM, or --focused"),
        "paste": (0, 1, "one VM, or --focused"),
        "show": (0, 0, "no argument"),
        "clear": (0, 0, "no argument"),
    },
    {},
)
_USERS = {"focused": ("copy", "paste"), "content": ("show",)}
_KEPT = "\n\t"
_EMPTY = "the global clipboard is empty"


def _act(options: Values) -> None:
    action = ACTIONS.find(options.action, options.vms)
    refuse_odd_options(action, options, _USERS)
    {"copy": _copy, "paste": _paste, "show": _show, "clear": _clear}[action](options)


def _choose_vm(options: Values) -> str:
    """Return the VM that is meant; raises UsageError unless exactly one is."""
    if bool(options.vms) == options.focused:
        raise UsageError("name one VM, or say --focused" + (", but not both" if options.vms else ""))
    if options.focused:
        from crannog.cli.clipboard_focus import find_focused_vm

        return find_focused_vm(os.environ)
    vm: str = options.vms[0]
    refuse_host(vm)
    return vm


def _copy(options: Values) -> None:
    from crannog.cli.clipboard_guest import fetch_text
    from crannog.cli.clipboard_policy import list_uuids
    from crannog.cli.clipboard_store import Clipboard

    vm, client = _choose_vm(options), Client()
    socket = reach(client, vm, may_start=False)
    uuid = list_uuids(client).get(vm, "")
    text = fetch_text(socket, vm)
    clipboard = Clipboard(client.paths)
    with clipboard.locked():
        clipboard.save(vm, uuid, text)
    say(f"{len(text)} bytes of {vm} are in the global clipboard, until they are pasted, for 10 minutes at most")


def _paste(options: Values) -> None:
    from crannog.cli.clipboard_guest import deliver_text
    from crannog.cli.clipboard_policy import decide
    from crannog.cli.clipboard_store import Clipboard

    vm, client = _choose_vm(options), Client()
    clipboard = Clipboard(client.paths)
    clip = _look(clipboard)
    if clip is None:
        raise NotFoundError(f"{_EMPTY}; fill it with 'crannog clipboard copy VM' first")
    reach(client, vm, may_start=False)  # nobody is asked about a VM that cannot get it anyway
    verdict = decide(client, clip, vm)
    socket = reach(client, verdict.target, may_start=False)
    with clipboard.locked():
        # The user may have been asked for a minute: what is pasted is what was asked about, and is pasted once.
        if clipboard.load() != clip:
            raise InUseError("the global clipboard was changed meanwhile, so that nothing was pasted; paste again")
        deliver_text(socket, verdict.target, verdict.user, clip.text)
        clipboard.clear()
    say(f"{len(clip.text)} bytes of {clip.vm} are in the clipboard of {verdict.target}, and the global one is empty")


def _look(clipboard: Clipboard) -> Clip | None:
    with clipboard.locked():
        return clipboard.load()


def _show(options: Values) -> None:
    from crannog.cli.clipboard_store import Clipboard

    clipboard = Clipboard(Client().paths)
    clip = _look(clipboard)
    if clip is None:
        say(_EMPTY)
        return
    say(f"{clip.vm}: {len(clip.text)} bytes, copied {clipboard.age(clip):.0f} s ago")
    if options.content:
        say(escape(clip.text.decode(), kept=_KEPT))


def _clear(options: Values) -> None:
    from crannog.cli.clipboard_store import Clipboard

    del options
    clipboard = Clipboard(Client().paths)
    with clipboard.locked():
        clipboard.clear()


def main(arguments: list[str]) -> int:
    """Run crannog clipboard."""
    return run(COMMAND, _act, arguments)
