"""docs/performance.md, made of the results that are kept and what others have published."""

import os
import re

from benchmarks.harness import MIN_RUNS, Row
from benchpage.plots import draw
from benchpage.published import PUBLISHED
from benchpage.results import Result, load

DOCS = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "docs")
PAGE, PLOTS = "performance.md", "performance"

_HEAD = """# Performance

`make bench` runs all benchmarks and writes this page; `scripts/bench NAME` runs one. Each figure is the median of at
least five runs where nothing else is said, with the least and the most of them, and stands beside a reference that was
measured in the same run, in turn with it, because machines are noisy. A target is a ratio between the two, at most; a
reference that is "a fixed time" is just that. What missed its target is said so, here and by the exit code.
"""


def write(results_folder: str, docs: str = DOCS) -> str:
    """Write page and plots from the results in a folder; return the page's path. Raises OSError, ValueError."""
    results = list(load(results_folder))
    plots = os.path.join(docs, PLOTS)
    os.makedirs(plots, exist_ok=True)
    parts = [_HEAD, _describe_machines(results), _summarize(results)]
    parts += [_describe(result, f"{PLOTS}/{draw(result, plots)}") for result in results]
    path = os.path.join(docs, PAGE)
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        file.write("\n".join([*parts, _describe_published()]))
    os.replace(f"{path}.new", path)
    return path


def _describe_machines(results: list[Result]) -> str:
    """Return the machine; results of several machines do not go into one page. Raises ValueError."""
    machines = {tuple(result.machine.items()) for result in results}
    if len(machines) != 1:
        raise ValueError(f"the results are of {len(machines)} machines or versions: delete them and run 'make bench'")
    return "\n".join(
        ["## The machine", "| | |", "|---|---|", *(f"| {what} | {fact} |" for what, fact in machines.pop())]
    )


def _summarize(results: list[Result]) -> str:
    lines = ["\n## All of it", "| benchmark | rows | targets met | took |", "|---|---|---|---|"]
    for result in results:
        met = sum(row.is_met for row in result.rows)
        link = f"[{result.name}](#{result.name})"
        lines.append(f"| {link} | {len(result.rows)} | {met} | {result.seconds:.0f} s, on {result.when[:10]} |")
    return "\n".join(lines) + "\n"


def _describe(result: Result, plot: str) -> str:
    table = [
        "| | value | reference | ratio | target | |",
        "|---|---|---|---|---|---|",
        *map(_describe_row, result.rows),
    ]
    return "\n".join(
        [f"## {result.name}", _as_paragraph(result.about), "", *table, "", f"![{result.name}]({plot})", ""]
    )


def _describe_row(row: Row) -> str:
    verdict = "met" if row.is_met else "**missed**"
    count = row.value.runs
    runs = "" if count == MIN_RUNS else ", one run" if count == 1 else f", {count} runs"
    cells = (row.name, f"{row.value}{runs}", f"{row.reference_name}: {row.reference}", f"{row.ratio:.2f}")
    return "| " + " | ".join((*cells, f"{row.target:.2f}", verdict)) + " |"


def _as_paragraph(about: str) -> str:
    """Return a module's text without the breaks within its paragraphs."""
    return re.sub(r"(?<!\n)\n(?!\n)", " ", about.strip())


def _describe_published() -> str:
    lines = [
        "## What others have published of themselves",
        "Not measured here: other guests, other hardware. They tell the order of size, no more.",
        "",
        "| what | figure | hardware | where |",
        "|---|---|---|---|",
    ]
    lines += [f"| {one.what} | {one.figure} | {one.hardware} | {one.source} |" for one in PUBLISHED]
    return "\n".join(lines) + "\n"
