"""crannog kernel: the kernels in pool linux-kernel, which pv and pvh VMs get from the host."""

from crannog.cli.connect import OFFLINE, open_client
from crannog.cli.options import Command, Operand, Values
from crannog.cli.request import refuse_odd_name
from crannog.cli.tool import run, say
from crannog.errors import UsageError

COMMAND = Command(
    "crannog kernel",
    "List the kernels in pool linux-kernel, or remove one that no VM names and that is not the default. "
    "'crannog template build' adds them.",
    Operand("action", "list|remove", "what to do"),
    Operand("name", "NAME", "the kernel to remove", "?"),
    OFFLINE,
    examples="  crannog kernel list\n  crannog kernel remove 6.1.0-37-1a2b3c4d",
)
_MARKS = "_.+-"


def _act(options: Values) -> None:
    if options.action not in ("list", "remove"):
        raise UsageError(f"'{options.action}' is neither list nor remove")
    if (options.name is None) != (options.action == "list"):
        raise UsageError("list takes no name" if options.name else "name the kernel; 'crannog kernel list' lists them")
    if options.name is not None:
        refuse_odd_name("kernel", options.name, _MARKS)
    client = open_client(COMMAND.program, options)
    if options.action == "remove":
        client.text("crannog.kernel.Remove", "dom0", options.name)
        return
    for name in client.text("admin.pool.volume.List", "dom0", "linux-kernel").splitlines():
        say(name)


def main(arguments: list[str]) -> int:
    """Run crannog kernel."""
    return run(COMMAND, _act, arguments)
