"""qvm-ls: list VMs."""

from crannog.cli.connect import OFFLINE, open_client
from crannog.cli.options import Command, Operand, Option, Values
from crannog.cli.tool import end, run, say

COLUMNS = "name,state,klass,label,template,virt_mode"
TITLES = {"klass": "CLASS", "virt_mode": "MODE"}

COMMAND = Command(
    "qvm-ls",
    "List VMs with their state and main settings.",
    Operand("vms", "VM", "list these VMs only", "*"),
    Option(
        "--fields",
        "-O",
        metavar="FIELD,...",
        default=COLUMNS,
        help=f"columns: any property, state, xid (default: {COLUMNS})",
    ),
    Option("--raw-data", help="no heading; columns separated by '|'"),
    Option("--raw-list", help="names only, a line each"),
    Option("--running", help="list running VMs only"),
    OFFLINE,
    examples="  qvm-ls\n  qvm-ls --running\n  qvm-ls --raw-data --fields name,memory work",
)


def _list(options: Values) -> None:
    fields = "name" if options.raw_list else options.fields.lower().replace("class", "klass").replace("kklass", "klass")
    columns = [field.strip() for field in fields.split(",")]
    client = open_client(COMMAND.program, options)
    rows = []
    for vm in options.vms or ["dom0"]:
        text = client.text("crannog.vm.Table", vm, "+".join(["state", "name", *columns]))
        rows += [line.split("\t") for line in text.splitlines()]
    if "dom0" in options.vms:
        rows = [row for row in rows if row[1] in options.vms]
    if options.running:
        rows = [row for row in rows if row[0] == "Running"]
    _print([row[2:] for row in rows], columns, is_raw=options.raw_data or options.raw_list)


def _print(rows: list[list[str]], columns: list[str], *, is_raw: bool) -> None:
    if is_raw:
        for row in rows:
            say("|".join(row))
        return
    table = [
        [TITLES.get(column, column.upper()) for column in columns],
        *([cell or "-" for cell in row] for row in rows),
    ]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def main() -> None:
    """Run qvm-ls."""
    end(run(COMMAND, _list))
