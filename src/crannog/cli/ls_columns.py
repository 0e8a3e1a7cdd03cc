"""What only some lists of qvm-ls show: columns that are worked out, other orders, JSON."""

from __future__ import annotations

from crannog.cli.ls_filters import ABSENT, is_set
from crannog.errors import DeniedError, NotFoundError

# Importing typing would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from crannog.cli.options import Values
    from crannog.cli.request import Caller

    Row = dict[str, str]

NEEDED = (
    "state", "klass", "virt_mode", "updateable", "provides_network", "installed_by_rpm", "features.internal", "debug",
    "autostart", "features.qga",
)  # fmt: skip
"""Columns of the server that `flags` and the columns about disks are worked out from."""

COLUMNS = {
    "name, state, class, label, template, netvm, ...": "any property that qvm-prefs shows; '-' where a VM has none",
    "class, mode": "the properties klass and virt_mode",
    "ip": "the VM's address",
    "ipback": "the address at which VMs behind this one find it (property gateway)",
    "gateway": "the gateway that the VM itself uses (property visible_gateway)",
    "xid": "number that the hypervisor gave the running VM; -1 when it does not run",
    "tags": "the VM's tags",
    "features.NAME": "the feature NAME",
    "disk": "MiB that the VM's volumes take on this host",
    "priv-max, root-max": "size of the private or root volume, in MiB",
    "priv-curr, root-curr": "what it takes on this host, in MiB; for a root from a template, what differs from it",
    "priv-used, root-used": "that as a share of its size",
    "flags": (
        "a letter for the class (0 AdminVM, t TemplateVM, s StandaloneVM, a AppVM, d DispVM, r RemoteVM; a\n"
        "capital if hvm) and for the state (r running, p paused, s suspended, t starting, h halting, d dying,\n"
        "c crashed), then U updateable, N provides network, R installed by the package manager, i internal, D debug,\n"
        "A autostart, Q QEMU's guest agent runs its commands, as Crannog's is not there"
    ),
}
_CLASSES = {"AdminVM": "0", "TemplateVM": "t", "StandaloneVM": "s", "AppVM": "a", "DispVM": "d", "RemoteVM": "r"}
_STATES = {
    "Running": "r", "Paused": "p", "Suspended": "s", "Transient": "t", "Halting": "h", "Dying": "d", "Crashed": "c",
    "Halted": "-", "NA": "-",
}  # fmt: skip
_SWITCHES = {"updateable": "U", "provides_network": "N", "installed_by_rpm": "R"}
_LATER_SWITCHES = {"debug": "D", "autostart": "A"}
_INTS = frozenset((
    "memory", "maxmem", "vcpus", "qid", "xid", "dispid", "stubdom_mem", "stubdom_xid", "qrexec_timeout",
    "shutdown_timeout", "backup_timestamp", "disk", "priv-curr", "priv-max", "root-curr", "root-max",
))  # fmt: skip
_BOOLS = frozenset((
    "autostart", "debug", "include_in_backups", "installed_by_rpm", "is_preload", "provides_network",
    "template_for_dispvms", "updateable", "auto_cleanup",
))  # fmt: skip
_NULLABLE = frozenset((
    "template", "netvm", "audiovm", "guivm", "default_dispvm", "management_dispvm", "relayvm", "label", "gateway",
    "gateway6", "ip", "ip6", "visible_ip", "visible_ip6", "visible_gateway", "visible_gateway6", "start_time",
))  # fmt: skip
MIB = 2**20


def describe_columns() -> str:
    """Return the text of --help-columns."""
    lines = []
    for name, text in COLUMNS.items():
        lines += [name, *(f"    {line}" for line in text.split("\n"))]
    return "\n".join(lines)


def work_out(client: Caller, rows: list[Row], fields: list[str]) -> None:
    """Add the columns to the rows that the server does not have itself."""
    for row in rows:
        row["flags"] = _flags(row)
    if any(field.startswith(("disk", "priv-", "root-")) for field in fields):
        for row in rows:
            row.update(_disk(client, row))


def _flags(row: Row) -> str:
    letter = _CLASSES.get(row["klass"], "?")
    letters = letter.upper() if row["virt_mode"] == "hvm" else letter
    letters += _STATES.get(row["state"], "?")
    letters += "".join(mark if row[name] == "True" else "-" for name, mark in _SWITCHES.items())
    letters += "i" if is_set(row["features.internal"]) else "-"
    letters += "".join(mark if row[name] == "True" else "-" for name, mark in _LATER_SWITCHES.items())
    return letters + ("Q" if is_set(row["features.qga"]) else "-")


def _disk(client: Caller, row: Row) -> Row:
    """Return the columns about a VM's disks; a VM that is removed at this moment has none."""
    cells = dict.fromkeys(("disk", *(f"{n}-{w}" for n in ("priv", "root") for w in ("curr", "max", "used"))), ABSENT)
    total = 0
    for volume in ("root", "private", "volatile") if row["klass"] not in ("AdminVM", "RemoteVM") else ():
        try:
            text = client.text("admin.vm.volume.Info", row["name"], volume)
        except (DeniedError, NotFoundError):
            continue
        info = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        size, usage = _number(info, "size"), _number(info, "usage")
        total += usage
        prefix = "priv" if volume == "private" else volume
        if volume != "volatile":
            cells |= {f"{prefix}-curr": _mib(usage), f"{prefix}-max": _mib(size)}
            cells[f"{prefix}-used"] = f"{round(100 * usage / size)}%" if size else ABSENT
        cells["disk"] = _mib(total)
    return cells


def _number(info: Row, key: str) -> int:
    text = info.get(key, "")
    return int(text) if text.isdigit() else 0


def _mib(count: int) -> str:
    return str(round(count / MIB))


def arrange(rows: list[Row], column: str, options: Values) -> list[Row]:
    """Return the rows sorted, and with --tree each below its netvm and with its indentation.

    Without --sort they stay as they come, dom0 first.
    """
    if options.sort:
        is_numeric = all(_as_number(row[column]) is not None for row in rows if row[column] not in ("", ABSENT))
        rows = sorted(rows, key=lambda row: _sort_key(row[column], is_numeric=is_numeric, options=options))
    if options.reverse:
        rows = rows[::-1]
    return _plant(rows) if options.tree else rows


def _sort_key(value: str, *, is_numeric: bool, options: Values) -> tuple[float, str]:
    """Return what sorts numbers as numbers, and what is not there before them."""
    if is_numeric:
        number = _as_number(value)
        return (float("-inf") if number is None else number, "")
    return (0, value.lower() if options.ignore_case else value)


def _as_number(text: str) -> float | None:
    digits = text.removesuffix("%").removeprefix("-")
    return float(text.removesuffix("%")) if digits.isascii() and digits.isdigit() else None


def _plant(rows: list[Row]) -> list[Row]:
    """Return the rows as a tree. A VM whose netvm is not listed stands at the left, as do those in a circle."""
    listed = {row["name"] for row in rows}
    below: dict[str, list[Row]] = {}
    for row in rows:
        netvm = row["netvm"]
        below.setdefault(netvm if netvm in listed and netvm != row["name"] else "", []).append(row)
    planted: list[Row] = []
    stack = [(row, 0) for row in reversed(below.pop("", []))]
    while stack:
        row, depth = stack.pop()
        row["indent"] = "  " * depth
        planted.append(row)
        stack += [(child, depth + 1) for child in reversed(below.pop(row["name"], []))]
    lost = [row for row in rows if "indent" not in row]
    for row in lost:
        row["indent"] = ""
    return planted + lost


def as_json(rows: list[Row], sources: dict[str, str]) -> str:
    """Return a JSON list of objects: numbers and truth values as such, null for what a VM does not have.

    `sources` says for each field in which column of a row it is.
    """
    import json

    objects = [{field: _typed(source, row[source]) for field, source in sources.items()} for row in rows]
    return json.dumps(objects, indent=1)


def _typed(column: str, value: str) -> object:
    if value == ABSENT or (not value and column in _NULLABLE):
        return None
    if column == "tags":
        return value.split()
    if column in _BOOLS:
        return value == "True"
    if column in _INTS:
        return int(value) if _as_number(value) is not None else None
    return value
