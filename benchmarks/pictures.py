"""Throughput and latency against queue depth, as a picture."""

import itertools
from collections.abc import Callable
from pathlib import Path

from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.model import CASES, Run, kind_of, size_text
from benchmarks.summary import Spread, Summary, summarise

rcParams["svg.fonttype"] = "none"  # text stays text
rcParams["svg.hashsalt"] = "aioblk"  # the same figures make the same file
IN_C = ("#000000", "#666666", "#999999", "#bbbbbb")
OURS = ("#d62728", "#ff7f0e", "#e377c2", "#8c1d18", "#b8860b", "#9c4f8d", "#f4a582")
OTHERS = (
    "#1f77b4",
    "#2ca02c",
    "#9467bd",
    "#8c564b",
    "#17becf",
    "#bcbd22",
    "#aec7e8",
    "#98df8a",
    "#c5b0d5",
    "#393b79",
    "#637939",
    "#7b4173",
    "#3182bd",
)
PANELS: tuple[tuple[str, Callable[[Summary], Spread | None]], ...] = (
    ("thousand operations/s", lambda summary: scaled(summary.rate, 1e-3)),
    ("p50 (blkio-bench: mean), us", lambda summary: summary.p50 or summary.mean),
    ("p99, us", lambda summary: summary.p99),
    ("p99.9, us", lambda summary: summary.p999),
)


def draw(run: Run, path: Path, *, case: str | None = None, operation: str | None = None) -> None:
    """One row of plots for each case, operation and block size with several depths, or for those named.

    The path's suffix decides the format.
    """
    summaries = summarise(run)
    colours = choose_colours(run)
    depths: dict[tuple[str, str, int], set[int]] = {}
    for cell, _ in summaries:
        depths.setdefault((cell.case, cell.operation, cell.block_size), set()).add(cell.depth)
    groups = [
        group
        for group, known in depths.items()
        if len(known) > 1 and case in (None, group[0]) and operation in (None, group[1])
    ]
    figure = Figure(figsize=(4 * len(PANELS), 3.6 * len(groups) + 1.2), layout="constrained")
    for row, group in enumerate(groups):
        title = f"{size_text(group[2])} {group[1]}s, {CASES[group[0]].title}"
        for column, (unit, value) in enumerate(PANELS):
            axes = figure.add_subplot(len(groups), len(PANELS), row * len(PANELS) + column + 1)
            for contender, style in colours.items():
                points = {
                    cell.depth: value(summary)
                    for (cell, name), summary in summaries.items()
                    if name == contender and (cell.case, cell.operation, cell.block_size) == group
                }
                draw_line(axes, points, *style)
            finish(axes, "" if column else title, unit)
    handles = [
        Line2D([], [], color=colour, linewidth=width, label=run.labels[name])
        for name, (colour, width) in colours.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.savefig(path, dpi=100, metadata={"Date": None} if path.suffix == ".svg" else None)


def scaled(spread: Spread, factor: float) -> Spread:
    return Spread(spread.median * factor, spread.low * factor, spread.high * factor)


def choose_colours(run: Run) -> dict[str, tuple[str, float]]:
    """A colour and a line width for each contender: C in greys, aioblk bold and red."""
    supply = {"C": itertools.cycle(IN_C), "aioblk": itertools.cycle(OURS), "peer": itertools.cycle(OTHERS)}
    measured = {record.contender for record in run.records if record.sample}
    chosen: dict[str, tuple[str, float]] = {}
    for name, label in run.labels.items():
        if name in measured:
            kind = kind_of(name, label)
            chosen[name] = next(supply[kind]), 2.2 if kind == "aioblk" else 1.1
    return chosen


def draw_line(axes: Axes, points: dict[int, Spread | None], colour: str, width: float) -> None:
    known = sorted((depth, spread) for depth, spread in points.items() if spread)
    if known:
        depths = [depth for depth, _ in known]
        medians = [spread.median for _, spread in known]
        axes.plot(depths, medians, "o-", markersize=2 + width, linewidth=width, color=colour)
        lows, highs = [spread.low for _, spread in known], [spread.high for _, spread in known]
        axes.fill_between(depths, lows, highs, color=colour, alpha=0.12, linewidth=0)


def finish(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title, fontsize=10, loc="left", fontweight="bold")
    axes.set_xlabel("operations in flight", fontsize=8)
    axes.set_ylabel(unit, fontsize=8)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=8)
