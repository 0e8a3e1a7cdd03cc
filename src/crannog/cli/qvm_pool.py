"""qvm-pool: show, add, change and remove the pools in which volumes live, and say how full they are."""

from __future__ import annotations

from crannog.cli.actions import MANY, Actions, refuse_odd_options
from crannog.cli.connect import OFFLINE, open_client
from crannog.cli.options import COMMON, Command, Operand, Option
from crannog.cli.request import refuse_odd_name, refuse_odd_value
from crannog.cli.server_text import fetch, misunderstood, parse_fields, print_table
from crannog.cli.sizes import MAX_DIGITS, show_size
from crannog.cli.tool import end, escape, run, say
from crannog.errors import UsageError

# Importing typing would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from crannog.cli.options import Values
    from crannog.cli.request import Caller

COMMAND = Command(
    "qvm-pool",
    "Show the pools in which volumes live, or add, change or remove some.",
    Operand(
        "action",
        "ACTION",
        "list (also ls, l; the default); info (i) POOL; usage (u) [POOL...]; add (a) POOL DRIVER; set (s) POOL, with "
        "-o; remove (rm, r) POOL...; drivers (d)",
        "?",
    ),
    Operand("words", "ARGUMENT", "what the action takes", "*"),
    Option("--option", "-o", metavar="KEY=VALUE,...", is_repeated=True, help="add and set: options; may be repeated"),
    Option("--raw-data", help="usage: no heading; bytes, and columns separated by '|'"),
    Option("--list", "-l", help="the same as list"),
    Option("--info", "-i", help="the same as info"),
    Option("--usage", "-u", help="the same as usage"),
    Option("--add", "-a", help="the same as add"),
    Option("--set", "-s", help="the same as set"),
    Option("--remove", "-r", help="the same as remove"),
    Option("--drivers", "--help-drivers", "-d", help="the same as drivers"),
    OFFLINE,
    *COMMON,
    examples=(
        "  qvm-pool list\n  qvm-pool info vm-pool\n  qvm-pool usage\n  qvm-pool usage --raw-data vm-pool\n"
        "  qvm-pool drivers\n"
        "  qvm-pool add disk qcow2 -o dir_path=/srv/vms,revisions_to_keep=2\n"
        "  qvm-pool add fast reflink -o dir_path=/srv/btrfs/vms\n"
        "  qvm-pool set disk -o revisions_to_keep=3\n  qvm-pool remove disk"
    ),
)
ACTIONS = Actions(
    {
        "list": (0, 0, "no argument"),
        "info": (1, 1, "the name of a pool"),
        "usage": (0, MANY, "the names of pools"),
        "add": (2, 2, "the name of the pool, and its driver"),
        "set": (1, 1, "the name of a pool"),
        "remove": (1, MANY, "the names of pools"),
        "drivers": (0, 0, "no argument"),
    },
    {
        "ls": "list",
        "l": "list",
        "i": "info",
        "u": "usage",
        "a": "add",
        "s": "set",
        "rm": "remove",
        "r": "remove",
        "d": "drivers",
    },
)
USAGE = ("name", "driver", "size", "used", "free", "volumes", "virtual", "real")
SIZES = ("size", "used", "free", "virtual", "real")
ABSENT = "-"
SETTINGS = ("revisions_to_keep", "ephemeral_volatile")


def _act(options: Values) -> None:
    action, words = _find_action(options)
    pairs = parse_options(options.option)
    refuse_odd_options(action, options, {"option": ("add", "set"), "raw_data": ("usage",)})
    for word in words:
        refuse_odd_name("pool or driver", word)
    if action == "set":
        _refuse_odd_settings(words[0], pairs)
    client = open_client(COMMAND.program, options)
    if action == "list":
        _list(client)
    elif action == "drivers":
        _list_drivers(client)
    elif action == "info":
        _show(client, words[0])
    elif action == "usage":
        _print_usage(client, words, is_raw=options.raw_data)
    else:
        _change(client, action, words, pairs)


def _find_action(options: Values) -> tuple[str, list[str]]:
    """Return the action and its arguments; raises UsageError when there are two actions, or wrong arguments."""
    flags = [action for action in ACTIONS.names if getattr(options, action)]
    words = [] if options.action is None else [options.action, *options.words]
    if len(flags) > 1:
        raise UsageError(" and ".join(f"--{flag}" for flag in flags) + " exclude each other")
    word = flags[0] if flags else words.pop(0) if words else "list"
    return ACTIONS.find(word, words), words


def parse_options(texts: list[str]) -> dict[str, str]:
    """Return what KEY=VALUE,... say. A comma before what is no KEY=VALUE belongs to the value before it."""
    pairs: dict[str, str] = {}
    key = ""
    for text in texts:
        for number, piece in enumerate(text.split(",")):
            name, separator, value = piece.partition("=")
            if separator:
                key = name
                refuse_odd_name("pool's option", key)
                if key in pairs:
                    raise UsageError(f"option '{key}' is given twice")
                pairs[key] = value
            elif number:
                pairs[key] += f",{piece}"
            else:
                raise UsageError(f"--option takes KEY=VALUE, not '{piece}'")
    for name, value in pairs.items():
        refuse_odd_value(f"option '{name}'", value)
    return pairs


def _refuse_odd_settings(pool: str, pairs: dict[str, str]) -> None:
    if not pairs:
        raise UsageError(f"say with --option what to change in {pool}: {' or '.join(SETTINGS)}")
    for key in pairs:
        if key not in SETTINGS:
            raise UsageError(f"'{key}' of a pool cannot be changed, only {' and '.join(SETTINGS)}; add another pool")


def _missing(pool: str) -> str:
    return f"there is no pool '{pool}'; 'qvm-pool list' lists the pools"


def _info(client: Caller, pool: str) -> dict[str, str]:
    method = "admin.pool.Info"
    return parse_fields(method, fetch(client, method, argument=pool, missing=_missing(pool)))


def _list(client: Caller) -> None:
    pools = fetch(client, "admin.pool.List").splitlines()
    print_table([["NAME", "DRIVER"], *([pool, _info(client, pool).get("driver", "-")] for pool in pools)])


def _list_drivers(client: Caller) -> None:
    lines = fetch(client, "admin.pool.ListDrivers").splitlines()
    rows = [line.partition(" ") for line in lines]
    print_table([["DRIVER", "OPTIONS"], *([driver, options.replace(" ", ", ") or "-"] for driver, _, options in rows)])


def _show(client: Caller, pool: str) -> None:
    method = "admin.pool.UsageDetails"
    info = _info(client, pool)
    details = parse_fields(method, fetch(client, method, argument=pool, missing=_missing(pool)))
    print_table(list({"name": pool, **info, **details}.items()))


def _print_usage(client: Caller, pools: list[str], *, is_raw: bool) -> None:
    """Print how full pools are; all of them, if none is named."""
    rows = [_usage(client, pool) for pool in pools or fetch(client, "admin.pool.List").splitlines()]
    if is_raw:
        for row in rows:
            say("|".join(escape(cell) for cell in row))
    else:
        shown = [[_show_cell(*pair) for pair in zip(USAGE, row, strict=True)] for row in rows]
        print_table([[column.upper() for column in USAGE], *shown])


def _usage(client: Caller, pool: str) -> list[str]:
    """Return the cells of one pool, sizes in bytes; what is not known there is missing."""
    method = "crannog.pool.Usage"
    fields = parse_fields(method, fetch(client, method, argument=pool))
    known = {"name": pool, "driver": fields.get("driver", ABSENT)}
    known |= {key: text for key, text in fields.items() if key in USAGE and key not in known}
    for key in USAGE[2:]:
        text = known.get(key, "0")
        if not (text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS):
            raise misunderstood(method, f"'{text[:80]}' is no number")
    if "size" in known and "used" in known:
        known["free"] = str(max(0, int(known["size"]) - int(known["used"])))
    return [known.get(key, ABSENT) for key in USAGE]


def _show_cell(column: str, text: str) -> str:
    return show_size(int(text)) if column in SIZES and text != ABSENT else text


def _change(client: Caller, action: str, words: list[str], pairs: dict[str, str]) -> None:
    if action == "add":
        lines = [f"name={words[0]}", *(f"{key}={value}" for key, value in pairs.items())]
        fetch(client, "admin.pool.Add", argument=words[1], payload="".join(f"{line}\n" for line in lines))
    elif action == "set":
        for key, value in pairs.items():
            fetch(client, f"admin.pool.Set.{key}", argument=words[0], payload=value, missing=_missing(words[0]))
    else:
        for pool in words:
            fetch(client, "admin.pool.Remove", argument=pool, missing=_missing(pool))


def main() -> None:
    """Run qvm-pool."""
    end(run(COMMAND, _act))
