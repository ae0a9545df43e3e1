"""A run as tables: built once as plain grids, shown on a terminal or written as Markdown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.bars import judge
from benchmarks.model import CASES, Cell, Run, describe_cell, size_text
from benchmarks.queues import two_beside_one
from benchmarks.standing import LEAD_HEAD, NOT_EXPLAINED, describe, explain, standing
from benchmarks.summary import Spread, Summary, foreign_load, summarise

LONGEST_FIGURE = 32
"""Characters; what is longer is text, which may go over several lines."""


@dataclass(frozen=True)
class Grid:
    title: str
    head: list[str]
    rows: list[list[str]]


def grids(run: Run) -> list[Grid]:
    """The bars and who is ahead of aioblk; then throughput, latency and processor time, cell by cell."""
    summaries = summarise(run)
    found = [*bars_grids(run)]
    for title, cells in tables_of_cells([cell for cell, _ in summaries]):
        for words, text in (
            (f"thousand operations/s, ratio to {run.labels[run.baseline]}", throughput_text),
            ("latency in us, p50 / p99 / p99.9", latency_text),
            ("processor time in us per operation", cpu_text),
        ):
            found.append(grid(f"{title}: {words}", run, summaries, cells, text))
    return found


def bars_grids(run: Run) -> list[Grid]:
    found: list[Grid] = []
    rows = [
        [
            *verdict.describe(run),
            f"{verdict.value.median:.3f} [{verdict.value.low:.2f}-{verdict.value.high:.2f}]",
            "-" if verdict.needed is None else f"{verdict.needed:.2f}",
            verdict.word,
        ]
        for verdict in judge(run)
    ]
    beside = standing(run)
    if beside.compared:
        ahead = beside.compared - len(beside.leads)
        explained = all(explain(lead) != NOT_EXPLAINED for lead in beside.leads)
        word = "met" if not beside.leads else "explained below" if explained else "NOT MET"
        rows.append(
            [
                "aioblk",
                "every cell, beside every other way in Python",
                "ahead in throughput",
                f"{ahead} of {beside.compared}",
                "all",
                word,
            ]
        )
    if rows:
        found.append(Grid("Bars", ["who", "where", "what", "measured", "needed", ""], rows))
    if beside.leads:
        found.append(Grid("Ahead of aioblk", LEAD_HEAD, [describe(lead, run) for lead in beside.leads]))
    return found


def tables_of_cells(cells: list[Cell]) -> list[tuple[str, list[Cell]]]:
    """Cells that share a table, with its title: a sweep over the depth, or other block sizes together."""
    groups: dict[tuple[str, str, int], set[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.case, cell.operation, cell.block_size), set()).add(cell)
    singles: dict[tuple[str, str], list[Cell]] = {}
    found: list[tuple[str, list[Cell]]] = []
    for (case, operation, block_size), group in groups.items():
        if len(group) == 1:
            singles.setdefault((case, operation), []).extend(group)
        else:
            title = f"Random {size_text(block_size)} {operation}s, {CASES[case].title}"
            found.append((title, sorted(group, key=lambda cell: cell.depth)))
    for (case, operation), group_cells in singles.items():
        title = f"Random {operation}s, {CASES[case].title}"
        found.append((title, sorted(group_cells, key=lambda cell: cell.block_size)))
    return sorted(found, key=lambda table: list(CASES).index(table[1][0].case))


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
    one_size = len({cell.block_size for cell in cells}) == 1
    head = [
        f"depth {cell.depth}" if one_size else f"{size_text(cell.block_size)}, depth {cell.depth}"
        for cell in cells
    ]
    return Grid(title, ["", *head], rows)


def throughput_text(summary: Summary) -> str:
    rate = (
        f"{summary.rate.median / 1000:.1f}"
        if summary.rate.median < 100_000
        else f"{summary.rate.median / 1000:.0f}"
    )
    return f"{rate}  {spread_text(summary.ratio)}" if summary.ratio else rate


def spread_text(spread: Spread) -> str:
    if spread.low == spread.high:
        return f"{spread.median:.2f}"
    return f"{spread.median:.2f} [{spread.low:.2f}-{spread.high:.2f}]"


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
    notes += two_beside_one(run)
    load = foreign_load(run)
    if load:
        notes.append(
            "Processors busy with anything but the process measured (a daemon, kernel threads, others):"
            f" median {load.median:.2f}, highest {load.high:.2f}."
        )
    notes += [f"Not measured: {run.labels.get(name, name)}: {reason}" for name, reason in run.absent.items()]
    notes += [
        f"Failed: {run.labels[record.contender]}, {describe_cell(record.cell)}: {record.failure}"
        for record in run.records
        if record.failure
    ]
    return notes


def show(run: Run, console: Console) -> None:
    for shown in grids(run):
        show_grid(shown, console)
    for note in footnotes(run):
        console.print(note, style="dim", highlight=False, markup=False, soft_wrap=True)


def show_grid(shown: Grid, console: Console) -> None:
    console.print(shown.title, style="bold", highlight=False, markup=False, soft_wrap=True)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for index, heading in enumerate(shown.head):
        is_text = has_text(shown, index)
        table.add_column(heading, justify="left" if is_text or not index else "right", no_wrap=not is_text)
    for row in shown.rows:
        table.add_row(*row)
    console.print(table, soft_wrap=True)


def has_text(shown: Grid, column: int) -> bool:
    return any(len(row[column]) > LONGEST_FIGURE for row in shown.rows)


def markdown(shown: Grid) -> str:
    lines = [f"**{shown.title}**", "", "| " + " | ".join(shown.head) + " |"]
    others = range(1, len(shown.head))
    lines.append("|---|" + "".join("---|" if has_text(shown, column) else "---:|" for column in others))
    lines += ["| " + " | ".join(row) + " |" for row in shown.rows]
    return "\n".join(lines)
