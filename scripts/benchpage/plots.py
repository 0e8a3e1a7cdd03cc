"""One plot for each benchmark, as SVG: each value beside its reference, with their spreads and the target."""

import os
from typing import TYPE_CHECKING

from benchmarks.harness import Figure, Row
from benchpage.results import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEIGHT_OF_A_ROW, MARGIN, WIDTH = 0.46, 1.1, 10.0
"""Inches."""
_OURS, _REFERENCE, _TARGET = "#2a6f97", "#9aa5b1", "#c1121f"


def draw(result: Result, folder: str) -> str:
    """Draw a result into a folder, and return the file's name. Raises OSError."""
    # It takes half a second to load, and only who draws needs it.
    import matplotlib

    matplotlib.use("svg")
    # The same figures make the same file.
    matplotlib.rcParams |= {"svg.hashsalt": result.name, "svg.fonttype": "none", "font.size": 8.5}
    from matplotlib import pyplot, ticker

    rows = result.rows
    height = MARGIN + HEIGHT_OF_A_ROW * len(rows)
    figure, axes = pyplot.subplots(figsize=(WIDTH, height), layout="constrained")
    for place, row in enumerate(rows):
        _draw_row(axes, place, row)
    axes.set_yticks(range(len(rows)), [f"{row.name}\n(to {row.reference_name})" for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.set_xlabel("times the reference (grey; the target red): further left is better")
    axes.grid(axis="x", color="#e5e8eb")
    axes.set_axisbelow(True)
    name = f"{result.name}.svg"
    figure.savefig(os.path.join(folder, name), metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    return name


def _draw_row(axes: "Axes", place: int, row: Row) -> None:
    unit = row.reference.median
    _draw_figure(axes, place - 0.13, row.reference, unit, _REFERENCE)
    _draw_figure(axes, place + 0.13, row.value, unit, _OURS)
    axes.plot([row.target] * 2, [place - 0.3, place + 0.3], color=_TARGET, linewidth=1.5)


def _draw_figure(axes: "Axes", place: float, figure: Figure, unit: float, colour: str) -> None:
    median = figure.median / unit
    spread = [[median - figure.least / unit], [figure.most / unit - median]]
    axes.errorbar(median, place, xerr=spread, fmt="o", markersize=4.5, color=colour, capsize=2.5, linewidth=1.2)
