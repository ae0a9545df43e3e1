"""A run as tables: built once as plain grids, shown on a terminal or written as Markdown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.bars import judge
from benchmarks.model import CASES, Cell, Run, describe_cell, size_text
from benchmarks.summary import Spread, Summary, foreign_load, summarise


@dataclass(frozen=True)
class Grid:
    title: str
    head: list[str]
    rows: list[list[str]]


def grids(run: Run) -> list[Grid]:
    """Throughput and latency for each case, operation and block size; then the bars."""
    summaries = summarise(run)
    found: list[Grid] = []
    groups = dict.fromkeys((cell.case, cell.operation, cell.block_size) for cell, _ in summaries)
    for case, operation, block_size in groups:
        cells = sorted(
            {
                cell
                for cell, _ in summaries
                if (cell.case, cell.operation, cell.block_size) == (case, operation, block_size)
            },
            key=lambda cell: cell.depth,
        )
        title = f"Random {size_text(block_size)} {operation}s, {CASES[case].title}"
        found.append(
            grid(
                f"{title}: thousand operations/s, ratio to {run.labels[run.baseline]}",
                run,
                summaries,
                cells,
                throughput_text,
            )
        )
        found.append(grid(f"{title}: latency in us, p50 / p99 / p99.9", run, summaries, cells, latency_text))
        found.append(grid(f"{title}: processor time in us per operation", run, summaries, cells, cpu_text))
    verdicts = judge(run)
    if verdicts:
        rows = [
            [
                verdict.subject,
                f"{verdict.value:.2f}",
                f"{verdict.bar.needed:.2f}",
                f"{verdict.bar.goal:.2f}",
                verdict.word,
            ]
            for verdict in verdicts
        ]
        found.append(Grid("Bars", ["ratio", "measured", "first bar", "goal", ""], rows))
    return found


def grid(
    title: str,
    run: Run,
    summaries: dict[tuple[Cell, str], Summary],
    cells: list[Cell],
    text: Callable[[Summary], str],
) -> Grid:
    rows: list[list[str]] = []
    for contender, label in run.labels.items():
        texts = [
            text(summaries[cell, contender]) if (cell, contender) in summaries else "-" for cell in cells
        ]
        if any(shown != "-" for shown in texts):
            rows.append([label, *texts])
    return Grid(title, ["", *(f"depth {cell.depth}" for cell in cells)], rows)


def throughput_text(summary: Summary) -> str:
    rate = (
        f"{summary.rate.median / 1000:.1f}"
        if summary.rate.median < 100_000
        else f"{summary.rate.median / 1000:.0f}"
    )
    ratio = summary.ratio
    if ratio is None:
        return rate
    if ratio.low == ratio.high:
        return f"{rate}  {ratio.median:.2f}"
    return f"{rate}  {ratio.median:.2f} [{ratio.low:.2f}-{ratio.high:.2f}]"


def latency_text(summary: Summary) -> str:
    if summary.p50 is None:
        return f"mean {number(summary.mean)}" if summary.mean else "-"
    return f"{number(summary.p50)} / {number(summary.p99)} / {number(summary.p999)}"


def cpu_text(summary: Summary) -> str:
    return number(summary.cpu)


def number(spread: Spread | None) -> str:
    """A median with three digits that count."""
    if spread is None:
        return "-"
    value = spread.median
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def footnotes(run: Run) -> list[str]:
    """What a reader must know beside the figures."""
    rounds = max((record.round for record in run.records), default=0)
    notes = [
        f"Medians of {rounds} interleaved rounds; ratios are taken within each round, [lowest-highest].",
        "; ".join(f"{name}: {value}" for name, value in run.machine.items()),
    ]
    load = foreign_load(run)
    if load:
        notes.append(
            "Processors busy with anything but the process measured (a daemon, kernel threads, others):"
            f" median {load.median:.2f}, highest {load.high:.2f}."
        )
    notes += [f"Not measured: {run.labels.get(name, name)}: {reason}" for name, reason in run.absent.items()]
    failures: dict[str, int] = {}
    for record in run.records:
        if record.failure:
            text = f"{run.labels[record.contender]}, {describe_cell(record.cell)}: {record.failure}"
            failures[text] = failures.get(text, 0) + 1
    notes += [f"Failed {count} of {rounds} times: {text}" for text, count in failures.items()]
    return notes


def show(run: Run, console: Console) -> None:
    for shown in grids(run):
        console.print(shown.title, style="bold", highlight=False, markup=False, soft_wrap=True)
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for index, heading in enumerate(shown.head):
            table.add_column(heading, justify="right" if index else "left", no_wrap=bool(index))
        for row in shown.rows:
            table.add_row(*row)
        console.print(table, soft_wrap=True)
    for note in footnotes(run):
        console.print(note, style="dim", highlight=False, markup=False, soft_wrap=True)


def markdown(shown: Grid) -> str:
    lines = [f"**{shown.title}**", "", "| " + " | ".join(shown.head) + " |"]
    lines.append("|---|" + "---:|" * (len(shown.head) - 1))
    lines += ["| " + " | ".join(row) + " |" for row in shown.rows]
    return "\n".join(lines)
