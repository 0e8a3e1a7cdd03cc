"""qvm-ls: list VMs.

One call brings all that the usual formats show. What only some lists need is in modules of its own, which are loaded
when it is asked for: columns that are worked out (ls_columns), filters (ls_filters).
"""

from __future__ import annotations

from crannog.cli.connect import OFFLINE, open_client
from crannog.cli.options import COMMON, Command, Operand, Option
from crannog.cli.tool import end, run, say
from crannog.errors import UsageError

# Importing typing would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from crannog.cli.ls_filters import Filter
    from crannog.cli.options import Values
    from crannog.cli.request import Caller

FORMATS = {
    "simple": "name,state,class,label,template,netvm",
    "network": "name,state,netvm,ip,ipback,gateway",
    "kernel": "name,state,class,template,kernel,kernelopts",
    "full": "name,state,class,label,qid,xid,uuid",
    "disk": "name,state,disk,priv-curr,priv-max,priv-used,root-curr,root-max,root-used",
}
SHORT_FORMATS = ("network", "kernel", "disk")
ALIASES = {"class": "klass", "mode": "virt_mode", "ipback": "gateway", "gateway": "visible_gateway"}
"""Columns that have another name than the property they show."""

WORKED_OUT = frozenset(("flags", *FORMATS["disk"].split(",")[2:]))
FILTERS = (
    Option("--running", help="list VMs that run"),
    Option("--paused", help="list VMs that are paused; with --running or --halted, these too"),
    Option("--halted", help="list VMs that are halted"),
    Option("--class", metavar="CLASS", takes_words=True, help="list VMs of these classes"),
    Option("--label", metavar="LABEL", takes_words=True, help="list VMs with one of these labels"),
    Option("--tags", metavar="TAG", takes_words=True, help="list VMs that have one of these tags"),
    Option("--exclude-tags", metavar="TAG", takes_words=True, help="leave out VMs that have one of these tags"),
    Option("--template-source", "--template", metavar="VM", takes_words=True, help="list VMs with these templates"),
    Option("--netvm-is", "--netvm", metavar="VM", takes_words=True, help="list VMs whose netvm is one of these"),
    Option("--internal", metavar="y|n|both", default="both", help="list internal VMs only, or the others, or both"),
    Option("--servicevm", metavar="y|n|both", default="both", help="the same for VMs that serve others"),
    Option("--pending-update", help="list VMs that updates are known for"),
    Option(
        "--features",
        "--feature",
        metavar="NAME=VALUE",
        takes_words=True,
        help="list VMs with all these features; NAME= means that it is not set, NAME=\"''\" that it is empty",
    ),
    Option(
        "--prefs",
        metavar="NAME=VALUE",
        takes_words=True,
        help="list VMs with all these properties; NAME= means that it has no value",
    ),
)
COMMAND = Command(
    "qvm-ls",
    "List VMs with their state and main settings.",
    Operand("vms", "VM", "list these VMs only", "*"),
    Option("--format", "-o", metavar="FORMAT", help=f"columns: one of {', '.join(FORMATS)} (default: simple)"),
    Option("--fields", "-O", metavar="FIELD,...", help="columns: any property, state, tags, features.NAME, ..."),
    Option("--network", "-n", help="the same as --format network"),
    Option("--kernel", "-k", help="the same as --format kernel"),
    Option("--disk", "-d", help="the same as --format disk"),
    Option("--help-columns", help="list the columns that are not just properties"),
    Option("--help-formats", help="list the formats and their columns"),
    Option("--tree", "-t", help="list each VM below its netvm, indented"),
    Option("--raw-data", help="no heading; columns separated by '|'"),
    Option("--raw-list", help="names only, a line each"),
    Option("--json", help="a JSON list of objects"),
    Option("--sort", metavar="COLUMN", help="sort by this column; numbers are sorted as such"),
    Option("--reverse", "--reverse-sort", help="the other way round"),
    Option("--ignore-case", help="sort without regard to upper and lower case"),
    *FILTERS,
    Option("--exclude", metavar="VM", is_repeated=True, help="leave this VM out; may be repeated"),
    Option("--all", "-a", help="accepted for those who are used to it: all VMs are listed anyway"),
    Option("--spinner", help="accepted for those who are used to it: there is no time for one"),
    Option("--no-spinner", help="accepted for those who are used to it"),
    *COMMON,
    OFFLINE,
    examples=(
        "  qvm-ls\n  qvm-ls --running\n  qvm-ls --raw-data --fields name,memory work\n  qvm-ls --network --tree\n"
        "  qvm-ls --class AppVM DispVM --tags mail bank\n  qvm-ls --json --prefs autostart=True"
    ),
)


def _list(options: Values) -> None:
    if options.help_columns or options.help_formats:
        say(_describe_formats() if options.help_formats else _describe_columns())
        return
    fields = _find_fields(options)
    filters = _find_filters(options)
    client = open_client(COMMAND.program, options)
    sort = [_clean(options.sort)] if options.sort else []
    rows = _fetch(client, options, [*fields, *sort], [column for column, _ in filters])
    rows = [row for row in rows if all(is_meant(row[column]) for column, is_meant in filters)]
    if WORKED_OUT.intersection([*fields, *sort]):
        from crannog.cli.ls_columns import work_out

        work_out(client, rows, [*fields, *sort])
    if options.sort or options.reverse or options.tree:
        from crannog.cli.ls_columns import arrange

        rows = arrange(rows, source_of((sort or ["name"])[0]), options)
    _print(rows, fields, options)


def _describe_formats() -> str:
    return "\n".join(f"{name:8}  {fields}" for name, fields in FORMATS.items())


def _describe_columns() -> str:
    from crannog.cli.ls_columns import describe_columns

    return describe_columns()


def _find_fields(options: Values) -> list[str]:
    """Return the columns to show, as they are called here; raises UsageError for a line that asks for two formats."""
    short = [name for name in SHORT_FORMATS if getattr(options, name)]
    if len(short) + bool(options.format) + bool(options.fields) > 1:
        raise UsageError("--format, --fields, --network, --kernel and --disk exclude each other")
    if options.raw_list:
        return ["name"]
    name = (short or [options.format.lower() or "simple"])[0]
    if name not in FORMATS:
        raise UsageError(f"there is no format '{name[:80]}'; the formats are {', '.join(FORMATS)}")
    fields = [_clean(field) for field in (options.fields or FORMATS[name]).split(",")]
    if not all(fields):
        raise UsageError("--fields takes names of columns, separated by commas")
    return fields


def _clean(field: str) -> str:
    """Return a column's name in lower case, but for the name of a feature, where the case counts."""
    field = field.strip()
    kind, dot, name = field.partition(".")
    return f"features.{name}" if dot and kind.lower() == "features" else field.lower()


def source_of(field: str) -> str:
    """Return the name that the server has for a column."""
    if field in WORKED_OUT or field.startswith("features."):
        return field
    return ALIASES.get(field, field.replace("-", "_"))


def _find_filters(options: Values) -> list[Filter]:
    if not any(getattr(options, option.key) != option.initial() for option in FILTERS):
        return []
    from crannog.cli.ls_filters import find_filters

    return find_filters(options)


def _fetch(client: Caller, options: Values, fields: list[str], more: list[str]) -> list[dict[str, str]]:
    """Return what is known of the VMs, one value for each column that the server has."""
    sources = {source_of(field) for field in fields}
    if sources & WORKED_OUT:
        from crannog.cli.ls_columns import NEEDED

        sources.update(NEEDED)
    columns = list(dict.fromkeys(["name", *(["netvm"] if options.tree else []), *sources - WORKED_OUT, *more]))
    rows = []
    for vm in dict.fromkeys(options.vms) or ["dom0"]:
        text = client.text("crannog.vm.Table", vm, "+".join(columns))
        table = [dict(zip(columns, line.split("\t"), strict=True)) for line in text.splitlines()]
        # dom0 stands for all VMs in the request, and for itself on the command line.
        rows += [row for row in table if not options.vms or vm != "dom0" or row["name"] == vm]
    if options.exclude:
        from crannog.cli.selection import refuse_unknown

        refuse_unknown(options.exclude, {row["name"] for row in rows} | set(options.vms))
    return [row for row in rows if row["name"] not in options.exclude]


def _print(rows: list[dict[str, str]], fields: list[str], options: Values) -> None:
    if options.json:
        from crannog.cli.ls_columns import as_json

        say(as_json(rows, {field: source_of(field) for field in fields}))
        return
    sources = [source_of(field) for field in fields]
    table = [[row[source] for source in sources] for row in rows]
    if options.raw_data or options.raw_list:
        lines = ["|".join(cells) for cells in table]
    else:
        if options.tree and "name" in fields:
            column = fields.index("name")
            for cells, row in zip(table, rows, strict=True):
                cells[column] = row["indent"] + cells[column]
        lines = _align([[field.upper() for field in fields], *table])
    if lines:
        say("\n".join(lines))


def _align(table: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join([(cell or "-").ljust(width) for cell, width in zip(row, widths, strict=True)]).rstrip()
        for row in table
    ]


def main() -> None:
    """Run qvm-ls."""
    end(run(COMMAND, _list))
