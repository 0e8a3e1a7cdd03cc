"""qvm-volume: show and change the volumes of VMs."""

from __future__ import annotations

import sys

from crannog.cli.actions import MANY, Actions, refuse_odd_options
from crannog.cli.connect import OFFLINE, open_client
from crannog.cli.options import COMMON, Command, Operand, Option
from crannog.cli.request import refuse_odd_name, refuse_odd_value
from crannog.cli.server_text import explain_missing, fetch, list_vms, misunderstood, parse_fields, print_table
from crannog.cli.sizes import parse_size
from crannog.cli.tool import end, escape, run, say
from crannog.errors import NotFoundError, PropertyNotFoundError, UsageError, ValueRefusedError, VMNotFoundError

# Importing typing would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from crannog.cli.options import Values
    from crannog.cli.request import Caller

    T = TypeVar("T")

COMMAND = Command(
    "qvm-volume",
    "Show the volumes of VMs, or change one. A volume is named VM:VOLUME, as in work:private.",
    Operand(
        "action",
        "ACTION",
        "list (also ls, l; the default) [VM...]; info (i) VM:VOLUME [PROPERTY]; config (c, set, s) VM:VOLUME PROPERTY "
        "VALUE, for rw, revisions_to_keep and ephemeral; resize (extend) VM:VOLUME SIZE; revert (rv, r) VM:VOLUME "
        "[REVISION], by default to the newest; import VM:VOLUME FILE, - for standard input; export VM:VOLUME FILE, - "
        "for standard output: the newest finished content, raw; clear VM:VOLUME",
        "?",
    ),
    Operand("words", "ARGUMENT", "what the action takes", "*"),
    Option("--pool", "-p", metavar="POOL", help="list: volumes in this pool only"),
    Option("--full", help="list: name the VM in each row, as without a terminal"),
    Option("--size", metavar="SIZE", help="import: exact size of what is imported; the volume gets it"),
    Option("--no-resize", help="import: the volume keeps its size, which must be that of what is imported"),
    Option("--sha256", metavar="DIGEST", help="import, export: refuse content that has another SHA-256"),
    Option("--verify", help="export: read the file again when it is written, and print its SHA-256"),
    Option("--force", "-f", help="resize: also to a smaller size; clear: do not ask; export: replace a file"),
    OFFLINE,
    *COMMON,
    examples=(
        "  qvm-volume list work\n  qvm-volume info work:private size\n"
        "  qvm-volume config work:root revisions_to_keep 2\n  qvm-volume resize work:private 20GiB\n"
        "  qvm-volume revert work:private\n"
        "  qvm-volume import other-os:root disk.raw\n  qvm-volume import --size 10GiB other-os:root -\n"
        "  qvm-volume export --verify work:private /media/backup/work.img"
    ),
)
ACTIONS = Actions(
    {
        "list": (0, MANY, "VMs only"),
        "info": (1, 2, "VM:VOLUME and perhaps PROPERTY"),
        "config": (3, 3, "VM:VOLUME, PROPERTY and VALUE"),
        "resize": (2, 2, "VM:VOLUME and SIZE"),
        "revert": (1, 2, "VM:VOLUME and perhaps REVISION"),
        "import": (2, 2, "VM:VOLUME and FILE"),
        "export": (2, 2, "VM:VOLUME and FILE"),
        "clear": (1, 1, "VM:VOLUME"),
    },
    {
        "ls": "list", "l": "list", "i": "info", "c": "config", "set": "config", "s": "config", "extend": "resize",
        "rv": "revert", "r": "revert",
    },
)  # fmt: skip
SETTINGS = ("rw", "revisions_to_keep", "ephemeral")
_USERS = {"pool": ("list",), "full": ("list",), "size": ("import",), "no_resize": ("import",),
            "sha256": ("import", "export"), "verify": ("export",), "force": ("resize", "clear", "export")}  # fmt: skip
_REVISION_MARKS = "_.-:"


class Volume:
    """One volume of one VM, named as on the command line."""

    def __init__(self, client: Caller, vm: str, name: str) -> None:
        self.client = client
        self.vm = vm
        self.name = name
        self._missing = f"{vm} has no volume '{name}'; 'qvm-volume list {vm}' lists those that it has"

    def text(self, method: str, payload: str = "") -> str:
        """Return the reply of one of the volume's methods; raises NotFoundError when there is no such volume."""
        return self.ask(f"admin.vm.volume.{method}", payload)

    def ask(self, method: str, payload: str = "") -> str:
        """Return the reply of any method that takes the volume as its argument."""
        return fetch(self.client, method, self.vm, self.name, payload, missing=self._missing)

    def explain(self, act: Callable[[], T]) -> T:
        """Do something about the volume; raises NotFoundError when it was refused because there is no such one."""
        return explain_missing(act, self._missing)

    def info(self) -> dict[str, str]:
        """Return what is known of the volume, by key."""
        return parse_fields("admin.vm.volume.Info", self.text("Info"))

    def size(self) -> int:
        """Return the volume's size in bytes."""
        return self._number("size")

    def usage(self) -> int:
        """Return the bytes that the volume takes."""
        return self._number("usage")

    def _number(self, key: str) -> int:
        text = self.info().get(key, "")
        if not (text.isascii() and text.isdigit()):
            raise misunderstood("admin.vm.volume.Info", f"its {key} is '{text[:40]}'")
        return int(text)

    def revisions(self) -> list[str]:
        """Return the revisions that the volume can go back to, oldest first."""
        return self.text("ListSnapshots").splitlines()


def _act(options: Values) -> int:
    action = ACTIONS.find(options.action or "list", options.words)
    refuse_odd_options(action, options, _USERS)
    if action == "list":
        return _list(open_client(COMMAND.program, options), options)
    vm, name = split_volume(options.words[0])
    arguments = options.words[1:]
    if action == "config" and arguments[0] not in SETTINGS:
        raise UsageError(f"'{arguments[0]}' of a volume cannot be changed; {', '.join(SETTINGS)} can")
    if action == "clear" and not options.force and not _is_agreed(options.words[0]):
        return 1
    if action == "import":
        from crannog.cli.qvm_volume_import import import_volume

        return import_volume(options, vm, name, arguments[0])
    if action == "export":
        from crannog.cli.qvm_volume_export import export_volume

        return export_volume(options, vm, name, arguments[0])
    _change(action, Volume(open_client(COMMAND.program, options), vm, name), arguments, options)
    return 0


def split_volume(text: str) -> tuple[str, str]:
    """Return VM and name of VM:VOLUME; raises UsageError when it is none."""
    # The VM may be given as uuid:UUID.
    vm, _, name = text.rpartition(":")
    if not vm:
        raise UsageError(f"'{text}' names no volume; write VM:VOLUME, as in work:private")
    refuse_odd_name("volume", name)
    return vm, name


def _list(client: Caller, options: Values) -> int:
    if options.pool and options.pool not in fetch(client, "admin.pool.List").splitlines():
        raise NotFoundError(f"there is no pool '{options.pool}'; 'qvm-pool list' lists the pools")
    rows = []
    for vm in options.words or list_vms(client):
        try:
            rows += _rows(client, vm, options.pool)
        except VMNotFoundError:
            if options.words:
                raise
            # Somebody has just removed it.
    if not options.full and sys.stdout.isatty():
        rows = _name_once(rows)
    print_table([["POOL:VOLUME", "VMNAME", "VOLUME_NAME", "REVERT_POSSIBLE"], *rows])
    return 0


def _rows(client: Caller, vm: str, pool: str) -> list[list[str]]:
    rows = []
    for name in fetch(client, "admin.vm.volume.List", vm).splitlines():
        volume = Volume(client, vm, name)
        info = volume.info()
        if not pool or info.get("pool") == pool:
            is_revertible = "Yes" if volume.revisions() else "No"
            rows.append([f"{info.get('pool', '')}:{info.get('vid', '')}", vm, name, is_revertible])
    return rows


def _name_once(rows: list[list[str]]) -> list[list[str]]:
    names = ["", *(row[1] for row in rows)]
    return [[row[0], "" if row[1] == before else row[1], *row[2:]] for before, row in zip(names, rows, strict=False)]


def _change(action: str, volume: Volume, arguments: list[str], options: Values) -> None:
    if action == "info":
        _show(volume, arguments[0] if arguments else "")
    elif action == "config":
        refuse_odd_value(f"'{arguments[0]}' of {volume.vm}:{volume.name}", arguments[1])
        volume.text(f"Set.{arguments[0]}", arguments[1])
    elif action == "resize":
        _resize(volume, parse_size(arguments[0]), is_forced=options.force)
    elif action == "revert":
        _revert(volume, arguments[0] if arguments else "")
    else:
        volume.text("Clear")


def _show(volume: Volume, key: str) -> None:
    if key == "revisions":
        for revision in volume.revisions():
            say(escape(revision))
        return
    info = volume.info()
    if key and key not in info:
        raise PropertyNotFoundError(
            f"volumes have no property '{key}'; those of {volume.vm}:{volume.name} are {', '.join(info)} and revisions"
        )
    if key:
        say(escape(info[key]))
        return
    print_table(list(info.items()))
    revisions = volume.revisions()
    say("Available revisions (for revert): " + ("" if revisions else "none"))
    for revision in revisions:
        say(f"  {escape(revision)}")


def _resize(volume: Volume, size: int, *, is_forced: bool) -> None:
    present = volume.size()
    if size < present and not is_forced:
        raise ValueRefusedError(
            f"{volume.vm}:{volume.name} keeps its {present} bytes: {size} are fewer, and what is behind them would be "
            "lost; with --force it is made smaller"
        )
    volume.text("Resize", str(size))


def _revert(volume: Volume, revision: str) -> None:
    if not revision:
        revisions = volume.revisions()
        if not revisions:
            raise NotFoundError(f"{volume.vm}:{volume.name} has no revision that it could go back to")
        revision = revisions[-1]
    refuse_odd_name("revision", revision, _REVISION_MARKS)
    volume.text("Revert", revision)


def _is_agreed(what: str) -> bool:
    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask on; add --force to clear the volume without being asked")
    print(f"This deletes all data in {what}. Go on? [y/N] ", end="", flush=True, file=sys.stderr)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def main() -> None:
    """Run qvm-volume."""
    end(run(COMMAND, _act))
