"""A result as a picture: latency by percentile, and throughput and latency over time."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownLambdaType=false
# pyright: reportUnknownVariableType=false
# What matplotlib has of types is not strict.

from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ..text import of_rate, of_size
from .display import jobs_of
from .fleet import Result
from .report import options

__all__ = ["plot"]

AXIS = (50.0, 90.0, 99.0, 99.9, 99.99, 99.999, 99.9999)  # percent
BLUE, RED = "#1f77b4", "#c44e52"


def plot(result: Result, path: Path) -> None:
    """Write it, in the format that the name ends in: svg, png, pdf.

    Raises:
        OSError: it cannot be written. ValueError: the format is not known.
    """
    with rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "aioblk",
            "font.size": 9,
            "axes.grid": True,
            "grid.alpha": 0.3,
        }
    ):
        figure = Figure(figsize=(10, 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        by_percentile, over_time = figure.subplots(1, 2)
        _draw_percentiles(result, by_percentile)
        _draw_time(result, over_time)
        asked = options(result.plan)
        figure.suptitle(
            f"{asked['rw']}, {of_size(result.plan.block_size)}, depth {result.plan.depth},"
            f" {jobs_of(result.plan)}: {result.plan.address}"
        )
        metadata: Any = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, metadata=metadata)


def _draw_percentiles(result: Result, axes: Axes) -> None:
    for name, done in result.operations.items():
        if not done.latency.count:
            continue
        places: list[float] = []
        latencies: list[float] = []
        below = 0
        for bucket in done.latency:
            below += bucket.requests
            share = min(below / done.latency.count, 1 - 1 / (2 * done.latency.count))
            places.append(1 / (1 - share))
            latencies.append(min(bucket.end, done.latency.max) * 1e6)
        axes.step(places, latencies, where="pre", label={"discard": "trim"}.get(name, name))
    axes.set_xscale("log")
    axes.set_yscale("log")
    most = max((done.latency.count for done in result.operations.values()), default=1)
    ticks = [each for each in AXIS if each < 100 - 50 / max(most, 1)]
    axes.set_xticks([1 / (1 - each / 100) for each in ticks], [f"{each:g}" for each in ticks])
    axes.set_xlim(1, 2 * max(most, 1))
    axes.xaxis.set_minor_locator(NullLocator())
    _label_durations(axes)
    axes.set_xlabel("percent of the requests took no longer than")
    axes.legend(loc="upper left")


def _draw_time(result: Result, axes: Axes) -> None:
    points = [point for point in result.points if point.total.completed and point.seconds]
    times = [(point.start + point.end) / 2 for point in points]
    axes.plot(times, [point.total.completed / point.seconds for point in points], color=BLUE)
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, max(result.seconds, 1e-3))
    axes.set_xlabel("seconds")
    axes.set_ylabel("IOPS", color=BLUE)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: of_rate(value)))
    latencies = axes.twinx()
    for percent, style in ((50, "--"), (99, "-")):
        values = [point.total.latency.percentile(percent) * 1e6 for point in points]
        latencies.plot(times, values, style, color=RED, linewidth=1, label=f"p{percent}")
    latencies.set_yscale("log")
    latencies.grid(visible=False)
    _label_durations(latencies)
    latencies.set_ylabel("latency", color=RED)
    latencies.legend(loc="lower right")


def _label_durations(axes: Axes) -> None:
    """Of a logarithmic axis of microseconds, however few decades it has."""
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _duration(value)))
    axes.yaxis.set_minor_locator(NullLocator())


def _duration(microseconds: float) -> str:
    for factor, unit in ((1e6, "s"), (1e3, "ms"), (1, "us")):
        if microseconds >= factor:
            return f"{microseconds / factor:g} {unit}"
    return f"{microseconds * 1e3:g} ns"
