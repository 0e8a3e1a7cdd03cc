"""What the tools about volumes, pools, firewalls and devices share: reading a server's text, and printing it.

Whatever a server sends is either understood or refused in a sentence, and nothing of it reaches a terminal as a
control character.
"""

from __future__ import annotations

from crannog.cli.tool import escape, say
from crannog.errors import DaemonError, DeniedError, NotFoundError

# Importing typing and collections.abc would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeVar

    T = TypeVar("T")

    from crannog.cli.request import Caller

_NO_SUCH_ARGUMENT = "Argument not in "
"""How the API begins its refusal of a volume or pool that there is not (Admin API, section 6)."""


def fetch(
    client: Caller, method: str, vm: str = "dom0", argument: str = "", payload: str = "", *, missing: str = ""
) -> str:
    """Return a method's reply as text.

    Raises DaemonError when it is no text, NotFoundError with the sentence `missing` when the argument names nothing.
    """
    data = payload.encode("utf-8", "surrogateescape")
    reply = explain_missing(lambda: client.call(method, vm, argument, data), missing)
    try:
        return reply.decode()
    except UnicodeDecodeError:
        raise misunderstood(method, "it is not UTF-8") from None


def explain_missing(act: Callable[[], T], missing: str) -> T:
    """Do something; raises NotFoundError with the sentence `missing` when its argument is said to name nothing."""
    try:
        return act()
    except DeniedError as error:
        if missing and str(error).startswith(_NO_SUCH_ARGUMENT):
            raise NotFoundError(missing) from None
        raise


def misunderstood(what: str, why: str) -> DaemonError:
    """Return the error for an answer that does not make sense; `why` may hold text of the server."""
    return DaemonError(f"the answer to {what} cannot be understood: {escape(why)}; tool and daemon may differ in age")


def parse_fields(method: str, text: str) -> dict[str, str]:
    """Return what `key=value` lines say, in their order; raises DaemonError for a line that is none."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, separator, value = line.partition("=")
        if not key or not separator or key in fields:
            raise misunderstood(method, f"'{line[:80]}' is not another KEY=VALUE")
        fields[key] = value
    return fields


def list_vms(client: Caller) -> list[str]:
    """Return the names of all VMs, dom0 first."""
    lines = fetch(client, "admin.vm.List").splitlines()
    return [line.split(" ", 1)[0] for line in lines if line]


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of equal length in columns."""
    shown = [[escape(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
