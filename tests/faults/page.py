"""docs/reliability.md, made of the results."""

import statistics
import textwrap
from collections.abc import Sequence

from tests.faults.results import URIS, Found, Result, Rounds
from tests.faults.series import SERIES, Series

INTRODUCTION = """# Reliability

Made by `scripts/faults` (`make test-faults`), which also says how to run a part; do not edit. `make test` runs a few
points of each series.

Everything here is real: QEMU, libvirt, crannogd and the tools, with Debian guests that are emulated, on a machine with
two processors. Each series runs on libvirt's embedded driver as root, on a libvirtd of an ordinary user
(`qemu:///session`), and on a libvirtd of the system (`qemu:///system`); both libvirtds are started for this alone.

*Halted and clean* means that within 15 s nothing of the VM is left: no QEMU, no RPC process, no file in `run/` or in
the pool that was not there before, no domain, and no memory reserved. The last is seen in a refusal: a VM that is
larger than any host is started, and the answer names who holds memory. Seconds are those from the fault until the state
is one that lasts, where QEMU is killed until nothing is left, and where a start is refused until the answer.
"""


def render(found: Found) -> str:
    """Return the page."""
    parts = [INTRODUCTION]
    for name, series in SERIES.items():
        rows = [(uri, found[name][uri]) for uri in URIS if found.get(name, {}).get(uri)]
        parts.append(_render_series(name, series, rows))
    return "\n".join(parts)


def _render_series(name: str, series: Series, rows: list[tuple[str, tuple[Result | Rounds, ...]]]) -> str:
    heading = _HEADINGS.get(name, _POINTS)
    lines = [f"## {series.title}", "", _wrap(series.text), "", _row(heading), _row(["---"] * len(heading))]
    lines += [_row([f"`{uri}`", *_cells(name, results)]) for uri, results in rows]
    wrong = [
        f"- `{uri}`, {_name(result)}: {'; '.join(result.wrong)}" for uri, results in rows for result in _bad(results)
    ]
    return "\n".join([*lines, *(["", "Failures:", "", *wrong] if wrong else []), ""])


_POINTS = ["URI", "points", "running and adopted", "halted and clean", "failures", "seconds: median", "most"]
_DISPOSABLES = ["URI", "disposables", "of these ran a command", "errors and leftovers", "seconds in all"]
_HEADINGS = {
    "disposables": _DISPOSABLES,
    "restored": _DISPOSABLES,
    "rounds": ["URI", "rounds", "reads", "errors and leftovers", "seconds in all"],
    "refusals": ["URI", "starts", "refused as they must be", "failures", "seconds: median", "most"],
}


def _cells(name: str, results: Sequence[Result | Rounds]) -> list[str]:
    rounds = [result for result in results if isinstance(result, Rounds)]
    if rounds:
        counts = [sum(r.rounds for r in rounds), sum(r.reads for r in rounds), sum(len(r.wrong) for r in rounds)]
        return [*map(str, counts), f"{sum(r.seconds for r in rounds):.0f}"]
    good = [result for result in results if isinstance(result, Result) and result.is_good]
    times = [result.seconds for result in results]
    running = sum(result.state == "Running" for result in good)
    counts = [len(good)] if name == "refusals" else [running, len(good) - running]
    counts = [len(results), *counts, len(results) - len(good)]
    return [*map(str, counts), f"{statistics.median(times):.2f}", f"{max(times):.2f}"]


def _bad(results: Sequence[Result | Rounds]) -> list[Result | Rounds]:
    return [result for result in results if not result.is_good]


def _name(result: Result | Rounds) -> str:
    return result.point if isinstance(result, Result) else f"{result.rounds} rounds"


def _wrap(text: str) -> str:
    return "\n\n".join(textwrap.fill(part, 120, break_on_hyphens=False) for part in text.split("\n\n"))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
