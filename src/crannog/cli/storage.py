"""crannog storage: what is wrong in the pools, what nobody needs in them, and images that were changed."""

from __future__ import annotations

from crannog.cli.actions import MANY, Actions, refuse_odd_options
from crannog.cli.connect import OFFLINE, open_client
from crannog.cli.options import COMMON, Command, Operand, Option
from crannog.cli.request import refuse_odd_name
from crannog.cli.server_text import fetch, misunderstood
from crannog.cli.sizes import show_size
from crannog.cli.tool import complain, escape, run, say
from crannog.errors import NotYetError, StorageError

# Importing typing would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from crannog.cli.options import Values
    from crannog.cli.request import Caller

COMMAND = Command(
    "crannog storage",
    "Look after the pools.\n\n"
    "  check [POOL...]   say what is wrong or superfluous; exit 1 when anything is\n"
    "  gc [POOL...]      say what nobody needs, and how much room it takes; delete it with --yes\n"
    "  accept VM VOLUME  take a volume's images as they are, though they were changed since they were finished\n\n"
    "Without POOL all pools are looked at. Each line begins with a word: orphan (nothing in the store refers to it),\n"
    "half-made (nobody goes on with it), missing (a volume without content), broken (an image that is damaged, or\n"
    "whose backing file is), changed (an image is not as it was when it was finished), unsafe (others can read or\n"
    "write it, it is a link, or another user's), and with gc unneeded (a former content beyond those that are kept).\n"
    "Damage is looked for in images that no running VM uses. check changes nothing, and nothing is ever repaired.",
    Operand("action", "check|gc|accept", "what to do"),
    Operand("words", "ARGUMENT", "pools, or VM and VOLUME", "*"),
    Option("--yes", help="gc: delete it"),
    Option("--json", help="check, gc: print a JSON list"),
    OFFLINE,
    *COMMON,
    examples=(
        "  crannog storage check\n  crannog storage check --json vm-pool\n  crannog storage gc\n"
        "  crannog storage gc --yes vm-pool\n  crannog storage accept debian-12 root"
    ),
)
ACTIONS = Actions(
    {"check": (0, MANY, "pools only"), "gc": (0, MANY, "pools only"), "accept": (2, 2, "VM and VOLUME")}, {}
)
_USERS = {"yes": ("gc",), "json": ("check", "gc")}
FOUND = 1
"""Exit code of a check that has found something."""


def _act(options: Values) -> int:
    action = ACTIONS.find(options.action, options.words)
    refuse_odd_options(action, options, _USERS)
    client = open_client(COMMAND.program, options)
    if action == "accept":
        _accept(client, *options.words)
        return 0
    method = "Check" if action == "check" else "Collect" if options.yes else "FindWaste"
    found = _ask_all(client, method, options.words)
    if options.json:
        _print_json(found)
    else:
        for finding in found:
            say(_show(finding))
    if action == "gc" and not options.json:
        _print_sum(found, is_done=options.yes)
    return FOUND if action == "check" and found else 0


def _accept(client: Caller, vm: str, volume: str) -> None:
    refuse_odd_name("volume", volume)
    missing = f"{vm} has no volume '{volume}'; 'qvm-volume list {vm}' lists those that it has"
    fetch(client, "crannog.vm.volume.Accept", vm, volume, missing=missing)


def _ask_all(client: Caller, method: str, pools: list[str]) -> list[dict[str, Any]]:
    """Return what is found in all pools. Those that cannot be looked at are no failure unless they are named."""
    found = []
    for pool in pools or fetch(client, "admin.pool.List").splitlines():
        refuse_odd_name("pool", pool)
        try:
            found += _ask(client, method, pool)
        except NotYetError as error:
            if pools:
                raise
            complain(COMMAND.program, str(error))
        except StorageError:
            if pools or _holds_volumes(client, pool):
                raise
    return found


def _holds_volumes(client: Caller, pool: str) -> bool:
    """Tell whether a pool, which could not be looked at, is one of VMs' volumes: kernels lie in another kind."""
    info = fetch(client, "admin.pool.Info", argument=pool)
    return "driver=linux-kernel" not in info.splitlines()


def _ask(client: Caller, method: str, pool: str) -> list[dict[str, Any]]:
    import json

    text = fetch(client, f"crannog.pool.{method}", argument=pool)
    try:
        answer = json.loads(text)
        found = [{"pool": pool, **{key: finding[key] for key in _KEYS}} for finding in answer["found"]]
        remarks = [str(remark) for remark in answer["remarks"]]
    except (ValueError, LookupError, TypeError):
        raise misunderstood(f"crannog.pool.{method}", "it is no list of findings") from None
    for remark in remarks:
        complain(COMMAND.program, remark)
    return found


_KEYS = ("kind", "path", "reason", "vid", "size")


def _show(finding: dict[str, Any]) -> str:
    size = f" ({show_size(int(finding['size']))})" if finding["size"] else ""
    return escape(f"{finding['kind']} {finding['pool']}: {finding['path']} {finding['reason']}{size}")


def _print_json(found: list[dict[str, Any]]) -> None:
    import json

    say(json.dumps(found, indent=1))


def _print_sum(found: list[dict[str, Any]], *, is_done: bool) -> None:
    size = show_size(sum(int(finding["size"]) for finding in found))
    if is_done:
        say(f"{len(found)} deleted, {size}")
    else:
        say(f"{len(found)} can be deleted, {size}" + ("; add --yes to delete them" if found else ""))


def main(arguments: list[str]) -> int:
    """Run crannog storage."""
    return run(COMMAND, _act, arguments)
