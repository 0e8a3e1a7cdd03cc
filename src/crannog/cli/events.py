"""crannog events: print what happens, as it happens."""

from __future__ import annotations

import time

from crannog.cli.options import COMMON, Command, Operand, Option
from crannog.cli.tool import run
from crannog.client.connection import Client
from crannog.client.events import ESTABLISHED, EventStream
from crannog.errors import DaemonError, UsageError

# Importing typing and collections.abc would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from crannog.cli.options import Values
    from crannog.client.events import Event

COMMAND = Command(
    "crannog events",
    "Print what happens, as it happens: a line an event, with its VM ('-': the whole system), name and details. "
    "The first line says that nothing is missed from now on.",
    Operand("vm", "VM", "only what happens to this VM", "?"),
    Option("--json", help="a JSON object a line"),
    Option("--stats", help="instead: what the VMs use, every stats_interval seconds (see qubes-prefs)"),
    Option("--count", metavar="N", help="end after N events; the first line does not count"),
    Option("--timeout", metavar="SECONDS", help="end after that time"),
    *COMMON,
    examples=(
        "  crannog events\n  crannog events --json work\n  crannog events --stats --count 10\n"
        "  crannog events --timeout 60 work"
    ),
)


def _events(options: Values) -> None:
    count = _number("--count", options.count)
    timeout = _number("--timeout", options.timeout)
    deadline = None if timeout is None else time.monotonic() + timeout
    method = "admin.vm.Stats" if options.stats else "admin.Events"
    stream = EventStream(Client(), options.vm or "dom0", method)
    try:
        _follow(stream, count, deadline, as_json if options.json else as_text)
    except TimeoutError:
        return
    finally:
        stream.close()


def _number(option: str, text: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise UsageError(f"{option} takes a number, not '{text[:80]}'")
    return int(text)


def _follow(stream: EventStream, count: int | None, deadline: float | None, form: Callable[[Event], str]) -> None:
    """Print events until `count` of them are told; raises DaemonError when the daemon ends before."""
    told = 0
    while count is None or told < count:
        event = stream.next_event(deadline)
        if event is None:
            raise DaemonError("crannogd has ended, and with it the stream of events; start it and this anew")
        print(form(event), flush=True)
        told += event.name != ESTABLISHED


def as_text(event: Event) -> str:
    """Return `SUBJECT EVENT KEY=VALUE ...`. What comes from a guest can neither move the cursor nor fake a detail."""
    details = [f"{_shown(key)}={_quoted(value)}" for key, value in event.details.items()]
    return " ".join([_shown(event.subject) or "-", _shown(event.name), *details])


def _quoted(text: str) -> str:
    shown = _shown(text)
    if " " in text or '"' in text or not text:
        shown = '"' + shown.replace('"', '\\"') + '"'
    return shown


def _shown(text: str) -> str:
    """Return the text with everything but printable ASCII written as an escape."""
    return text.encode("unicode_escape").decode()


def as_json(event: Event) -> str:
    """Return the event as a JSON object, all ASCII."""
    import json

    return json.dumps({"subject": event.subject, "event": event.name, "details": event.details})


def main(arguments: list[str]) -> int:
    """Run crannog events."""
    return run(COMMAND, _events, arguments)
