"""What is under way, and what came of it, for people."""

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self, final

from ..._queues.statistics import OperationStatistics
from ..output import say
from ..tables import console, table
from ..text import of_duration, of_rate, of_size
from .fleet import Result
from .plan import Plan

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

__all__ = ["Display", "jobs_of", "show_result", "show_tried"]

LINES_EVERY = 2.0  # seconds, where stderr is no terminal
WIDE_ENOUGH = 100  # columns, for a line with everything
TABLE_PERCENTILES = (50, 90, 99, 99.9, 99.99)
NAMES = {"discard": "trim"}


@final
class Display:
    """Shows on stderr how it goes: in place on a terminal, elsewhere in lines."""

    def __init__(self, *, wanted: bool = True) -> None:
        self._live: Live | None = None
        self._wanted = wanted
        self._next_line = 0.0

    def __enter__(self) -> Self:
        if self._wanted and sys.stderr.isatty():
            from rich.live import Live

            self._live = Live(console=console(stderr=True), auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, result: Result) -> None:
        if self._live is not None:
            self._live.update(progress(result), refresh=True)
        elif self._wanted and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINES_EVERY
            say(line(result))


def jobs_of(plan: Plan) -> str:
    return "1 job" if plan.jobs == 1 else f"{plan.jobs} jobs"


def now(result: Result) -> tuple[str, str, str, str]:
    """Requests and bytes a second, p50 and p99, of the last interval."""
    point = result.points[-1]
    done, seconds = point.total, point.seconds or 1
    latency = done.latency
    return (
        of_rate(done.completed / seconds),
        f"{of_size(round(done.bytes / seconds))}/s",
        of_duration(latency.percentile(50)),
        of_duration(latency.percentile(99)),
    )


def line(result: Result) -> str:
    iops, rate, p50, p99 = now(result)
    left = max(result.plan.seconds - result.seconds, 0)
    return f"depth {result.plan.depth}: {iops} IOPS, {rate}, p50 {p50}, p99 {p99}, {left:.0f} s left"


def progress(result: Result) -> "RenderableType":
    """A bar, and what it was just now."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    plan = result.plan
    iops, rate, p50, p99 = now(result)
    left = max(plan.seconds - result.seconds, 0)
    figures = Table.grid(padding=(0, 3))
    for _ in range(5):
        figures.add_column(justify="right", min_width=9)
    figures.add_row("[dim]IOPS[/]", "[dim]bandwidth[/]", "[dim]p50[/]", "[dim]p99[/]", "[dim]time left[/]")
    figures.add_row(f"[bold]{iops}[/]", rate, p50, f"[bold]{p99}[/]", f"{left:.0f} s")
    shown = Table.grid()
    shown.add_row(f"depth {plan.depth}, {jobs_of(plan)} on {result.loop}")
    shown.add_row(ProgressBar(total=plan.seconds, completed=min(result.seconds, plan.seconds), width=60))
    shown.add_row(figures)
    return shown


def show_result(result: Result) -> None:
    out = console()
    headings = ("IOPS", "bandwidth", "mean", *(f"p{each:g}" for each in TABLE_PERCENTILES), "max")
    columns = {NAMES.get(name, name): _figures(done, result) for name, done in result.operations.items()}
    if out.width >= WIDE_ENOUGH:
        shown = table("", *headings)
        for name, figures in columns.items():
            shown.add_row(name, *figures)
    else:
        shown = table("", *columns)
        for heading, *figures in zip(headings, *columns.values(), strict=True):
            shown.add_row(heading, *figures)
    for column in shown.columns[1:]:
        column.justify = "right"
    plan = result.plan
    out.print(
        f"{of_size(plan.block_size)} blocks, depth {plan.depth}, {jobs_of(plan)} on {result.loop},"
        f" {result.seconds:.3g} s"
    )
    out.print(shown)
    if result.complete:
        count = sum(each.completed for each in result.operations.values()) or 1
        used = result.user + result.system
        share = result.user / (used or 1)
        out.print(
            f"processor: {used / result.seconds * 100:.0f} % of one,"
            f" {of_duration(used / count)} a request ({share * 100:.0f} % of it outside the kernel)"
        )
    if plan.verify and result.complete:
        verified = result.verified
        wrong = f"[red]{verified.wrong} are wrong[/]" if verified.wrong else "and are right"
        out.print(f"verified: {verified.blocks} blocks were read again, {wrong}")


def _figures(done: OperationStatistics, result: Result) -> list[str]:
    latency = done.latency
    return [
        of_rate(done.completed / result.seconds),
        f"{of_size(round(done.bytes / result.seconds))}/s" if done.bytes else "",
        *(of_duration(each) for each in (latency.mean, *map(latency.percentile, TABLE_PERCENTILES))),
        of_duration(latency.max),
    ]


def show_tried(tried: Sequence[tuple[Result, bool]], percent: float) -> None:
    shown = table("depth", "IOPS", f"p{percent:g}", "fast enough")
    for column in shown.columns[:3]:
        column.justify = "right"
    for result, fast_enough in tried:
        shown.add_row(
            str(result.plan.depth),
            of_rate(result.iops),
            of_duration(result.latency.percentile(percent)),
            "[green]yes[/]" if fast_enough else "[red]no[/]",
        )
    console().print(shown)
